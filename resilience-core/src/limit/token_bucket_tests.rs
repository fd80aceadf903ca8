//! The machine against exact fractions, and what went wrong in peers.

use std::time::Duration;

use super::{
    Quota,
    tests::oracle,
    token_bucket::{Bucket, Claim, LimitOutcome, TOLERATED_STEP, decide, decide_one},
};

const SECOND: u64 = 1_000_000;

fn quota(permits: u64, micros: u64, capacity: u64) -> Quota {
    Quota::per(permits, Duration::from_micros(micros))
        .and_then(|quota| quota.burst(capacity))
        .unwrap()
}

/// A bucket, and the limit it is held to.
struct Held {
    bucket: Option<Bucket>,
    quota: Quota,
}

impl Held {
    fn full(quota: Quota) -> Self {
        let bucket = None;
        Self { bucket, quota }
    }

    fn ask(&mut self, cost: i64, now: u64) -> LimitOutcome {
        let claim = Claim {
            bucket: self.bucket,
            quota: &self.quota,
            cost,
        };
        let (outcome, after) = decide_one(claim, now);
        if after.changed {
            self.bucket = after.bucket;
        }
        outcome
    }
}

fn wait(micros: u64) -> LimitOutcome {
    LimitOutcome::Wait { binding: 0, micros }
}

const ADMITTED: LimitOutcome = LimitOutcome::Admitted { binding: 0 };
const IMPOSSIBLE: LimitOutcome = LimitOutcome::Impossible { binding: 0 };

/// A GCRA that keeps times waits 86,399 s here.
#[test]
fn an_upgrade_from_ten_a_day_to_a_hundred_a_second_serves_at_once() {
    let mut held = Held::full(quota(10, 86_400 * SECOND, 10));
    for _ in 0..10 {
        assert_eq!(held.ask(1, 5 * SECOND), ADMITTED);
    }
    assert_eq!(held.ask(1, 5 * SECOND), wait(8_640 * SECOND));
    held.quota = quota(100, SECOND, 100);
    assert_eq!(held.ask(1, 5 * SECOND), wait(10_000));
    assert_eq!(held.ask(1, 5 * SECOND + 10_000), ADMITTED);
}

#[test]
fn a_downgrade_does_not_hand_back_what_was_used() {
    let mut held = Held::full(quota(100, SECOND, 100));
    assert_eq!(held.ask(95, SECOND), ADMITTED);
    held.quota = quota(10, 86_400 * SECOND, 10);
    assert_eq!(held.ask(5, SECOND), ADMITTED);
    assert!(!held.ask(1, SECOND).is_admitted());
}

/// Two instances with two configurations, during a rollout: neither starves the other of its rest.
#[test]
fn plans_that_alternate_on_every_call_still_gain() {
    let plans = [quota(1, SECOND, 5), quota(1, 999_983, 5)];
    let mut held = Held::full(plans[0]);
    assert_eq!(held.ask(5, 0), ADMITTED);
    let mut admitted = 0;
    for call in 0..100_000_u64 {
        held.quota = plans[call as usize % 2];
        // A refund of nothing would be a look: put one back and take it, so that every call writes.
        assert_eq!(held.ask(-1, call * 1_000), ADMITTED);
        assert_eq!(held.ask(1, call * 1_000), ADMITTED);
        admitted += u64::from(held.ask(1, call * 1_000).is_admitted());
    }
    assert!((99..=100).contains(&admitted), "{admitted} in 100 s");
}

/// A peer answers "0.1 s", forever.
#[test]
fn a_cost_above_the_capacity_is_impossible_and_no_matter_of_waiting() {
    let mut held = Held::full(quota(10, SECOND, 20));
    assert_eq!(held.ask(21, 0), IMPOSSIBLE);
    assert_eq!(held.ask(i64::MAX, 0), IMPOSSIBLE);
    assert_eq!(held.ask(20, 0), ADMITTED);
}

/// A peer grants the whole part of 2.2 and takes all of it.
#[test]
fn a_fraction_of_a_token_is_never_lost() {
    let mut held = Held::full(quota(10, SECOND, 10));
    assert_eq!(held.ask(10, 0), ADMITTED);
    assert_eq!(held.ask(2, 220_000), ADMITTED);
    assert_eq!(held.ask(1, 220_000), wait(80_000));
    assert_eq!(held.ask(1, 300_000), ADMITTED);
}

/// A peer's tokens go below zero with each call it rejects.
#[test]
fn fifty_refusals_leave_no_debt() {
    let mut held = Held::full(quota(1, SECOND, 10));
    assert_eq!(held.ask(10, 0), ADMITTED);
    let before = held.bucket;
    for _ in 0..50 {
        assert_eq!(held.ask(1, 500_000), wait(500_000));
        assert_eq!(held.ask(11, 500_000), IMPOSSIBLE);
    }
    assert_eq!(held.bucket, before);
    assert_eq!(held.ask(1, SECOND), ADMITTED);
}

