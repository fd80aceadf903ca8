//! The size of a lease: the tokens that this instance is about to use, and at most its part of what is left.
//!
//! Pure: levels and times in, numbers out.

use std::time::Duration;

use super::projection;
use crate::{
    error::InvalidConfig,
    limit::{Quota, store::Standing},
};

/// Settings of leases: tokens that an instance takes from the store in advance.
///
/// # Default
/// Leases last a second; 10,000 subjects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct LeaseRules {
    pub(super) time: Duration,
    pub(super) most: u64,
    pub(super) subjects: usize,
}

impl LeaseRules {
    /// The defaults.
    pub const fn new() -> Self {
        Self {
            time: Duration::from_secs(1),
            most: u64::MAX,
            subjects: 10_000,
        }
    }

    /// Sets the time within which leased tokens may be spent; unspent ones then go back to the store. A lease is sized for
    /// a quarter of it. Between 10 ms and a day. Default: 1 second.
    pub const fn time(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    /// Sets the maximum of tokens of one limit that this instance holds at a time, beyond those that calls wait for.
    /// Default: its part of what is left.
    pub const fn most(mut self, tokens: u64) -> Self {
        self.most = tokens;
        self
    }

    /// Sets the maximum of subjects that this instance holds leases for; further ones cost a round trip per call. Default:
    /// 10,000.
    pub const fn subjects(mut self, subjects: usize) -> Self {
        self.subjects = subjects;
        self
    }

    pub(super) fn check(&self) -> Result<(), InvalidConfig> {
        let (shortest, longest) = (Duration::from_millis(10), Duration::from_secs(86_400));
        if !(shortest..=longest).contains(&self.time) {
            let rule = "must be between 10 milliseconds and 1 day";
            return Err(InvalidConfig::new("time", self.time, rule));
        }
        if self.most == 0 {
            return Err(InvalidConfig::new("most", self.most, "must be above zero"));
        }
        if self.subjects == 0 {
            let rule = "must be above zero";
            return Err(InvalidConfig::new("subjects", self.subjects, rule));
        }
        Ok(())
    }

    /// The time that a lease is sized for, in microseconds.
    fn horizon(&self) -> u64 {
        micros(self.time / 4)
    }

    /// Microseconds until a store that has denied a lease is asked again, since each round trip would bring less than it
    /// costs. Short enough for a bucket not to overflow meanwhile.
    pub(super) fn pause(&self, quota: &Quota) -> u64 {
        let quarter = (quota.capacity() * quota.unit()) / quota.rate() / 4;
        LONGEST_PAUSE.min(self.horizon()).min(quarter)
    }
}

impl LeaseRules {
    /// Tokens that come in during a pause. Fewer are not worth a round trip.
    pub(super) fn gain(&self, quota: &Quota) -> u64 {
        self.pause(quota).saturating_mul(quota.rate()) / quota.unit()
    }
}

impl Default for LeaseRules {
    fn default() -> Self {
        Self::new()
    }
}

/// Microseconds.
const LONGEST_PAUSE: u64 = 10_000;
/// Shorter times are no measure of a demand.
const SHORTEST: u64 = 1_000;
/// The maximum ratio of a lease to the one before.
const GROWTH: u64 = 4;

/// The estimated demand for one limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LeaseSize {
    /// The size of the next lease.
    pub(super) size: u64,
    /// The tokens at hand after the last lease.
    pub(super) level: u64,
}

/// The circumstances of a lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseContext {
    /// Tokens at hand.
    pub(super) level: u64,
    /// Tokens that calls wait for.
    pub(super) wanted: u64,
    /// Microseconds since the last lease.
    pub(super) since: u64,
    /// The last answer of the store and its age in microseconds; `None` before the first.
    pub(super) standing: Option<(Standing, u64)>,
    /// Instances that share the limit.
    pub(super) live: u64,
}

impl LeaseSize {
    /// The number of tokens to ask for.
    pub(super) fn ask(&mut self, scene: &LeaseContext, quota: &Quota, rules: &LeaseRules) -> u64 {
        self.learn(scene, rules);
        let useful = self.size.saturating_sub(scene.level).max(scene.wanted);
        useful
            .min(part(scene, quota, rules).max(scene.wanted))
            .min(quota.capacity())
    }

