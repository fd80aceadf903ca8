//! What holds in every database.

macro_rules! suite {
    ($module:ident, $rig:ident, $inbox:ident, $begin:literal) => {
        mod $module {
            use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

            use resilience_core::{
                error::{Error, Reason},
                idempotency::Key,
                sql::inbox::{Claimed, Settled},
            };
            use tokio::task::JoinSet;

            use super::super::rig::{EFFECT, coffee, ms, tea};

            type Rig = super::super::rig::$rig;
            type TheInbox = resilience_core::sql::inbox::$inbox;

            async fn rig(test: &'static str) -> Rig {
                Rig::new(test).await
            }

            /// Claims, and does the work if it is to be done; commits.
            async fn once(rig: &Rig, key: &str) -> Option<Settled> {
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                match rig.inbox.claim(&mut tx, &tea(key)).await.unwrap() {
                    Claimed::Fresh(entry) => {
                        let effect = sqlx::query(EFFECT).bind(key).bind(entry.fence() as i64);
                        effect.execute(&mut *tx).await.unwrap();
                        entry.complete(&mut tx, b"two cups").await.unwrap();
                        tx.commit().await.unwrap();
                        None
                    }
                    Claimed::Done(recorded) => Some(recorded),
                    other => panic!("{other:?}"),
                }
            }

            #[tokio::test]
            async fn the_record_and_the_effect_are_committed_together_and_replayed_after() {
                let rig = rig("together").await;
                assert_eq!(once(&rig, "a").await, None);
                let recorded = once(&rig, "a").await.unwrap();
                assert_eq!(&recorded.outcome[..], b"two cups");
                assert_eq!((recorded.attempt, recorded.age < ms(60_000)), (1, true));
                assert_eq!((rig.effects("a").await, rig.effects("b").await), (1, 0));
                assert_eq!(once(&rig, "b").await, None, "another key is other work");
            }

            #[tokio::test]
            async fn an_empty_outcome_is_an_outcome_and_every_byte_comes_back() {
                let rig = rig("bytes").await;
                let all: Vec<u8> = (0..=255).collect();
                for outcome in [vec![], all] {
                    let key = Key::new(format!("of {}", outcome.len()));
                    let mut tx = rig.pool.begin_with($begin).await.unwrap();
                    let Claimed::Fresh(entry) = rig.inbox.claim(&mut tx, &key).await.unwrap()
                    else {
                        panic!("recorded");
                    };
                    entry.complete(&mut tx, &outcome).await.unwrap();
                    let again = rig.inbox.claim(&mut tx, &key).await.unwrap();
                    let Claimed::Done(settled) = again else {
                        panic!("{again:?}")
                    };
                    assert_eq!(settled.outcome, outcome);
                }
            }

            #[tokio::test]
            async fn a_result_that_cannot_be_read_is_refused_and_not_made_again() {
                let rig = rig("codec").await;
                let text = rig.inbox.run(&rig.pool, tea("a"), |work| async move {
                    Ok::<_, sqlx::Error>(work.done("no number".to_owned()))
                });
                assert_eq!(text.await.unwrap().replayed(), None);
                let number = rig.inbox.run(&rig.pool, tea("a"), |work| async move {
                    Ok::<_, sqlx::Error>(work.done(7_u32))
                });
                let refused = number.await.unwrap_err();
                assert_eq!(
                    refused.rejected().map(|no| no.reason()),
                    Some(Reason::OutcomeUnreadable)
                );
                // JSON has no maps with such keys.
                let formless = rig.inbox.run(&rig.pool, tea("b"), |mut work| async move {
                    sqlx::query(EFFECT)
                        .bind("b")
                        .bind(1_i64)
                        .execute(&mut *work)
                        .await?;
                    Ok::<_, sqlx::Error>(work.done(std::collections::BTreeMap::from([((1, 2), 3)])))
                });
                let failed = formless.await.unwrap_err();
                assert!(
                    matches!(failed, Error::Service(sqlx::Error::Encode(_))),
                    "{failed:?}"
                );
                assert_eq!(rig.effects("b").await, 0);
            }

            #[tokio::test]
            async fn another_fingerprint_under_the_same_key_is_a_mismatch_and_changes_nothing() {
                let rig = rig("mismatch").await;
                assert_eq!(once(&rig, "a").await, None);
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                let other = rig.inbox.claim(&mut tx, &coffee("a")).await.unwrap();
                assert!(matches!(other, Claimed::Mismatch), "{other:?}");
                tx.commit().await.unwrap();
                let work = rig.inbox.run(&rig.pool, coffee("a"), |work| async move {
                    Ok::<_, sqlx::Error>(work.done(()))
                });
                let refused = work.await.unwrap_err();
                assert_eq!(
                    refused.rejected().map(|no| no.reason()),
                    Some(Reason::KeyReused)
                );
                assert!(once(&rig, "a").await.is_some());
            }

            #[tokio::test]
            async fn inboxes_of_different_names_share_a_table_and_nothing_else() {
                let rig = rig("names").await;
                assert_eq!(once(&rig, "a").await, None);
                let other = TheInbox::builder("refunds").build().unwrap();
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                let claimed = other.claim(&mut tx, &coffee("a")).await.unwrap();
                assert!(matches!(claimed, Claimed::Fresh(_)), "{claimed:?}");
            }

            #[tokio::test]
            async fn a_rollback_after_completion_leaves_no_record_and_the_fence_goes_on() {
                let rig = rig("rollback").await;
                let mut last = 0;
                for dropped in [false, true, false] {
                    let mut tx = rig.pool.begin_with($begin).await.unwrap();
                    let Claimed::Fresh(entry) = rig.inbox.claim(&mut tx, &tea("a")).await.unwrap()
                    else {
                        panic!("recorded");
                    };
                    assert!(entry.fence() > last, "{} after {last}", entry.fence());
                    assert_eq!(entry.attempt(), 1);
                    last = entry.fence();
                    let effect = sqlx::query(EFFECT).bind("a").bind(last as i64);
                    effect.execute(&mut *tx).await.unwrap();
                    entry.complete(&mut tx, b"done").await.unwrap();
                    if dropped {
                        drop(tx);
                    } else {
                        tx.rollback().await.unwrap();
                    }
                }
                assert_eq!(rig.effects("a").await, 0);
                assert_eq!(once(&rig, "a").await, None);
                assert!(once(&rig, "a").await.unwrap().fence > last);
            }

            #[tokio::test]
            async fn a_claim_that_is_committed_without_completion_counts_as_an_attempt() {
                let rig = rig("attempts").await;
                for attempt in 1..=3 {
                    let mut tx = rig.pool.begin_with($begin).await.unwrap();
                    let Claimed::Fresh(entry) = rig.inbox.claim(&mut tx, &tea("a")).await.unwrap()
                    else {
                        panic!("recorded");
                    };
                    assert_eq!(entry.attempt(), attempt);
                    tx.commit().await.unwrap();
                }
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                let other = rig.inbox.claim(&mut tx, &coffee("a")).await.unwrap();
                assert!(matches!(other, Claimed::Mismatch), "{other:?}");
                tx.rollback().await.unwrap();
                once(&rig, "a").await;
                assert_eq!(once(&rig, "a").await.unwrap().attempt, 4);
            }

            #[tokio::test]
            async fn a_claim_that_does_not_stand_cannot_be_completed() {
                let rig = rig("stands").await;
                let claim = async |connection: &mut _| match rig
                    .inbox
                    .claim(connection, &tea("a"))
                    .await
                    .unwrap()
                {
                    Claimed::Fresh(entry) => entry,
                    other => panic!("{other:?}"),
                };
                let refused = |outcome: Result<(), sqlx::Error>| {
                    matches!(outcome, Err(sqlx::Error::InvalidArgument(_)))
                };
                // Its transaction is over.
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                let entry = claim(&mut *tx).await;
                tx.rollback().await.unwrap();
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                assert!(refused(entry.complete(&mut tx, b"").await));
                // Its savepoint is gone.
                let mut savepoint = sqlx::Connection::begin(&mut *tx).await.unwrap();
                let entry = claim(&mut *savepoint).await;
                savepoint.rollback().await.unwrap();
                assert!(refused(entry.complete(&mut tx, b"").await));
                // The key was claimed again, which the work itself did: it must not be recorded twice.
                let first = claim(&mut *tx).await;
                let second = claim(&mut *tx).await;
                assert!(second.fence() > first.fence());
                assert!(refused(first.complete(&mut tx, b"").await));
                second.complete(&mut tx, b"").await.unwrap();
            }

            #[tokio::test]
            async fn work_that_fails_is_rolled_back_and_not_recorded() {
                let rig = rig("fails").await;
                let calls = &AtomicU32::new(0);
                let work = rig.inbox.run(&rig.pool, tea("a"), |mut work| async move {
                    calls.fetch_add(1, SeqCst);
                    let effect = sqlx::query(EFFECT).bind("a").bind(1_i64);
                    effect.execute(&mut *work).await?;
                    sqlx::query("INSERT INTO effects VALUES (NULL, NULL)")
                        .execute(&mut *work)
                        .await?;
                    Ok::<_, sqlx::Error>(work.done(()))
                });
                let failed = work.await.unwrap_err();
                assert!(
                    matches!(failed, Error::Service(sqlx::Error::Database(_))),
                    "{failed:?}"
                );
                assert_eq!((calls.load(SeqCst), rig.effects("a").await), (1, 0));
                assert_eq!(once(&rig, "a").await, None);
            }

            #[tokio::test]
            async fn an_outcome_that_is_too_large_takes_its_work_with_it() {
                let mut rig = rig("large").await;
                rig.inbox = TheInbox::builder("orders")
                    .max_outcome(100)
                    .build()
                    .unwrap();
                let work = async |bytes: usize| {
                    let work = rig.inbox.run(&rig.pool, "a", |mut work| async move {
                        let effect = sqlx::query(EFFECT).bind("a").bind(1_i64);
                        effect.execute(&mut *work).await?;
                        Ok::<_, sqlx::Error>(work.done("b".repeat(bytes - 2)))
                    });
                    work.await
                };
                let failed = work(101).await.unwrap_err();
                assert!(
                    matches!(failed, Error::Service(sqlx::Error::InvalidArgument(_))),
                    "{failed:?}"
                );
                assert_eq!(rig.effects("a").await, 0);
                assert!(work(100).await.is_ok());
                assert_eq!(rig.effects("a").await, 1);
            }

            #[tokio::test]
            async fn keys_of_any_length_are_told_apart_and_scopes_too() {
                let rig = rig("sizes").await;
                let long = "k".repeat(10_000);
                for key in [
                    Key::new(""),
                    Key::new(&*long),
                    Key::new(format!("{long}!")),
                    Key::new("a").scope("tenant-1"),
                    Key::new("a").scope("tenant-2"),
                ] {
                    for replayed in [false, true] {
                        let work = rig.inbox.run(&rig.pool, key.clone(), |work| async move {
                            Ok::<_, sqlx::Error>(work.done(()))
                        });
                        assert_eq!(work.await.unwrap().replayed().is_some(), replayed);
                    }
                }
                let mut connection = rig.pool.acquire().await.unwrap();
                let refused = rig
                    .inbox
                    .claim(&mut connection, &Key::new("nu\0l"))
                    .await
                    .unwrap_err();
                assert!(
                    matches!(refused, sqlx::Error::InvalidArgument(_)),
                    "{refused}"
                );
            }

            #[tokio::test]
            async fn two_hundred_concurrent_duplicates_over_twenty_keys_are_twenty_effects() {
                let rig = std::sync::Arc::new(rig("crowd").await);
                let mut calls = JoinSet::new();
                for call in 0..200 {
                    let rig = std::sync::Arc::clone(&rig);
                    calls.spawn(async move {
                        let key = format!("key {}", call % 20);
                        let what = &key;
                        let ran = rig.inbox.run(&rig.pool, tea(&key), |mut work| async move {
                            let fence = work.fence();
                            let effect = sqlx::query(EFFECT).bind(what);
                            effect.bind(fence as i64).execute(&mut *work).await?;
                            Ok::<_, sqlx::Error>(work.done(fence))
                        });
                        let ran = ran.await.unwrap();
                        (key, ran)
                    });
                }
                let ran = calls.join_all().await;
                assert_eq!(
                    ran.iter()
                        .filter(|(_, ran)| ran.replayed().is_none())
                        .count(),
                    20
                );
                for key in 0..20 {
                    let key = format!("key {key}");
                    assert_eq!(rig.effects(&key).await, 1, "{key}");
                    let mut outcomes = ran
                        .iter()
                        .filter(|(of, _)| *of == key)
                        .map(|(_, ran)| ran.value);
                    let first = outcomes.next().unwrap();
                    assert!(outcomes.all(|outcome| outcome == first), "{key}");
                }
            }

            #[tokio::test]
            async fn a_dropped_future_leaves_nothing_and_the_next_call_does_the_work() {
                let rig = rig("dropped").await;
                let (tell, mut told) = tokio::sync::mpsc::channel(1);
                let tell = &tell;
                let work = rig.inbox.run(&rig.pool, tea("a"), |mut work| async move {
                    let effect = sqlx::query(EFFECT).bind("a").bind(1_i64);
                    effect.execute(&mut *work).await?;
                    tell.send(()).await.unwrap();
                    std::future::pending::<()>().await;
                    Ok::<_, sqlx::Error>(work.done(()))
                });
                tokio::select! {
                    ran = work => panic!("{ran:?}"),
                    done = told.recv() => done.unwrap(),
                }
                assert_eq!(once(&rig, "a").await, None);
                assert_eq!(rig.effects("a").await, 1);
            }

            #[tokio::test]
            async fn what_has_expired_is_work_again_and_is_pruned_in_batches() {
                let rig = rig("prune").await;
                for n in 0..25 {
                    once(&rig, &format!("old {n}")).await;
                }
                let fence = once(&rig, "old 0").await.unwrap().fence;
                sqlx::query("UPDATE inbox SET expires_at = created_at")
                    .execute(&rig.pool)
                    .await
                    .unwrap();
                once(&rig, "young").await;
                // Expired, but not pruned yet: a first attempt, above all fences before.
                assert_eq!(once(&rig, "old 0").await, None);
                let again = once(&rig, "old 0").await.unwrap();
                assert_eq!(again.attempt, 1);
                assert!(again.fence > fence);

                assert_eq!(rig.inbox.prune(&rig.pool, 10).await.unwrap(), 24);
                assert_eq!(rig.inbox.prune(&rig.pool, 10).await.unwrap(), 0);
                assert!(once(&rig, "young").await.is_some() && once(&rig, "old 0").await.is_some());
                assert_eq!(once(&rig, "old 1").await, None);
                let after = once(&rig, "old 1").await.unwrap().fence;
                assert!(after > again.fence, "the fence outlives the row");
            }

            #[tokio::test]
            async fn a_completion_may_have_a_retention_of_its_own() {
                let rig = rig("retention").await;
                for (key, retention) in [("short", ms(1)), ("long", ms(86_400_000))] {
                    let mut tx = rig.pool.begin_with($begin).await.unwrap();
                    let Claimed::Fresh(entry) =
                        rig.inbox.claim(&mut tx, &Key::new(key)).await.unwrap()
                    else {
                        panic!("recorded");
                    };
                    entry
                        .complete_for(&mut tx, b"failed", retention)
                        .await
                        .unwrap();
                    tx.commit().await.unwrap();
                }
                resilience_tests::until::eventually(
                    "the short one expires",
                    ms(20_000),
                    async || rig.inbox.prune(&rig.pool, 100).await.unwrap() == 1,
                )
                .await;
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                let long = rig.inbox.claim(&mut tx, &Key::new("long")).await.unwrap();
                assert!(matches!(long, Claimed::Done(_)), "{long:?}");
            }

            #[tokio::test]
            async fn migrating_again_and_at_the_same_time_changes_nothing() {
                let rig = rig("migrate").await;
                assert_eq!(once(&rig, "a").await, None);
                let fence = once(&rig, "a").await.unwrap().fence;
                let mut migrations = JoinSet::new();
                for n in 0..8 {
                    let pool = rig.pool.clone();
                    let table = if n % 2 == 0 { "inbox" } else { "second" };
                    let inbox = TheInbox::builder("orders").table(table).build().unwrap();
                    migrations.spawn(async move { inbox.migrate(&pool).await });
                }
                for migrated in migrations.join_all().await {
                    migrated.unwrap();
                }
                assert_eq!(once(&rig, "a").await.unwrap().fence, fence);
                once(&rig, "b").await;
                assert!(once(&rig, "b").await.unwrap().fence > fence);
            }
        }
    };
}

suite!(in_postgres, PgRig, PgInbox, "BEGIN");
suite!(in_sqlite, SqliteRig, SqliteInbox, "BEGIN IMMEDIATE");
