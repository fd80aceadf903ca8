//! The machine against exact fractions, which know nothing of parts, rests or units.

use std::time::Duration;

use super::{
    Quota,
    machine::{Bucket, Claim, Outcome, TOLERATED_STEP, decide, decide_one},
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

    fn ask(&mut self, cost: i64, now: u64) -> Outcome {
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

fn wait(micros: u64) -> Outcome {
    Outcome::Wait { binding: 0, micros }
}

const ADMITTED: Outcome = Outcome::Admitted { binding: 0 };
const IMPOSSIBLE: Outcome = Outcome::Impossible { binding: 0 };

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

/// A peer answers "0.1 s", for ever.
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
        (Outcome::Admitted { binding: 0 }, vec![9, 24])
    );
    assert_eq!(
        ask([1, 20], 0),
        (Outcome::Admitted { binding: 1 }, vec![8, 4])
    );
    let micros = 2 * 3_456 * SECOND;
    assert_eq!(
        ask([1, 6], 0),
        (Outcome::Wait { binding: 1, micros }, vec![8, 4])
    );
    assert_eq!(
        ask([11, 6], 0),
        (Outcome::Impossible { binding: 0 }, vec![8, 4])
    );
    let micros = 200_000;
    assert_eq!(
        ask([10, 4], 0),
        (Outcome::Wait { binding: 0, micros }, vec![8, 4])
    );
    assert_eq!(
        ask([8, 4], 0),
        (Outcome::Admitted { binding: 0 }, vec![0, 0])
    );
}

/// The bucket as a fraction `num / den` of tokens, `num` and `den` without a common factor.
#[derive(Clone, Copy, Debug)]
struct Exact {
    num: i128,
    den: i128,
    at: i128,
}

fn reduce(num: i128, den: i128) -> (i128, i128) {
    let (mut a, mut b) = (num, den);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    (num / a.max(1), den / a.max(1))
}

const fn ceil(num: i128, den: i128) -> i128 {
    num.div_euclid(den) + if num.rem_euclid(den) == 0 { 0 } else { 1 }
}

impl Exact {
    fn adopt(&mut self, quota: &Quota) {
        // What the documentation says: the rest is rounded down to the new parts. In lowest terms or not, a part is
        // 1 / unit of a token.
        let unit = i128::from(quota.unit());
        (self.num, self.den) = reduce((self.num * unit).div_euclid(self.den), unit);
        self.cap(quota);
    }

    fn cap(&mut self, quota: &Quota) {
        let most = i128::from(quota.capacity());
        if self.num >= most * self.den {
            (self.num, self.den) = (most, 1);
        }
    }

    fn pass(&mut self, quota: &Quota, now: i128) {
        if now < self.at {
            if self.at - now > i128::from(TOLERATED_STEP) {
                self.at = now;
            }
            return;
        }
        // As it was ordered, not in lowest terms.
        let (permits, micros) = (
            i128::from(quota.permits()),
            quota.period().as_micros() as i128,
        );
        let (num, den) = reduce((now - self.at) * permits, micros);
        (self.num, self.den) = reduce(self.num * den + num * self.den, self.den * den);
        self.at = now;
        self.cap(quota);
    }

    /// Microseconds until there are `tokens`.
    fn wait(&self, quota: &Quota, tokens: i128, now: i128) -> i128 {
        let missing = tokens * self.den - self.num;
        if missing <= 0 {
            return 0;
        }
        let (permits, micros) = (
            i128::from(quota.permits()),
            quota.period().as_micros() as i128,
        );
        ceil(missing * micros, self.den * permits) + (self.at - now).max(0)
    }

    fn spend(&mut self, quota: &Quota, cost: i64) {
        self.num -= i128::from(cost) * self.den;
        self.cap(quota);
    }

    fn whole(&self) -> i128 {
        self.num.div_euclid(self.den)
    }
}

fn any_quota(rng: &mut fastrand::Rng) -> Quota {
    const PRIMES: [u64; 8] = [2, 3, 7, 97, 9_973, 99_991, 999_983, 15_485_863];
    const PERIODS: [u64; 6] = [
        1,
        1_000,
        SECOND,
        60 * SECOND,
        3_600 * SECOND,
        86_400 * SECOND,
    ];
    loop {
        let permits = match rng.u8(0..3) {
            0 => PRIMES[rng.usize(0..PRIMES.len())],
            1 => 10_u64.pow(rng.u32(0..7)),
            _ => rng.u64(1..200_000),
        };
        let micros = match rng.u8(0..3) {
            0 => PRIMES[rng.usize(0..PRIMES.len())],
            1 => rng.u64(1..10 * SECOND),
            _ => PERIODS[rng.usize(0..PERIODS.len())],
        };
        let capacity = match rng.u8(0..3) {
            0 => rng.u64(1..20),
            1 => PRIMES[rng.usize(0..PRIMES.len())],
            _ => rng.u64(1..100_000),
        };
        let quota = Quota::per(permits, Duration::from_micros(micros));
        if let Ok(quota) = quota.and_then(|quota| quota.burst(capacity)) {
            return quota;
        }
    }
}

