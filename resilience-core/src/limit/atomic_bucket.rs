//! The bucket in one word, for one limit within one process: every decision is a single atomic step.
//!
//! The state of a bucket is the time at which it is full again: in parts of which a microsecond has [`Quota::rate`] and a
//! token [`Quota::unit`], it is a whole number, so this bucket equals the one of [`token_bucket`](super::token_bucket)
//! exactly. (A GCRA rounds here.) A time cannot survive a change of the quota, which is why stores keep tokens.
//!
//! The word wraps around. [`AtomicBucket::settle`] keeps it from being further behind than half of its range.

use std::sync::PoisonError;

use super::Quota;
use crate::{
    clock::Moment,
    sync::{
        Mutex,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

/// After this many parts without a call, the word is settled.
const LONG_AGO: u64 = 1 << 62;
/// After this many, the word is meaningless; there was no call for [`LONG_AGO`], which fills any bucket.
const TOO_LONG_AGO: u128 = (1 << 63) - (1 << 54);

/// The reason of a denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The tokens are there after this many microseconds.
    Wait(u64),
    /// The bucket cannot hold that many.
    Impossible,
}

/// The quota, and what follows from it: one for all buckets of a family that have the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct BucketRules {
    pub(super) quota: Quota,
    /// A full bucket, in parts.
    room: u64,
    /// Microseconds without a call after which the word is settled.
    patience: u64,
}

impl BucketRules {
    pub(super) fn new(quota: Quota) -> Self {
        Self {
            quota,
            room: quota.capacity() * quota.unit(),
            patience: LONG_AGO / quota.rate(),
        }
    }
}

/// What there is of a bucket for each key: three words. It takes its rules along with each call.
pub(super) struct AtomicBucket {
    /// When it is full, in parts: less than a full bucket ahead of now, or behind it.
    full_at: AtomicU64,
    /// A microsecond not long before the last look.
    seen: AtomicU64,
    /// Calls that wait. Here, because it is read with the rest.
    waiting: AtomicU32,
    settling: Mutex<()>,
}

impl AtomicBucket {
    pub(super) fn new(rules: &BucketRules, now: Moment) -> Self {
        let now = micros(now);
        Self {
            full_at: AtomicU64::new(now.wrapping_mul(rules.quota.rate())),
            seen: AtomicU64::new(now),
            waiting: AtomicU32::new(0),
            settling: Mutex::new(()),
        }
    }

    /// The number of calls that wait.
    #[inline]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed) as usize
    }

    /// A queue has at most 2^20 calls.
    pub(super) fn set_waiting(&self, waiting: usize) {
        self.waiting.store(waiting as u32, Relaxed);
    }

    /// Takes `cost` tokens, if they are there.
    #[inline]
    pub(super) fn take(&self, rules: &BucketRules, cost: u64, now: Moment) -> Result<(), Refusal> {
        let now = self.settled(rules, now);
        if cost > rules.quota.capacity() {
            return Err(Refusal::Impossible);
        }
        let price = cost * rules.quota.unit();
        let mut full_at = self.full_at.load(Relaxed);
        loop {
            let debt = rules.debt(full_at, now) + price;
            if debt > rules.room {
                let wait = (debt - rules.room).div_ceil(rules.quota.rate());
                return Err(Refusal::Wait(wait));
            }
            let after = now.wrapping_add(debt);
            match (self.full_at).compare_exchange_weak(full_at, after, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => full_at = other,
            }
        }
    }

    /// Puts `tokens` back, as far as there is room.
    pub(super) fn refund(&self, rules: &BucketRules, tokens: u64, now: Moment) {
        let now = self.settled(rules, now);
        let price = tokens.saturating_mul(rules.quota.unit());
        let step = |full_at| Some(now.wrapping_add(rules.debt(full_at, now).saturating_sub(price)));
        // Never `None`.
        let _ = (self.full_at).fetch_update(Relaxed, Relaxed, step);
    }

    /// Microseconds until `tokens` could have been taken one after the other.
    pub(super) fn wait_for(&self, rules: &BucketRules, tokens: u128, now: Moment) -> u64 {
        let now = self.settled(rules, now);
        let debt = u128::from(rules.debt(self.full_at.load(Relaxed), now))
            + tokens.saturating_mul(rules.quota.unit().into());
        let wait = debt
            .saturating_sub(rules.room.into())
            .div_ceil(rules.quota.rate().into());
        u64::try_from(wait).unwrap_or(u64::MAX)
    }

    /// Whole tokens left, and microseconds until it is full.
    pub(super) fn level(&self, rules: &BucketRules, now: Moment) -> (u64, u64) {
        let now = self.settled(rules, now);
        let debt = rules.debt(self.full_at.load(Relaxed), now);
        let tokens = (rules.room - debt) / rules.quota.unit();
        (tokens, debt.div_ceil(rules.quota.rate()))
    }

    /// The time in parts, of which the word is not too far behind.
    #[inline]
    fn settled(&self, rules: &BucketRules, now: Moment) -> u64 {
        let now = micros(now);
        if now.saturating_sub(self.seen.load(Acquire)) > rules.patience {
            self.settle(rules, now);
        }
        now.wrapping_mul(rules.quota.rate())
    }

    #[cold]
    fn settle(&self, rules: &BucketRules, now: u64) {
        let _one = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let unseen = now.saturating_sub(self.seen.load(Relaxed));
        if unseen <= rules.patience {
            return;
        }
        let parts = now.wrapping_mul(rules.quota.rate());
        let lost = u128::from(unseen) * u128::from(rules.quota.rate()) >= TOO_LONG_AGO;
        let step = |full_at| {
            Some(if lost {
                parts
            } else {
                parts.wrapping_add(rules.debt(full_at, parts))
            })
        };
        // Never `None`.
        let _ = (self.full_at).fetch_update(Relaxed, Relaxed, step);
        self.seen.store(now, Release);
    }
}

