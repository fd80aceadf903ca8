//! The arithmetic of a retry budget: pure, in whole numbers, exact.

use crate::clock::Moment;

/// Units that one retry costs, so that a fraction is exact to a millionth of a retry per request.
pub(super) const RETRY: u64 = 1_000_000;

/// Nanoseconds times retries per second, per unit.
const FLOOR: u128 = 1_000_000_000 / RETRY as u128;

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Units earned by a request.
    pub(super) per_request: u64,
    /// Whole retries earned by a second.
    pub(super) per_second: u32,
    /// Maximum units saved up.
    pub(super) most: u64,
}

/// The balance, as of a number of requests and a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    units: u64,
    /// Earned by time beyond whole units, in units of `1 / FLOOR`.
    rest: u128,
    requests: u64,
    at: Moment,
}

impl Bucket {
    pub(super) const fn full(limits: &Limits, at: Moment) -> Self {
        Self {
            units: limits.most,
            rest: 0,
            requests: 0,
            at,
        }
    }

    /// Adds what `requests` (a total since the beginning) and the time up to `now` have earned since the last call.
    /// Adding late and adding at once give the same balance: both stop at the limit.
    pub(super) fn earn(&mut self, limits: &Limits, requests: u64, now: Moment) {
        let new = requests.saturating_sub(self.requests);
        let time = now.since(self.at).as_nanos() * u128::from(limits.per_second) + self.rest;
        let earned = u128::from(new) * u128::from(limits.per_request) + time / FLOOR;
        let total = u128::from(self.units) + earned;
        if total >= u128::from(limits.most) {
            (self.units, self.rest) = (limits.most, 0);
        } else {
            // Below `most`, which fits.
            (self.units, self.rest) = (u64::try_from(total).unwrap_or(limits.most), time % FLOOR);
        }
        self.requests = self.requests.max(requests);
        self.at = self.at.max(now);
    }

    /// Takes one retry out, if the balance allows it.
    pub(super) const fn withdraw(&mut self) -> bool {
        let Some(left) = self.units.checked_sub(RETRY) else {
            return false;
        };
        self.units = left;
        true
    }

    /// Puts back a retry that was not made.
    pub(super) fn refund(&mut self, limits: &Limits) {
        self.units = self.units.saturating_add(RETRY);
        if self.units >= limits.most {
            (self.units, self.rest) = (limits.most, 0);
        }
    }

    /// Whole retries that can be taken out.
    pub(super) const fn retries(&self) -> u64 {
        self.units / RETRY
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Requests(u64),
        Wait(u64),
        Withdraw,
        Refund,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20u64).prop_map(Step::Requests),
            (0..500_000_000u64).prop_map(Step::Wait),
            (0..5000u64).prop_map(Step::Wait),
            Just(Step::Withdraw),
            Just(Step::Withdraw),
            Just(Step::Refund),
        ]
    }

    fn limits() -> impl Strategy<Value = Limits> {
        (0..=RETRY, 0..100u32, 1..20u64).prop_map(|(per_request, per_second, most)| Limits {
            per_request,
            per_second,
            most: most * RETRY,
        })
    }

    /// Billionths of a retry: a denominator that makes fraction and floor both whole numbers. Earns at once.
    struct Model {
        balance: u128,
        most: u128,
    }

    impl Model {
        fn earn(&mut self, billionths: u128) {
            self.balance = (self.balance + billionths).min(self.most);
        }
    }

    const WHOLE: u128 = 1_000_000_000;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn the_budget_is_exact_however_late_it_adds_up(
            limits in limits(), steps in proptest::collection::vec(step(), 0..200),
        ) {
            let mut now = Moment::from_nanos(1 << 42);
            let mut bucket = Bucket::full(&limits, now);
            let most = u128::from(limits.most / RETRY) * WHOLE;
            let mut model = Model { balance: most, most };
            let (mut requests, mut withdrawn, mut refunded, mut waited) = (0, 0u128, 0u128, 0u128);
            for step in steps {
                match step {
                    Step::Requests(more) => {
                        requests += more;
                        for _ in 0..more {
                            model.earn(u128::from(limits.per_request) * WHOLE / u128::from(RETRY));
                        }
                    }
                    Step::Wait(nanos) => {
                        now = now + Duration::from_nanos(nanos);
                        waited += u128::from(nanos);
                        model.earn(u128::from(nanos) * u128::from(limits.per_second));
                    }
                    Step::Withdraw => {
                        bucket.earn(&limits, requests, now);
                        let paid = bucket.withdraw();
                        prop_assert_eq!(paid, model.balance >= WHOLE);
                        if paid {
                            model.balance -= WHOLE;
                            withdrawn += 1;
                        }
                    }
                    Step::Refund if withdrawn > refunded => {
                        bucket.earn(&limits, requests, now);
                        bucket.refund(&limits);
                        model.earn(WHOLE);
                        refunded += 1;
                    }
                    Step::Refund => {}
                }
                let earned = u128::from(requests) * u128::from(limits.per_request) * WHOLE / u128::from(RETRY)
                    + waited * u128::from(limits.per_second);
                prop_assert!((withdrawn - refunded) * WHOLE <= earned + most);
            }
            bucket.earn(&limits, requests, now);
            let balance = u128::from(bucket.units) * WHOLE / u128::from(RETRY) + bucket.rest;
            prop_assert_eq!(balance, model.balance);
        }
    }

    #[test]
    fn an_age_of_requests_and_time_does_not_overflow() {
        let limits = Limits {
            per_request: RETRY,
            per_second: u32::MAX,
            most: u64::MAX / RETRY * RETRY,
        };
        let mut bucket = Bucket::full(&limits, Moment::from_nanos(0));
        assert!(bucket.withdraw());
        bucket.earn(&limits, u64::MAX, Moment::from_nanos(u64::MAX));
        assert_eq!(bucket.retries(), limits.most / RETRY);
        bucket.refund(&limits);
        assert_eq!(bucket.retries(), limits.most / RETRY);
    }

    #[test]
    fn a_clock_that_steps_back_earns_nothing_twice() {
        let limits = Limits {
            per_request: 0,
            per_second: 1,
            most: 10 * RETRY,
        };
        let at = |secs| Moment::from_nanos(0) + Duration::from_secs(secs);
        let mut bucket = Bucket::full(&limits, at(100));
        while bucket.withdraw() {}
        for secs in [102, 101, 102] {
            bucket.earn(&limits, 0, at(secs));
        }
        assert_eq!(bucket.retries(), 2);
    }
}
