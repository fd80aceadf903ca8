//! An outbox whose relays and database are killed: events from transactions to effects.
//!
//! Writers change a row and publish its version, in one transaction. Relays are processes of their own, killed and stopped at will. A
//! consumer writes each version down, in an inbox. In the end, the rows that were committed, the stream, and the effects are compared.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use resilience_core::{
    Consumer, FleetOptions, PgInbox, PgOutbox,
    retry::Backoff,
    sql::{self, inbox::Work},
    stream::{Message, Position, StreamBroker},
};
use resilience_redis::{Redis, RedisStreams};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{PgPool, Postgres as Pg, postgres::PgPoolOptions};
use tokio::{
    io::{AsyncReadExt, stdin},
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{postgres::Postgres, redis::RedisServer, until::eventually};

/// What is to be endured.
#[derive(Clone, Copy, Debug)]
pub struct OutboxPlan {
    /// Events to commit, at least.
    pub events: usize,
    /// Processes that relay.
    pub relays: usize,
    /// Time from one fault to the next; every eighth one is the database's.
    pub calm: Duration,
    /// After this it has failed.
    pub limit: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxReport {
    /// Events that were committed.
    pub committed: usize,
    /// Events that were committed and are not in the stream, or had no effect.
    pub lost: usize,
    /// Events in the stream that were not committed.
    pub invented: usize,
    /// Events that are in the stream more than once, whether or not that had effects.
    pub stored_twice: usize,
    /// Effects beyond the first of an event.
    pub effects_twice: usize,
    /// Events that stand in the stream behind a later one of their key.
    pub out_of_order: usize,
    /// `kill -9` of a relay.
    pub kills: usize,
    /// `kill -STOP` of a relay, for longer than its lease.
    pub stops: usize,
    /// `kill -9` of the database.
    pub database_kills: usize,
}

const LEASE: Duration = Duration::from_millis(1_000);
const KEYS: usize = 40;
const WRITERS: usize = 8;

type Event = (usize, i64);

/// Runs the plan with servers of its own. `program` is the binary `torture`.
///
/// # Panics
/// If the servers do not start, or it takes longer than the limit.
pub async fn outbox(program: &Path, plan: OutboxPlan) -> OutboxReport {
    let run = Run::start(program, plan).await;
    let endured = tokio::time::timeout(plan.limit, run.endure());
    endured
        .await
        .unwrap_or_else(|_| panic!("not done within {:?}", plan.limit))
}

/// One of the processes that relay: `DATABASE REDIS`. Ends with its input.
///
/// # Panics
/// If the arguments are others.
pub async fn relay(arguments: &[String]) {
    let [database, redis] = arguments else {
        panic!("DATABASE REDIS");
    };
    let broker = Redis::connect(redis).expect("an address").streams();
    let relay = made()
        .relay(&connect(database), broker)
        .lease(LEASE)
        .poll(LEASE / 20);
    let relay = relay.batch(50).fleet(FleetOptions::new().budget(LEASE / 4));
    let relay = relay.backoff(Backoff::decorrelated_jitter(LEASE / 50, LEASE / 2));
    let _relay = relay.build().expect("valid settings");
    let _ = stdin().read_to_end(&mut Vec::new()).await;
}

fn made() -> PgOutbox<Event> {
    PgOutbox::builder("orders").build().expect("valid settings")
}

fn connect(database: &str) -> PgPool {
    let pool = PgPoolOptions::new()
        .max_connections(12)
        .acquire_timeout(LEASE * 2);
    pool.connect_lazy(database).expect("an address")
}

struct Run {
    plan: OutboxPlan,
    program: PathBuf,
    postgres: Postgres,
    redis: RedisServer,
    pool: PgPool,
    broker: RedisStreams,
    relays: Vec<Child>,
    report: OutboxReport,
}

impl Run {
    async fn start(program: &Path, plan: OutboxPlan) -> Self {
        let (postgres, redis) = (Postgres::start(), RedisServer::start());
        let pool = connect(&postgres.url());
        // No constraint that would keep out a second effect.
        let tables = "CREATE TABLE accounts (key bigint PRIMARY KEY, version bigint NOT NULL);
                      CREATE TABLE committed (key bigint NOT NULL, version bigint NOT NULL);
                      CREATE TABLE effects (key bigint NOT NULL, version bigint NOT NULL)";
        sqlx::raw_sql(tables).execute(&pool).await.expect("tables");
        let accounts =
            sqlx::query("INSERT INTO accounts SELECT n, 0 FROM generate_series(0, $1 - 1) AS n");
        accounts
            .bind(KEYS as i64)
            .execute(&pool)
            .await
            .expect("accounts");
        made().migrate(&pool).await.expect("an outbox");
        inbox().migrate(&pool).await.expect("an inbox");
        let broker = Redis::connect(&redis.url()).expect("an address").streams();
        let mut run = Self {
            plan,
            program: program.to_owned(),
            postgres,
            redis,
            pool,
            broker,
            relays: Vec::new(),
            report: OutboxReport::default(),
        };
        for _ in 0..plan.relays {
            let relay = run.another_relay();
            run.relays.push(relay);
        }
        run
    }

    fn another_relay(&self) -> Child {
        Command::new(&self.program)
            .args(["relay", &self.postgres.url(), &self.redis.url()])
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts")
    }

    async fn endure(mut self) -> OutboxReport {
        let consumer = Consumer::<Event>::builder("orders", self.broker.clone())
            .group("effects")
            .lanes(|message| message.key.clone())
            // The database is away at times.
            .max_deliveries(1_000)
            .retry(Backoff::fixed(LEASE / 10))
            .build()
            .expect("valid settings");
        let pool = self.pool.clone();
        let consuming = consumer.run(move |message| handle(pool.clone(), message));
        let enduring = async {
            self.suffer().await;
            self.settle().await;
            consumer
                .shutdown(Duration::from_secs(10))
                .await
                .expect("it ends");
        };
        let (consumed, ()) = tokio::join!(consuming, enduring);
        consumed.expect("no loss");
        self.balance().await
    }

    /// Faults until all is written.
    async fn suffer(&mut self) {
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let (pool, events) = (self.pool.clone(), self.plan.events.div_ceil(WRITERS));
            writers.spawn(async move { write(&pool, writer, events).await });
        }
        let mut faults = 0;
        while !writers.is_empty() {
            let until = Instant::now() + self.plan.calm;
            while let Ok(Some(written)) = tokio::time::timeout_at(until, writers.join_next()).await
            {
                written.expect("no panic");
            }
            faults += 1;
            match faults % 8 {
                0 => self.kill_database().await,
                3 | 6 => self.stop_a_relay().await,
                _ => self.kill_a_relay().await,
            }
        }
    }

    async fn kill_a_relay(&mut self) {
        let at = fastrand::usize(..self.relays.len());
        self.relays[at].kill().await.expect("it was running");
        self.relays[at] = self.another_relay();
        self.report.kills += 1;
    }

    async fn stop_a_relay(&mut self) {
        let relay = fastrand::choice(&self.relays)
            .and_then(Child::id)
            .expect("it runs");
        let pid = Pid::from_raw(relay.cast_signed()).expect("a process id");
        kill_process(pid, Signal::STOP).expect("it can be signalled");
        sleep(LEASE.mul_f64(1.8)).await;
        kill_process(pid, Signal::CONT).expect("it can be signalled");
        self.report.stops += 1;
    }

    async fn kill_database(&mut self) {
        self.postgres.kill();
        sleep(LEASE / 5).await;
        tokio::task::block_in_place(|| self.postgres.start_again());
        self.report.database_kills += 1;
    }

    /// Waits until everything has arrived that arrives.
    async fn settle(&self) {
        const LONG: Duration = Duration::from_secs(120);
        eventually("the outbox is empty", LONG, || async {
            count(&self.pool, "SELECT count(*) FROM outbox").await == Some(0)
        })
        .await;
        let handled = "SELECT count(*) FROM committed LEFT JOIN effects USING (key, version) WHERE effects IS NULL";
        eventually("every event had its effect", LONG, || async {
            count(&self.pool, handled).await == Some(0)
        })
        .await;
    }

    async fn balance(mut self) -> OutboxReport {
        let committed = rows(&self.pool, "SELECT key, version FROM committed").await;
        let effects = rows(&self.pool, "SELECT key, version FROM effects").await;
        let stream = self.stream().await;
        let mut stored: HashMap<Event, usize> = HashMap::new();
        let mut last: HashMap<usize, i64> = HashMap::new();
        for &(key, version) in &stream {
            *stored.entry((key, version)).or_default() += 1;
            let last = last.entry(key).or_default();
            if version < *last {
                self.report.out_of_order += 1;
            }
            *last = version.max(*last);
        }
        let had_effect = counted(&effects);
        let report = &mut self.report;
        report.committed = committed.len();
        let arrived =
            |event: &&Event| stored.contains_key(*event) && had_effect.contains_key(*event);
        report.lost = committed.len() - committed.iter().filter(arrived).count();
        let committed = counted(&committed);
        report.invented = stored
            .keys()
            .filter(|event| !committed.contains_key(*event))
            .count();
        report.stored_twice = stream.len() - stored.len();
        report.effects_twice = effects.len() - had_effect.len();
        self.report
    }

    async fn stream(&self) -> Vec<Event> {
        let (mut events, mut from) = (Vec::new(), Position::START);
        loop {
            // It fails on a busy machine; the limit of the plan is the bound.
            let Ok(some) = self.broker.peek("orders", from, 1_000).await else {
                sleep(LEASE / 100).await;
                continue;
            };
            let Some((last, _)) = some.last() else {
                return events;
            };
            from = last.next();
            let event = |message: &[u8]| serde_json::from_slice(message).expect("an event");
            events.extend(
                some.iter()
                    .map(|(_, message)| -> Event { event(&message.body) }),
            );
        }
    }
}

fn counted(events: &[Event]) -> HashMap<Event, usize> {
    let mut counts = HashMap::new();
    for event in events {
        *counts.entry(*event).or_default() += 1;
    }
    counts
}

fn inbox() -> PgInbox {
    PgInbox::builder("effects").build().expect("valid settings")
}

/// Commits this many events at least: one of which that is not known may be there too.
async fn write(pool: &PgPool, writer: usize, events: usize) {
    let outbox = made();
    let mut random = fastrand::Rng::with_seed(writer as u64);
    let mut left = events;
    while left > 0 {
        let key = random.usize(..KEYS);
        let written = async {
            let mut tx = sql::begin(pool).await?;
            let next = "UPDATE accounts SET version = version + 1 WHERE key = $1 RETURNING version";
            let next = sqlx::query_scalar(next).bind(key as i64);
            let version: i64 = next.fetch_one(&mut *tx).await?;
            let committed = sqlx::query("INSERT INTO committed VALUES ($1, $2)");
            committed
                .bind(key as i64)
                .bind(version)
                .execute(&mut *tx)
                .await?;
            outbox
                .publish(&mut tx, &key.to_string(), &(key, version))
                .await?;
            tx.commit().await
        };
        match written.await {
            Ok(()) => left -= 1,
            Err(_) => sleep(LEASE / 50).await,
        }
    }
}

async fn handle(pool: PgPool, message: Message<Event>) -> Result<(), String> {
    let id = message.id().to_owned();
    let (key, version) = message.into_event();
    let handled = inbox();
    let handled = handled.run(&pool, &*id, |mut work: Work<Pg>| async move {
        let effect = sqlx::query("INSERT INTO effects VALUES ($1, $2)");
        effect
            .bind(key as i64)
            .bind(version)
            .execute(&mut *work)
            .await?;
        Ok::<_, sqlx::Error>(work.done(()))
    });
    handled.await.map(drop).map_err(|error| error.to_string())
}

async fn count(pool: &PgPool, query: &'static str) -> Option<i64> {
    sqlx::query_scalar(query).fetch_one(pool).await.ok()
}

async fn rows(pool: &PgPool, query: &'static str) -> Vec<Event> {
    let rows: Vec<(i64, i64)> = sqlx::query_as(query).fetch_all(pool).await.expect("rows");
    rows.into_iter()
        .map(|(key, version)| (key as usize, version))
        .collect()
}
