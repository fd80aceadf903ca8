//! The builder's values as the machine wants them: checked, and in whole numbers.

use std::time::Duration;

use super::{events::Cause, window::Sums};
use crate::error::InvalidConfig;

#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) window: WindowRules,
    pub(super) stripes: usize,
    pub(super) failure: Option<Rate>,
    pub(super) slow: Option<Rate>,
    pub(super) streak: Option<u32>,
    pub(super) minimum: u64,
    pub(super) open: OpenRules,
    pub(super) half_open: HalfOpenRules,
    pub(super) ramp_up: Option<RampUpRules>,
}

impl Rules {
    /// Which rate is too high, minimum aside.
    pub(super) fn exceeded(&self, sums: Sums) -> Option<Cause> {
        if self
            .failure
            .is_some_and(|rate| rate.reached(sums.failures, sums.calls))
        {
            return Some(Cause::FailureRate);
        }
        let slow = self
            .slow
            .is_some_and(|rate| rate.reached(sums.slow, sums.calls));
        slow.then_some(Cause::SlowRate)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowRules {
    Time(Duration),
    Count(usize),
}

#[derive(Clone, Debug)]
pub(super) struct OpenRules {
    pub(super) first: Duration,
    pub(super) cap: Duration,
    pub(super) jitter: f64,
    pub(super) reset_after: Duration,
    pub(super) retry_after: Option<Duration>,
}

impl OpenRules {
    /// How long to stay open at the trip after `before` others of a series. `chance` is between 0 and 1.
    pub(super) fn interval(&self, before: u32, chance: f64, asked: Option<Duration>) -> Duration {
        let factor = 1u32.checked_shl(before.min(31)).unwrap_or(u32::MAX);
        let full = self
            .first
            .checked_mul(factor)
            .unwrap_or(self.cap)
            .min(self.cap)
            .min(FOREVER);
        let interval = full.saturating_sub(full.mul_f64(self.jitter * chance));
        interval.max(self.honoured(asked).unwrap_or_default())
    }

    /// How much of what the dependency asked for is heeded.
    pub(super) fn honoured(&self, asked: Option<Duration>) -> Option<Duration> {
        let (max, asked) = self.retry_after.zip(asked)?;
        Some(asked.min(max)).filter(|honoured| !honoured.is_zero())
    }

    /// What to tell a caller who came while all probes are out: short, since their verdict may come any moment.
    pub(super) fn while_probing(&self) -> Duration {
        (self.first / 10).clamp(Duration::from_millis(1), Duration::from_secs(1))
    }
}

#[derive(Clone, Debug)]
pub(super) struct HalfOpenRules {
    pub(super) probes: u32,
    pub(super) failure: Rate,
    pub(super) slow: Option<Rate>,
    pub(super) max_wait: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(super) struct RampUpRules {
    /// Of 2^32.
    pub(super) shares: Box<[u64]>,
    pub(super) stage: Duration,
    pub(super) minimum: u64,
}

/// A hundred years: longer than any process lives, and far from where the arithmetic ends.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A share of the calls, in millionths: compared without rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate(u32);

impl Rate {
    pub(super) const HALF: Self = Self(500_000);

    pub(super) fn new(field: &'static str, rate: f64) -> Result<Self, InvalidConfig> {
        if rate > 0.0 && rate <= 1.0 {
            // Down, so that two of three reach a rate of 2.0 / 3.0.
            Ok(Self(((rate * 1e6) as u32).max(1)))
        } else {
            Err(InvalidConfig::new(
                field,
                rate,
                "the rate must be above 0, at most 1",
            ))
        }
    }

    pub(super) const fn millionths(self) -> u32 {
        self.0
    }

    /// Whether `part` of `whole` is at least this share. Never of nothing.
    pub(super) fn reached(self, part: u64, whole: u64) -> bool {
        whole > 0 && u128::from(part) * 1_000_000 >= u128::from(whole) * u128::from(self.0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn open(first: u64, cap: u64) -> OpenRules {
        OpenRules {
            first: Duration::from_secs(first),
            cap: Duration::from_secs(cap),
            jitter: 0.5,
            reset_after: Duration::ZERO,
            retry_after: Some(Duration::from_secs(100)),
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn intervals_double_up_to_the_cap_and_jitter_only_shortens() {
        let open = open(5, 60);
        let full: Vec<_> = (0..6)
            .map(|n| open.interval(n, 0.0, None).as_secs())
            .collect();
        assert_eq!(full, [5, 10, 20, 40, 60, 60]);
        assert_eq!(open.interval(u32::MAX, 0.0, None), seconds(60));
        assert_eq!(open.interval(1, 1.0, None), seconds(5));
    }

    #[test]
    fn a_retry_after_lengthens_the_interval_up_to_its_own_cap() {
        let open = open(5, 60);
        assert_eq!(open.interval(0, 0.0, Some(seconds(3))), seconds(5));
        assert_eq!(open.interval(0, 0.0, Some(seconds(90))), seconds(90));
        assert_eq!(open.interval(0, 0.0, Some(seconds(900))), seconds(100));
    }

    #[test]
    fn a_rate_is_reached_at_its_very_value() {
        let tenth = Rate::new("test", 0.1).unwrap();
        assert!(tenth.reached(1, 10) && !tenth.reached(1, 11) && !tenth.reached(0, 0));
        let third = Rate::new("test", 1.0 / 3.0).unwrap();
        assert!(third.reached(1, 3) && !third.reached(1, 4));
        let two_thirds = Rate::new("test", 2.0 / 3.0).unwrap();
        assert!(two_thirds.reached(2, 3) && !two_thirds.reached(1, 2));
        assert!(Rate::new("test", 1.0).unwrap().reached(u64::MAX, u64::MAX));
    }
}
