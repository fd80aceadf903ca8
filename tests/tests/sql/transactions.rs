//! Futures that are dropped in the middle of a transaction, and what they leave to the next call on the same pool.

use std::time::Duration;

use resilience_core::sql::{self, inbox::PgInbox};
use resilience_tests::{
    proxy::{Proxy, Weather},
    torture::{HungUp, hang_ups_on_postgres, hang_ups_on_sqlite},
    until::eventually,
};
use sqlx::{Connection, PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::time::timeout;

use crate::inbox::rig::{ms, shared};

const SOON: Duration = ms(20_000);
/// Of the line, in each direction.
const LATENCY: Duration = ms(40);
/// Of a caller: a statement is on its way then.
const PATIENCE: Duration = ms(20);

/// A pool of one connection over a slow line, and a table that it alone writes to.
struct Line {
    pool: PgPool,
    proxy: Proxy,
    direct: PgConnection,
    table: &'static str,
}

impl Line {
    async fn new(table: &'static str, options: PgPoolOptions) -> Self {
        let mut proxy = Proxy::to(shared().address()).await.unwrap();
        let url = format!("postgres://postgres@{}/postgres", proxy.address());
        // Else a caller would be dropped during that test, and the connection be closed.
        let options = options.max_connections(1).test_before_acquire(false);
        let pool = options.connect(&url).await.unwrap();
        let mut direct = PgConnection::connect(&shared().url()).await.unwrap();
        let create = format!("CREATE TABLE {table} (n int)");
        let create = sqlx::raw_sql(sqlx::AssertSqlSafe(create));
        create.execute(&mut direct).await.unwrap();
        proxy.set(Weather::Latency(LATENCY)).await;
        Self {
            pool,
            proxy,
            direct,
            table,
        }
    }

    /// Drops `future` when a statement of it is under way.
    async fn give_up<T>(&self, future: impl Future<Output = T>) {
        assert!(timeout(PATIENCE, future).await.is_err(), "too quick");
    }

    /// Writes as another route does, and counts the acknowledged writes that other connections see.
    async fn write_and_count(&mut self) -> i64 {
        self.write(&mut self.pool.acquire().await.unwrap()).await;
        self.count().await
    }

    async fn write(&self, connection: &mut PgConnection) {
        let write = format!("INSERT INTO {} VALUES (1)", self.table);
        let write = sqlx::query(sqlx::AssertSqlSafe(write));
        write.execute(connection).await.unwrap();
    }

    async fn count(&mut self) -> i64 {
        let count = format!("SELECT count(*) FROM {}", self.table);
        let count = sqlx::query_scalar(sqlx::AssertSqlSafe(count));
        count.fetch_one(&mut self.direct).await.unwrap()
    }
}

/// Why the others are there. If this fails, sqlx has mended it.
#[tokio::test]
async fn sqlx_alone_returns_an_open_transaction_and_the_next_write_is_lost() {
    let mut line = Line::new("dropped_plain", PgPoolOptions::new()).await;
    line.give_up(line.pool.begin()).await;
    assert_eq!(line.write_and_count().await, 0);
    line.pool.close().await;
    assert_eq!(line.count().await, 0);
}

#[tokio::test]
async fn a_transaction_dropped_while_it_begins_leaves_the_connection_as_it_was() {
    let mut line = Line::new("dropped_begin", PgPoolOptions::new()).await;
    line.give_up(sql::begin(&line.pool)).await;
    assert_eq!(line.write_and_count().await, 1);
    let serializable = sql::begin_with(&line.pool, "BEGIN ISOLATION LEVEL SERIALIZABLE");
    line.give_up(serializable).await;
    assert_eq!(line.write_and_count().await, 2);
    assert_eq!(line.pool.size(), 1);
}

#[tokio::test]
async fn an_inbox_dropped_while_it_begins_leaves_the_connection_as_it_was() {
    let mut line = Line::new("dropped_inbox", PgPoolOptions::new()).await;
    let inbox = PgInbox::builder("orders").table("dropped_inbox_records");
    let inbox = inbox.build().unwrap();
    inbox.migrate(&line.pool).await.unwrap();
    let run = inbox.run(&line.pool, "a", |work| async move {
        Ok::<_, sqlx::Error>(work.done(()))
    });
    line.give_up(run).await;
    assert_eq!(line.write_and_count().await, 1);
}

#[tokio::test]
async fn the_check_of_a_pool_ends_transactions_that_came_back_open_or_aborted() {
    let options = PgPoolOptions::new().after_release(sql::outside_transaction);
    let mut line = Line::new("dropped_checked", options).await;
    line.give_up(line.pool.begin()).await;
    assert_eq!(line.write_and_count().await, 1);

    let mut aborted = line.pool.acquire().await.unwrap();
    sqlx::raw_sql("BEGIN").execute(&mut *aborted).await.unwrap();
    let failed = sqlx::query("SELECT 1/0").execute(&mut *aborted).await;
    failed.unwrap_err();
    drop(aborted);
    assert_eq!(line.write_and_count().await, 2);
    // And one that is as it should be stays.
    let backend = "SELECT pg_backend_pid()";
    let backend = || async {
        sqlx::query_scalar::<_, i32>(backend)
            .fetch_one(&line.pool)
            .await
    };
    assert_eq!(backend().await.unwrap(), backend().await.unwrap());
}

#[tokio::test]
async fn a_transaction_dropped_before_its_commit_is_rolled_back_and_one_dropped_during_it_is_whole()
{
    let mut line = Line::new("dropped_commit", PgPoolOptions::new()).await;
    let mut tx = sql::begin(&line.pool).await.unwrap();
    line.write(&mut tx).await;
    drop(tx);
    assert_eq!(line.write_and_count().await, 1);

    let mut tx = sql::begin(&line.pool).await.unwrap();
    line.write(&mut tx).await;
    line.write(&mut tx).await;
    line.give_up(tx.commit()).await;
    assert_eq!(line.write_and_count().await, 4);

    let mut tx = sql::begin(&line.pool).await.unwrap();
    line.write(&mut tx).await;
    line.give_up(tx.rollback()).await;
    assert_eq!(line.write_and_count().await, 5);
    assert_eq!(line.pool.size(), 1);
}

#[tokio::test]
async fn a_connection_that_hangs_while_no_caller_waits_is_closed_and_its_place_is_free_again() {
    let options = PgPoolOptions::new().acquire_timeout(ms(500));
    let mut line = Line::new("dropped_hanging", options).await;
    line.proxy.set(Weather::Blackhole).await;
    let begun = sql::begin(&line.pool);
    line.give_up(begun).await;
    assert_eq!(line.pool.size(), 1);
    eventually("it is closed", SOON, async || line.pool.size() == 0).await;
    line.proxy.set(Weather::Fine).await;
    assert_eq!(line.write_and_count().await, 1);
}

/// sqlx takes the whole transaction back, and would say that it was committed.
#[tokio::test]
async fn a_savepoint_dropped_while_it_begins_fails_the_commit_of_its_transaction() {
    let mut line = Line::new("dropped_savepoint", PgPoolOptions::new()).await;
    let mut tx = sql::begin(&line.pool).await.unwrap();
    line.write(&mut tx).await;
    line.give_up(Connection::begin(&mut *tx)).await;
    let failed = tx.commit().await.unwrap_err();
    assert!(matches!(failed, sqlx::Error::Protocol(_)), "{failed}");
    assert_eq!(line.count().await, 0);
    assert_eq!(line.write_and_count().await, 1);
}

#[tokio::test]
async fn a_transaction_that_fails_is_rolled_back_and_its_connection_stays_unless_the_error_says_otherwise()
 {
    let pool = PgPoolOptions::new().max_connections(1);
    let pool = pool.connect(&shared().url()).await.unwrap();
    let backend = || async {
        let backend = sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()");
        backend.fetch_one(&pool).await.unwrap()
    };
    let before = backend().await;
    let failed = sql::transaction(&pool, async |tx| {
        sqlx::query("CREATE TABLE never (n int)")
            .execute(&mut *tx)
            .await?;
        sqlx::query("SELECT 1/0").execute(&mut *tx).await
    });
    let failed = failed.await.unwrap_err();
    assert!(!sql::condition(&failed).discard_connection, "{failed}");
    assert_eq!(backend().await, before);
    let table = sqlx::query_scalar::<_, bool>("SELECT to_regclass('never') IS NULL");
    assert!(table.fetch_one(&pool).await.unwrap());

    let read_only = "SET default_transaction_read_only = on";
    sqlx::raw_sql(read_only).execute(&pool).await.unwrap();
    let failed = sql::transaction(&pool, async |tx| {
        sqlx::query("CREATE TABLE never (n int)")
            .execute(&mut *tx)
            .await
    });
    let failed = failed.await.unwrap_err();
    assert!(sql::condition(&failed).discard_connection, "{failed}");
    assert_ne!(backend().await, before);
}

/// An error of the work's own, say of a file, is of the same type as one of a line.
#[tokio::test]
async fn a_database_in_memory_outlives_transactions_that_fail() {
    let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let pool = pool.connect("sqlite::memory:").await.unwrap();
    let create = sqlx::raw_sql("CREATE TABLE things (n int)");
    create.execute(&pool).await.unwrap();
    let broken = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
    let failed = sql::transaction(&pool, async |_| Err::<(), _>(broken())).await;
    failed.unwrap_err();
    let failed = sql::connection(&pool, async |_| Err::<(), _>(broken())).await;
    failed.unwrap_err();
    sql::begin(&pool).await.unwrap().rollback().await.unwrap();
    let write = sqlx::query("INSERT INTO things VALUES (1)");
    write.execute(&pool).await.unwrap();
}

/// The same of SQLite, whose driver takes it back in a thread of its own.
#[tokio::test]
async fn a_savepoint_of_sqlite_dropped_while_it_begins_fails_the_commit_of_its_transaction() {
    let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let pool = pool.connect("sqlite::memory:").await.unwrap();
    let create = sqlx::raw_sql("CREATE TABLE things (n int)");
    create.execute(&pool).await.unwrap();
    let mut failed = None;
    for _ in 0..1_000 {
        let mut tx = sql::begin(&pool).await.unwrap();
        let write = sqlx::query("INSERT INTO things VALUES (1)");
        write.execute(&mut *tx).await.unwrap();
        let is_dropped_while_it_begins = {
            let mut savepoint = std::pin::pin!(Connection::begin(&mut *tx));
            futures_util::poll!(&mut savepoint).is_pending()
        };
        if is_dropped_while_it_begins {
            failed = Some(tx.commit().await.unwrap_err());
            break;
        }
        // The driver's thread was as quick as the poll.
        tx.rollback().await.unwrap();
    }
    let failed = failed.expect("one of many is dropped while it begins");
    assert!(matches!(failed, sqlx::Error::Protocol(_)), "{failed}");
    let _ = pool.acquire().await;
}

#[test]
fn the_futures_of_a_transaction_can_be_spawned() {
    fn spawned<T: Send>(_: T) {}
    let pool = PgPool::connect_lazy_with;
    let _ = || {
        let pool = pool("postgres://nowhere/db".parse().unwrap());
        spawned(async move {
            sql::transaction(&pool, async |tx| {
                sqlx::query("SELECT 1").execute(&mut *tx).await?;
                Ok::<_, sqlx::Error>(())
            })
            .await?;
            let mut tx = sql::begin(&pool).await?;
            sqlx::query("SELECT 1").execute(&mut *tx).await?;
            tx.commit().await
        });
    };
}

fn holds(hung_up: HungUp) {
    assert!(hung_up.given_up > 0 && hung_up.committed > 0, "{hung_up:?}");
    assert_eq!((hung_up.lost, hung_up.twice), (0, 0), "{hung_up:?}");
}

#[tokio::test]
async fn hang_ups_and_timeouts_lose_no_write_of_another_route_in_postgres() {
    holds(hang_ups_on_postgres(shared(), 100).await);
}

#[tokio::test]
async fn hang_ups_and_timeouts_lose_no_write_of_another_route_in_sqlite() {
    holds(hang_ups_on_sqlite(100).await);
}
