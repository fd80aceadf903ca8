//! Guarded database calls against a real PostgreSQL: what counts against the database, what is retried, and what
//! happens while the server hangs, dies and comes back.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use resilience_core::{
    Error, Reason, Rejected,
    breaker::{CircuitBreaker, HalfOpen, OpenFor, State},
    bulkhead::Bulkhead,
    deadline::Timeout,
    execute,
    retry::{self, Backoff, Retry, RetryBudget},
    sql::SqlxErrors,
};
use resilience_tests::postgres::Postgres;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{sync::Barrier, task::JoinSet, time::Instant};
use tower::ServiceBuilder;

type Outcome<T> = Result<T, Error<sqlx::Error>>;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The guards of a stack, for a test to look at.
struct Guards {
    timeout: Timeout,
    retry: Retry,
    bulkhead: Bulkhead,
    breaker: CircuitBreaker,
}

impl Guards {
    fn new(timeout: Duration, attempts: u32, places: usize) -> Self {
        let backoff = Backoff::full_jitter(ms(2), ms(20)).seed(7);
        let retry = Retry::builder("db").max_attempts(attempts).backoff(backoff);
        let breaker = CircuitBreaker::builder("db")
            .minimum_calls(5)
            .failure_rate(0.5)
            .open_for(OpenFor::fixed(ms(300)))
            .half_open(HalfOpen::probes(2));
        Self {
            timeout: Timeout::new("db", timeout).unwrap(),
            retry: retry.budget(RetryBudget::unlimited()).build().unwrap(),
            bulkhead: Bulkhead::builder("db")
                .max_concurrent(places)
                .build()
                .unwrap(),
            breaker: breaker.build().unwrap(),
        }
    }

    fn failures(&self) -> u64 {
        let totals = self.breaker.snapshot().totals;
        totals.failures + totals.slow_failures
    }
}

/// The stack of the guide: deadline, retry, bulkhead, breaker. A macro, for its type is a mouthful.
macro_rules! stack {
    ($guards:expr) => {
        execute::guard(
            ServiceBuilder::new()
                .layer($guards.timeout.layer())
                .layer($guards.retry.layer().classify(SqlxErrors))
                .layer($guards.bulkhead.layer())
                .layer($guards.breaker.layer().classify(SqlxErrors)),
        )
    };
}

/// One server for the tests that leave it in peace. It ends when this process does.
fn shared() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(Postgres::start)
}

async fn pool(server: &Postgres, size: u32, patience: Duration) -> PgPool {
    let options: PgConnectOptions = server.url().parse().unwrap();
    pool_with(options, size, patience).await
}

/// On the shared server, with tables of the test's own.
async fn pool_in(schema: &'static str, size: u32) -> PgPool {
    let options: PgConnectOptions = shared().url().parse().unwrap();
    let pool = pool_with(options.options([("search_path", schema)]), size, ms(10_000)).await;
    let create = format!("CREATE SCHEMA {schema}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create))
        .execute(&pool)
        .await
        .unwrap();
    pool
}

async fn pool_with(options: PgConnectOptions, size: u32, patience: Duration) -> PgPool {
    let pool = PgPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(patience);
    pool.connect_with(options).await.unwrap()
}

async fn one(pool: &PgPool) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("SELECT 1").fetch_one(pool).await
}

async fn run(pool: &PgPool, statements: &'static str) {
    sqlx::raw_sql(statements).execute(pool).await.unwrap();
}

fn reason<T>(outcome: &Outcome<T>) -> Option<Reason> {
    outcome.as_ref().err()?.rejected().map(Rejected::reason)
}

/// The five letters that the server says what went wrong by.
fn sqlstate(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// Polls until the condition holds. Nothing in these tests may take longer than this.
async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < until, "not within 20 s: {what}");
        tokio::time::sleep(ms(5)).await;
    }
}

// === the pool ===