    /// Estimates the demand from the use since the last lease.
    fn learn(&mut self, scene: &LeaseContext, rules: &LeaseRules) {
        let used = u128::from(self.level.saturating_sub(scene.level) + scene.wanted);
        let since = scene.since.max(SHORTEST);
        let target = used * u128::from(rules.horizon()) / u128::from(since);
        let target = u64::try_from(target).unwrap_or(u64::MAX);
        let largest = self.size.max(1).saturating_mul(GROWTH);
        self.size = target.clamp(self.size / 2, largest).min(rules.most);
    }

    /// The level at which more tokens are fetched, so that calls need not wait.
    pub(super) const fn low(&self) -> u64 {
        self.size / 4
    }
}

/// This instance's part of what is left, or at least what comes in during a pause.
fn part(scene: &LeaseContext, quota: &Quota, rules: &LeaseRules) -> u64 {
    let left = match scene.standing {
        Some((standing, ago)) => projection::later(quota, standing, ago).remaining,
        None => quota.capacity(),
    };
    (left / scene.live.max(1)).max(left.min(rules.gain(quota)))
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const RULES: LeaseRules = LeaseRules::new();

    fn quota(permits: u64) -> Quota {
        Quota::per(permits, Duration::from_secs(1)).unwrap()
    }

    fn scene(level: u64, wanted: u64, since: u64) -> LeaseContext {
        LeaseContext {
            level,
            wanted,
            since,
            standing: None,
            live: 1,
        }
    }

    /// One lease after the other is used up in `since` microseconds each.
    fn leases(since: u64, count: usize) -> Vec<u64> {
        let (mut demand, quota) = (LeaseSize::default(), quota(1_000_000));
        (0..count)
            .map(|_| {
                let ask = demand.ask(&scene(0, 1, since), &quota, &RULES);
                demand.level = ask;
                ask
            })
            .collect()
    }

    #[test]
    fn a_subject_that_calls_seldom_leases_what_it_needs_and_no_more() {
        assert_eq!(leases(10_000_000, 5), [1; 5]);
    }

    #[test]
    fn leases_grow_with_the_demand_step_by_step() {
        let grown = leases(1_000, 8);
        assert_eq!(grown[..4], [4, 16, 64, 256], "{grown:?}");
    }

    #[test]
    fn leases_are_good_for_a_quarter_of_their_time_and_shrink_again() {
        let (mut demand, quota) = (LeaseSize::default(), quota(1_000_000));
        // 10,000 a second.
        for _ in 0..50 {
            let used = demand.size.max(100);
            demand.level = used;
            demand.ask(&scene(0, 0, used * 100), &quota, &RULES);
        }
        assert!((2_400..=2_600).contains(&demand.size), "{demand:?}");
        demand.level = 2_500;
        demand.ask(&scene(2_500, 0, 1_000_000), &quota, &RULES);
        assert_eq!(demand.size, 1_250, "nothing was used");
    }

    #[test]
    fn of_what_is_left_an_instance_takes_its_part_but_no_call_goes_without() {
        let quota = quota(1_000);
        let mut demand = LeaseSize {
            size: 10_000,
            level: 0,
        };
        let left = |remaining| LeaseContext {
            standing: Some((
                Standing {
                    remaining,
                    full_in: (1_000 - remaining) * 1_000,
                },
                0,
            )),
            live: 4,
            ..scene(0, 1, 1_000)
        };
        assert_eq!(demand.ask(&left(800), &quota, &RULES), 200);
        // Ten come in during a pause: so few are not divided.
        assert_eq!(demand.ask(&left(9), &quota, &RULES), 9);
        assert_eq!(
            demand.ask(&left(0), &quota, &RULES),
            1,
            "and may be refused"
        );
        let crowd = LeaseContext {
            wanted: 500,
            ..left(800)
        };
        assert_eq!(demand.ask(&crowd, &quota, &RULES), 500);
        let few = RULES.most(7);
        assert_eq!(demand.ask(&left(800), &quota, &few), 7);
    }
}
