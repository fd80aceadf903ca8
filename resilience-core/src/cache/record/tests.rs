//! What holds after any sequence of steps at any times.

use proptest::prelude::*;

use super::{Fill, Lease, Leased, Record, Stored, Token};

#[derive(Clone, Debug)]
enum Step {
    Lease(u64),
    Fill(u64),
    Extend(u64),
    Release(u64),
    Put(u64),
    Invalidate,
    BeginWrite(u64),
    EndWrite(u64, bool),
}

/// By three tokens, so that they meet.
fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..4_u64).prop_map(Step::Lease),
        2 => (1..4_u64).prop_map(Step::Fill),
        1 => (1..4_u64).prop_map(Step::Extend),
        1 => (1..4_u64).prop_map(Step::Release),
        1 => (1..4_u64).prop_map(Step::Put),
        1 => Just(Step::Invalidate),
        1 => (1..4_u64).prop_map(Step::BeginWrite),
        1 => (1..4_u64, any::<bool>()).prop_map(|(token, value)| Step::EndWrite(token, value)),
    ]
}

fn token(number: u64) -> Token {
    Token::new(number).expect("not zero")
}

fn fill(span: u64) -> Fill {
    Fill {
        body: None,
        fresh_ms: span / 2,
        keep_ms: span,
        load_ms: 0,
        tags: [].into(),
    }
}

/// Whether the step was taken.
fn take(record: &mut Record, now: u64, step: &Step, span: u64) -> bool {
    let stored = match *step {
        Step::Lease(number) => {
            let asked = Lease {
                token: token(number),
                lease_ms: span,
                renew: None,
            };
            return matches!(record.lease(now, &asked), Leased::Granted { .. });
        }
        Step::Fill(number) => record.fill(now, token(number), &fill(span)),
        Step::Extend(number) => record.extend(now, token(number), span),
        Step::Put(number) => record.put(now, token(number), &fill(span)),
        Step::Release(number) => {
            record.release(token(number));
            return true;
        }
        Step::Invalidate => {
            record.invalidate(now, span);
            return true;
        }
        Step::BeginWrite(number) => {
            record.begin_write(now, token(number), span);
            return true;
        }
        Step::EndWrite(number, value) => {
            record.end_write(now, token(number), value.then_some(&fill(span)), span);
            return true;
        }
    };
    stored == Stored::Stored
}

proptest! {
    /// Stores answer a refusal without a write, so that no change is reported to those that keep the value in memory.
    #[test]
    fn a_step_that_is_refused_leaves_the_record_as_it_is(
        steps in proptest::collection::vec((step(), 0..3_000_u64, 1..4_000_u64), 1..60),
    ) {
        let (mut record, mut now) = (Record::default(), 1_000_000);
        for (step, passed, span) in steps {
            now += passed;
            let before = record.clone();
            if !take(&mut record, now, &step, span) {
                prop_assert_eq!(&record, &before, "{:?} at {}", step, now);
            }
        }
    }

    /// A load that began before an invalidation or a write never stores what it has read.
    #[test]
    fn what_was_leased_before_a_change_is_never_filled_after_it(
        steps in proptest::collection::vec((step(), 0..3_000_u64, 1..4_000_u64), 0..20),
        write in any::<bool>(),
    ) {
        let (mut record, mut now) = (Record::default(), 1_000_000);
        let slow = Lease { token: token(9), lease_ms: 500, renew: None };
        let granted = matches!(record.lease(now, &slow), Leased::Granted { .. });
        prop_assert!(granted);
        if write {
            record.begin_write(now, token(1), 100);
        } else {
            record.invalidate(now, 0);
        }
        for (step, passed, span) in steps {
            now += passed;
            take(&mut record, now, &step, span);
            let filled = record.clone().fill(now, token(9), &fill(1_000));
            prop_assert_eq!(filled, Stored::Refused);
        }
    }
}
