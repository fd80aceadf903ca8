//! Hold times of permits, from which the retry-after of a rejection is estimated.
//!
//! In a bulkhead with a limit of `n`, where calls hold their permits for `h` on average, all calls
//! that are in flight and queued now have ended after about `h * (1 + waiting / n)`. Measuring `h`
//! must not slow down the calls that pass: only one permit in 64 notes the time when it is granted
//! (the first one does, and so do those that went through the queue), and reports how long it was
//! held. When no call ends at all, rejections notice it: the count of passed calls stands still, so
//! the calls in flight have held their permits for at least that long.

use std::time::Duration;

use crate::{
    clock::Moment,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::semaphore::Load;

/// Bounds of a retry-after.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(30);
/// The retry-after before any call has ended.
const UNKNOWN: Duration = Duration::from_millis(100);
/// Each sample moves the average by an eighth of the way.
const WEIGHT: i64 = 8;

/// Moving average of hold times, and the last time that a call was seen to pass.
#[derive(Debug, Default)]
pub(super) struct HoldTimes {
    /// Nanoseconds; zero while there is no sample.
    average: AtomicU64,
    /// The count of passed calls (24 bits), and when it was first seen, in milliseconds (40 bits).
    seen: AtomicU64,
}

/// Whether the permit granted after `passed` others is measured.
#[inline]
pub(super) const fn is_sample(passed: u32) -> bool {
    passed.is_multiple_of(64)
}

impl HoldTimes {
    /// Adds a sample. Of two concurrent samples one may be lost: the average is an estimate.
    pub(super) fn record(&self, held: Duration) {
        let sample = i64::try_from(held.as_nanos()).unwrap_or(i64::MAX).max(1);
        let average = match self.average.load(Relaxed) {
            0 => sample,
            #[allow(clippy::cast_possible_wrap, reason = "was stored from an i64")]
            average => (average as i64) + (sample - average as i64) / WEIGHT,
        };
        self.average.store(average.unsigned_abs().max(1), Relaxed);
    }

    /// The average, if any call has ended.
    pub(super) fn average(&self) -> Option<Duration> {
        match self.average.load(Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// When to retry a call that was rejected at `now` under `load`.
    pub(super) fn retry_after(&self, load: Load, now: Moment) -> Duration {
        let hold = self
            .average()
            .unwrap_or(UNKNOWN)
            .max(self.stuck(load.passed, now));
        let turns = 1.0 + load.waiting as f64 / load.limit as f64;
        Duration::try_from_secs_f64(hold.as_secs_f64() * turns)
            .unwrap_or(LONGEST)
            .clamp(SHORTEST, LONGEST)
    }

    /// Time since a call was last seen to pass.
    fn stuck(&self, passed: u32, now: Moment) -> Duration {
        const MILLIS: u64 = (1 << 40) - 1;
        let now = (now.as_nanos() / 1_000_000) & MILLIS;
        let seen = self.seen.load(Relaxed);
        if seen != 0 && seen >> 40 == u64::from(passed) {
            return Duration::from_millis(now.saturating_sub(seen & MILLIS));
        }
        self.seen.store(u64::from(passed) << 40 | now, Relaxed);
        Duration::ZERO
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn full(waiting: usize, passed: u32) -> Load {
        Load {
            in_flight: 10,
            waiting,
            limit: 10,
            passed,
        }
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_advice_is_one_hold_for_each_turn_until_all_are_through() {
        let hold_times = HoldTimes::default();
        assert_eq!(hold_times.retry_after(full(0, 1), at(5000)), UNKNOWN);
        hold_times.record(ms(40));
        assert_eq!(hold_times.retry_after(full(0, 2), at(5001)), ms(40));
        assert_eq!(hold_times.retry_after(full(15, 3), at(5002)), ms(100));
    }

    #[test]
    fn when_nothing_passes_the_advice_grows_with_the_time_and_ends_when_something_does() {
        let hold_times = HoldTimes::default();
        hold_times.record(ms(10));
        assert_eq!(hold_times.retry_after(full(0, 7), at(5000)), ms(10));
        assert_eq!(hold_times.retry_after(full(0, 7), at(8000)), ms(3000));
        assert_eq!(hold_times.retry_after(full(0, 7), at(900_000)), LONGEST);
        assert_eq!(hold_times.retry_after(full(0, 8), at(900_001)), ms(10));
    }

    #[test]
    fn the_average_follows_within_a_few_dozen_samples() {
        let hold_times = HoldTimes::default();
        hold_times.record(ms(1000));
        for _ in 0..60 {
            hold_times.record(ms(10));
        }
        let average = hold_times.average().unwrap();
        assert!((ms(10)..ms(11)).contains(&average), "{average:?}");
    }

    proptest! {
        #[test]
        fn the_average_stays_between_the_samples_and_the_advice_within_its_bounds(
            samples in proptest::collection::vec(0u64..u64::MAX / 2, 1..50),
            waiting in 0usize..1 << 20,
            passed in 0u32..1 << 24,
            now in 0u64..u64::MAX / 1_000_000,
        ) {
            let hold_times = HoldTimes::default();
            for nanos in &samples {
                hold_times.record(Duration::from_nanos(*nanos));
            }
            let average = hold_times.average().unwrap().as_nanos() as u64;
            let (least, most) = (samples.iter().min().unwrap(), samples.iter().max().unwrap());
            prop_assert!(average + 8 >= *least && average <= (*most).max(1));
            let advice = hold_times.retry_after(full(waiting, passed), at(now));
            prop_assert!((SHORTEST..=LONGEST).contains(&advice));
        }
    }
}
