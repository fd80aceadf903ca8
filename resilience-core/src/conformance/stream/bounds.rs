//! Trims, sizes, numbers at their bounds, and loss.

use std::sync::Arc;

use bytes::Bytes;

use super::{Case, HOUR, SHORT, SOON, dead, join, message, name, names, outgoing, retry};
use crate::{
    conformance::eventually,
    stream::{
        Action, Begin, Claim, Effect, Envelope, Join, JoinedGroup, Outgoing, Pause, Position,
        ProducerSequence, Publish, RawMessage, Read, Resume, Retention, Settled, Settlement, Start,
        StreamBroker, Trimmed,
        broker::validate::{MAX_BATCH, MAX_BLOCK_MS, MAX_KEY, MAX_MS, MAX_NAME, MAX_REASON},
    },
};

const KEEP: Retention = Retention {
    max_age_ms: None,
    max_length: None,
    settled: None,
    keep_ms: HOUR,
};

impl Case<'_> {
    async fn trim(&self, retention: Retention) -> Trimmed {
        let trimmed = self.it.trim(&self.stream, &retention).await;
        trimmed.expect("an answer")
    }

    /// Trims until there are `length` messages left; what was removed, and what was removed undelivered.
    async fn trim_to(&self, retention: Retention, length: u64) -> (u64, u64) {
        let (mut removed, mut undelivered) = (0, 0);
        let trimming = async {
            loop {
                let trimmed = self.trim(retention).await;
                removed += trimmed.removed;
                undelivered += trimmed.undelivered;
                if trimmed.length <= length {
                    assert_eq!(trimmed.length, length);
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(3)).await;
            }
        };
        let in_time = tokio::time::timeout(SOON, trimming).await;
        assert!(in_time.is_ok(), "not trimmed to {length}");
        (removed, undelivered)
    }
}

pub(super) async fn a_stream_is_trimmed_by_length_and_tells_what_was_skipped(
    it: &dyn StreamBroker,
) {
    let case = Case::joined(it, "length").await;
    let other = case.of_group("other");
    other.join("a", HOUR).await;
    case.publish(&["1", "2", "3", "4", "5"]).await;
    assert_eq!(case.read("a", 2).await.len(), 2);
    assert_eq!(case.trim(KEEP).await.removed, 0);
    let two = Retention {
        max_length: Some(2),
        ..KEEP
    };
    assert_eq!(case.trim_to(two, 2).await, (3, 3));
    assert_eq!(names(&case.read("a", 10).await), ["4", "5"]);
    assert_eq!(case.claim_as("a", 0).await.skipped, 1);
    assert_eq!(other.claim_as("a", 0).await.skipped, 3);
    assert_eq!(names(&other.read("a", 10).await), ["4", "5"]);
    assert_eq!(case.trim_to(two, 2).await, (0, 0), "repeated");
    assert_eq!(other.claim_as("a", 0).await.skipped, 3);
}

pub(super) async fn a_stream_is_trimmed_by_age(it: &dyn StreamBroker) {
    let case = Case::joined(it, "age").await;
    case.publish(&["1", "2"]).await;
    let hour = Retention {
        max_age_ms: Some(HOUR),
        ..KEEP
    };
    assert_eq!(case.trim(hour).await.length, 2);
    let brief = Retention {
        max_age_ms: Some(SHORT),
        ..KEEP
    };
    assert_eq!(case.trim_to(brief, 0).await, (2, 2));
    case.publish(&["3"]).await;
    assert_eq!(name(&case.one("a").await), "3");
}

