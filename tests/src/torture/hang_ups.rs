//! Clients that hang up, and timeouts, in the middle of transactions, beside another route that writes by single statements on
//! the same pool: no acknowledged write of that route may be lost.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use resilience_core::{
    deadline::Timeout,
    execute,
    sql::{self, inbox::Inbox},
};
use sqlx::{
    Connection, PgConnection, Postgres as Pg, Sqlite, SqliteConnection,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use tokio::time::timeout;
use tower::ServiceBuilder;

use crate::{
    postgres::Postgres,
    proxy::{Proxy, Weather},
};

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct HungUp {
    /// Acknowledged writes of the other route.
    pub acknowledged: usize,
    /// Of those, not in the database.
    pub lost: usize,
    /// Transactions that were given up.
    pub given_up: usize,
    /// Transactions that were committed.
    pub committed: usize,
    /// Effects of the inbox beyond one per key.
    pub twice: usize,
}

const TABLES: &str = "CREATE TABLE writes (n BIGINT NOT NULL);
                      CREATE TABLE effects (what TEXT NOT NULL)";
const WRITE: &str = "INSERT INTO writes VALUES ($1)";
const EFFECT: &str = "INSERT INTO effects VALUES ($1)";
const WRITERS: usize = 2;
const CLIENTS: usize = 8;
/// Of most clients: about what a transaction takes.
const PATIENCE: u64 = 24;
const LIMIT: Duration = Duration::from_secs(300);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

macro_rules! storm {
    ($storm:ident, $DB:ty) => {
        /// Runs until `writes` writes of the other route are acknowledged.
        async fn $storm(pool: &sqlx::Pool<$DB>, writes: usize) -> HungUp {
            sqlx::raw_sql(TABLES).execute(pool).await.expect("tables");
            let inbox = Inbox::<$DB>::builder("orders").build().expect("an inbox");
            inbox.migrate(pool).await.expect("its table");
            let acknowledged = AtomicUsize::new(0);
            let (given_up, committed) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let over = AtomicBool::new(false);

            let writer = || async {
                while acknowledged.load(SeqCst) < writes {
                    let n = acknowledged.fetch_add(1, SeqCst) as i64;
                    let write = sqlx::query(WRITE).persistent(false).bind(n).execute(pool);
                    // Not acknowledged: another write in its place.
                    if write.await.is_err() {
                        acknowledged.fetch_sub(1, SeqCst);
                    }
                }
            };
            let count = |done: bool| {
                let counter = if done { &committed } else { &given_up };
                counter.fetch_add(1, SeqCst);
            };
            let client = |client: usize| {
                let (inbox, over, count) = (&inbox, &over, &count);
                async move {
                    for call in 0_u64.. {
                        if over.load(SeqCst) {
                            return;
                        }
                        // Each key is asked for until it is done, and once more.
                        let key = format!("{client}-{}", call / 3);
                        let patience = patience(call);
                        let done = match client % 2 {
                            0 => {
                                let what = &key;
                                let run = inbox.run(pool, &*key, |mut work| async move {
                                    sqlx::query(EFFECT).bind(what).execute(&mut *work).await?;
                                    Ok::<_, sqlx::Error>(work.done(()))
                                });
                                matches!(timeout(patience, run).await, Ok(Ok(_)))
                            }
                            _ => {
                                guarded_by_a_timeout(patience, || async {
                                    let mut tx = sql::begin(pool).await?;
                                    sqlx::query(WRITE).bind(-1_i64).execute(&mut *tx).await?;
                                    tx.commit().await
                                })
                                .await
                            }
                        };
                        count(done);
                    }
                }
            };
            let writers = async {
                futures_util::future::join_all((0..WRITERS).map(|_| writer())).await;
                over.store(true, SeqCst);
            };
            let clients = futures_util::future::join_all((0..CLIENTS).map(client));
            tokio::join!(writers, clients);
            // What is open ends here, and is lost.
            pool.close().await;
            HungUp {
                acknowledged: acknowledged.into_inner(),
                lost: 0,
                given_up: given_up.into_inner(),
                committed: committed.into_inner(),
                twice: 0,
            }
        }
    };
}

storm!(on_postgres, Pg);
storm!(on_sqlite, Sqlite);

/// How long a client waits; some wait for the answer.
fn patience(call: u64) -> Duration {
    match call % 8 {
        7 => LIMIT,
        _ => ms(fastrand::u64(1..PATIENCE)),
    }
}

/// Whether it ended in time, under a timeout of the toolkit.
async fn guarded_by_a_timeout<F, Fut>(patience: Duration, work: F) -> bool
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), sqlx::Error>>,
{
    let timeout = Timeout::new("orders", patience).expect("above zero");
    let guarded = execute::guard(ServiceBuilder::new().layer(timeout.layer()));
    guarded.call(&work).await.is_ok()
}

/// Counts, on a connection of its own, what is there.
macro_rules! account {
    ($hung_up:ident, $connection:ident) => {{
        let numbers: Vec<i64> = sqlx::query_scalar("SELECT n FROM writes WHERE n >= 0")
            .fetch_all(&mut $connection)
            .await
            .expect("the writes");
        let there: std::collections::HashSet<i64> = numbers.into_iter().collect();
        let twice: i64 = sqlx::query_scalar("SELECT count(*) - count(DISTINCT what) FROM effects")
            .fetch_one(&mut $connection)
            .await
            .expect("the effects");
        HungUp {
            lost: $hung_up.acknowledged - there.len(),
            twice: twice as usize,
            ..$hung_up
        }
    }};
}

/// In a database of its own on `server`, over a line with 1 ms of latency in each direction.
///
/// # Panics
/// If it takes longer than five minutes.
pub async fn hang_ups_on_postgres(server: &Postgres, writes: usize) -> HungUp {
    let admin = PgConnection::connect(&server.url()).await;
    let create = sqlx::raw_sql("CREATE DATABASE hang_ups");
    let created = create.execute(&mut admin.expect("a connection")).await;
    created.expect("a database");
    let mut proxy = Proxy::to(server.address()).await.expect("a port");
    proxy.set(Weather::Latency(ms(1))).await;
    let url = |address| format!("postgres://postgres@{address}/hang_ups");
    // Else many are dropped during that test, which closes the connection.
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .test_before_acquire(false);
    let pool = pool.connect(&url(proxy.address())).await;
    let hung_up = timeout(LIMIT, on_postgres(&pool.expect("a connection"), writes)).await;
    let hung_up = hung_up.expect("done in time");
    let direct = PgConnection::connect(&url(server.address())).await;
    let mut direct = direct.expect("a connection");
    account!(hung_up, direct)
}

/// On a SQLite in a file.
///
/// # Panics
/// If there is no room for it.
pub async fn hang_ups_on_sqlite(writes: usize) -> HungUp {
    let folder = tempfile::tempdir().expect("a folder");
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(ms(10_000));
    let pool = SqlitePoolOptions::new().max_connections(4);
    let pool = pool.connect_with(options.clone()).await.expect("a file");
    let hung_up = timeout(LIMIT, on_sqlite(&pool, writes)).await;
    let hung_up = hung_up.expect("done in time");
    let direct = SqliteConnection::connect_with(&options).await;
    let mut direct = direct.expect("a connection");
    account!(hung_up, direct)
}
