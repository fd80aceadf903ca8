//! What a call holds while it waits, and for how long.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use futures_util::future::join_all;
use resilience_core::{
    Error, Reason,
    deadline::{self, Deadline},
    retry::Backoff,
    sql::inbox::{Inbox, PgInbox, SqliteInbox},
};
use resilience_tests::until::eventually;
use sqlx::{
    PgPool, SqlitePool,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tokio::{sync::Semaphore, time::Instant};

use super::rig::{EFFECT, PgRig, SqliteRig, ms, shared, tea};

const SOON: std::time::Duration = ms(20_000);

/// 15 duplicates took all 10 connections, and a stranger's key failed.
#[tokio::test]
async fn duplicates_of_a_slow_key_wait_without_a_connection_and_leave_those_to_other_keys() {
    let rig = PgRig::new("duplicates").await;
    let options = PgPoolOptions::new()
        .max_connections(3)
        .acquire_timeout(ms(5_000));
    let url = format!("{}?options=-csearch_path%3Dduplicates", shared().url());
    let pool = options.connect(&url);
    let pool = &pool.await.unwrap();
    let (inbox, inside, go_on) = (&rig.inbox, &Semaphore::new(0), &Semaphore::new(0));
    let slow = |_| async move {
        let run = inbox.run(pool, tea("slow"), |mut work| async move {
            sqlx::query(EFFECT)
                .bind("slow")
                .bind(1_i64)
                .execute(&mut *work)
                .await?;
            inside.add_permits(1);
            go_on.acquire().await.unwrap().forget();
            Ok::<_, sqlx::Error>(work.done(7))
        });
        run.await.unwrap()
    };
    let duplicates = join_all((0..15).map(slow));
    let strangers = async {
        inside.acquire().await.unwrap().forget();
        for key in ["a", "b", "c"] {
            let run = inbox.run(pool, tea(key), |work| async move {
                Ok::<_, sqlx::Error>(work.done(()))
            });
            run.await.unwrap();
        }
        // One of the duplicates has one.
        eventually("the others are free", SOON, async || {
            pool.size() as usize - pool.num_idle() == 1
        })
        .await;
        go_on.add_permits(1);
    };
    let (slow, ()) = tokio::join!(duplicates, strangers);
    assert!(slow.iter().all(|ran| ran.value == 7));
    assert_eq!(
        slow.iter().filter(|ran| ran.replayed().is_none()).count(),
        1
    );
    assert_eq!(rig.effects("slow").await, 1);
}

#[tokio::test]
async fn duplicates_in_sqlite_take_one_connection() {
    let rig = SqliteRig::new("").await;
    let (inside, go_on) = (&Semaphore::new(0), &Semaphore::new(0));
    let slow = |_| {
        rig.inbox.run(&rig.pool, tea("slow"), |work| async move {
            inside.add_permits(1);
            go_on.acquire().await.unwrap().forget();
            Ok::<_, sqlx::Error>(work.done(7))
        })
    };
    let duplicates = join_all((0..15).map(slow));
    let look = async {
        inside.acquire().await.unwrap().forget();
        eventually("the others are free", SOON, async || {
            rig.pool.size() as usize - rig.pool.num_idle() == 1
        })
        .await;
        go_on.add_permits(1);
    };
    let (slow, ()) = tokio::join!(duplicates, look);
    assert!(slow.into_iter().all(|ran| ran.unwrap().value == 7));
}

#[tokio::test]
async fn a_duplicate_waits_for_as_long_as_it_may_and_no_longer_than_its_deadline() {
    let rig = PgRig::new("patience").await;
    let build = |wait: Option<u64>, max_waiting| {
        let builder = PgInbox::builder("orders").max_waiting(max_waiting);
        let builder = match wait {
            Some(wait) => builder.wait(ms(wait)),
            None => builder.no_wait(),
        };
        builder.build().unwrap()
    };
    // In the queue of the process, and in that of the database.
    for other_process in [false, true] {
        for (inbox, deadline) in [
            (build(Some(100), 9), 60_000),
            (build(Some(60_000), 9), 100),
            (build(None, 9), 60_000),
        ] {
            let holder = if other_process {
                &build(None, 9)
            } else {
                &inbox
            };
            let (inside, go_on) = (&Semaphore::new(0), &Semaphore::new(0));
            let slow = async {
                let run = holder.run(&rig.pool, tea("slow"), |work| async move {
                    inside.add_permits(1);
                    go_on.acquire().await.unwrap().forget();
                    drop(work);
                    Err::<resilience_core::sql::inbox::Done<_, ()>, _>(sqlx::Error::RowNotFound)
                });
                let ended = run.await.unwrap_err();
                assert!(matches!(ended, Error::Service(_)), "never began: {ended}");
            };
            let second = async {
                inside.acquire().await.unwrap().forget();
                let began = Instant::now();
                let run = inbox.run(&rig.pool, tea("slow"), |work| async move {
                    Ok::<_, sqlx::Error>(work.done(()))
                });
                let refused = deadline::scope(Deadline::after(ms(deadline)), run).await;
                assert!(began.elapsed() < ms(30_000), "{:?}", began.elapsed());
                go_on.add_permits(1);
                refused
            };
            let ((), refused) = tokio::join!(slow, second);
            // On a slow machine the deadline may come before the answer that the key is taken.
            assert!(refused.is_err());
            if deadline == 60_000 {
                assert_eq!(reason(refused), Some(Reason::InFlight));
                assert_eq!(inbox.snapshot().busy, 1);
            }
        }
    }
}

fn reason<T>(outcome: Result<T, Error<sqlx::Error>>) -> Option<Reason> {
    outcome.err()?.rejected().map(|no| no.reason())
}

fn is_full(error: &Error<sqlx::Error>) -> bool {
    matches!(error, Error::Service(sqlx::Error::PoolTimedOut))
}

/// A call whose work waits for a connection that it keeps from coming back itself.
async fn hungry(
    inbox: &PgInbox,
    pool: &PgPool,
    begun: &AtomicU32,
) -> Result<(), Error<sqlx::Error>> {
    let run = inbox.run(pool, tea("hungry"), |work| async move {
        begun.fetch_add(1, SeqCst);
        pool.acquire().await?;
        Ok::<_, sqlx::Error>(work.done(()))
    });
    run.await.map(drop)
}

/// Was begun five times, each for the pool's own timeout.
#[tokio::test]
async fn work_that_waits_before_it_fails_is_begun_again_within_a_bound_and_ends_with_the_deadline()
{
    let rig = PgRig::new("hungry").await;
    let url = format!("{}?options=-csearch_path%3Dhungry", shared().url());
    let pool = |wait| {
        let options = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ms(wait));
        options.connect_lazy(&url).unwrap()
    };
    let inbox: PgInbox = Inbox::builder("orders").retry_for(ms(250)).build().unwrap();
    let begun = AtomicU32::new(0);
    let failed = hungry(&inbox, &pool(200), &begun).await.unwrap_err();
    assert!(is_full(&failed), "{failed}");
    assert!(begun.load(SeqCst) <= 2, "{begun:?}");

    let (begun, began) = (AtomicU32::new(0), Instant::now());
    let deadline = Deadline::after(ms(300));
    let pool = pool(60_000);
    let cut = deadline::scope(deadline, hungry(&rig.inbox, &pool, &begun)).await;
    assert_eq!(reason(cut), Some(Reason::TimedOut));
    assert!(began.elapsed() < ms(30_000));
    assert_eq!(begun.load(SeqCst), 1);
    // And the wait of the inbox itself for a connection.
    let _held = pool.acquire().await.unwrap();
    let began = Instant::now();
    let deadline = Deadline::after(ms(100));
    let full = deadline::scope(deadline, hungry(&rig.inbox, &pool, &begun)).await;
    assert!(full.as_ref().is_err_and(is_full), "{full:?}");
    assert!(began.elapsed() < ms(30_000));
    assert_eq!(begun.load(SeqCst), 1);
}

#[tokio::test]
async fn a_sqlite_that_stays_locked_is_tried_again_within_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("db"))
        .create_if_missing(true)
        .busy_timeout(ms(100));
    let pool: SqlitePool = SqlitePoolOptions::new()
        .connect_with(options)
        .await
        .unwrap();
    let inbox: SqliteInbox = Inbox::builder("orders")
        .retry_for(ms(150))
        .max_attempts(1_000)
        .backoff(Backoff::fixed(ms(1)))
        .build()
        .unwrap();
    inbox.migrate(&pool).await.unwrap();
    let _locked = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let run = inbox.run(&pool, "a", |work| async move {
        Ok::<_, sqlx::Error>(work.done(()))
    });
    let failed = run.await.unwrap_err();
    let failed = failed.service().and_then(sqlx::Error::as_database_error);
    assert_eq!(failed.and_then(|error| error.code()).as_deref(), Some("5"));
    assert!(inbox.snapshot().retries <= 2, "{:?}", inbox.snapshot());
}