pub(super) async fn a_stream_is_trimmed_by_what_every_group_has_settled(it: &dyn StreamBroker) {
    let case = Case::new(it, "settled");
    let settled = Retention {
        settled: Some(HOUR),
        ..KEEP
    };
    case.publish(&["1", "2", "3"]).await;
    assert_eq!(case.trim(settled).await.removed, 0, "there is no group");
    case.join("a", HOUR).await;
    let other = case.of_group("other");
    other.join("a", HOUR).await;
    for delivery in other.read("a", 3).await {
        other.ack("a", &delivery).await;
    }
    assert_eq!(case.trim(settled).await.removed, 0, "of every group");
    let held = case.read("a", 3).await;
    case.ack("a", &held[0]).await;
    case.ack("a", &held[2]).await;
    assert_eq!(case.trim_to(settled, 2).await, (1, 0));
    let waits = case.settle("a", &held[1], retry(HOUR, "no")).await;
    assert_eq!(waits, Settled::Done);
    assert_eq!(case.trim(settled).await.removed, 0, "it waits for a retry");
}

pub(super) async fn a_group_without_consumers_is_not_waited_for(it: &dyn StreamBroker) {
    let case = Case::joined(it, "dead-group").await;
    let gone = case.of_group("gone");
    gone.join("a", HOUR).await;
    case.publish(&["1"]).await;
    let held = case.one("a").await;
    case.ack("a", &held).await;
    let settled = Retention {
        settled: Some(SHORT),
        ..KEEP
    };
    eventually("the dead group is not waited for", SOON, || async {
        // The other one is alive.
        case.claim_as("a", 0).await;
        case.trim(settled).await.length == 0
    })
    .await;
    assert_eq!(gone.claim_as("a", 0).await.skipped, 1);
}

pub(super) async fn a_trimmed_message_is_claimed_without_its_body(it: &dyn StreamBroker) {
    let case = Case::joined(it, "hollow").await;
    case.join("short", SHORT).await;
    case.publish(&["1", "2"]).await;
    let held = case.read("short", 2).await;
    let settled = case.settle("short", &held[0], retry(0, "no")).await;
    assert_eq!(settled, Settled::Done);
    let nothing = Retention {
        max_length: Some(0),
        ..KEEP
    };
    assert_eq!(case.trim_to(nothing, 0).await, (2, 0));
    let claimed = case.claim_many_soon("b", 2).await;
    assert!(claimed.iter().all(|it| it.message.is_none()), "{claimed:?}");
    assert!(claimed.iter().all(|it| it.deliveries == 2), "{claimed:?}");
    case.ack("b", &claimed[0]).await;
    let settled = case.settle("b", &claimed[1], dead("it is gone")).await;
    assert_eq!(settled, Settled::Done);
    assert_eq!(case.counts().await, (0, 0, 1));
    let letters = it.dead_letters(&case.stream, case.group, Position::START, 10);
    assert_eq!(letters.await.expect("an answer")[0].message, None);
}

pub(super) async fn the_lag_is_right_after_trims(it: &dyn StreamBroker) {
    let case = Case::joined(it, "lag").await;
    let lag = async || case.state().await.groups[0].lag;
    assert_eq!(lag().await, 0);
    case.publish(&["1", "2", "3", "4", "5"]).await;
    assert_eq!(lag().await, 5);
    case.read("a", 1).await;
    assert_eq!(lag().await, 4);
    let length = |most| Retention {
        max_length: Some(most),
        ..KEEP
    };
    case.trim_to(length(3), 3).await;
    assert_eq!(lag().await, 3);
    case.trim_to(length(0), 0).await;
    assert_eq!(lag().await, 0);
    case.publish(&["6"]).await;
    assert_eq!(lag().await, 1);
    case.read("a", 10).await;
    assert_eq!(lag().await, 0);
}

