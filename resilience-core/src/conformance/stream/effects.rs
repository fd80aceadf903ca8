//! Effects: recorded with the acknowledgement of their message, or not at all.

use bytes::Bytes;

use super::{Case, HOUR, SHORT, SOON, dead, retry};
use crate::{
    conformance::eventually,
    stream::{Action, Begin, Begun, Delivery, Effect, Held, Settled, StreamBroker},
};

impl Case<'_> {
    async fn begin(&self, consumer: &str, of: &Delivery, key: &str) -> Begun {
        let begin = Begin {
            position: of.position,
            key: key.into(),
            keep_ms: HOUR,
        };
        let begun = self
            .it
            .begin(&self.stream, self.group, consumer, &[begin])
            .await;
        begun.expect("an answer").remove(0)
    }

    /// Begins an effect that is to be made; its fence and attempt.
    async fn run(&self, consumer: &str, of: &Delivery, key: &str) -> (u64, u32) {
        match self.begin(consumer, of, key).await {
            Begun::Run { fence, attempt } => (fence, attempt),
            other => panic!("not to be made: {other:?}"),
        }
    }

    async fn complete(&self, consumer: &str, of: &Delivery, key: &str, fence: u64) -> Settled {
        let effect = effect(key, fence, "done");
        self.settle(consumer, of, Action::Ack(Some(effect))).await
    }
}

fn effect(key: &str, fence: u64, outcome: &'static str) -> Effect {
    Effect {
        key: key.into(),
        fence,
        outcome: Bytes::from_static(outcome.as_bytes()),
        ttl_ms: HOUR,
    }
}

fn done() -> Begun {
    Begun::Done {
        outcome: Bytes::from_static(b"done"),
    }
}

pub(super) async fn an_effect_is_recorded_with_its_acknowledgement(it: &dyn StreamBroker) {
    let case = Case::joined(it, "effect").await;
    case.publish(&["1"]).await;
    let held = case.one("a").await;
    let (fence, attempt) = case.run("a", &held, "k").await;
    assert_eq!(attempt, 1);
    assert!(fence > 0 && fence < 1 << 53);
    assert_eq!(case.complete("a", &held, "k", fence).await, Settled::Done);
    assert_eq!(case.counts().await, (0, 0, 0));
    assert_eq!(case.complete("a", &held, "k", fence).await, Settled::Gone);
    assert_eq!(case.begin("a", &held, "k").await, Begun::Lost(Held::Gone));
}

pub(super) async fn an_effect_is_not_recorded_without_its_message(it: &dyn StreamBroker) {
    let case = Case::joined(it, "zombie-effect").await;
    case.join("short", SHORT).await;
    case.publish(&["1"]).await;
    let zombie = case.one("short").await;
    let (fence, _) = case.run("short", &zombie, "k").await;
    let second = case.claim_soon("b").await;
    let late = case.complete("short", &zombie, "k", fence).await;
    assert_eq!(late, Settled::Taken);
    let begun = case.begin("short", &zombie, "k").await;
    assert_eq!(begun, Begun::Lost(Held::Taken));
    let (next, attempt) = case.run("b", &second, "k").await;
    assert!(next > fence);
    assert_eq!(attempt, 2);
    assert_eq!(case.complete("b", &second, "k", next).await, Settled::Done);
}

pub(super) async fn a_copy_of_an_event_finds_the_effect(it: &dyn StreamBroker) {
    let case = Case::joined(it, "copy").await;
    case.publish(&["1", "1", "other"]).await;
    let held = case.read("a", 3).await;
    let (fence, _) = case.run("a", &held[0], "1").await;
    assert_eq!(
        case.complete("a", &held[0], "1", fence).await,
        Settled::Done
    );
    assert_eq!(case.begin("a", &held[1], "1").await, done());
    case.ack("a", &held[1]).await;
    case.run("a", &held[2], "other").await;
    // A seek brings settled messages back, and finds their effects too.
    let sought = it.seek(&case.stream, case.group, crate::stream::Start::Oldest);
    assert_eq!(sought.await, Ok(true));
    let again = case.one("b").await;
    assert_eq!(case.begin("b", &again, "1").await, done());
}