#[tokio::test]
async fn an_exhausted_pool_counts_against_the_database_until_it_has_connections_again() {
    let pool = pool(shared(), 2, ms(50)).await;
    let guards = Guards::new(ms(2000), 1, 16);
    let db = stack!(guards);
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];

    for failed in 1..=5 {
        let outcome = db.call(|| one(&pool)).await;
        assert!(
            matches!(outcome, Err(Error::Service(sqlx::Error::PoolTimedOut))),
            "{outcome:?}"
        );
        assert_eq!(guards.failures(), failed);
    }
    assert_eq!(guards.breaker.state(), State::Open);
    assert_eq!(reason(&db.call(|| one(&pool)).await), Some(Reason::Open));

    drop(held);
    eventually("the breaker lets a call through", || async {
        db.call(|| one(&pool)).await.is_ok()
    })
    .await;
    eventually("the breaker closes", || async {
        db.call(|| one(&pool)).await.is_ok() && guards.breaker.state() == State::Closed
    })
    .await;
}

#[tokio::test]
async fn a_pool_timeout_is_retried_and_the_call_succeeds_when_a_connection_is_back() {
    let pool = pool(shared(), 1, ms(100)).await;
    let guards = Guards::new(ms(5000), 10, 16);
    let db = stack!(guards);
    let mut held = Some(pool.acquire().await.unwrap());
    let attempts = AtomicU32::new(0);
    let call = db.call_idempotent(|| async {
        attempts.fetch_add(1, SeqCst);
        one(&pool).await
    });
    let give_back = async {
        eventually("a second attempt", || async { attempts.load(SeqCst) >= 2 }).await;
        held.take();
    };
    let (outcome, ()) = tokio::join!(call, give_back);
    assert_eq!(outcome.unwrap(), 1);
    assert_eq!(
        guards.retry.snapshot().retries,
        u64::from(attempts.load(SeqCst)) - 1
    );
}

#[tokio::test]
async fn a_bulkhead_as_large_as_the_pool_rejects_at_once_what_would_time_out_in_the_pool() {
    let pool = pool(shared(), 2, ms(2000)).await;
    let guards = Guards::new(ms(5000), 1, 2);
    let db = stack!(guards);
    let (inside, leave) = (Arc::new(Barrier::new(3)), Arc::new(Barrier::new(3)));
    let mut holders = JoinSet::new();
    for _ in 0..2 {
        let (db, pool) = (db.clone(), pool.clone());
        let (inside, leave) = (Arc::clone(&inside), Arc::clone(&leave));
        holders.spawn(async move {
            db.call(|| async {
                let mut connection = pool.acquire().await?;
                inside.wait().await;
                leave.wait().await;
                sqlx::query_scalar::<_, i32>("SELECT 1")
                    .fetch_one(&mut *connection)
                    .await
            })
            .await
        });
    }
    inside.wait().await;
    let started = Instant::now();
    for _ in 0..50 {
        assert_eq!(reason(&db.call(|| one(&pool)).await), Some(Reason::Full));
    }
    assert!(
        started.elapsed() < ms(500),
        "50 rejections took {:?}",
        started.elapsed()
    );
    leave.wait().await;
    while let Some(outcome) = holders.join_next().await {
        assert_eq!(outcome.unwrap().unwrap(), 1);
    }
    assert_eq!(
        (guards.failures(), guards.breaker.state()),
        (0, State::Closed)
    );
}

// === the server ===