pub(super) async fn every_byte_and_number_is_returned(it: &dyn StreamBroker) {
    let case = Case::joined(it, "bytes").await;
    let every: Vec<u8> = (0..=255).collect();
    let text = |it: &str| Arc::<str>::from(it);
    let full = RawMessage {
        envelope: Envelope {
            id: "\u{0}id \u{fc}\r\n".into(),
            source: "/a b".into(),
            event_type: "order.placed".into(),
            key: Some("k\"{}".into()),
            schema: u32::MAX,
            content_type: "application/json".into(),
            time_ms: (1 << 53) - 1,
            trace_parent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            trace_state: Some("a=1,b=2".into()),
            attributes: [(text("tenant"), text("")), (text("x2"), text("\u{fc}\n"))].into(),
        },
        body: Bytes::from(every),
    };
    let bare = RawMessage {
        body: Bytes::new(),
        ..message("bare")
    };
    let empty_key = RawMessage {
        envelope: Envelope {
            key: Some("".into()),
            trace_state: Some("".into()),
            ..message("empty").envelope
        },
        body: Bytes::from_static(&[0]),
    };
    let sent = [full, bare, empty_key];
    // At once, and by way of a delay.
    for delay_ms in [0, 1] {
        let outgoing = |message: &RawMessage| Outgoing {
            message: message.clone(),
            delay_ms,
        };
        case.publish_as(sent.iter().map(outgoing).collect()).await;
        let read = case.read_many_soon("a", sent.len()).await;
        for (delivery, sent) in read.iter().zip(&sent) {
            assert_eq!(delivery.message.as_ref(), Some(sent));
        }
        // And by way of a retry and a dead letter.
        for delivery in &read {
            let settled = case.settle("a", delivery, retry(0, "no")).await;
            assert_eq!(settled, Settled::Done);
        }
        let mut again = case.claim_many_soon("b", sent.len()).await;
        again.sort_by_key(|it| it.position);
        for (delivery, sent) in again.iter().zip(&sent) {
            assert_eq!(delivery.message.as_ref(), Some(sent));
            let settled = case.settle("b", delivery, dead("never")).await;
            assert_eq!(settled, Settled::Done);
        }
        let from = again[0].position;
        let letters = it.dead_letters(&case.stream, case.group, from, 10).await;
        for (letter, sent) in letters.expect("an answer").iter().zip(&sent) {
            assert_eq!(letter.message.as_ref(), Some(sent));
        }
    }
}

