//! Databases with an inbox and a table of effects in them.

use std::{sync::OnceLock, time::Duration};

use resilience_core::{
    idempotency::{Fingerprint, Key},
    sql::inbox::{Inbox, PgInbox, SqliteInbox},
};
use resilience_tests::postgres::Postgres;
use sqlx::{
    AssertSqlSafe, PgPool, SqlitePool,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use tempfile::TempDir;

/// The key of an order for tea.
pub(crate) fn tea(key: &str) -> Key {
    Key::new(key).fingerprint(Fingerprint::of([b"tea for two".as_slice()]))
}

/// The same key, for an order of something else.
pub(crate) fn coffee(key: &str) -> Key {
    Key::new(key).fingerprint(Fingerprint::of([b"coffee".as_slice()]))
}

pub(crate) const EFFECT: &str = "INSERT INTO effects (what, fence) VALUES ($1, $2)";
const EFFECTS: &str = "CREATE TABLE effects (what TEXT NOT NULL, fence BIGINT NOT NULL)";

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// One server for the tests that leave it in peace. It ends when this process does.
pub(crate) fn shared() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(Postgres::start)
}

pub(crate) struct PgRig {
    pub(crate) pool: PgPool,
    pub(crate) inbox: PgInbox,
}

impl PgRig {
    /// On the shared server, in a schema of the test's own.
    pub(crate) async fn new(schema: &'static str) -> Self {
        let rig = Self::on(shared(), schema).await;
        rig.inbox.migrate(&rig.pool).await.unwrap();
        rig
    }

    pub(crate) async fn on(server: &Postgres, schema: &'static str) -> Self {
        let options: PgConnectOptions = server.url().parse().unwrap();
        let pool = PgPoolOptions::new()
            .max_connections(16)
            .acquire_timeout(ms(20_000))
            .connect_with(options.options([("search_path", schema)]))
            .await
            .unwrap();
        let setup = format!("CREATE SCHEMA {schema}; SET search_path = {schema}; {EFFECTS}");
        sqlx::raw_sql(AssertSqlSafe(setup))
            .execute(&pool)
            .await
            .unwrap();
        Self {
            pool,
            inbox: Inbox::builder("orders").wait(ms(10_000)).build().unwrap(),
        }
    }

    pub(crate) async fn effects(&self, what: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM effects WHERE what = $1").bind(what);
        count.fetch_one(&self.pool).await.unwrap()
    }
}

pub(crate) struct SqliteRig {
    pub(crate) pool: SqlitePool,
    pub(crate) inbox: SqliteInbox,
    _folder: TempDir,
}

impl SqliteRig {
    pub(crate) async fn new(_: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join("db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(ms(10_000));
        let pool = SqlitePoolOptions::new()
            .max_connections(8)
            .acquire_timeout(ms(20_000))
            .connect_with(options)
            .await
            .unwrap();
        sqlx::raw_sql(EFFECTS).execute(&pool).await.unwrap();
        let inbox = SqliteInbox::builder("orders").build().unwrap();
        inbox.migrate(&pool).await.unwrap();
        Self {
            pool,
            inbox,
            _folder: folder,
        }
    }

    pub(crate) async fn effects(&self, what: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM effects WHERE what = $1").bind(what);
        count.fetch_one(&self.pool).await.unwrap()
    }
}