#[tokio::test]
async fn a_server_that_hangs_costs_each_call_its_deadline_until_the_breaker_opens_and_is_found_again()
 {
    let server = Postgres::start();
    let pool = pool(&server, 4, ms(10_000)).await;
    let guards = Guards::new(ms(250), 3, 16);
    let db = stack!(guards);
    assert_eq!(db.call_idempotent(|| one(&pool)).await.unwrap(), 1);

    server.freeze();
    let mut hung = 0;
    while guards.breaker.state() == State::Closed {
        let started = Instant::now();
        let outcome = db.call_idempotent(|| one(&pool)).await;
        let took = started.elapsed();
        assert_eq!(reason(&outcome), Some(Reason::TimedOut), "{outcome:?}");
        assert!((ms(250)..ms(750)).contains(&took), "{took:?}");
        hung += 1;
        assert!(
            hung <= 6,
            "the breaker does not see that calls hang: {:?}",
            guards.breaker.snapshot()
        );
    }
    // One success and five failures, of which the first four are too few to tell.
    assert!(hung >= 4);
    assert_eq!(guards.timeout.snapshot().timed_out, hung);

    let started = Instant::now();
    for _ in 0..200 {
        let outcome = db.call_idempotent(|| one(&pool)).await;
        assert_eq!(reason(&outcome), Some(Reason::Open), "{outcome:?}");
    }
    let each = started.elapsed() / 200;
    assert!(
        each < Duration::from_micros(500),
        "a rejection takes {each:?}"
    );

    server.thaw();
    eventually("calls succeed and the breaker closes", || async {
        db.call_idempotent(|| one(&pool)).await.is_ok() && guards.breaker.state() == State::Closed
    })
    .await;
}

