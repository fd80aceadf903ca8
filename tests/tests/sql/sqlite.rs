//! The same classification on SQLite: in memory, and in a file where two connections are needed.

use std::time::Duration;

use resilience_core::{
    Error,
    breaker::{CircuitBreaker, State},
    execute,
    retry::{self, Backoff, Retry, RetryBudget},
    sql::SqlxErrors,
};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tokio::sync::Notify;
use tower::ServiceBuilder;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn guards(attempts: u32) -> (Retry, CircuitBreaker) {
    let retry = Retry::builder("sqlite")
        .max_attempts(attempts)
        .backoff(Backoff::fixed(ms(1)))
        .budget(RetryBudget::unlimited());
    let breaker = CircuitBreaker::builder("sqlite")
        .minimum_calls(5)
        .failure_rate(0.5);
    (retry.build().unwrap(), breaker.build().unwrap())
}

macro_rules! stack {
    ($retry:expr, $breaker:expr) => {
        execute::guard(
            ServiceBuilder::new()
                .layer($retry.layer().classify(SqlxErrors))
                .layer($breaker.layer().classify(SqlxErrors)),
        )
    };
}

async fn in_memory(patience: Duration) -> SqlitePool {
    // One connection: each has a memory of its own.
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(patience);
    let pool = pool.connect("sqlite::memory:").await.unwrap();
    let setup =
        "CREATE TABLE things (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL CHECK (amount > 0));
                 INSERT INTO things VALUES (1, 1)";
    sqlx::raw_sql(setup).execute(&pool).await.unwrap();
    pool
}

#[tokio::test]
async fn the_callers_own_mistakes_neither_count_against_the_database_nor_are_retried() {
    let (pool, (retry, breaker)) = (in_memory(ms(10_000)).await, guards(5));
    let db = stack!(retry, breaker);
    for statement in [
        "INSERT INTO things VALUES (1, 1)",
        "INSERT INTO things VALUES (2, NULL)",
        "INSERT INTO things VALUES (2, -1)",
    ] {
        for _ in 0..6 {
            let failed = db
                .call_idempotent(|| sqlx::query(statement).execute(&pool))
                .await
                .unwrap_err();
            let error = failed.service().and_then(sqlx::Error::as_database_error);
            assert!(
                error.is_some_and(|error| !matches!(error.kind(), sqlx::error::ErrorKind::Other)),
                "{failed:?}"
            );
        }
    }
    for _ in 0..6 {
        let nobody = sqlx::query_scalar::<_, i32>;
        let failed = db
            .call_idempotent(|| nobody("SELECT id FROM things WHERE id = 404").fetch_one(&pool))
            .await;
        assert!(
            matches!(failed, Err(Error::Service(sqlx::Error::RowNotFound))),
            "{failed:?}"
        );
    }
    assert_eq!(
        (breaker.snapshot().totals.failures, breaker.state()),
        (0, State::Closed)
    );
    assert_eq!(retry.snapshot().retries, 0);
}

#[tokio::test]
async fn an_exhausted_pool_counts_against_the_database() {
    let (pool, (retry, breaker)) = (in_memory(ms(50)).await, guards(1));
    let db = stack!(retry, breaker);
    let held = pool.acquire().await.unwrap();
    for _ in 0..5 {
        let failed = db.call(|| sqlx::query("SELECT 1").execute(&pool)).await;
        assert!(
            matches!(failed, Err(Error::Service(sqlx::Error::PoolTimedOut))),
            "{failed:?}"
        );
    }
    assert_eq!(breaker.state(), State::Open);
    drop(held);
}

#[tokio::test]
async fn a_database_that_is_locked_by_another_writer_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("db"))
        .create_if_missing(true)
        .busy_timeout(Duration::ZERO);
    let pool = SqlitePoolOptions::new()
        .max_connections(2)
        .connect_with(options)
        .await
        .unwrap();
    sqlx::raw_sql("CREATE TABLE things (id INTEGER)")
        .execute(&pool)
        .await
        .unwrap();
    let (retry, breaker) = guards(3);
    let db = stack!(retry, breaker);

    let mut other = Some(pool.begin_with("BEGIN IMMEDIATE").await.unwrap());
    let (give_up, given_up) = (Notify::new(), Notify::new());
    let call = db.call_idempotent(|| async {
        let outcome = sqlx::query("INSERT INTO things VALUES (1)")
            .execute(&pool)
            .await;
        if retry::attempt() == 2 {
            // The other writer is done before the third attempt.
            give_up.notify_one();
            given_up.notified().await;
        }
        outcome
    });
    let unlock = async {
        give_up.notified().await;
        other.take().unwrap().rollback().await.unwrap();
        given_up.notify_one();
    };
    let (outcome, ()) = tokio::join!(call, unlock);
    assert_eq!(outcome.unwrap().rows_affected(), 1);
    assert_eq!(
        (retry.snapshot().retries, breaker.snapshot().totals.failures),
        (2, 2)
    );
}
