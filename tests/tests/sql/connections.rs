//! Errors that are about the connection, as a real PostgreSQL and SQLite make them: what the table says of each, and that the
//! next call meets another connection.

use std::time::Duration;

use resilience_core::{
    Verdict,
    breaker::CircuitBreaker,
    execute,
    retry::{Backoff, Retry, RetryBudget},
    sql::{self, Condition, SqlxErrors, inbox::PgInbox},
};
use resilience_tests::until::eventually;
use sqlx::{
    AssertSqlSafe, Connection, Error, PgConnection, PgPool, SqliteConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::SqliteConnectOptions,
};
use tower::ServiceBuilder;

use crate::inbox::rig::{ms, shared};

const SOON: Duration = ms(20_000);

async fn connect() -> PgConnection {
    PgConnection::connect(&shared().url()).await.unwrap()
}

async fn pool(size: u32) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(size);
    pool.connect(&shared().url()).await.unwrap()
}

async fn raw(connection: &mut PgConnection, statements: &'static str) -> Result<(), Error> {
    sqlx::raw_sql(statements)
        .execute(connection)
        .await
        .map(drop)
}

async fn prepared(connection: &mut PgConnection, statement: &'static str) -> Result<(), Error> {
    sqlx::query(statement).execute(connection).await.map(drop)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Close,
    Keep,
}

/// Whether the error is of this code, and the table says this of it: by the code alone, and of the error.
#[track_caller]
fn says(failed: Result<(), Error>, code: &str, verdict: Verdict, after: After) {
    let error = failed.expect_err(code);
    let found = error.as_database_error().and_then(|error| error.code());
    assert_eq!(found.as_deref(), Some(code), "{error}");
    let said = |condition: Condition| {
        assert_eq!(condition.verdict, verdict, "{code}: {error}");
        assert_eq!(
            condition.discard_connection,
            after == Close,
            "{code}: {error}"
        );
    };
    said(sql::condition(&error));
    if code.len() == 5 {
        said(sql::sqlstate(code));
    } else {
        said(sql::sqlite_error(code.parse().unwrap()));
    }
}

use After::{Close, Keep};
const AGAIN: Verdict = Verdict::transient();

#[tokio::test]
async fn the_table_knows_the_transactions_that_postgres_says_are_not_as_expected() {
    let mut db = connect().await;
    raw(&mut db, "BEGIN").await.unwrap();
    says(
        prepared(&mut db, "VACUUM").await,
        "25001",
        Verdict::Success,
        Close,
    );
    says(prepared(&mut db, "SELECT 1").await, "25P02", AGAIN, Close);
    raw(&mut db, "ROLLBACK").await.unwrap();
    says(
        raw(&mut db, "SAVEPOINT a").await,
        "25P01",
        Verdict::Success,
        Close,
    );
    raw(&mut db, "BEGIN").await.unwrap();
    let nowhere = raw(&mut db, "ROLLBACK TO SAVEPOINT nowhere").await;
    says(nowhere, "3B001", Verdict::Success, Close);
    raw(&mut db, "ROLLBACK; SET default_transaction_read_only = on")
        .await
        .unwrap();
    let write = raw(&mut db, "CREATE TABLE never (n int)").await;
    says(write, "25006", AGAIN, Close);
}

#[tokio::test]
async fn the_table_knows_the_prepared_statements_that_postgres_has_not_or_has_already() {
    let mut db = connect().await;
    raw(&mut db, "CREATE TABLE altered (n int)").await.unwrap();
    let all = "SELECT * FROM altered";
    prepared(&mut db, all).await.unwrap();
    raw(&mut connect().await, "ALTER TABLE altered ADD COLUMN m int")
        .await
        .unwrap();
    says(prepared(&mut db, all).await, "0A000", AGAIN, Close);
    // The same code, about the statement.
    let unsupported = prepared(&mut db, "SELECT count(*) FROM altered FOR UPDATE").await;
    let unsupported = sql::condition(&unsupported.unwrap_err());
    assert_eq!(
        (unsupported.verdict, unsupported.discard_connection),
        (Verdict::Success, false)
    );

    prepared(&mut db, "SELECT 1").await.unwrap();
    raw(&mut db, "DEALLOCATE ALL").await.unwrap();
    says(prepared(&mut db, "SELECT 1").await, "26000", AGAIN, Close);
    let mut db = connect().await;
    raw(&mut db, "PREPARE sqlx_s_1 AS SELECT 1").await.unwrap();
    says(prepared(&mut db, "SELECT 2").await, "42P05", AGAIN, Close);
}

