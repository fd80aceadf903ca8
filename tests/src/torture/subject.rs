//! What is tortured: each of the ways to do work once.

use std::{fmt, str::FromStr, time::Duration};

use resilience_core::{error::Error, idempotency::inbox::PgInbox};
use sqlx::{PgConnection, PgPool, postgres::PgPoolOptions};

/// Whose promise is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The inbox: record and effect in one transaction, the line to PostgreSQL breaking.
    Inbox,
}

impl Subject {
    /// Each of them.
    pub const ALL: &[Self] = &[Self::Inbox];
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inbox => "inbox",
        })
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "inbox" => Ok(Self::Inbox),
            _ => Err(format!("no subject is called {word}")),
        }
    }
}

/// A subject as one process uses it.
#[derive(Clone, Debug)]
pub(super) enum Client {
    Inbox { pool: PgPool, inbox: PgInbox },
}

/// How long a piece of work takes, drawn by key so that some are long.
fn pace(key: &str) -> Duration {
    let number = key.bytes().fold(7_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    match number % 20 {
        0 => Duration::from_millis(400),
        _ => Duration::from_millis(number % 15),
    }
}

/// The tables, and the inbox.
pub(super) async fn set_up(pool: &PgPool) {
    // No constraint that would keep out a second effect: that is for the subject to do.
    let tables =
        "CREATE TABLE effects (key text NOT NULL, fence bigint NOT NULL, worker int NOT NULL)";
    sqlx::raw_sql(tables).execute(pool).await.expect("tables");
    inbox().migrate(pool).await.expect("an inbox");
}

fn inbox() -> PgInbox {
    let inbox = PgInbox::builder("torture").wait(Duration::from_secs(2));
    inbox.build().expect("valid settings")
}

impl Client {
    pub(super) fn new(subject: Subject, database: &str) -> Self {
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
        }
    }

    /// Has the work of `key` done, or is told what was done: the fence of its effect. Nothing, if this call came to
    /// nothing.
    pub(super) async fn ask(&self, key: &str, worker: i32) -> Option<i64> {
        match self {
            Self::Inbox { pool, inbox } => {
                let ran = inbox.run(pool, key, key.as_bytes(), |mut work| async move {
                    let fence = work.fence().cast_signed();
                    effect(&mut work, key, fence, worker).await?;
                    tokio::time::sleep(pace(key)).await;
                    Ok::<_, sqlx::Error>(work.done(fence.to_string()))
                });
                match ran.await {
                    Ok(ran) => outcome(&ran.recorded.outcome),
                    Err(Error::Rejected(_) | Error::Service(_)) => None,
                }
            }
        }
    }
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

fn outcome(bytes: &[u8]) -> Option<i64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}
