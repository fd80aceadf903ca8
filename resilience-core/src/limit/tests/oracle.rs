//! Exact fractions, which know nothing of parts, rests or units, and the machine held to them.

use std::time::Duration;

use super::{
    Quota,
    token_bucket::{Bucket, Claim, LimitOutcome, TOLERATED_STEP, decide_one},
};

const SECOND: u64 = 1_000_000;

/// What came of a comparison.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) calls: usize,
    pub(crate) refused: usize,
    pub(crate) plans: usize,
    pub(crate) steps: usize,
    /// The first call whose decision, remainder or wait was another than that of fractions; the comparison ends there.
    pub(crate) wrong: Option<String>,
}

/// Asks the machine and the fractions the same number of times: steps back, changes of plan, idle times of months,
/// primes, costs from below zero to above the capacity.
pub(crate) fn compare(calls: usize, seed: u64) -> Compared {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut compared = Compared::default();
    while compared.calls < calls && compared.wrong.is_none() {
        let mut held = Held::new(&mut rng);
        for _ in 0..400.min(calls - compared.calls) {
            compared.calls += 1;
            match held.call(&mut rng, &mut compared) {
                Ok(outcome) => compared.refused += usize::from(!outcome.is_admitted()),
                Err(wrong) => {
                    compared.wrong = Some(wrong);
                    break;
                }
            }
        }
    }
    compared
}

/// A bucket, the limit it is held to, and the same as fractions.
struct Held {
    bucket: Option<Bucket>,
    quota: Quota,
    now: i64,
    exact: Exact,
}

impl Held {
    fn new(rng: &mut fastrand::Rng) -> Self {
        let quota = any_quota(rng);
        let now = rng.i64(7_200_000_000..2_000_000_000_000_000);
        Self {
            bucket: None,
            quota,
            now,
            exact: Exact::full(&quota, now),
        }
    }

    fn call(
        &mut self,
        rng: &mut fastrand::Rng,
        compared: &mut Compared,
    ) -> Result<LimitOutcome, String> {
        if rng.u8(0..40) == 0 {
            self.quota = any_quota(rng);
            compared.plans += 1;
        }
        let pause = any_pause(rng, &self.quota);
        compared.steps += usize::from(pause < 0);
        self.now = (self.now + pause).max(0);
        // No bucket is a full one: of whatever quota it is asked by.
        if self.bucket.is_none() {
            self.exact = Exact::full(&self.quota, self.now);
        }
        let cost = any_cost(rng, &self.quota);
        self.check(cost)
    }

    fn check(&mut self, cost: i64) -> Result<LimitOutcome, String> {
        let (quota, now) = (self.quota, self.now.unsigned_abs());
        // What is only looked at stays as it was last written.
        let mut exact = self.exact;
        exact.adopt(&quota);
        exact.pass(&quota, now.into());
        let (outcome, after) = decide_one(self.claim(self.bucket, cost), now);
        let wrong = |what: &str| {
            let (bucket, quota) = (self.bucket, self.quota);
            Err(format!(
                "{what}: {outcome:?}, {after:?} for {cost} of {bucket:?} by {quota:?} at {now}, which is {exact:?}"
            ))
        };
        if outcome != exact.outcome(&quota, cost, now.into()) {
            return wrong("decision");
        }
        if let LimitOutcome::Wait { micros, .. } = outcome {
            let later = |micros: u64| decide_one(self.claim(after.bucket, cost), now + micros).0;
            if later(micros - 1).is_admitted() || !later(micros).is_admitted() {
                return wrong("wait");
            }
        }
        let mut left = exact;
        if outcome.is_admitted() {
            left.spend(&quota, cost);
        }
        if i128::from(after.remaining) != left.whole() {
            return wrong("remainder");
        }
        if i128::from(after.full_in) != left.wait(&quota, quota.capacity().into(), now.into()) {
            return wrong("time until full");
        }
        if after.changed {
            (self.bucket, self.exact) = (after.bucket, left);
        }
        Ok(outcome)
    }

    const fn claim(&self, bucket: Option<Bucket>, cost: i64) -> Claim<'_> {
        Claim {
            bucket,
            quota: &self.quota,
            cost,
        }
    }
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
    fn full(quota: &Quota, now: i64) -> Self {
        Self {
            num: quota.capacity().into(),
            den: 1,
            at: now.into(),
        }
    }

    fn outcome(&self, quota: &Quota, cost: i64, now: i128) -> LimitOutcome {
        let price = i128::from(cost.max(0));
        if price > i128::from(quota.capacity()) {
            return LimitOutcome::Impossible { binding: 0 };
        }
        match self.wait(quota, price, now) {
            0 => LimitOutcome::Admitted { binding: 0 },
            micros => LimitOutcome::Wait {
                binding: 0,
                micros: u64::try_from(micros).expect("below 2^53"),
            },
        }
    }

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
    let token = i64::try_from(quota.unit() / quota.rate()).expect("below 2^53") + 1;
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
    let most = i64::try_from(quota.capacity()).expect("below 2^53");
    match rng.u8(0..12) {
        0 => 0,
        1 => -rng.i64(1..=most),
        2 => most,
        3 => most + 1,
        4..6 => rng.i64(1..=most),
        _ => rng.i64(1..=(most / 4).clamp(1, 5)),
    }
}