#[tokio::test]
async fn a_server_that_was_killed_is_left_alone_and_found_again() {
    let server = Postgres::start();
    // While connections are refused, the pool goes on trying for as long as it may take: keep that short.
    let pool = pool(&server, 4, ms(200)).await;
    run(
        &pool,
        "CREATE TABLE kept (v int); INSERT INTO kept VALUES (17)",
    )
    .await;
    let read = || async {
        sqlx::query_scalar::<_, i32>("SELECT v FROM kept")
            .fetch_one(&pool)
            .await
    };
    let guards = Guards::new(ms(2000), 1, 16);
    let db = stack!(guards);
    assert_eq!(db.call_idempotent(read).await.unwrap(), 17);

    server.kill();
    let mut calls = 0;
    while guards.breaker.state() != State::Open {
        let outcome = db.call_idempotent(read).await;
        assert!(outcome.is_err(), "{outcome:?}");
        calls += 1;
        assert!(calls <= 6, "{outcome:?} {:?}", guards.breaker.snapshot());
    }
    assert!(guards.failures() >= 4);
    let before = guards.breaker.snapshot().totals;
    for _ in 0..20 {
        assert!(db.call_idempotent(read).await.is_err());
    }
    let after = guards.breaker.snapshot().totals;
    assert!(
        after.rejected() - before.rejected() >= 15,
        "{before:?} {after:?}"
    );

    server.start_again();
    eventually("calls succeed and the breaker closes", || async {
        matches!(db.call_idempotent(read).await, Ok(17)) && guards.breaker.state() == State::Closed
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_the_server_ends_is_a_failure_that_a_retry_gets_over() {
    let pool = pool(shared(), 2, ms(2000)).await;
    let guards = Guards::new(ms(5000), 3, 16);
    let outcome = stack!(guards)
        .call_idempotent(|| async {
            let mut connection = pool.acquire().await?;
            if retry::attempt() == 1 {
                // Its own process: the answer is that it is being ended.
                let end = sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())");
                return end.execute(&mut *connection).await.map(|_| 0);
            }
            sqlx::query_scalar::<_, i32>("SELECT 1")
                .fetch_one(&mut *connection)
                .await
        })
        .await;
    assert_eq!(outcome.unwrap(), 1);
    assert_eq!((guards.retry.snapshot().retries, guards.failures()), (1, 1));
}

#[tokio::test]
async fn a_statement_that_takes_too_long_for_the_server_fails_with_its_code() {
    let options: PgConnectOptions = shared().url().parse().unwrap();
    let pool = pool_with(options.options([("statement_timeout", "50")]), 2, ms(2000)).await;
    let guards = Guards::new(ms(5000), 1, 16);
    let started = Instant::now();
    let outcome = stack!(guards)
        .call(|| sqlx::query("SELECT pg_sleep(30)").execute(&pool))
        .await;
    let error = outcome.unwrap_err().service().and_then(sqlstate);
    assert_eq!(error.as_deref(), Some("57014"));
    assert!(started.elapsed() < ms(5000));
    assert_eq!(guards.failures(), 1);
}

// === transactions ===

/// Adds one to a row by reading it first. Two of these at the same time cannot both be right.
async fn increment(pool: &PgPool, between: impl Future<Output = ()>) -> Result<(), sqlx::Error> {
    let mut transaction = pool
        .begin_with("BEGIN ISOLATION LEVEL SERIALIZABLE")
        .await?;
    let read = sqlx::query_scalar("SELECT v FROM counters WHERE id = 1");
    let value: i32 = read.fetch_one(&mut *transaction).await?;
    between.await;
    let write = sqlx::query("UPDATE counters SET v = $1 WHERE id = 1").bind(value + 1);
    write.execute(&mut *transaction).await?;
    transaction.commit().await
}

#[tokio::test]
async fn one_of_two_conflicting_transactions_is_retried_once_and_both_count() {
    let pool = pool_in("conflict", 4).await;
    run(
        &pool,
        "CREATE TABLE counters (id int PRIMARY KEY, v int); INSERT INTO counters VALUES (1, 0)",
    )
    .await;
    let guards = Guards::new(ms(10_000), 5, 16);
    let db = stack!(guards);
    let (both_have_read, failed) = (Barrier::new(2), AtomicU32::new(0));
    let call = || {
        db.call_idempotent(|| async {
            let first = retry::attempt() == 1;
            let meet = async {
                if first {
                    both_have_read.wait().await;
                }
            };
            let outcome = increment(&pool, meet).await;
            if let Err(error) = &outcome {
                assert_eq!(sqlstate(error).as_deref(), Some("40001"), "{error}");
                failed.fetch_add(1, SeqCst);
            }
            outcome
        })
    };
    let (one, other) = tokio::join!(call(), call());
    one.unwrap();
    other.unwrap();
    let value: i32 = sqlx::query_scalar("SELECT v FROM counters")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(value, 2);
    assert_eq!(
        (failed.load(SeqCst), guards.retry.snapshot().retries),
        (1, 1)
    );
}

#[tokio::test]
async fn serialization_failures_are_retried_until_every_transaction_is_in_and_counts_once() {
    let pool = pool_in("storm", 8).await;
    run(
        &pool,
        "CREATE TABLE counters (id int PRIMARY KEY, v int); INSERT INTO counters VALUES (1, 0)",
    )
    .await;
    let guards = Guards::new(ms(60_000), 1000, 16);
    // Without the breaker: conflicts are what this test makes on purpose.
    let db = execute::guard(
        ServiceBuilder::new()
            .layer(guards.timeout.layer())
            .layer(guards.retry.layer().classify(SqlxErrors))
            .layer(guards.bulkhead.layer()),
    );
    let failed = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let (db, pool, failed) = (db.clone(), pool.clone(), Arc::clone(&failed));
        tasks.spawn(async move {
            for _ in 0..15 {
                let call = db.call_idempotent(|| async {
                    let outcome = increment(&pool, tokio::task::yield_now()).await;
                    failed.fetch_add(u32::from(outcome.is_err()), SeqCst);
                    outcome
                });
                call.await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let value: i32 = sqlx::query_scalar("SELECT v FROM counters")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(value, 60);
    assert_eq!(guards.retry.snapshot().calls, 60);
    assert_eq!(
        guards.retry.snapshot().retries,
        u64::from(failed.load(SeqCst))
    );
    assert!(
        guards.retry.snapshot().retries > 0,
        "four tasks at one row have to collide"
    );
}

#[tokio::test]
async fn the_victim_of_a_deadlock_is_retried() {
    let pool = pool_in("deadlock", 4).await;
    run(
        &pool,
        "CREATE TABLE rows (id int PRIMARY KEY, v int); INSERT INTO rows VALUES (1, 0), (2, 0)",
    )
    .await;
    let guards = Guards::new(ms(10_000), 5, 16);
    let db = stack!(guards);
    let (both_hold_one, victims) = (Barrier::new(2), AtomicU32::new(0));
    let call = |order: [i32; 2]| {
        let (pool, both_hold_one, victims) = (&pool, &both_hold_one, &victims);
        db.call_idempotent(move || async move {
            let first_attempt = retry::attempt() == 1;
            let outcome = async {
                let mut transaction = pool.begin().await?;
                for (place, id) in order.into_iter().enumerate() {
                    let add = sqlx::query("UPDATE rows SET v = v + 1 WHERE id = $1").bind(id);
                    add.execute(&mut *transaction).await?;
                    if first_attempt && place == 0 {
                        both_hold_one.wait().await;
                    }
                }
                transaction.commit().await
            }
            .await;
            if let Err(error) = &outcome {
                assert_eq!(sqlstate(error).as_deref(), Some("40P01"), "{error}");
                victims.fetch_add(1, SeqCst);
            }
            outcome
        })
    };
    let (one, other) = tokio::join!(call([1, 2]), call([2, 1]));
    one.unwrap();
    other.unwrap();
    let values: Vec<i32> = sqlx::query_scalar("SELECT v FROM rows")
        .fetch_all(&pool)
        .await
        .unwrap();
    assert_eq!(values, [2, 2]);
    // One as a rule; another one if its next attempt has the row before the other transaction is woken.
    let victims = victims.load(SeqCst);
    assert!(victims > 0);
    assert_eq!(guards.retry.snapshot().retries, u64::from(victims));
}

// === what is no failure of the database ===

#[tokio::test]
async fn the_callers_own_mistakes_neither_count_against_the_database_nor_are_retried() {
    let pool = pool_in("mistakes", 2).await;
    run(
        &pool,
        "CREATE TABLE owners (id int PRIMARY KEY); INSERT INTO owners VALUES (1);
         CREATE TABLE things (id int UNIQUE, amount int NOT NULL CHECK (amount > 0), owner int REFERENCES owners)",
    )
    .await;
    let guards = Guards::new(ms(5000), 5, 16);
    let db = stack!(guards);
    let mut seen = BTreeSet::new();
    for statement in [
        "INSERT INTO owners VALUES (1)",
        "INSERT INTO things VALUES (1, NULL, 1)",
        "INSERT INTO things VALUES (1, -1, 1)",
        "INSERT INTO things VALUES (1, 1, 99)",
    ] {
        for _ in 0..6 {
            let failed = db
                .call_idempotent(|| sqlx::query(statement).execute(&pool))
                .await;
            seen.extend(failed.unwrap_err().service().and_then(sqlstate));
        }
    }
    for _ in 0..6 {
        let nobody = sqlx::query_scalar::<_, i32>;
        let failed = db
            .call_idempotent(|| nobody("SELECT id FROM owners WHERE id = 404").fetch_one(&pool))
            .await;
        assert!(
            matches!(failed, Err(Error::Service(sqlx::Error::RowNotFound))),
            "{failed:?}"
        );
    }
    let expected = ["23502", "23503", "23505", "23514"].map(str::to_owned);
    assert_eq!(
        seen,
        BTreeSet::from(expected),
        "each of the mistakes was made"
    );
    assert_eq!(
        (guards.failures(), guards.breaker.state()),
        (0, State::Closed)
    );
    assert_eq!(guards.retry.snapshot().retries, 0);
    assert_eq!(db.call(|| one(&pool)).await.unwrap(), 1);
}
