//! Several relays of one outbox: one works, whatever becomes of the others, and nothing is stored twice.

macro_rules! suite {
    ($module:ident, $rig:ident, $begin:literal) => {
        mod $module {
            use std::{
                sync::{
                    Arc,
                    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
                },
                time::Duration,
            };

            use resilience_core::sql::outbox::OutboxRelay;
            use resilience_redis::Redis;
            use resilience_tests::until::eventually;
            use tokio::sync::Notify;

            use super::super::{
                broker::{Fault, Faulty},
                rig::{Killable, SOON, events, quick, wait_for},
            };
            use crate::inbox::rig::ms;

            type Rig = super::super::rig::$rig;

            async fn write(rig: &Rig, key: &str, event: &str) {
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                rig.outbox.publish(&mut tx, key, &event.to_owned()).await.unwrap();
                tx.commit().await.unwrap();
            }

            async fn rows(rig: &Rig) -> i64 {
                let count = sqlx::query_scalar("SELECT count(*) FROM outbox");
                count.fetch_one(&rig.pool).await.unwrap()
            }

            async fn empty(rig: &Rig) {
                eventually("the table is empty", SOON, || async { rows(rig).await == 0 }).await;
            }

            fn relay(rig: &Rig) -> OutboxRelay {
                quick(rig.outbox.relay(&rig.pool, rig.broker.clone())).build().unwrap()
            }

            async fn leads(relay: &OutboxRelay) {
                eventually("it has the lease", SOON, || async { relay.snapshot().leading }).await;
            }

            /// In a runtime of its own, with a pool of its own.
            async fn killable(rig: &Rig, broker: Faulty) -> Killable {
                let (outbox, pool) = (rig.outbox.clone(), rig.other_pool());
                Killable::start(async move { quick(outbox.relay(&pool, broker)).build().unwrap() }).await
            }

            #[tokio::test]
            async fn what_a_relay_sent_before_it_was_killed_is_stored_once() {
                let rig = Rig::new("killed").await;
                let sent = Arc::new(AtomicUsize::new(0));
                let counts = Arc::clone(&sent);
                let broker = Faulty::new(&rig.broker, move |_| {
                    counts.fetch_add(1, SeqCst);
                    Fault::LoseAnswer
                });
                let first = killable(&rig, broker).await;
                leads(&first.relay).await;
                for number in 0..20 {
                    write(&rig, "a", &number.to_string()).await;
                }
                eventually("it has sent something", SOON, || async { sent.load(SeqCst) > 0 }).await;
                first.kill();
                let before = events(&rig.broker).await;
                assert!(!before.is_empty() && rows(&rig).await == 20, "{before:?}");
                let second = relay(&rig);
                let written: Vec<_> = (0..20).map(|number| number.to_string()).collect();
                assert_eq!(wait_for(&rig.broker, 20).await, written);
                empty(&rig).await;
                assert_eq!(events(&rig.broker).await, written);
                assert_eq!(second.snapshot().totals.duplicates, before.len() as u64);
            }

            #[tokio::test]
            async fn one_relay_works_while_the_others_wait_and_another_one_follows_it_at_once() {
                let rig = Rig::new("one").await;
                let relays = [relay(&rig), relay(&rig), relay(&rig)];
                let leaders = || relays.iter().filter(|it| it.snapshot().leading).count();
                eventually("one leads", SOON, || async { leaders() == 1 }).await;
                for number in 0..30 {
                    write(&rig, "a", &number.to_string()).await;
                    assert!(leaders() <= 1);
                }
                wait_for(&rig.broker, 30).await;
                let stored = relays.iter().map(|it| it.snapshot().totals.stored).collect::<Vec<_>>();
                assert_eq!(stored.iter().filter(|&&it| it > 0).count(), 1, "{stored:?}");
                let leader = relays.iter().find(|it| it.snapshot().leading).unwrap();
                leader.shutdown(SOON).await.unwrap();
                assert!(!leader.snapshot().leading);
                eventually("another one leads", SOON, || async { leaders() == 1 }).await;
                write(&rig, "a", "last").await;
                assert_eq!(wait_for(&rig.broker, 31).await[30], "last");
                let lost: u64 = relays.iter().map(|it| it.snapshot().totals.leases_lost).sum();
                assert_eq!(lost, 0);
            }

            #[tokio::test]
            async fn a_relay_that_was_overtaken_deletes_nothing_and_what_it_sends_late_is_not_stored() {
                let rig = Rig::new("zombie").await;
                let late = Arc::new(Notify::new());
                let (hold, stuck) = (Arc::clone(&late), Arc::new(AtomicBool::new(false)));
                let told = Arc::clone(&stuck);
                let broker = Faulty::new(&rig.broker, move |_| {
                    told.store(true, SeqCst);
                    Fault::Hold(Arc::clone(&hold))
                });
                let zombie = killable(&rig, broker).await;
                leads(&zombie.relay).await;
                write(&rig, "a", "one").await;
                write(&rig, "b", "two").await;
                eventually("it is about to send", SOON, || async { stuck.load(SeqCst) }).await;
                // Another one takes the lease as after a pause of this process: by force, since this one goes on to renew it.
                let relays = "UPDATE outbox_relays SET fence = fence + 1, holder = NULL";
                sqlx::query(relays).execute(&rig.pool).await.unwrap();
                let second = relay(&rig);
                assert_eq!(wait_for(&rig.broker, 2).await, ["one", "two"]);
                empty(&rig).await;
                eventually("it knows that it was overtaken", SOON, || async {
                    zombie.relay.snapshot().totals.leases_lost == 1
                })
                .await;
                write(&rig, "a", "three").await;
                wait_for(&rig.broker, 3).await;
                // What was under way arrives now, after all.
                for _ in 0..20 {
                    late.notify_waiters();
                    tokio::task::yield_now().await;
                }
                write(&rig, "a", "four").await;
                assert_eq!(wait_for(&rig.broker, 4).await, ["one", "two", "three", "four"]);
                assert_eq!(second.snapshot().totals.stored, 4);
            }

            #[tokio::test]
            async fn a_relay_without_the_lease_takes_over_when_the_one_that_has_it_is_gone() {
                let rig = Rig::new("takeover").await;
                let first = killable(&rig, Faulty::new(&rig.broker, |_| Fault::None)).await;
                leads(&first.relay).await;
                let second = relay(&rig);
                write(&rig, "a", "one").await;
                wait_for(&rig.broker, 1).await;
                assert!(!second.snapshot().leading);
                first.kill();
                write(&rig, "a", "two").await;
                assert_eq!(wait_for(&rig.broker, 2).await, ["one", "two"]);
                assert_eq!(second.snapshot().totals.takeovers, 1);
            }

            #[tokio::test]
            async fn a_broker_that_is_away_costs_time_and_nothing_else() {
                let rig = Rig::new("away").await;
                let away = Arc::new(AtomicBool::new(true));
                let is_away = Arc::clone(&away);
                let broker = Faulty::new(&rig.broker, move |_| match is_away.load(SeqCst) {
                    true => Fault::Refuse,
                    false => Fault::None,
                });
                let relay = quick(rig.outbox.relay(&rig.pool, broker)).build().unwrap();
                let written: Vec<_> = (0..50).map(|number| number.to_string()).collect();
                for event in &written {
                    write(&rig, "a", event).await;
                }
                eventually("it has tried, and tells what waits", SOON, || async {
                    let snapshot = relay.snapshot();
                    snapshot.totals.broker_errors > 5 && snapshot.waiting > 0 && snapshot.oldest.is_some()
                })
                .await;
                assert!(events(&rig.broker).await.is_empty());
                away.store(false, SeqCst);
                assert_eq!(wait_for(&rig.broker, 50).await, written);
                empty(&rig).await;
                assert_eq!(relay.snapshot().totals.dead, 0);
                assert_eq!(events(&rig.broker).await, written);
            }

            #[tokio::test]
            async fn a_relay_whose_broker_does_not_answer_leaves_the_lease_to_one_that_is_answered() {
                let rig = Rig::new("cut_off").await;
                let away = Redis::connect("redis://127.0.0.1:1").unwrap().streams();
                let cut_off = quick(rig.outbox.relay(&rig.pool, away)).build().unwrap();
                leads(&cut_off).await;
                write(&rig, "a", "one").await;
                eventually("it has tried", SOON, || async {
                    !cut_off.snapshot().broker_available
                })
                .await;
                let _answered = relay(&rig);
                assert_eq!(wait_for(&rig.broker, 1).await, ["one"]);
                assert_eq!(cut_off.snapshot().totals.leases_lost, 0);
            }

            #[tokio::test]
            async fn a_relay_that_is_shut_down_notes_what_it_sent_and_gives_the_lease_back() {
                let rig = Rig::new("shutdown").await;
                let first = relay(&rig);
                leads(&first).await;
                for number in 0..10 {
                    write(&rig, "a", &number.to_string()).await;
                }
                first.shutdown(SOON).await.unwrap();
                let holder: Option<String> = sqlx::query_scalar("SELECT holder FROM outbox_relays")
                    .fetch_one(&rig.pool)
                    .await
                    .unwrap();
                assert_eq!(holder, None);
                let in_stream = events(&rig.broker).await.len() as i64;
                assert_eq!(in_stream + rows(&rig).await, 10);
                drop(first);
                let _second = relay(&rig);
                wait_for(&rig.broker, 10).await;
                empty(&rig).await;
                assert_eq!(events(&rig.broker).await.len(), 10);
            }

            #[tokio::test]
            async fn a_commit_wakes_the_relay_of_this_process_when_it_is_told() {
                let rig = Rig::new("woken").await;
                let relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone())).poll(Duration::from_secs(3_600));
                let relay = relay.build().unwrap();
                leads(&relay).await;
                for number in 0..5 {
                    write(&rig, "a", &number.to_string()).await;
                    rig.outbox.wake();
                    wait_for(&rig.broker, number + 1).await;
                }
                relay.shutdown(ms(10_000)).await.unwrap();
            }

            #[tokio::test]
            async fn rows_of_a_later_version_are_left_to_relays_that_know_it() {
                let rig = Rig::new("versions").await;
                write(&rig, "a", "one").await;
                write(&rig, "b", "later").await;
                let later = "UPDATE outbox SET format = 2 WHERE key = 'b'";
                sqlx::query(later).execute(&rig.pool).await.unwrap();
                let relay = relay(&rig);
                assert_eq!(wait_for(&rig.broker, 1).await, ["one"]);
                eventually("it gives the lease back", SOON, || async {
                    let holder = sqlx::query_scalar("SELECT holder FROM outbox_relays");
                    let holder: Option<String> = holder.fetch_one(&rig.pool).await.unwrap();
                    holder.is_none() && !relay.snapshot().leading
                })
                .await;
                assert_eq!(rows(&rig).await, 1);
                assert_eq!(events(&rig.broker).await, ["one"]);
            }
        }
    };
}

suite!(postgres, PgRig, "BEGIN");
suite!(sqlite, SqliteRig, "BEGIN IMMEDIATE");