#[tokio::test]
async fn the_table_knows_the_sessions_that_postgres_ends_or_refuses() {
    let mut db = connect().await;
    let end = prepared(&mut db, "SELECT pg_terminate_backend(pg_backend_pid())").await;
    says(end, "57P01", AGAIN, Close);
    for (setting, code) in [
        ("SET idle_session_timeout = '20ms'", "57P05"),
        (
            "SET idle_in_transaction_session_timeout = '20ms'; BEGIN",
            "25P03",
        ),
    ] {
        let mut db = connect().await;
        let backend = sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()");
        let backend = backend.fetch_one(&mut db).await.unwrap();
        raw(&mut db, setting).await.unwrap();
        let mut other = connect().await;
        let gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)";
        let gone = async || {
            sqlx::query_scalar(gone)
                .bind(backend)
                .fetch_one(&mut other)
                .await
                .unwrap()
        };
        let mut gone = gone;
        until(&mut gone).await;
        says(prepared(&mut db, "SELECT 1").await, code, AGAIN, Close);
    }
    let refused =
        async |options: PgConnectOptions| PgConnection::connect_with(&options).await.map(drop);
    let options: PgConnectOptions = shared().url().parse().unwrap();
    let limited = "CREATE ROLE limited LOGIN CONNECTION LIMIT 0";
    raw(&mut connect().await, limited).await.unwrap();
    says(
        refused(options.clone().username("limited")).await,
        "53300",
        AGAIN,
        Close,
    );
    let nobody = refused(options.clone().username("missing")).await;
    says(nobody, "28000", Verdict::Permanent, Close);
    let nowhere = refused(options.database("missing")).await;
    says(nowhere, "3D000", Verdict::Permanent, Close);
}

/// Polls with a bound.
async fn until(condition: &mut impl AsyncFnMut() -> bool) {
    let asking = async {
        while !condition().await {
            tokio::time::sleep(ms(5)).await;
        }
    };
    tokio::time::timeout(SOON, asking)
        .await
        .expect("it is gone");
}

#[tokio::test]
async fn the_table_knows_what_postgres_says_of_statements_that_leave_the_connection_as_it_was() {
    let mut db = connect().await;
    raw(&mut db, "CREATE TABLE locked (n int)").await.unwrap();
    let mut other = connect().await;
    raw(&mut other, "BEGIN; LOCK TABLE locked").await.unwrap();
    raw(&mut db, "SET lock_timeout = '10ms'").await.unwrap();
    says(
        prepared(&mut db, "SELECT * FROM locked").await,
        "55P03",
        AGAIN,
        Keep,
    );
    let now = prepared(&mut db, "LOCK TABLE locked NOWAIT").await;
    says(now, "25P01", Verdict::Success, Close);
    raw(
        &mut db,
        "RESET lock_timeout; SET statement_timeout = '10ms'",
    )
    .await
    .unwrap();
    says(
        prepared(&mut db, "SELECT pg_sleep(60)").await,
        "57014",
        AGAIN,
        Keep,
    );
    raw(&mut db, "RESET statement_timeout").await.unwrap();
    let missing = prepared(&mut db, "SELECT pg_read_file('missing')").await;
    says(missing, "58P01", Verdict::Permanent, Keep);
    says(
        prepared(&mut db, "SELECT 1/0").await,
        "22012",
        Verdict::Success,
        Keep,
    );
    says(
        prepared(&mut db, "SELEC 1").await,
        "42601",
        Verdict::Success,
        Keep,
    );
}