impl BucketRules {
    /// The parts that are missing. A clock reading that is older than that of a call before finds more missing, but
    /// never more than all.
    #[inline]
    fn debt(&self, full_at: u64, now: u64) -> u64 {
        let ahead = full_at.wrapping_sub(now);
        if ahead <= self.room {
            return ahead;
        }
        // Behind, and so full; or ahead of a clock that lags.
        if ahead > u64::MAX / 2 { 0 } else { self.room }
    }
}

#[inline]
const fn micros(now: Moment) -> u64 {
    now.as_nanos() / 1000
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limit::token_bucket::{Claim, LimitOutcome, decide_one};

    fn at(micros: u64) -> Moment {
        Moment::from_nanos(micros * 1000)
    }

    /// A bucket with its rules.
    struct Bucket {
        rules: BucketRules,
        bucket: AtomicBucket,
    }

    impl Bucket {
        fn new(quota: Quota, now: Moment) -> Self {
            let rules = BucketRules::new(quota);
            let bucket = AtomicBucket::new(&rules, now);
            Self { rules, bucket }
        }

        fn take(&self, cost: u64, now: Moment) -> Result<(), Refusal> {
            self.bucket.take(&self.rules, cost, now)
        }

        fn refund(&self, tokens: u64, now: Moment) {
            self.bucket.refund(&self.rules, tokens, now);
        }

        fn wait_for(&self, tokens: u128, now: Moment) -> u64 {
            self.bucket.wait_for(&self.rules, tokens, now)
        }

        fn level(&self, now: Moment) -> (u64, u64) {
            self.bucket.level(&self.rules, now)
        }

        fn seen(&self) -> u64 {
            self.bucket.seen.load(Relaxed)
        }
    }

    fn quota(rng: &mut fastrand::Rng) -> Quota {
        const PRIMES: [u64; 7] = [2, 3, 7, 97, 9_973, 999_983, 15_485_863];
        loop {
            let permits = match rng.u8(0..2) {
                0 => PRIMES[rng.usize(0..PRIMES.len())],
                _ => rng.u64(1..100_000),
            };
            let period = [1, 1_000, 999_983, 1_000_000, 86_400_000_000][rng.usize(0..5)];
            let most = [10, 1_000, 15_485_863][rng.usize(0..3)];
            let burst = rng.u64(1..=most);
            let made = Quota::per(permits, Duration::from_micros(period));
            if let Ok(quota) = made.and_then(|quota| quota.burst(burst)) {
                return quota;
            }
        }
    }

    /// 100,000 calls a run, idle times of up to months among them, which the word wraps around in.
    #[test]
    fn one_word_decides_as_the_machine_does() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut refused, mut settled) = (0, 0);
        for _ in 0..250 {
            let quota = quota(&mut rng);
            let mut now = rng.u64(1..1_000_000_000_000);
            let atomic = Bucket::new(quota, at(now));
            let mut bucket = None;
            let token = quota.unit() / quota.rate() + 1;
            for _ in 0..400 {
                now += match rng.u8(0..24) {
                    0..6 => 0,
                    6..20 => rng.u64(0..=token),
                    20..23 => rng.u64(0..=token * 10),
                    _ => rng.u64(0..16_000_000_000_000 / 400),
                };
                let before = atomic.seen();
                let most = [3, u64::MAX][rng.usize(0..2)].min(quota.capacity() + 1);
                let cost = rng.u64(0..=most);
                let back = rng.u8(0..10) == 0;
                let signed = i64::try_from(cost).unwrap() * if back { -1 } else { 1 };
                let claim = Claim {
                    bucket,
                    quota: &quota,
                    cost: signed,
                };
                let (outcome, after) = decide_one(claim, now);
                if after.changed {
                    bucket = after.bucket;
                }
                let expected = match outcome {
                    LimitOutcome::Admitted { .. } => Ok(()),
                    LimitOutcome::Wait { micros, .. } => Err(Refusal::Wait(micros)),
                    LimitOutcome::Impossible { .. } => Err(Refusal::Impossible),
                };
                let wait = atomic.wait_for(cost.into(), at(now));
                let decided = if back {
                    atomic.refund(cost, at(now));
                    Ok(())
                } else {
                    atomic.take(cost, at(now))
                };
                assert_eq!(decided, expected, "{cost} of {quota:?} at {now}");
                if let Err(Refusal::Wait(micros)) = decided {
                    assert_eq!(wait, micros);
                    refused += 1;
                }
                assert_eq!(atomic.level(at(now)), (after.remaining, after.full_in));
                settled += u32::from(atomic.seen() != before);
            }
        }
        assert!(refused > 5_000 && settled > 0, "{refused} {settled}");
    }

    /// No calls for the word's whole range, or half of it.
    #[test]
    fn a_bucket_that_was_idle_for_longer_than_the_word_can_say_is_full() {
        let quota = Quota::per(999_983, Duration::from_secs(1)).unwrap();
        for parts in [
            1_u128 << 62,
            (1 << 63) - 1,
            1 << 63,
            (1 << 64) - (1 << 40),
            1 << 64,
        ] {
            let idle = u64::try_from(parts / u128::from(quota.rate())).unwrap();
            for around in idle - 2..idle + 2 {
                let atomic = Bucket::new(quota, at(7));
                assert_eq!(atomic.take(quota.capacity(), at(7)), Ok(()));
                assert_eq!(atomic.level(at(7 + around)), (quota.capacity(), 0));
                assert_eq!(atomic.take(quota.capacity(), at(7 + around)), Ok(()));
                assert!(atomic.take(1, at(7 + around)).is_err());
            }
        }
    }

    #[test]
    fn a_reading_of_the_clock_that_comes_late_is_never_given_more() {
        let quota = Quota::per(10, Duration::from_secs(1)).unwrap();
        let atomic = Bucket::new(quota, at(1_000_000));
        assert_eq!(atomic.take(10, at(1_000_000)), Ok(()));
        assert_eq!(atomic.take(1, at(999_000)), Err(Refusal::Wait(100_000)));
        assert_eq!(atomic.take(1, at(1_100_000)), Ok(()));
        assert!(atomic.take(1, at(1_099_000)).is_err());
    }

    #[test]
    fn threads_that_race_for_a_burst_get_exactly_the_burst() {
        let quota = Quota::per(10_000, Duration::from_secs(3600)).unwrap();
        let atomic = Bucket::new(quota, at(5));
        let got: u64 = std::thread::scope(|scope| {
            let takes = || (0..6_000).filter(|_| atomic.take(1, at(5)).is_ok()).count() as u64;
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(takes)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(got, 10_000);
    }
}
