//! Databases with an outbox in them, and a broker in this process.

use std::{future::Future, time::Duration};

use resilience_core::{
    FleetOptions, PgOutbox, SqliteOutbox,
    retry::Backoff,
    sql::outbox::{Dialect, OutboxRelay, RelayBuilder},
    stream::{InProcessStreams, Position, RawMessage, StreamBroker},
};
use resilience_tests::{postgres::Postgres, until::eventually};
use sqlx::{
    AssertSqlSafe, PgPool, SqlitePool,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use tempfile::TempDir;
use tokio::{runtime::Runtime, time::Instant};

use crate::inbox::rig::{ms, shared};

/// A bound for what should be there at once.
pub(super) const SOON: Duration = Duration::from_secs(20);
pub(super) const LEASE: Duration = Duration::from_secs(1);

/// Quick to take over, and to try again.
pub(super) fn quick<DB: Dialect>(relay: RelayBuilder<DB>) -> RelayBuilder<DB> {
    relay
        .lease(LEASE)
        .poll(ms(20))
        .backoff(Backoff::fixed(ms(20)))
        .fleet(FleetOptions::new().budget(ms(250)))
}

pub(super) struct PgRig {
    pub(super) pool: PgPool,
    pub(super) outbox: PgOutbox<String>,
    pub(super) broker: InProcessStreams,
}

impl PgRig {
    /// On the shared server, in a schema of the test's own.
    pub(super) async fn new(schema: &'static str) -> Self {
        Self::on(shared(), schema).await
    }

    pub(super) async fn on(server: &Postgres, schema: &'static str) -> Self {
        // Tests of the inbox have schemas on the same server.
        let schema = &format!("outbox_{}", schema.trim_start_matches("outbox_"));
        let pool = Self::connect(server, schema).await;
        let create = format!(
            "CREATE SCHEMA IF NOT EXISTS {schema}; CREATE TABLE {schema}.effects (what TEXT NOT NULL)"
        );
        sqlx::raw_sql(AssertSqlSafe(create))
            .execute(&pool)
            .await
            .unwrap();
        // Notifications of other tests wake this one's relay, too, if the name is the same.
        let outbox = PgOutbox::builder(format!("orders_{schema}"))
            .stream("orders")
            .build()
            .unwrap();
        outbox.migrate(&pool).await.unwrap();
        let broker = InProcessStreams::new();
        Self {
            pool,
            outbox,
            broker,
        }
    }

    async fn connect(server: &Postgres, schema: &str) -> PgPool {
        let options: PgConnectOptions = server.url().parse().unwrap();
        let pool = PgPoolOptions::new()
            .max_connections(6)
            .acquire_timeout(ms(20_000));
        let options = options.options([("search_path", schema)]);
        pool.connect_with(options).await.unwrap()
    }

    /// A pool of another process.
    pub(super) fn other_pool(&self) -> PgPool {
        let options = (*self.pool.connect_options()).clone();
        PgPoolOptions::new()
            .max_connections(3)
            .connect_lazy_with(options)
    }
}

pub(super) struct SqliteRig {
    pub(super) pool: SqlitePool,
    pub(super) outbox: SqliteOutbox<String>,
    pub(super) broker: InProcessStreams,
    _folder: TempDir,
}

impl SqliteRig {
    pub(super) async fn new(_: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join("db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(ms(10_000));
        let pool = SqlitePoolOptions::new()
            .max_connections(8)
            .acquire_timeout(ms(20_000));
        let pool = pool.connect_with(options).await.unwrap();
        let create = "CREATE TABLE effects (what TEXT NOT NULL)";
        sqlx::raw_sql(create).execute(&pool).await.unwrap();
        let outbox = SqliteOutbox::builder("orders").build().unwrap();
        outbox.migrate(&pool).await.unwrap();
        Self {
            pool,
            outbox,
            broker: InProcessStreams::new(),
            _folder: folder,
        }
    }

    /// A pool of another process.
    pub(super) fn other_pool(&self) -> SqlitePool {
        let options = (*self.pool.connect_options()).clone();
        SqlitePoolOptions::new()
            .max_connections(3)
            .connect_lazy_with(options)
    }
}

/// Every message of the stream `orders`, in order.
pub(super) async fn messages(broker: &impl StreamBroker) -> Vec<RawMessage> {
    let (mut all, mut from) = (Vec::new(), Position::START);
    loop {
        let until = Instant::now() + SOON;
        let some = loop {
            match broker.peek("orders", from, 1_000).await {
                Ok(some) => break some,
                // A broker beyond a line, on a busy machine.
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            tokio::time::sleep(ms(5)).await;
        };
        let Some((last, _)) = some.last() else {
            return all;
        };
        from = last.next();
        all.extend(some.into_iter().map(|it| it.1));
    }
}

/// The events of the stream `orders`, in order.
pub(super) async fn events(broker: &impl StreamBroker) -> Vec<String> {
    let event = |message: RawMessage| serde_json::from_slice(&message.body).unwrap();
    messages(broker).await.into_iter().map(event).collect()
}

/// Waits until the stream has `number` events, and returns them.
pub(super) async fn wait_for(broker: &impl StreamBroker, number: usize) -> Vec<String> {
    eventually("the events are in the stream", SOON, || async {
        events(broker).await.len() >= number
    })
    .await;
    events(broker).await
}

/// A relay in a runtime of its own, which can be killed: none of its tasks takes another step.
pub(super) struct Killable {
    runtime: Option<Runtime>,
    pub(super) relay: OutboxRelay,
}

impl Killable {
    pub(super) async fn start(start: impl Future<Output = OutboxRelay> + Send + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        let relay = runtime.spawn(start).await.unwrap();
        Self {
            runtime: Some(runtime),
            relay,
        }
    }

    pub(super) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        self.end();
    }
}
