//! What holds in every database: transactions, rows, order.

macro_rules! suite {
    ($module:ident, $rig:ident, $outbox:ident, $begin:literal) => {
        mod $module {
            use resilience_core::{
                stream::{Envelope, StreamBroker as _, broker::validate},
                $outbox,
            };
            use resilience_tests::until::eventually;

            use super::super::rig::{SOON, events, messages, quick, wait_for};

            type Rig = super::super::rig::$rig;

            async fn write(rig: &Rig, key: &str, event: &str) {
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                rig.outbox
                    .publish(&mut tx, key, &event.to_owned())
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
            }

            async fn rows(rig: &Rig) -> i64 {
                let count = sqlx::query_scalar("SELECT count(*) FROM outbox");
                count.fetch_one(&rig.pool).await.unwrap()
            }

            #[tokio::test]
            async fn a_commit_publishes_once_and_a_rollback_nothing() {
                let rig = Rig::new("commits").await;
                for (event, commits) in [("one", true), ("none", false), ("two", true)] {
                    let mut tx = rig.pool.begin_with($begin).await.unwrap();
                    let effect = sqlx::query("INSERT INTO effects VALUES ($1)").bind(event);
                    effect.execute(&mut *tx).await.unwrap();
                    rig.outbox
                        .publish(&mut tx, "a", &event.to_owned())
                        .await
                        .unwrap();
                    if commits {
                        tx.commit().await.unwrap();
                    } else {
                        tx.rollback().await.unwrap();
                    }
                }
                assert!(events(&rig.broker).await.is_empty(), "there is no relay");
                let relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone()))
                    .build()
                    .unwrap();
                wait_for(&rig.broker, 2).await;
                write(&rig, "a", "three").await;
                assert_eq!(wait_for(&rig.broker, 3).await, ["one", "two", "three"]);
                eventually("what was published is deleted", SOON, || async {
                    rows(&rig).await == 0
                })
                .await;
                let effects: i64 = sqlx::query_scalar("SELECT count(*) FROM effects")
                    .fetch_one(&rig.pool)
                    .await
                    .unwrap();
                assert_eq!(effects, 2);
                eventually("nothing waits", SOON, || async {
                    relay.snapshot().waiting == 0
                })
                .await;
                let snapshot = relay.snapshot();
                assert_eq!((snapshot.totals.stored, snapshot.totals.duplicates), (3, 0));
                assert!(
                    snapshot.leading && snapshot.broker_available && snapshot.database_available
                );
                assert_eq!((snapshot.oldest, snapshot.dead_letters), (None, 0));
                assert_eq!(
                    rig.outbox.snapshot().written,
                    4,
                    "the one that was rolled back, too"
                );
            }

            #[tokio::test]
            async fn an_event_arrives_with_all_that_is_known_of_it() {
                let rig = Rig::new("envelopes").await;
                let envelope = Envelope {
                    source: "/shop".into(),
                    event_type: "order.placed".into(),
                    schema: 3,
                    trace_parent: Some("00-1".into()),
                    trace_state: Some("a=b".into()),
                    attributes: [("tenant".into(), "seven".into())].into(),
                    ..rig.outbox.envelope("order-7")
                };
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                let event = "tea".to_owned();
                rig.outbox
                    .publish_all(&mut tx, [(envelope.clone(), &event)])
                    .await
                    .unwrap();
                rig.outbox.publish(&mut tx, "", &event).await.unwrap();
                tx.commit().await.unwrap();
                let _relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone()))
                    .build()
                    .unwrap();
                wait_for(&rig.broker, 2).await;
                let published = messages(&rig.broker).await;
                assert!(published[0].envelope.time_ms > 1_700_000_000_000);
                let expected = Envelope {
                    content_type: "application/json".into(),
                    time_ms: published[0].envelope.time_ms,
                    ..envelope
                };
                assert_eq!(published[0].envelope, expected);
                assert_eq!(published[1].envelope.key, None);
                assert_ne!(published[1].envelope.id, published[0].envelope.id);
            }

            #[tokio::test]
            async fn events_of_one_transaction_keep_their_order_over_batches() {
                let rig = Rig::new("batches").await;
                let written: Vec<_> = (0..1_000).map(|number| number.to_string()).collect();
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                let all = written
                    .iter()
                    .map(|event| (rig.outbox.envelope("a"), event));
                rig.outbox.publish_all(&mut tx, all).await.unwrap();
                tx.commit().await.unwrap();
                let relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone())).batch(77);
                let _relay = relay.build().unwrap();
                assert_eq!(wait_for(&rig.broker, 1_000).await, written);
            }

            #[tokio::test]
            async fn an_event_that_cannot_be_published_leaves_the_transaction_as_it_was() {
                let rig = Rig::new("invalid").await;
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                let outbox = &rig.outbox;
                let large = "x".repeat(validate::MAX_MESSAGE + 1);
                let few = "tea".to_owned();
                let long_key = "k".repeat(validate::MAX_KEY + 1);
                for (key, event) in [("a", &large), ("a\0b", &few), (long_key.as_str(), &few)] {
                    let refused = outbox.publish(&mut tx, key, event).await.unwrap_err();
                    assert!(
                        matches!(refused, sqlx::Error::InvalidArgument(_)),
                        "{refused}"
                    );
                }
                let many = (0..=validate::MAX_BATCH).map(|_| (outbox.envelope("a"), &few));
                assert!(outbox.publish_all(&mut tx, many).await.is_err());
                outbox.publish_all(&mut tx, []).await.unwrap();
                outbox.publish(&mut tx, "a", &few).await.unwrap();
                tx.commit().await.unwrap();
                assert_eq!(rows(&rig).await, 1);
            }

            #[tokio::test]
            async fn outboxes_of_different_names_share_a_table_and_nothing_else() {
                let rig = Rig::new("names").await;
                let other = $outbox::<String>::builder("refunds").build().unwrap();
                let mut tx = rig.pool.begin_with($begin).await.unwrap();
                rig.outbox
                    .publish(&mut tx, "a", &"order".to_owned())
                    .await
                    .unwrap();
                other
                    .publish(&mut tx, "a", &"refund".to_owned())
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
                let _relay = quick(rig.outbox.relay(&rig.pool, rig.broker.clone()))
                    .build()
                    .unwrap();
                assert_eq!(wait_for(&rig.broker, 1).await, ["order"]);
                eventually("the other one's row stays", SOON, || async {
                    rows(&rig).await == 1
                })
                .await;
                let refunds = || async { rig.broker.state("refunds").await.unwrap() };
                assert!(refunds().await.is_none());
                let _relay = quick(other.relay(&rig.pool, rig.broker.clone()))
                    .build()
                    .unwrap();
                eventually("it is published by its own relay", SOON, || async {
                    refunds().await.is_some_and(|it| it.length == 1)
                })
                .await;
            }

            #[tokio::test]
            async fn a_migration_can_be_repeated_by_many_at_once_and_keeps_what_is_there() {
                let rig = Rig::new("migrations").await;
                write(&rig, "a", "one").await;
                let again = (0..4).map(|_| rig.outbox.migrate(&rig.pool));
                for done in futures_util::future::join_all(again).await {
                    done.unwrap();
                }
                assert_eq!(rows(&rig).await, 1);
                assert!(
                    rig.outbox
                        .schema()
                        .contains("CREATE TABLE IF NOT EXISTS \"outbox\"")
                );
            }
        }
    };
}

suite!(postgres, PgRig, PgOutbox, "BEGIN");
suite!(sqlite, SqliteRig, SqliteOutbox, "BEGIN IMMEDIATE");