fn any_pause(rng: &mut fastrand::Rng, quota: &Quota) -> i64 {
    let token = i64::try_from(quota.unit() / quota.rate()).unwrap() + 1;
    match rng.u8(0..24) {
        0..4 => 0,
        4..14 => rng.i64(0..=token),
        14..18 => rng.i64(0..=token.saturating_mul(10).min(1 << 40)),
        18 => rng.i64(0..10_000_000_000_000),
        19 => -rng.i64(0..=TOLERATED_STEP as i64),
        20 => -rng.i64(0..3_600_000_000),
        _ => rng.i64(0..1_000),
    }
}

fn any_cost(rng: &mut fastrand::Rng, quota: &Quota) -> i64 {
    let most = i64::try_from(quota.capacity()).unwrap();
    match rng.u8(0..12) {
        0 => 0,
        1 => -rng.i64(1..=most),
        2 => most,
        3 => most + 1,
        4..6 => rng.i64(1..=most),
        _ => rng.i64(1..=(most / 4).clamp(1, 5)),
    }
}

/// 200,000 calls a run, from a new seed each time.
#[test]
fn every_decision_remainder_and_wait_is_that_of_exact_fractions() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut calls, mut refused, mut plans, mut steps) = (0, 0, 0, 0);
    for _ in 0..500 {
        let mut held = Held::full(any_quota(&mut rng));
        let mut now = rng.i64(7_200_000_000..2_000_000_000_000_000);
        let mut exact = Exact {
            num: held.quota.capacity().into(),
            den: 1,
            at: now.into(),
        };
        for _ in 0..400 {
            if rng.u8(0..40) == 0 {
                held.quota = any_quota(&mut rng);
                plans += 1;
            }
            let pause = any_pause(&mut rng, &held.quota);
            steps += u32::from(pause < 0);
            now = (now + pause).max(0);
            // No bucket is a full one: of whatever quota it is asked by.
            if held.bucket.is_none() {
                exact = Exact {
                    num: held.quota.capacity().into(),
                    den: 1,
                    at: now.into(),
                };
            }
            let cost = any_cost(&mut rng, &held.quota);
            let outcome = check(&mut held, &mut exact, cost, now.unsigned_abs());
            refused += u32::from(!outcome.is_admitted());
            calls += 1;
        }
    }
    assert_eq!(calls, 200_000);
    assert!(
        refused > 20_000 && plans > 1_000 && steps > 5_000,
        "{refused} {plans} {steps}"
    );
}

fn check(held: &mut Held, last: &mut Exact, cost: i64, now: u64) -> Outcome {
    let quota = held.quota;
    // What is only looked at stays as it was last written.
    let mut exact = *last;
    exact.adopt(&quota);
    exact.pass(&quota, now.into());
    let claim = Claim {
        bucket: held.bucket,
        quota: &quota,
        cost,
    };
    let (outcome, after) = decide_one(claim, now);
    let price = i128::from(cost.max(0));
    let expected = if price > i128::from(quota.capacity()) {
        IMPOSSIBLE
    } else {
        match exact.wait(&quota, price, now.into()) {
            0 => ADMITTED,
            micros => wait(u64::try_from(micros).unwrap()),
        }
    };
    let asked = format!(
        "{cost} of {held_bucket:?} by {quota:?} at {now}, which is {exact:?}",
        held_bucket = held.bucket
    );
    assert_eq!(outcome, expected, "{asked}");
    if let Outcome::Wait { micros, .. } = outcome {
        let later = |micros: u64| decide_one(claim_of(held, after.bucket, cost), now + micros).0;
        assert!(!later(micros - 1).is_admitted(), "one too late: {asked}");
        assert!(later(micros).is_admitted(), "too early: {asked}");
    }
    if outcome.is_admitted() {
        exact.spend(&quota, cost);
    }
    assert_eq!(i128::from(after.remaining), exact.whole(), "{asked}");
    let full_in = exact.wait(&quota, quota.capacity().into(), now.into());
    assert_eq!(i128::from(after.full_in), full_in, "{asked}");
    if after.changed {
        held.bucket = after.bucket;
        *last = exact;
    }
    outcome
}

fn claim_of(held: &Held, bucket: Option<Bucket>, cost: i64) -> Claim<'_> {
    Claim {
        bucket,
        quota: &held.quota,
        cost,
    }
}
