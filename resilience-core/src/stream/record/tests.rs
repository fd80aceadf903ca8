use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::stream::{
    message::Position,
    steps::{Begin, Begun},
};

const CONSUMERS: [&str; 3] = ["a", "b", "c"];
const LEASE_MS: u64 = 100;

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Claim(usize),
    Extend(usize),
    Retry(usize, u64),
    GiveBack(usize, u64),
    End(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..CONSUMERS.len();
    let wait = prop_oneof![Just(0), 1..300u64];
    prop_oneof![
        (1..200_000u64).prop_map(Step::Pass),
        who.clone().prop_map(Step::Claim),
        who.clone().prop_map(Step::Extend),
        (who.clone(), wait.clone()).prop_map(|(who, ms)| Step::Retry(who, ms)),
        (who.clone(), wait).prop_map(|(who, ms)| Step::GiveBack(who, ms)),
        (who, any::<bool>()).prop_map(|(who, dead)| Step::End(who, dead)),
    ]
}

fn retry(after_ms: u64) -> Action {
    Action::Retry {
        after_ms,
        reason: "no".into(),
    }
}

fn dead() -> Action {
    Action::Dead {
        reason: "never".into(),
    }
}

proptest! {
    #[test]
    fn one_consumer_holds_a_message_and_only_that_one_changes_it(steps in prop::collection::vec(step(), 1..60)) {
        let names = CONSUMERS.map(Arc::<str>::from);
        let mut now = 1_000_000;
        let mut record = Record::deliver(&names[0], LEASE_MS, now);
        // What an observer knows: the holder, when another delivery may begin, and the counted deliveries.
        let (mut holder, mut due, mut counted) = (Some(0), now + LEASE_MS * 1000, 1);
        for step in steps {
            let before = record.clone();
            match step {
                Step::Pass(time) => now += time,
                Step::Claim(who) => {
                    let claimed = record.claim(&names[who], LEASE_MS, now);
                    prop_assert_eq!(claimed, now >= due);
                    if claimed {
                        (holder, due, counted) = (Some(who), now + LEASE_MS * 1000, counted + 1);
                    }
                }
                Step::Extend(who) => {
                    let held = record.extend(&names[who], LEASE_MS, now);
                    prop_assert_eq!(held == Held::Held, holder == Some(who));
                    if held == Held::Held {
                        due = now + LEASE_MS * 1000;
                    } else {
                        prop_assert_eq!(&record, &before);
                    }
                }
                Step::Retry(who, ms) | Step::GiveBack(who, ms) => {
                    let retries = matches!(step, Step::Retry(..));
                    let action = if retries { retry(ms) } else { Action::GiveBack { after_ms: ms } };
                    let settled = record.settle(&names[who], &action, now);
                    prop_assert_eq!(settled.is_ok(), holder == Some(who));
                    if settled == Ok(Next::Waits) {
                        (holder, due) = (None, now + ms * 1000);
                        counted -= u32::from(!retries);
                    } else {
                        prop_assert_eq!(&record, &before);
                    }
                }
                Step::End(who, dies) => {
                    let action = if dies { dead() } else { Action::Ack(None) };
                    let settled = record.settle(&names[who], &action, now);
                    prop_assert_eq!(settled.is_ok(), holder == Some(who));
                    if settled.is_ok() {
                        break;
                    }
                    prop_assert_eq!(settled == Err(Settled::Gone), holder.is_none());
                    prop_assert_eq!(&record, &before);
                }
            }
            prop_assert_eq!(record.holder().map(|it| &**it), holder.map(|it| CONSUMERS[it]));
            prop_assert_eq!(record.deliveries(), counted);
            prop_assert_eq!(record.due(now), due);
            prop_assert!(record.failures(now).len() <= MAX_FAILURES);
        }
    }

    #[test]
    fn a_clock_set_back_makes_nothing_last_longer(lease_ms in 1..10_000u64, wait_ms in 0..10_000u64, back in 0..10_000_000u64) {
        let (name, now) = (Arc::from("a"), 10_000_000);
        let mut record = Record::deliver(&name, lease_ms, now);
        prop_assert!(record.due(now - back) <= now - back + lease_ms * 1000);
        record.set_back(now - back);
        prop_assert!(record.claim(&name, lease_ms, now - back + lease_ms * 1000), "found out, it counts from there");
        let waits = record.settle("a", &retry(wait_ms), now);
        prop_assert_eq!(waits, Ok(Next::Waits));
        prop_assert!(record.due(now - back) <= now - back + wait_ms * 1000);
        record.set_back(now - back);
        prop_assert!(record.claim(&name, lease_ms, now - back + wait_ms * 1000), "found out, it counts from there");
    }

    #[test]
    fn fences_rise_and_one_outcome_stays(begins in prop::collection::vec((0..3u64, 0..2_000u64, any::<bool>(), any::<bool>()), 1..40)) {
        let mut record = EffectRecord::default();
        let (mut now, mut fences, mut done) = (1_000_000, vec![0], None);
        for (position, passed, is_held, completes) in begins {
            now += passed;
            let begin = Begin { position: Position::new(position, 0), key: "k".into(), keep_ms: 3_600_000 };
            match record.begin(&begin, |_| is_held, now) {
                Begun::Run { fence, .. } => {
                    prop_assert!(done.is_none());
                    prop_assert!(fences.iter().all(|it| *it < fence));
                    // A zombie with any earlier fence.
                    for zombie in fences.iter().skip(1) {
                        prop_assert!(!record.complete(begin.position, &effect(*zombie, "zombie"), now));
                    }
                    fences.push(fence);
                    if completes {
                        prop_assert!(record.complete(begin.position, &effect(fence, "first"), now));
                        prop_assert!(record.complete(begin.position, &effect(fence, "second"), now), "repeated");
                        done = Some(fence);
                    }
                }
                Begun::Done { outcome } => {
                    prop_assert!(done.is_some());
                    prop_assert_eq!(outcome, Bytes::from_static(b"first"));
                }
                other => prop_assert!(other == Begun::Busy && is_held && done.is_none()),
            }
        }
    }
}