#[tokio::test]
async fn the_table_knows_what_sqlite_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let options = SqliteConnectOptions::new().filename(folder.path().join(name));
        options.busy_timeout(Duration::ZERO)
    };
    let open = async |options: &SqliteConnectOptions| SqliteConnection::connect_with(options).await;
    let run = async |db: &mut SqliteConnection, statement: &'static str| {
        sqlx::raw_sql(statement).execute(db).await.map(drop)
    };
    says(
        open(&file("missing")).await.map(drop),
        "14",
        Verdict::Permanent,
        Keep,
    );
    std::fs::write(folder.path().join("text"), "no database".repeat(100)).unwrap();
    let text = async {
        let mut db = open(&file("text")).await?;
        run(&mut db, "CREATE TABLE a (n)").await
    };
    says(text.await, "26", Verdict::Permanent, Keep);

    let options = file("db").create_if_missing(true);
    let mut db = open(&options).await.unwrap();
    run(&mut db, "CREATE TABLE a (n INTEGER PRIMARY KEY)")
        .await
        .unwrap();
    let mut other = open(&options).await.unwrap();
    run(&mut other, "BEGIN IMMEDIATE").await.unwrap();
    says(
        run(&mut db, "INSERT INTO a VALUES (1)").await,
        "5",
        AGAIN,
        Keep,
    );
    run(&mut other, "ROLLBACK; PRAGMA query_only = on")
        .await
        .unwrap();
    says(
        run(&mut other, "INSERT INTO a VALUES (1)").await,
        "8",
        Verdict::Permanent,
        Keep,
    );
    run(&mut db, "PRAGMA max_page_count = 2").await.unwrap();
    let full = run(
        &mut db,
        "INSERT INTO a SELECT value FROM generate_series(1, 99999)",
    )
    .await;
    // Without that function, by hand.
    let full = match full {
        Err(error) if error.to_string().contains("generate_series") => {
            let fill = "WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 9999) \
                        INSERT INTO a SELECT n FROM s";
            run(&mut db, fill).await
        }
        other => other,
    };
    says(full, "13", Verdict::Permanent, Keep);
    std::fs::rename(folder.path().join("db"), folder.path().join("moved")).unwrap();
    says(
        run(&mut db, "INSERT INTO a VALUES (1)").await,
        "1032",
        Verdict::Permanent,
        Close,
    );
}

// === what comes of it ===

/// A retry of three and a breaker, and the stack of both.
macro_rules! stack {
    ($retry:ident, $breaker:ident) => {{
        execute::guard(
            ServiceBuilder::new()
                .layer($retry.layer().classify(SqlxErrors))
                .layer($breaker.layer().classify(SqlxErrors)),
        )
    }};
}

fn guards() -> (Retry, CircuitBreaker) {
    let retry = Retry::builder("db")
        .max_attempts(3)
        .backoff(Backoff::fixed(ms(1)));
    let retry = retry.budget(RetryBudget::unlimited()).build().unwrap();
    (retry, CircuitBreaker::builder("db").build().unwrap())
}

/// 40 of 40 failed with `25P02`, and the breaker counted 40 successes.
#[tokio::test]
async fn a_pool_poisoned_by_an_aborted_transaction_costs_one_attempt_and_is_counted() {
    let pool = pool(1).await;
    let mut poisoned = pool.acquire().await.unwrap();
    raw(&mut poisoned, "BEGIN").await.unwrap();
    prepared(&mut poisoned, "SELECT 1/0").await.unwrap_err();
    drop(poisoned);
    let (retry, breaker) = guards();
    let db = stack!(retry, breaker);
    for _ in 0..40 {
        let read = || sql::connection(&pool, async |db| prepared(db, "SELECT 1").await);
        db.call_idempotent(read).await.unwrap();
    }
    assert_eq!(
        (retry.snapshot().retries, breaker.snapshot().totals.failures),
        (1, 1)
    );
}

