//! What is PostgreSQL's own: waiting, isolation, servers that die.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use resilience_core::{
    error::{Error, Reason},
    retry::Backoff,
    sql::inbox::{Claimed, Inbox, Isolation, PgInbox},
};
use resilience_tests::{postgres::Postgres, until::eventually};
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;

use super::rig::{EFFECT, PgRig, ms, tea};

const SOON: std::time::Duration = ms(20_000);

async fn effect(connection: &mut PgConnection, what: &str) -> Result<(), sqlx::Error> {
    let effect = sqlx::query(EFFECT).bind(what).bind(1_i64);
    effect.execute(connection).await.map(drop)
}

/// How many of the server's sessions wait for an advisory lock.
async fn waiting(pool: &PgPool) -> i64 {
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = \
                   (SELECT oid FROM pg_database WHERE datname = current_database())";
    sqlx::query_scalar(waiting).fetch_one(pool).await.unwrap()
}

fn code<T: std::fmt::Debug>(outcome: Result<T, sqlx::Error>) -> Option<String> {
    let error = outcome.unwrap_err();
    Some(error.as_database_error()?.code()?.into_owned())
}

#[tokio::test]
async fn the_second_waits_for_the_first_and_replays_what_it_committed_or_does_what_it_rolled_back()
{
    let server = Postgres::start();
    let rig = PgRig::on(&server, "second").await;
    rig.inbox.migrate(&rig.pool).await.unwrap();
    for (key, commit) in [("committed", true), ("rolled back", false)] {
        let mut first = rig.pool.begin().await.unwrap();
        let Claimed::Fresh(entry) = rig.inbox.claim(&mut first, &tea(key)).await.unwrap() else {
            panic!("recorded");
        };
        effect(&mut first, key).await.unwrap();
        let second = rig.inbox.run(&rig.pool, tea(key), |mut work| async move {
            effect(&mut work, key).await?;
            Ok::<_, sqlx::Error>(work.done("second".to_owned()))
        });
        let end = async {
            eventually("the second waits", SOON, async || {
                waiting(&rig.pool).await == 1
            })
            .await;
            entry.complete(&mut first, b"\"first\"").await.unwrap();
            if commit {
                first.commit().await.unwrap();
            } else {
                first.rollback().await.unwrap();
            }
        };
        let (ran, ()) = tokio::join!(second, end);
        let ran = ran.unwrap();
        assert_eq!(ran.replayed().is_some(), commit);
        assert_eq!(ran.value, if commit { "first" } else { "second" });
        assert_eq!(rig.effects(key).await, 1);
    }
}

#[tokio::test]
async fn waiting_is_bounded_and_leaves_the_transactions_own_lock_timeout_as_it_was() {
    let rig = PgRig::new("bounded").await;
    let short: PgInbox = Inbox::builder("orders").wait(ms(100)).build().unwrap();
    let none: PgInbox = Inbox::builder("orders").no_wait().build().unwrap();
    let mut first = rig.pool.begin().await.unwrap();
    sqlx::raw_sql("SET LOCAL lock_timeout = '1234ms'")
        .execute(&mut *first)
        .await
        .unwrap();
    rig.inbox.claim(&mut first, &tea("a")).await.unwrap();
    let timeout: String = sqlx::query_scalar("SHOW lock_timeout")
        .fetch_one(&mut *first)
        .await
        .unwrap();
    assert_eq!(timeout, "1234ms");

    for (inbox, usable) in [(&none, true), (&short, false)] {
        let mut second = rig.pool.begin().await.unwrap();
        let began = Instant::now();
        let busy = inbox.claim(&mut second, &tea("a")).await.unwrap();
        let took = began.elapsed();
        assert!(matches!(busy, Claimed::Busy), "{busy:?}");
        assert!(took < ms(5_000) && (usable || took >= ms(100)), "{took:?}");
        let timeout = sqlx::query_scalar::<_, String>("SHOW lock_timeout")
            .fetch_one(&mut *second)
            .await;
        assert_eq!(timeout.is_ok(), usable, "{timeout:?}");
        assert!(timeout.is_err() || timeout.unwrap() == "0");
        second.rollback().await.unwrap();
        let ran = inbox
            .run(&rig.pool, tea("a"), |work| async move {
                Ok::<_, sqlx::Error>(work.done(()))
            })
            .await;
        assert_eq!(
            ran.unwrap_err().rejected().map(|no| no.reason()),
            Some(Reason::InFlight)
        );
        assert_eq!(inbox.snapshot().busy, 2);
    }
    first.rollback().await.unwrap();
    let mut free = rig.pool.begin().await.unwrap();
    let claimed = none.claim(&mut free, &tea("a")).await.unwrap();
    assert!(matches!(claimed, Claimed::Fresh(_)), "{claimed:?}");
}