fn effect(fence: u64, outcome: &'static str) -> Effect {
    Effect {
        key: "k".into(),
        fence,
        outcome: Bytes::from_static(outcome.as_bytes()),
        ttl_ms: 3_600_000,
    }
}

#[test]
fn the_history_tells_retries_and_ended_leases_and_not_what_was_given_back() {
    let (a, b) = (Arc::from("a"), Arc::from("b"));
    let mut record = Record::deliver(&a, LEASE_MS, 0);
    assert_eq!(record.settle("a", &retry(0), 1_000), Ok(Next::Waits));
    assert!(record.claim(&b, LEASE_MS, 2_000));
    let back = Action::GiveBack { after_ms: 0 };
    assert_eq!(record.settle("b", &back, 3_000), Ok(Next::Waits));
    assert!(record.claim(&b, LEASE_MS, 4_000));
    assert!(record.claim(&a, LEASE_MS, 104_000), "the lease has ended");
    assert!(record.settle("a", &dead(), 105_000).is_ok());

    let failures = record.failures(105_000);
    let told: Vec<_> = failures
        .iter()
        .map(|it| (it.delivery, &*it.consumer, it.reason.as_deref(), it.ago_ms))
        .collect();
    assert_eq!(
        told,
        [
            (1, "a", Some("no"), 104),
            (2, "b", None, 1),
            (3, "a", Some("never"), 0),
        ]
    );
}

#[test]
fn the_history_keeps_the_last_failures() {
    let a = Arc::from("a");
    let mut record = Record::deliver(&a, LEASE_MS, 0);
    for _ in 0..20 {
        assert_eq!(record.settle("a", &retry(0), 0), Ok(Next::Waits));
        assert!(record.claim(&a, LEASE_MS, 0));
    }
    let deliveries: Vec<_> = record.failures(0).iter().map(|it| it.delivery).collect();
    assert_eq!(deliveries, (13..=20).collect::<Vec<_>>());
    assert_eq!(record.deliveries(), 21);
}

#[test]
fn a_record_of_an_effect_that_was_lost_is_written_again_by_its_holder() {
    let mut lost = EffectRecord::default();
    assert!(lost.complete(Position::new(1, 0), &effect(7, "done"), 0));
    let begin = Begin {
        position: Position::new(2, 0),
        key: "k".into(),
        keep_ms: 1,
    };
    let begun = lost.begin(&begin, |_| false, 1);
    let outcome = Bytes::from_static(b"done");
    assert_eq!(begun, Begun::Done { outcome });
}

#[test]
fn an_effect_that_is_forgotten_begins_as_a_first_attempt_with_a_higher_fence() {
    let mut record = EffectRecord::default();
    let begin = Begin {
        position: Position::new(1, 0),
        key: "k".into(),
        keep_ms: 10,
    };
    let Begun::Run { fence, attempt } = record.begin(&begin, |_| true, 5_000) else {
        panic!("it begins");
    };
    let again = record.begin(&begin, |_| true, 6_000);
    assert!(matches!(again, Begun::Run { attempt: 2, .. }), "{again:?}");
    let later = record.begin(&begin, |_| true, 16_001);
    let Begun::Run {
        fence: next,
        attempt: 1,
    } = later
    else {
        panic!("forgotten: {later:?}");
    };
    assert_eq!(attempt, 1);
    assert!(next > fence);
}