pub(super) async fn a_copy_waits_while_the_first_is_held(it: &dyn StreamBroker) {
    let case = Case::joined(it, "busy").await;
    case.publish(&["1", "1", "1"]).await;
    let first = case.one("a").await;
    let copy = case.one("b").await;
    let (fence, _) = case.run("a", &first, "1").await;
    assert_eq!(case.begin("b", &copy, "1").await, Begun::Busy);
    // The first one failed: the copy goes ahead, with a higher fence.
    let settled = case.settle("a", &first, retry(HOUR, "no")).await;
    assert_eq!(settled, Settled::Done);
    let (next, attempt) = case.run("b", &copy, "1").await;
    assert!(next > fence && attempt == 2);
    let settled = case.settle("b", &copy, dead("never")).await;
    assert_eq!(settled, Settled::Done);
    let third = case.one("b").await;
    let (last, _) = case.run("b", &third, "1").await;
    assert!(last > next);
    assert_eq!(case.complete("b", &third, "1", last).await, Settled::Done);
}

pub(super) async fn each_attempt_has_a_higher_fence(it: &dyn StreamBroker) {
    let case = Case::joined(it, "fences").await;
    case.publish(&["1"]).await;
    let mut held = case.one("a").await;
    let mut last = 0;
    for attempt in 1..=5 {
        let (fence, number) = case.run("a", &held, "k").await;
        assert!(fence > last, "{fence} after {last}");
        assert_eq!(number, attempt);
        last = fence;
        if attempt % 2 == 0 {
            let settled = case.settle("a", &held, retry(0, "no")).await;
            assert_eq!(settled, Settled::Done);
            held = case.claim_soon("a").await;
        }
    }
}

pub(super) async fn a_fence_that_was_passed_is_refused(it: &dyn StreamBroker) {
    let case = Case::joined(it, "passed").await;
    case.publish(&["1"]).await;
    let held = case.one("a").await;
    // The answer to the first request was lost, or it comes from an earlier delivery to the same consumer.
    let (passed, _) = case.run("a", &held, "k").await;
    let (fence, _) = case.run("a", &held, "k").await;
    let late = case.complete("a", &held, "k", passed).await;
    assert_eq!(late, Settled::Taken);
    assert_eq!(case.counts().await, (1, 0, 0), "nothing changed");
    assert_eq!(case.complete("a", &held, "k", fence).await, Settled::Done);
}

pub(super) async fn effects_belong_to_their_group(it: &dyn StreamBroker) {
    let case = Case::joined(it, "of-group").await;
    let other = case.of_group("other");
    other.join("a", HOUR).await;
    case.publish(&["1"]).await;
    for case in [&case, &other] {
        let held = case.one("a").await;
        let (fence, attempt) = case.run("a", &held, "1").await;
        assert_eq!(attempt, 1);
        assert_eq!(case.complete("a", &held, "1", fence).await, Settled::Done);
    }
}

pub(super) async fn an_effect_is_forgotten_when_its_time_is_over(it: &dyn StreamBroker) {
    let case = Case::joined(it, "forgotten").await;
    case.publish(&["1", "1"]).await;
    let held = case.read("a", 2).await;
    let (fence, _) = case.run("a", &held[0], "1").await;
    let brief = Effect {
        ttl_ms: SHORT,
        ..effect("1", fence, "done")
    };
    let settled = case.settle("a", &held[0], Action::Ack(Some(brief))).await;
    assert_eq!(settled, Settled::Done);
    eventually("the effect is forgotten", SOON, || async {
        matches!(
            case.begin("a", &held[1], "1").await,
            Begun::Run { attempt: 1, .. }
        )
    })
    .await;
    let (next, _) = case.run("a", &held[1], "1").await;
    assert!(next > fence);
}
