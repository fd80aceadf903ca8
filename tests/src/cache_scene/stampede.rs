//! Processes whose callers all ask for one key at the moment it expires.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Stdio, id},
    time::Duration,
};

use futures_util::future::join_all;
use resilience_core::Cache;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, stdin},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{sleep, timeout},
};

use super::{HOUR, SOON, builder, store, told, until};
use crate::redis::RedisServer;

/// The argument that makes a program one of the processes: `stampede URL FILE hangs|loads`. FILE gets a line per load.
pub const INSTANCE: &str = "stampede";

const NAME: &str = "stampede";
const KEY: &str = "key";
/// How long a load takes: until every caller has asked, also on a busy machine.
const LOAD: Duration = Duration::from_millis(200);
/// How long the others wait for a holder that is killed.
const LEASE: Duration = Duration::from_millis(1500);

/// The size of a stampede.
#[derive(Clone, Copy, Debug)]
pub struct Stampede {
    /// Processes.
    pub processes: usize,
    /// Callers of each.
    pub callers: usize,
    /// How often the key expires.
    pub expiries: usize,
    /// Whether the first process that loads is killed (`kill -9`) while it does, each time.
    pub killed: bool,
}

/// Returns the number of loads.
///
/// # Panics
///
/// If a caller gets no value, or one of an earlier time.
pub async fn stampede(program: &Path, plan: Stampede) -> usize {
    let server = RedisServer::start();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("loads");
    fs::write(&file, "").expect("a file");
    let url = server.url();
    let redis_key = store(&url).await.key(NAME, KEY);
    let start = || Process::start(program, &url, &file, plan.killed);
    let mut processes = join_all((0..plan.processes).map(|_| start())).await;
    for round in 1..=plan.expiries {
        let go = format!("go {round} {}", plan.callers);
        join_all(processes.iter_mut().map(|it| it.tell(&go))).await;
        if plan.killed {
            let holder = first_load(&file, round).await;
            let at = processes
                .iter()
                .position(|it| it.child.id() == Some(holder));
            processes.swap_remove(at.expect("one of them")).end().await;
        }
        for process in &mut processes {
            assert_eq!(process.answer().await, format!("all got {round}"));
        }
        if plan.killed {
            processes.push(start().await);
        }
        // A moment later it is gone, as by a time to live that ended; every process hears of that.
        let _ = server.command(&format!("PEXPIRE {redis_key} 1"));
        for process in &mut processes {
            process.tell("expired").await;
            assert_eq!(process.answer().await, "expired");
        }
    }
    loads(&file).len()
}

/// Rounds and process ids.
fn loads(file: &Path) -> Vec<(usize, u32)> {
    let text = fs::read_to_string(file).expect("a file");
    let line = |line: &str| {
        let (round, process) = line.split_once(' ')?;
        Some((round.parse().ok()?, process.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// The process that loads first in a round.
async fn first_load(file: &Path, round: usize) -> u32 {
    let mut found = None;
    until("a process loads", || {
        let first = loads(file).into_iter().find(|(of, _)| *of == round);
        found = first.map(|(_, process)| process);
        found.is_some()
    })
    .await;
    found.expect("found above")
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    async fn start(program: &Path, url: &str, file: &Path, hangs: bool) -> Self {
        let mut child = Command::new(program)
            .args([INSTANCE, url])
            .arg(file)
            .arg(if hangs { "hangs" } else { "loads" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let input = child.stdin.take().expect("its input");
        let output = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut process = Self {
            child,
            input,
            output,
        };
        assert_eq!(process.answer().await, "ready");
        process
    }

    async fn tell(&mut self, line: &str) {
        let line = format!("{line}\n");
        let told = self.input.write_all(line.as_bytes()).await;
        told.expect("it listens");
    }

    async fn answer(&mut self) -> String {
        let line = timeout(SOON, self.output.next_line()).await;
        let line = line.expect("an answer in time").expect("readable");
        line.expect("it lives")
    }

    async fn end(mut self) {
        self.child.kill().await.expect("kill -9");
    }
}

/// One of the processes: does what its input says, a line each.
///
/// # Panics
///
/// If its arguments or its input make no sense.
pub async fn instance(arguments: &[String]) {
    let [url, file, how] = arguments else {
        panic!("URL FILE hangs|loads");
    };
    let cache = told(builder::<String>(NAME).lease(LEASE), url).await;
    let loader = Loader {
        file: file.into(),
        hangs: how == "hangs",
    };
    let mut lines = BufReader::new(stdin()).lines();
    say("ready");
    while let Ok(Some(line)) = lines.next_line().await {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["go", round, callers] => {
                let (round, callers) = (number(round), number(callers));
                let calls = (0..callers).map(|_| call(&cache, &loader, round));
                let got = join_all(calls.map(tokio::spawn)).await;
                let is_right = got
                    .into_iter()
                    .all(|it| it.ok() == Some(Some(round as u64)));
                say(&if is_right {
                    format!("all got {round}")
                } else {
                    "some got something else".to_owned()
                });
            }
            ["expired"] => {
                until("it has expired", || cache.peek_with(KEY, |_| ()).is_none()).await;
                while cache.get(KEY).await.is_some() {
                    sleep(Duration::from_millis(1)).await;
                }
                say("expired");
            }
            _ => panic!("{line}"),
        }
    }
}

fn number(word: &str) -> usize {
    word.parse().expect("a number")
}

fn say(line: &str) {
    println!("{line}");
    io::stdout().flush().expect("someone listens");
}

#[derive(Clone)]
struct Loader {
    file: PathBuf,
    /// Whether the first load of a round does not end.
    hangs: bool,
}

impl Loader {
    async fn load(self, round: usize) -> Result<u64, io::Error> {
        let mut file = fs::OpenOptions::new().append(true).open(&self.file)?;
        // One write: lines of several processes do not mix.
        file.write_all(format!("{round} {}\n", id()).as_bytes())?;
        let first = loads(&self.file).into_iter().find(|(of, _)| *of == round);
        if self.hangs && first == Some((round, id())) {
            sleep(HOUR).await;
        }
        sleep(LOAD).await;
        Ok(round as u64)
    }
}

fn call(
    cache: &Cache<String, u64>,
    loader: &Loader,
    round: usize,
) -> impl Future<Output = Option<u64>> + Send + use<> {
    let (cache, loader) = (cache.clone(), loader.clone());
    async move {
        let got = cache.get_or_load(KEY, move || loader.load(round)).await;
        Some(*got.ok()??)
    }
}