/// A peer's state vanishes before the bucket is full: 240 requests where 143 are allowed.
#[test]
fn whoever_drains_and_waits_gets_what_the_contract_allows_and_no_more() {
    let mut held = Held::full(quota(10, SECOND, 20));
    let mut admitted = 0;
    for round in 0..=12_u64 {
        let now = round * 1_020_000;
        while held.ask(1, now).is_admitted() {
            admitted += 1;
        }
    }
    // 12.24 s at 10 a second, and the burst.
    assert_eq!(admitted, 142);
}

#[test]
fn an_hour_set_back_stops_nothing_and_a_tremble_earns_nothing() {
    let mut held = Held::full(quota(10, SECOND, 10));
    let start = 10_000 * SECOND;
    assert_eq!(held.ask(10, start), ADMITTED);
    let back = start - 3_600 * SECOND;
    assert_eq!(held.ask(1, back), wait(100_000));
    assert_eq!(held.ask(1, back + 100_000), ADMITTED);
    for _ in 0..10_000 {
        let trembled = back + 100_000 - TOLERATED_STEP;
        assert!(!held.ask(1, trembled).is_admitted());
        assert!(!held.ask(1, back + 100_000).is_admitted());
    }
    assert_eq!(
        held.ask(1, back),
        wait(200_000),
        "the time it is behind counts"
    );
}

#[test]
fn zero_looks_and_a_negative_cost_puts_back_no_more_than_there_is_room_for() {
    let mut held = Held::full(quota(10, SECOND, 10));
    assert_eq!(held.ask(0, 0), ADMITTED);
    assert_eq!(held.bucket, None);
    assert_eq!(held.ask(10, 0), ADMITTED);
    assert_eq!(held.ask(0, 0), ADMITTED, "an empty bucket can be looked at");
    assert_eq!(held.ask(-4, 0), ADMITTED);
    assert_eq!(held.ask(4, 0), ADMITTED);
    assert_eq!(held.ask(i64::MIN, 0), ADMITTED);
    assert_eq!(held.bucket, None, "full, and nothing to keep");
    assert_eq!(held.ask(11, 0), IMPOSSIBLE);
}

/// A peer charges the first limit though the second refuses.
#[test]
fn several_limits_are_charged_together_or_not_at_all_and_the_binding_one_is_named() {
    let (second, day) = (quota(10, SECOND, 10), quota(25, 86_400 * SECOND, 25));
    let mut buckets = [None, None];
    let mut ask = |costs: [i64; 2], now| {
        let claims = [
            Claim {
                bucket: buckets[0],
                quota: &second,
                cost: costs[0],
            },
            Claim {
                bucket: buckets[1],
                quota: &day,
                cost: costs[1],
            },
        ];
        let mut afters = Vec::new();
        let outcome = decide(&claims, now, |after| afters.push(after));
        for (bucket, after) in buckets.iter_mut().zip(&afters) {
            if after.changed {
                *bucket = after.bucket;
            }
        }
        let remaining: Vec<_> = afters.iter().map(|after| after.remaining).collect();
        (outcome, remaining)
    };
    assert_eq!(
        ask([1, 1], 0),
        (LimitOutcome::Admitted { binding: 0 }, vec![9, 24])
    );
    assert_eq!(
        ask([1, 20], 0),
        (LimitOutcome::Admitted { binding: 1 }, vec![8, 4])
    );
    let micros = 2 * 3_456 * SECOND;
    assert_eq!(
        ask([1, 6], 0),
        (LimitOutcome::Wait { binding: 1, micros }, vec![8, 4])
    );
    assert_eq!(
        ask([11, 6], 0),
        (LimitOutcome::Impossible { binding: 0 }, vec![8, 4])
    );
    let micros = 200_000;
    assert_eq!(
        ask([10, 4], 0),
        (LimitOutcome::Wait { binding: 0, micros }, vec![8, 4])
    );
    assert_eq!(
        ask([8, 4], 0),
        (LimitOutcome::Admitted { binding: 0 }, vec![0, 0])
    );
}

/// 200,000 calls a run, from a new seed each time.
#[test]
fn every_decision_remainder_and_wait_is_that_of_exact_fractions() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let compared = oracle::compare(200_000, seed);
    assert_eq!(compared.wrong, None);
    assert_eq!(compared.calls, 200_000);
    assert!(
        compared.refused > 20_000 && compared.plans > 1_000 && compared.steps > 5_000,
        "{compared:?}"
    );
}