pub(super) async fn what_makes_no_sense_is_refused(it: &dyn StreamBroker) {
    let case = Case::joined(it, "senseless").await;
    let (stream, group) = (case.stream.as_str(), case.group);
    let long = "n".repeat(MAX_NAME + 1);
    let publish = async |stream: &str, messages: Vec<Outgoing>, sequence| {
        let publish = Publish { messages, sequence };
        it.publish(stream, &publish).await.is_err()
    };
    let one = || vec![outgoing("1", 0)];
    let sequence = |first| {
        Some(ProducerSequence {
            producer: "p".into(),
            first,
            keep_ms: HOUR,
        })
    };
    assert!(publish("", one(), None).await && publish(&long, one(), None).await);
    assert!(publish(stream, Vec::new(), None).await);
    assert!(publish(stream, vec![outgoing("1", 0); MAX_BATCH + 1], None).await);
    assert!(publish(stream, vec![outgoing("", 0)], None).await);
    assert!(publish(stream, vec![outgoing("1", MAX_MS + 1)], None).await);
    assert!(publish(stream, one(), sequence(0)).await);
    assert!(publish(stream, one(), sequence(1 << 53)).await);
    let mut reserved = outgoing("1", 0);
    reserved.message.envelope.attributes = [("data".into(), "x".into())].into();
    assert!(publish(stream, vec![reserved], None).await);
    assert_eq!(case.state().await.length, 0, "nothing was stored");

    for senseless in [
        Join {
            consumer: "".into(),
            ..join("a")
        },
        Join {
            lease_ms: 0,
            ..join("a")
        },
        Join {
            lease_ms: MAX_MS + 1,
            ..join("a")
        },
        Join {
            keep_ms: 0,
            ..join("a")
        },
    ] {
        assert!(
            it.join(stream, group, &senseless).await.is_err(),
            "{senseless:?}"
        );
    }
    assert!(it.join(stream, &long, &join("a")).await.is_err());
    let read = Read {
        streams: &[stream],
        consumer: "a",
        max: 1,
        block_ms: 0,
    };
    for senseless in [
        Read {
            streams: &[],
            ..read
        },
        Read {
            streams: &[stream, stream],
            ..read
        },
        Read { max: 0, ..read },
        Read {
            max: MAX_BATCH + 1,
            ..read
        },
        Read {
            block_ms: MAX_BLOCK_MS + 1,
            ..read
        },
    ] {
        assert!(it.read(group, senseless).await.is_err(), "{senseless:?}");
    }
    let claim = Claim {
        consumer: "a",
        max: MAX_BATCH + 1,
    };
    assert!(it.claim(stream, group, claim).await.is_err());
    let position = Position::new(1, 0);
    let twice = [position, position];
    assert!(it.extend(stream, group, "a", &twice).await.is_err());
    assert!(it.redrive(stream, group, &twice).await.is_err());
    assert!(it.drop_dead(stream, group, &twice).await.is_err());
    let begin = |key: &str| Begin {
        position,
        key: key.into(),
        keep_ms: HOUR,
    };
    for begins in [
        vec![begin("")],
        vec![begin(&"k".repeat(MAX_KEY + 1))],
        vec![Begin {
            keep_ms: 0,
            ..begin("k")
        }],
        vec![begin("k"), begin("l")],
    ] {
        assert!(
            it.begin(stream, group, "a", &begins).await.is_err(),
            "{begins:?}"
        );
    }
    let effect = |fence| Effect {
        key: "k".into(),
        fence,
        outcome: Bytes::new(),
        ttl_ms: HOUR,
    };
    for action in [
        retry(MAX_MS + 1, "no"),
        retry(0, &"r".repeat(MAX_REASON + 1)),
        dead(&"r".repeat(MAX_REASON + 1)),
        Action::GiveBack {
            after_ms: MAX_MS + 1,
        },
        Action::Ack(Some(effect(0))),
        Action::Ack(Some(effect(1 << 53))),
        Action::Ack(Some(Effect {
            ttl_ms: 0,
            ..effect(1)
        })),
    ] {
        let settlement = [Settlement { position, action }];
        let settled = it.settle(stream, group, "a", &settlement).await;
        assert!(settled.is_err(), "{settlement:?}");
    }
    let pause = Pause {
        by: "an operator".into(),
        reason: "".into(),
        for_ms: Some(1),
    };
    for senseless in [
        Pause {
            by: "".into(),
            ..pause.clone()
        },
        Pause {
            for_ms: Some(0),
            ..pause.clone()
        },
        Pause {
            reason: "r".repeat(MAX_REASON + 1).into(),
            ..pause.clone()
        },
    ] {
        let paused = it.pause(stream, group, Some(&senseless)).await;
        assert!(paused.is_err(), "{senseless:?}");
    }
    for senseless in [
        Retention { keep_ms: 0, ..KEEP },
        Retention {
            max_age_ms: Some(0),
            ..KEEP
        },
        Retention {
            settled: Some(MAX_MS + 1),
            ..KEEP
        },
    ] {
        assert!(it.trim(stream, &senseless).await.is_err(), "{senseless:?}");
    }
}

pub(super) async fn what_is_lost_is_noticed(it: &dyn StreamBroker, flush: &(dyn Fn() + Sync)) {
    let case = Case::joined(it, "flushed").await;
    let positions = case.publish(&["1", "2"]).await;
    let held = case.one("a").await;
    let before = case.join("a", HOUR).await.incarnation;
    flush();
    let read = Read {
        streams: &[&case.stream],
        consumer: "a",
        max: 10,
        block_ms: 0,
    };
    let batch = it.read(case.group, read).await.expect("an answer");
    assert_eq!(batch.missing.len(), 1);
    let settled = case.settle("a", &held, Action::Ack(None)).await;
    assert_eq!(settled, Settled::Gone);
    assert_eq!(case.claim_as("a", 10).await.incarnation, 0);
    // Published before the consumer is back: it must not be skipped.
    case.publish(&["3"]).await;
    let again = Join {
        start: Start::Next,
        resume: Some(Resume {
            incarnation: before,
            after: positions[1],
        }),
        ..join("a")
    };
    let joined = case.join_as(&again).await;
    assert_eq!(joined.group, JoinedGroup::Recreated);
    assert_ne!(joined.incarnation, before);
    assert_eq!(name(&case.one("a").await), "3");
}
