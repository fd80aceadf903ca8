//! A write-behind whose writers, sinkers and Redis are killed: acknowledged writes against what reaches the database.
//!
//! Writers write random keys and say each version that was acknowledged. Sinkers are processes of their own; the database is another
//! server, which compares versions and counts what comes in the wrong order. In the end, the last acknowledged version of each key
//! is compared with the database's.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::{
    FleetOptions, WriteBehind,
    retry::Backoff,
    write_behind::{Batch, WriteBehindBuilder},
};
use resilience_redis::Redis;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, stdin},
    process::{Child, Command},
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep},
};

use crate::{redis::RedisServer, redis_connection::RedisConnection};

/// The first argument of its processes.
pub const WRITE_BEHIND: &str = "write_behind";

/// What is to be endured.
#[derive(Clone, Copy, Debug)]
pub struct WriteBehindPlan {
    /// Writes to acknowledge, at least.
    pub writes: usize,
    /// Processes that write, and as many that sink.
    pub processes: usize,
    /// Redis' `appendfsync`.
    pub fsync: &'static str,
    /// Time from one kill to the next.
    pub calm: Duration,
    /// After this it has failed.
    pub limit: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteBehindReport {
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Keys whose last acknowledged write, or a later one, is not in the database.
    pub lost: usize,
    /// Changes that the database was given after later ones of their key.
    pub reordered: usize,
    /// Changes that the database was given.
    pub given: usize,
    /// `kill -9` of writers and sinkers.
    pub kills: usize,
    /// `kill -9` of Redis.
    pub redis_kills: usize,
}

const LEASE: Duration = Duration::from_millis(1_000);
const KEYS: usize = 5_000;
const SHARDS: u32 = 4;
/// Calls at a time, of a writer.
const CALLS: usize = 16;

/// Compares versions as a database does.
const UPSERT: &str = "
for i = 1, #ARGV, 2 do
  local known = tonumber(redis.call('HGET', 'versions', ARGV[i]) or '0')
  local version = tonumber(ARGV[i + 1])
  if version < known then redis.call('INCR', 'reordered') end
  if version > known then redis.call('HSET', 'versions', ARGV[i], ARGV[i + 1]) end
end
return redis.call('INCRBY', 'given', #ARGV / 2)";

/// Runs the plan with servers of its own. `program` is the binary `torture`.
///
/// # Panics
/// If the servers do not start, or it takes longer than the limit.
pub async fn write_behind(program: &Path, plan: WriteBehindPlan) -> WriteBehindReport {
    let run = Run::start(program, plan);
    let endured = tokio::time::timeout(plan.limit, run.endure());
    endured
        .await
        .unwrap_or_else(|_| panic!("not done within {:?}", plan.limit))
}

/// One of the processes: `write REDIS` or `sink REDIS DATABASE`. Ends with its input.
///
/// # Panics
/// If the arguments are others.
pub async fn write_behind_process(arguments: &[String]) {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["write", redis] => write(redis).await,
        ["sink", redis, database] => {
            let database = database.to_owned();
            let sinker = made(redis).sink(move |batch| upsert(database.clone(), batch));
            let _sinker = sinker.build().expect("valid settings");
            let _ = stdin().read_to_end(&mut Vec::new()).await;
        }
        _ => panic!("write REDIS | sink REDIS DATABASE"),
    }
}

fn made(redis: &str) -> WriteBehindBuilder<u64> {
    let store = Redis::connect(redis).expect("an address").write_behind();
    WriteBehind::builder("rows", store)
        .shards(SHARDS)
        .lease(LEASE)
        .poll(LEASE / 20)
        .batch(50, LEASE / 50)
        .backoff(Backoff::decorrelated_jitter(LEASE / 50, LEASE / 2))
        .fleet(FleetOptions::new().budget(LEASE / 4))
}

async fn upsert(database: String, batch: Batch<u64>) -> Result<(), String> {
    let writing = spawn_blocking(move || {
        let mut words = vec!["EVAL".to_owned(), UPSERT.to_owned(), "0".to_owned()];
        for change in &batch {
            words.push(change.key().to_owned());
            words.push(change.version().to_string());
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = RedisConnection::open(&database)?.ask(&words)?;
        if answer.starts_with('-') {
            return Err(std::io::Error::other(answer));
        }
        Ok::<_, std::io::Error>(())
    });
    let written = writing.await.map_err(|error| error.to_string())?;
    written.map_err(|error| error.to_string())
}

async fn write(redis: &str) {
    let rows = made(redis).build().expect("valid settings");
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let rows = rows.clone();
        calls.spawn(async move {
            loop {
                let key = format!("row-{}", fastrand::usize(..KEYS));
                match rows.write(&key, &fastrand::u64(..)).await {
                    // Said after it was acknowledged.
                    Ok(written) => println!("{key} {}", written.version),
                    Err(_) => sleep(LEASE / 50).await,
                }
            }
        });
    }
    let _ = stdin().read_to_end(&mut Vec::new()).await;
}

/// The highest version of each key that was acknowledged.
#[derive(Debug, Default)]
struct Ledger {
    versions: Mutex<HashMap<String, u64>>,
    many: AtomicUsize,
}

impl Ledger {
    fn note(&self, line: &str) {
        let (key, version) = line.split_once(' ').expect("a key and a version");
        let version: u64 = version.parse().expect("a version");
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = versions.entry(key.to_owned()).or_default();
        *known = version.max(*known);
        self.many.fetch_add(1, Relaxed);
    }
}

struct Run {
    plan: WriteBehindPlan,
    program: PathBuf,
    redis: RedisServer,
    database: RedisServer,
    ledger: Arc<Ledger>,
    readers: JoinSet<()>,
    writers: Vec<Child>,
    sinkers: Vec<Child>,
    report: WriteBehindReport,
}

impl Run {
    fn start(program: &Path, plan: WriteBehindPlan) -> Self {
        let persistent = ["--appendonly", "yes", "--appendfsync", plan.fsync];
        let mut run = Self {
            plan,
            program: program.to_owned(),
            redis: RedisServer::start_with(&persistent),
            database: RedisServer::start(),
            ledger: Arc::default(),
            readers: JoinSet::new(),
            writers: Vec::new(),
            sinkers: Vec::new(),
            report: WriteBehindReport::default(),
        };
        for _ in 0..plan.processes {
            let (writer, sinker) = (run.another_writer(), run.another_sinker());
            run.writers.push(writer);
            run.sinkers.push(sinker);
        }
        run
    }

