//! What is tortured: each of the ways to do work once.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use resilience_core::{
    fleet::FleetOptions,
    idempotency::{
        Attempt, Disposition, Effect, Idempotency, IdempotencyStore, Json, Recorded, Source,
        record::Previous,
    },
    sql::inbox::PgInbox,
};
use resilience_redis::Redis;
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};

/// Whose promise is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The inbox: record and effect in one transaction, the line to PostgreSQL breaking.
    Inbox,
    /// Records in Redis, effects in PostgreSQL under the fence, the line to Redis breaking.
    Redis,
}

impl Subject {
    /// Each of them.
    pub const ALL: &[Self] = &[Self::Inbox, Self::Redis];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Inbox => "inbox",
            Self::Redis => "redis",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let subject = Self::ALL.iter().find(|subject| subject.as_str() == word);
        subject
            .copied()
            .ok_or_else(|| format!("no subject is called {word}"))
    }
}

/// The tables, and the inbox.
pub(super) async fn set_up(pool: &PgPool, keys: usize) {
    // No constraint that would keep out a second effect: that is for the subject to do.
    let tables =
        "CREATE TABLE effects (key text NOT NULL, fence bigint NOT NULL, worker int NOT NULL);
                  CREATE TABLE accounts (key text PRIMARY KEY, fence bigint NOT NULL)";
    sqlx::raw_sql(tables).execute(pool).await.expect("tables");
    let accounts = "INSERT INTO accounts SELECT 'key-' || lpad(n::text, 5, '0'), 0 FROM generate_series(0, $1 - 1) AS n";
    let accounts = sqlx::query(accounts).bind(keys as i64);
    accounts
        .execute(pool)
        .await
        .expect("an account for each key");
    inbox().migrate(pool).await.expect("an inbox");
}

fn inbox() -> PgInbox {
    let inbox = PgInbox::builder("torture").wait(Duration::from_secs(2));
    inbox.build().expect("valid settings")
}

/// How long a piece of work takes: some longer than a lease, so that it has to be renewed.
fn pace(key: &str) -> Duration {
    let number = key.bytes().fold(7_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    match number % 20 {
        0 => Duration::from_millis(700),
        _ => Duration::from_millis(2 + number % 15),
    }
}

/// A subject as one process uses it.
#[derive(Debug)]
pub(super) enum Client {
    Inbox { pool: PgPool, inbox: PgInbox },
    Engine { pool: PgPool, engine: Idempotency },
}

/// Shorter than a process is stopped for, so that others take over.
const LEASE: Duration = Duration::from_millis(500);

impl Client {
    pub(super) fn new(subject: Subject, database: &str, redis: &str) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(2))
            .connect_lazy(database)
            .expect("an address");
        match subject {
            Subject::Inbox => Self::Inbox {
                pool,
                inbox: inbox(),
            },
            Subject::Redis => {
                let redis = Redis::connect(redis).expect("an address");
                let engine = engine(Arc::new(redis.idempotency()));
                Self::Engine { pool, engine }
            }
        }
    }

    /// Has the work of `key` done, or is told what was done: the fence of its effect. Nothing, if this call came to
    /// nothing.
    pub(super) async fn ask(&self, key: &str, worker: i32) -> Option<i64> {
        match self {
            Self::Inbox { pool, inbox } => {
                let work = inbox.run(pool, key, |mut work| async move {
                    let fence = work.fence().cast_signed();
                    say(worker, "work");
                    effect(&mut work, key, fence, worker).await?;
                    tokio::time::sleep(pace(key)).await;
                    Ok::<_, sqlx::Error>(work.done(fence))
                });
                work.await.ok().map(|outcome| outcome.value)
            }
            Self::Engine { pool, engine } => {
                let (pool, of) = (pool.clone(), key.to_owned());
                // Whether it was done after all is for the next attempt to find out.
                let outcomes = Json::new().on_error(|_: &Failed| Disposition::Unknown);
                let work = engine.run_with(key, outcomes, move |attempt| async move {
                    say(worker, "work");
                    tokio::time::sleep(pace(&of)).await;
                    let done = guarded_effect(&pool, &of, &attempt, worker).await;
                    // A while in which the effect is there, and the record does not know it.
                    say(worker, "work");
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(..10))).await;
                    done
                });
                let outcome = work.await.ok()?;
                let refused = outcome.source == Source::Fresh(Recorded::Lost);
                outcome.value.ok().filter(|_| !refused)
            }
        }
    }
}

fn engine(store: Arc<dyn IdempotencyStore>) -> Idempotency {
    Idempotency::builder("torture")
        .store(store)
        .lease(LEASE)
        .fleet(FleetOptions::new().budget(LEASE / 2))
        .wait(64, Duration::from_secs(2))
        .effect(Effect::Fenced)
        .build()
        .expect("valid settings")
}

/// Why there is no outcome.
#[derive(Debug)]
enum Failed {
    /// A later attempt was here.
    Fenced,
    Database,
}

impl From<sqlx::Error> for Failed {
    fn from(_: sqlx::Error) -> Self {
        Self::Database
    }
}

/// Reports to the parent process; the check at the end (-1) has none.
fn say(worker: i32, word: &str) {
    if worker >= 0 {
        println!("{word}");
    }
}

/// The effect as a user would write it: nothing is done under a fence that is not the highest. Whether an earlier
/// attempt has done it is looked for only when there was one that may have; that no two attempts do it is for the
/// subject to see to.
async fn guarded_effect(
    pool: &PgPool,
    key: &str,
    attempt: &Attempt,
    worker: i32,
) -> Result<i64, Failed> {
    let fence = attempt.fence().cast_signed();
    let mut tx = pool.begin().await?;
    let guard = sqlx::query("UPDATE accounts SET fence = $2 WHERE key = $1 AND fence < $2");
    if guard
        .bind(key)
        .bind(fence)
        .execute(&mut *tx)
        .await?
        .rows_affected()
        == 0
    {
        say(worker, "fenced");
        return Err(Failed::Fenced);
    }
    if matches!(attempt.previous(), Previous::Ended | Previous::Unknown) {
        say(worker, "doubted");
        let earlier = sqlx::query_scalar("SELECT fence FROM effects WHERE key = $1").bind(key);
        if let Some(earlier) = earlier.fetch_optional(&mut *tx).await? {
            tx.commit().await?;
            say(worker, "found");
            return Ok(earlier);
        }
    }
    effect(&mut tx, key, fence, worker).await?;
    tx.commit().await?;
    Ok(fence)
}

async fn effect(
    connection: &mut PgConnection,
    key: &str,
    fence: i64,
    worker: i32,
) -> Result<(), sqlx::Error> {
    let effect = sqlx::query("INSERT INTO effects (key, fence, worker) VALUES ($1, $2, $3)");
    effect
        .bind(key)
        .bind(fence)
        .bind(worker)
        .execute(connection)
        .await
        .map(drop)
}