/// 12 of 12 failed with `0A000`.
#[tokio::test]
async fn after_a_column_was_added_under_prepared_statements_every_call_succeeds() {
    let pool = pool(2).await;
    let mut connections = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let create = "CREATE TABLE IF NOT EXISTS grown (n int)";
    for connection in &mut connections {
        raw(connection, create).await.unwrap();
        prepared(connection, "SELECT * FROM grown").await.unwrap();
    }
    drop(connections);
    raw(&mut connect().await, "ALTER TABLE grown ADD COLUMN m int")
        .await
        .unwrap();
    let (retry, breaker) = guards();
    let db = stack!(retry, breaker);
    for _ in 0..12 {
        let all = || sql::connection(&pool, async |db| prepared(db, "SELECT * FROM grown").await);
        db.call_idempotent(all).await.unwrap();
    }
    assert_eq!(retry.snapshot().retries, 2);
}

/// A pool whose sessions are as those to a primary that has become a replica, and a database that can be written to.
async fn demoted(size: u32, options: PgPoolOptions) -> PgPool {
    let pool = options.max_connections(size);
    let pool = pool.connect(&shared().url()).await.unwrap();
    let mut connections = Vec::new();
    for _ in 0..size {
        connections.push(pool.acquire().await.unwrap());
    }
    for connection in &mut connections {
        raw(connection, "SET default_transaction_read_only = on")
            .await
            .unwrap();
    }
    drop(connections);
    eventually("all are back", SOON, async || {
        pool.num_idle() == size as usize
    })
    .await;
    pool
}

#[tokio::test]
async fn a_pool_with_the_check_leaves_a_primary_that_was_demoted() {
    let create = "CREATE TABLE promoted (n int)";
    raw(&mut connect().await, create).await.unwrap();
    let write = "INSERT INTO promoted VALUES (1)";
    let pinned = demoted(3, PgPoolOptions::new()).await;
    let failed = sqlx::query(write).execute(&pinned).await.map(drop);
    says(failed, "25006", AGAIN, Close);
    let checked = PgPoolOptions::new()
        .test_before_acquire(false)
        .before_acquire(sql::writable);
    let checked = demoted(3, checked).await;
    for _ in 0..6 {
        sqlx::query(write).execute(&checked).await.unwrap();
    }
}

#[tokio::test]
async fn the_inbox_closes_connections_that_cannot_be_used_again() {
    let inbox = PgInbox::builder("orders").table("demoted_records");
    let inbox = inbox.backoff(Backoff::fixed(ms(1))).build().unwrap();
    inbox.migrate(&pool(1).await).await.unwrap();
    // In its own statements.
    let pinned = demoted(3, PgPoolOptions::new()).await;
    let run = inbox.run(
        &pinned,
        "a",
        |work| async move { Ok::<_, Error>(work.done(())) },
    );
    assert_eq!(run.await.unwrap().replayed(), None);
    assert_eq!(inbox.snapshot().retries, 3);
    // In those of the work.
    let stale = pool(1).await;
    let mut connection = stale.acquire().await.unwrap();
    raw(&mut connection, "CREATE TABLE stale (n int)")
        .await
        .unwrap();
    prepared(&mut connection, "SELECT * FROM stale")
        .await
        .unwrap();
    drop(connection);
    raw(&mut connect().await, "ALTER TABLE stale ADD COLUMN m int")
        .await
        .unwrap();
    let run = inbox.run(&stale, "b", |mut work| async move {
        prepared(&mut work, "SELECT * FROM stale").await?;
        Ok::<_, Error>(work.done(()))
    });
    assert_eq!(run.await.unwrap().replayed(), None);
    assert_eq!(inbox.snapshot().retries, 4);
    // And keeps the others: a conflict says nothing about the connection.
    let kept = pool(1).await;
    let backend = || async {
        let backend = sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()");
        backend.fetch_one(&kept).await.unwrap()
    };
    let (before, mut failed) = (backend().await, false);
    let run = inbox.run(&kept, "c", |mut work| {
        let fails = !std::mem::replace(&mut failed, true);
        async move {
            if fails {
                let conflict = "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$";
                sqlx::raw_sql(AssertSqlSafe(conflict))
                    .execute(&mut *work)
                    .await?;
            }
            Ok::<_, Error>(work.done(()))
        }
    });
    run.await.unwrap();
    assert_eq!((backend().await, inbox.snapshot().retries), (before, 5));
}