    fn process(&self, words: &[&str]) -> Child {
        Command::new(&self.program)
            .arg(WRITE_BEHIND)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts")
    }

    fn another_sinker(&self) -> Child {
        self.process(&["sink", &self.redis.url(), &self.database.addr()])
    }

    fn another_writer(&mut self) -> Child {
        let mut child = self.process(&["write", &self.redis.url()]);
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let ledger = Arc::clone(&self.ledger);
        self.readers.spawn(async move {
            let mut line = String::new();
            // A process that is killed may leave half a line.
            while output.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                if let Some(whole) = line.strip_suffix('\n') {
                    ledger.note(whole);
                }
                line.clear();
            }
        });
        child
    }

    async fn endure(mut self) -> WriteBehindReport {
        let mut turn = 0;
        while self.ledger.many.load(Relaxed) < self.plan.writes {
            sleep(self.plan.calm).await;
            turn += 1;
            let at = fastrand::usize(..self.plan.processes);
            if turn % 2 == 0 {
                self.writers[at].kill().await.expect("it was running");
                self.writers[at] = self.another_writer();
            } else {
                self.sinkers[at].kill().await.expect("it was running");
                self.sinkers[at] = self.another_sinker();
            }
            self.report.kills += 1;
            let is_half = self.ledger.many.load(Relaxed) >= self.plan.writes / 2;
            if is_half && self.report.redis_kills == 0 {
                tokio::task::block_in_place(|| self.redis.restart());
                self.report.redis_kills += 1;
            }
        }
        for writer in &mut self.writers {
            writer.kill().await.expect("it was running");
        }
        while self.readers.join_next().await.is_some() {}
        self.settle().await;
        self.balance()
    }

    /// Waits until everything has arrived that arrives.
    async fn settle(&self) {
        let rows = made(&self.redis.url()).build().expect("valid settings");
        let until = Instant::now() + Duration::from_secs(120);
        while rows.flush(LEASE).await.is_err() {
            assert!(
                Instant::now() < until,
                "not sunk: {:?}",
                rows.pending().await
            );
        }
    }

    fn balance(mut self) -> WriteBehindReport {
        let found = self.database.command("HGETALL versions");
        let mut found = found.lines();
        let mut sunk = HashMap::new();
        while let (Some(key), Some(version)) = (found.next(), found.next()) {
            sunk.insert(key.to_owned(), version.parse::<u64>().expect("a version"));
        }
        let number = |key: &str| self.database.command(&format!("GET {key}")).parse();
        self.report.reordered = number("reordered").unwrap_or(0);
        self.report.given = number("given").unwrap_or(0);
        self.report.acknowledged = self.ledger.many.load(Relaxed);
        let versions = self
            .ledger
            .versions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_lost =
            |(key, version): &(&String, &u64)| sunk.get(*key).is_none_or(|it| it < *version);
        self.report.lost = versions.iter().filter(is_lost).count();
        self.report
    }
}