#[tokio::test]
async fn a_replay_neither_writes_nor_locks() {
    let rig = PgRig::new("reads").await;
    rig.inbox
        .run(&rig.pool, tea("a"), |work| async move {
            Ok::<_, sqlx::Error>(work.done(()))
        })
        .await
        .unwrap();
    let mut tx = rig.pool.begin().await.unwrap();
    let done = rig.inbox.claim(&mut tx, &tea("a")).await.unwrap();
    assert!(matches!(done, Claimed::Done(_)), "{done:?}");
    // A transaction that has written something has an id.
    let left = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL, \
                (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory')";
    let left: (bool, i64) = sqlx::query_as(left).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(left, (false, 0));
}

#[tokio::test]
async fn under_stricter_isolation_who_waited_is_told_to_begin_again_and_run_does() {
    let rig = PgRig::new("isolation").await;
    for (isolation, begin) in [
        (
            Isolation::ReadCommitted,
            "BEGIN ISOLATION LEVEL READ COMMITTED",
        ),
        (
            Isolation::RepeatableRead,
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
        ),
        (
            Isolation::Serializable,
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
        ),
    ] {
        let key = format!("{isolation:?}");
        let inbox: PgInbox = Inbox::builder("orders")
            .isolation(isolation)
            .build()
            .unwrap();
        // By hand: both have begun, and seen something, before the first one commits.
        let (mut first, mut second) = (
            rig.pool.begin_with(begin).await.unwrap(),
            rig.pool.begin_with(begin).await.unwrap(),
        );
        sqlx::query("SELECT 1 FROM effects")
            .execute(&mut *second)
            .await
            .unwrap();
        let Claimed::Fresh(entry) = inbox.claim(&mut first, &tea(&key)).await.unwrap() else {
            panic!("recorded");
        };
        effect(&mut first, &key).await.unwrap();
        entry.complete(&mut first, b"\"first\"").await.unwrap();
        first.commit().await.unwrap();
        let claimed = inbox.claim(&mut second, &tea(&key)).await;
        match isolation {
            Isolation::ReadCommitted => {
                assert!(matches!(claimed, Ok(Claimed::Done(_))), "{claimed:?}")
            }
            _ => assert_eq!(code(claimed).as_deref(), Some("40001")),
        }
        drop(second);
        let ran = inbox
            .run(&rig.pool, tea(&key), |work| async move {
                Ok::<_, sqlx::Error>(work.done(String::new()))
            })
            .await;
        assert!(ran.unwrap().replayed().is_some());
        assert_eq!(rig.effects(&key).await, 1);
    }
}

/// Both read a counter and write it: one of them cannot be serialized, and is done again.
#[tokio::test]
async fn serialization_failures_of_the_work_begin_again_and_each_effect_takes_place_once() {
    let rig = PgRig::new("serialize").await;
    let setup = "CREATE TABLE counters (v bigint); INSERT INTO counters VALUES (0)";
    sqlx::raw_sql(setup).execute(&rig.pool).await.unwrap();
    let inbox: PgInbox = Inbox::builder("orders")
        .isolation(Isolation::Serializable)
        .max_attempts(50)
        .backoff(Backoff::full_jitter(ms(1), ms(50)))
        .build()
        .unwrap();
    let begun = AtomicU32::new(0);
    let calls = (0..16).map(|call| {
        let (inbox, rig, begun) = (&inbox, &rig, &begun);
        async move {
            // Each is asked for twice.
            let key = format!("key {}", call / 2);
            let work = inbox.run(&rig.pool, tea(&key), |mut work| async move {
                begun.fetch_add(1, SeqCst);
                let read = sqlx::query_scalar::<_, i64>("SELECT v FROM counters");
                let value = read.fetch_one(&mut *work).await?;
                let write = sqlx::query("UPDATE counters SET v = $1").bind(value + 1);
                write.execute(&mut *work).await?;
                Ok::<_, sqlx::Error>(work.done(()))
            });
            work.await.unwrap()
        }
    });
    let ran = futures_util::future::join_all(calls).await;
    assert_eq!(ran.iter().filter(|ran| ran.replayed().is_none()).count(), 8);
    let value: i64 = sqlx::query_scalar("SELECT v FROM counters")
        .fetch_one(&rig.pool)
        .await
        .unwrap();
    assert_eq!(value, 8);
    assert!(begun.load(SeqCst) > 8, "nothing had to be done again");
}

#[tokio::test]
async fn a_statement_that_is_cancelled_is_begun_again_up_to_the_limit() {
    let rig = PgRig::new("cancelled").await;
    let inbox: PgInbox = Inbox::builder("orders")
        .max_attempts(3)
        .backoff(Backoff::fixed(ms(1)))
        .build()
        .unwrap();
    let cancel = |times: u32| {
        let (inbox, rig) = (&inbox, &rig);
        async move {
            let begun = &AtomicU32::new(0);
            let key = format!("{times} times");
            let ran = inbox.run(&rig.pool, tea(&key), |mut work| async move {
                let begun = begun.fetch_add(1, SeqCst) + 1;
                effect(&mut work, "cancelled").await?;
                if begun <= times {
                    sqlx::raw_sql("SET LOCAL statement_timeout = '10ms'")
                        .execute(&mut *work)
                        .await?;
                    sqlx::query("SELECT pg_sleep(30)")
                        .execute(&mut *work)
                        .await?;
                }
                let attempt = work.attempt();
                Ok::<_, sqlx::Error>(work.done(attempt))
            });
            let ran = ran.await;
            (ran, begun.load(SeqCst))
        }
    };
    let (ran, begun) = cancel(2).await;
    assert_eq!(
        (ran.unwrap().value, begun, rig.effects("cancelled").await),
        (1, 3, 1)
    );
    let (ran, begun) = cancel(9).await;
    let Err(Error::Service(error)) = ran else {
        panic!("{ran:?}")
    };
    assert_eq!(
        (code::<()>(Err(error)).as_deref(), begun),
        (Some("57014"), 3)
    );
    assert_eq!(rig.effects("cancelled").await, 1);
}

#[tokio::test]
async fn a_server_killed_before_the_commit_has_recorded_nothing_and_after_it_everything() {
    let server = Postgres::start();
    let rig = PgRig::on(&server, "killed").await;
    rig.inbox.migrate(&rig.pool).await.unwrap();
    rig.inbox
        .run(&rig.pool, tea("before"), |mut work| async move {
            effect(&mut work, "before").await?;
            Ok::<_, sqlx::Error>(work.done("kept".to_owned()))
        })
        .await
        .unwrap();

    let mut tx = rig.pool.begin().await.unwrap();
    let Claimed::Fresh(entry) = rig.inbox.claim(&mut tx, &tea("a")).await.unwrap() else {
        panic!("recorded");
    };
    let fence = entry.fence();
    effect(&mut tx, "a").await.unwrap();
    entry.complete(&mut tx, b"never seen").await.unwrap();
    server.kill();
    assert!(tx.commit().await.is_err());
    server.start_again();

    eventually("it is back", SOON, async || {
        sqlx::query("SELECT 1").execute(&rig.pool).await.is_ok()
    })
    .await;
    assert_eq!(rig.effects("a").await, 0);
    let again = rig.inbox.run(&rig.pool, tea("a"), |mut work| async move {
        effect(&mut work, "a").await?;
        let fence = work.fence();
        Ok::<_, sqlx::Error>(work.done(fence))
    });
    let again = again.await.unwrap();
    assert!(again.replayed().is_none() && again.value > fence);
    assert_eq!(rig.effects("a").await, 1);
    let before = rig.inbox.run(&rig.pool, tea("before"), |work| async move {
        Ok::<_, sqlx::Error>(work.done(String::new()))
    });
    assert_eq!(before.await.unwrap().value, "kept");
}

/// The commit is carried out, and the answer to it never comes: the caller asks again, and is told.
#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_again_and_not_repeated() {
    let rig = PgRig::new("lost").await;
    // What the work is told: its connection is to end right after the commit.
    let begun = &AtomicU32::new(0);
    let ran = rig.inbox.run(&rig.pool, tea("a"), |mut work| async move {
        begun.fetch_add(1, SeqCst);
        effect(&mut work, "a").await?;
        // Commits behind the back of `run`, with the record; what `run` does next fails as if the line had been cut.
        let record = "UPDATE inbox SET outcome = '\"committed\"', completed_at = now() WHERE key = '/a'; COMMIT; \
                      SELECT pg_terminate_backend(pg_backend_pid())";
        let cut = sqlx::raw_sql(record).execute(&mut *work).await.map(drop);
        cut.map(|()| work.done("".to_owned()))
    });
    let ran = ran.await.unwrap();
    assert_eq!(
        (
            begun.load(SeqCst),
            ran.replayed().is_some(),
            rig.effects("a").await
        ),
        (1, true, 1)
    );
    assert_eq!(ran.value, "committed");
}

