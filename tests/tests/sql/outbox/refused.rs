//! Events that the broker does not take.

macro_rules! suite {
    ($module:ident, $rig:ident, $begin:literal) => {
        mod $module {
            use std::sync::{
                Arc,
                atomic::{AtomicBool, Ordering::SeqCst},
            };

            use resilience_core::stream::{Publish, broker::validate};
            use resilience_tests::until::eventually;

            use super::super::{
                broker::{Fault, Faulty},
                rig::{SOON, events, quick, wait_for},
            };

            type Rig = super::super::rig::$rig;

            async fn write(rig: &Rig, key: &str, event: &str) {
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                rig.outbox.publish(&mut tx, key, &event.to_owned()).await.unwrap();
                tx.commit().await.unwrap();
            }

            fn is_poison(publish: &Publish) -> bool {
                publish.messages.iter().any(|it| &it.message.body[..] == b"\"poison\"")
            }

            #[tokio::test]
            async fn an_event_that_the_broker_refuses_stops_no_other_key_and_is_a_dead_letter_in_the_end() {
                let rig = Rig::new("poison").await;
                let refuses = Arc::new(AtomicBool::new(true));
                let still = Arc::clone(&refuses);
                let broker = Faulty::new(&rig.broker, move |publish| {
                    match is_poison(publish) && still.load(SeqCst) {
                        true => Fault::Refuse,
                        false => Fault::None,
                    }
                });
                for (key, event) in [("a", "before"), ("p", "poison"), ("p", "behind"), ("b", "beside")] {
                    write(&rig, key, event).await;
                }
                let relay = quick(rig.outbox.relay(&rig.pool, broker)).max_attempts(3).build().unwrap();
                // While it is not sure that the event is at fault, its key waits, and the others go on.
                assert_eq!(wait_for(&rig.broker, 2).await[..2], ["before", "beside"]);
                let mut number = 0;
                eventually("it is a dead letter", SOON, || {
                    number += 1;
                    let (rig, relay) = (&rig, &relay);
                    async move {
                        // A refusal counts when the broker takes another event.
                        write(rig, "c", &number.to_string()).await;
                        relay.snapshot().totals.dead == 1
                    }
                })
                .await;
                eventually("its key goes on", SOON, || async {
                    events(&rig.broker).await.contains(&"behind".to_owned())
                })
                .await;
                let dead = rig.outbox.dead_letters(&rig.pool, 10).await.unwrap();
                assert_eq!((dead.len(), dead[0].attempts), (1, 3));
                assert_eq!(dead[0].reason, "refused");
                assert_eq!(&dead[0].message.as_ref().unwrap().body[..], b"\"poison\"");
                eventually("the dead letter is counted", SOON, || async { relay.snapshot().dead_letters == 1 }).await;

                refuses.store(false, SeqCst);
                assert_eq!(rig.outbox.redrive(&rig.pool, &[dead[0].sequence]).await.unwrap(), 1);
                eventually("it is published after all", SOON, || async {
                    events(&rig.broker).await.contains(&"poison".to_owned())
                })
                .await;
                let all = events(&rig.broker).await;
                let once = |event: &str| all.iter().filter(|it| *it == event).count();
                assert_eq!([once("before"), once("beside"), once("behind"), once("poison")], [1; 4]);
            }

            #[tokio::test]
            async fn while_the_broker_takes_nothing_no_event_is_given_up() {
                let rig = Rig::new("takes_nothing").await;
                // Like a Redis without memory: it answers, and stores nothing.
                let broker = Faulty::new(&rig.broker, |_| Fault::Refuse);
                for key in ["a", "b", "c"] {
                    write(&rig, key, key).await;
                }
                let relay = quick(rig.outbox.relay(&rig.pool, broker)).max_attempts(1).build().unwrap();
                eventually("it has tried", SOON, || async {
                    relay.snapshot().totals.broker_errors >= 30
                })
                .await;
                assert_eq!(relay.snapshot().totals.dead, 0);
                relay.shutdown(SOON).await.unwrap();
                let _relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone())).build().unwrap();
                let mut published = wait_for(&rig.broker, 3).await;
                // Refused events are tried again each at its time.
                published.sort();
                assert_eq!(published, ["a", "b", "c"]);
            }

            #[tokio::test]
            async fn an_event_that_no_broker_can_take_is_a_dead_letter_at_once_and_can_be_discarded() {
                let rig = Rig::new("large").await;
                write(&rig, "a", "too large").await;
                write(&rig, "b", "unreadable").await;
                write(&rig, "a", "good").await;
                // Written by another program.
                let large = sqlx::query("UPDATE outbox SET body = $1 WHERE sequence = 1");
                large.bind(vec![b' '; validate::MAX_MESSAGE]).execute(&rig.pool).await.unwrap();
                let unreadable = "UPDATE outbox SET envelope = '[' WHERE sequence = 2";
                sqlx::query(unreadable).execute(&rig.pool).await.unwrap();
                let relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone())).build().unwrap();
                assert_eq!(wait_for(&rig.broker, 1).await, ["good"]);
                eventually("both are dead letters", SOON, || async {
                    relay.snapshot().totals.dead == 2
                })
                .await;
                let dead = rig.outbox.dead_letters(&rig.pool, 10).await.unwrap();
                assert!(dead[0].reason.contains("bytes of a message"), "{}", dead[0].reason);
                assert!(dead[1].reason.contains("envelope"), "{}", dead[1].reason);
                assert!(dead[1].message.is_none());
                let sequences: Vec<_> = dead.iter().map(|it| it.sequence).collect();
                assert_eq!(rig.outbox.discard(&rig.pool, &sequences).await.unwrap(), 2);
                assert!(rig.outbox.dead_letters(&rig.pool, 10).await.unwrap().is_empty());
                assert_eq!(rig.outbox.redrive(&rig.pool, &sequences).await.unwrap(), 0);
            }
        }
    };
}

suite!(postgres, PgRig, "BEGIN");
suite!(sqlite, SqliteRig, "BEGIN IMMEDIATE");
