//! The outbox in PostgreSQL.

use std::{sync::Arc, time::Duration};

use ::sqlx::{
    Error, Pool, Postgres, QueryBuilder, Row as _, SqlStr,
    postgres::{PgListener, PgPoolOptions, PgRow},
    query, raw_sql,
};

use super::{
    super::{Transaction, statement::MIGRATING, table::Table},
    dialect::{Begun, DeadRow, Dialect, Waiting, Without, sealed::Sealed},
    lease::Lease,
    queries::{steps, stored},
    row::{NewRow, StoredRow},
    statements::{Spelling, Statements},
};
use crate::backoff::Backoff;

impl Dialect for Postgres {}

/// One for all outboxes of a database, whose names are the payload.
const CHANNEL: &str = "resilience_outbox";

const SPELLING: Spelling = Spelling {
    schema: include_str!("postgres/0001_outbox.sql"),
    insert: [
        "INSERT INTO {table} (name, format, id, stream, key, envelope, body) ",
        "",
        "",
    ],
    lock: None,
    among: "IN (SELECT jsonb_array_elements_text($2::jsonb)::bigint)",
    among_keys: "IN (SELECT jsonb_array_elements_text($3::jsonb))",
    now: "clock_timestamp()",
    created_ms: "(extract(epoch FROM created_at) * 1000)::bigint",
    age_ms: [
        "(extract(epoch FROM clock_timestamp() - ",
        ") * 1000)::bigint",
    ],
};

/// Notifications of one transaction that are equal are sent once.
const NOTIFYING: [&str; 3] = [
    "WITH written AS (INSERT INTO {table} (name, format, id, stream, key, envelope, body) ",
    " RETURNING 1) SELECT count(*), pg_notify('resilience_outbox', ",
    ") FROM written",
];

/// In one order for all transactions, so that two publishes of several keys do not wait for each other.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hash) FROM (\
                    SELECT DISTINCT hashtextextended(key, hashtextextended($1, '{table}'::regclass::oid::bigint)) AS hash \
                    FROM jsonb_array_elements_text($2::jsonb) AS key ORDER BY hash) AS hashes";

impl Sealed for Postgres {
    const BEGIN: &'static str = "BEGIN ISOLATION LEVEL READ COMMITTED";
    const READ: &'static str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY";
    const NOTIFIES: bool = true;

    fn statements(table: &Table, locks: bool, notifies: bool) -> Statements {
        let spelling = Spelling {
            insert: if notifies { NOTIFYING } else { SPELLING.insert },
            lock: locks.then_some(LOCK),
            ..SPELLING
        };
        spelling.fill(table)
    }

    async fn migrate(mut transaction: Transaction<Self>, schema: SqlStr) -> Result<(), Error> {
        query("SELECT pg_advisory_xact_lock($1)")
            .persistent(false)
            .bind(MIGRATING)
            .execute(&mut *transaction)
            .await?;
        raw_sql(schema).execute(&mut *transaction).await?;
        transaction.commit().await
    }

    steps!();

    async fn listen(pool: Pool<Self>, name: Arc<str>, wake: impl Fn() + Send + 'static) {
        let pauses =
            Backoff::decorrelated_jitter(Duration::from_millis(100), Duration::from_secs(10));
        loop {
            let mut delays = pauses.delays();
            let mut listener = loop {
                match listener(&pool).await {
                    Ok(listener) => break listener,
                    Err(error) => {
                        tracing::debug!(target: "resilience", name = &*name, %error, "the outbox cannot listen, and polls");
                        tokio::time::sleep(delays.next().unwrap_or_default()).await;
                    }
                }
            };
            // What was written before is found now.
            wake();
            // `None` and errors: the connection is lost, and with it what was sent meanwhile.
            while let Ok(Some(notification)) = listener.try_recv().await {
                if notification.payload() == &*name {
                    wake();
                }
            }
        }
    }

    fn apart(pool: &Pool<Self>) -> Pool<Self> {
        let options = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(pool.options().get_acquire_timeout());
        options.connect_lazy_with((*pool.connect_options()).clone())
    }
}

async fn listener(pool: &Pool<Postgres>) -> Result<PgListener, Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

stored!(PgRow);