#[tokio::test]
async fn fences_go_on_above_the_clock_when_a_backup_is_restored() {
    let rig = PgRig::new("restored").await;
    let run = async |key: &str| {
        let ran = rig
            .inbox
            .run(&rig.pool, tea(key), |work| async move {
                let fence = work.fence();
                Ok::<_, sqlx::Error>(work.done(fence))
            })
            .await;
        ran.unwrap().value
    };
    let before = run("a").await;
    // As an old backup would have it.
    sqlx::raw_sql("DELETE FROM inbox; SELECT setval('inbox_fence', 7)")
        .execute(&rig.pool)
        .await
        .unwrap();
    rig.inbox.migrate(&rig.pool).await.unwrap();
    assert!(run("a").await > before);
}

#[tokio::test]
async fn prune_leaves_alone_what_a_transaction_is_at_work_on() {
    let rig = PgRig::new("atwork").await;
    for key in ["a", "b"] {
        rig.inbox
            .run(&rig.pool, tea(key), |work| async move {
                let fence = work.fence();
                Ok::<_, sqlx::Error>(work.done(fence))
            })
            .await
            .unwrap();
    }
    sqlx::query("UPDATE inbox SET expires_at = now()")
        .execute(&rig.pool)
        .await
        .unwrap();
    let mut tx = rig.pool.begin().await.unwrap();
    let Claimed::Fresh(entry) = rig.inbox.claim(&mut tx, &tea("a")).await.unwrap() else {
        panic!("it has expired");
    };
    assert_eq!(
        rig.inbox.prune(&rig.pool, 100).await.unwrap(),
        1,
        "`b`, without waiting for `a`"
    );
    entry.complete(&mut tx, b"").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(rig.inbox.prune(&rig.pool, 100).await.unwrap(), 0);
}

#[tokio::test]
async fn a_table_of_another_name_in_a_schema_of_its_own() {
    let rig = PgRig::new("custom").await;
    let inbox: PgInbox = Inbox::builder("orders")
        .table("custom.select")
        .build()
        .unwrap();
    inbox.migrate(&rig.pool).await.unwrap();
    inbox.migrate(&rig.pool).await.unwrap();
    let run = async || {
        inbox
            .run(&rig.pool, tea("a"), |work| async move {
                Ok::<_, sqlx::Error>(work.done(()))
            })
            .await
            .unwrap()
    };
    assert!(run().await.replayed().is_none() && run().await.replayed().is_some());
    assert!(inbox.schema().contains("\"custom\".\"select\""));
}
