//! How many tokens an instance leases at a time: as many as it is about to use, and no more than its part.
//!
//! Pure: levels and times in, numbers out.

use std::time::Duration;

use super::projection;
use crate::{
    error::InvalidConfig,
    limit::{Quota, store::Standing},
};

/// How an instance leases tokens of the store, to spend them without asking again.
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

    /// How long leased tokens may be spent: then what is left of them goes back to the store. A lease is made for
    /// what an instance uses in a quarter of it. Default: 1 second.
    pub const fn time(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    /// The most tokens of one limit that this instance holds at a time, beyond what calls wait for. Default: no
    /// bound but its part of what is left.
    pub const fn most(mut self, tokens: u64) -> Self {
        self.most = tokens;
        self
    }

    /// The most subjects that this instance holds leases of; further ones cost a round trip a call. Default: 10,000.
    pub const fn subjects(mut self, subjects: usize) -> Self {
        self.subjects = subjects;
        self
    }

    pub(super) fn check(&self) -> Result<(), InvalidConfig> {
        if self.time < Duration::from_millis(10) {
            let rule = "must be at least 10 milliseconds";
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

    /// What a lease should last for, in microseconds.
    fn horizon(&self) -> u64 {
        micros(self.time / 4)
    }

    /// A store that has refused is not asked again before this, as each question would bring less than it costs.
    /// Short enough for a bucket not to run over meanwhile.
    pub(super) fn pause(&self, quota: &Quota) -> u64 {
        let quarter = (quota.capacity() * quota.unit()) / quota.rate() / 4;
        LONGEST_PAUSE.min(self.horizon()).min(quarter)
    }
}

impl LeaseRules {
    /// Tokens that come in during a pause. When fewer are left, they are not worth a question.
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
/// Shorter times say nothing about a demand.
const SHORTEST: u64 = 1_000;
/// A lease is at most so many times as large as the one before.
const GROWTH: u64 = 4;

/// What is known of the demand for one limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LeaseSize {
    /// Tokens that the next lease should be good for.
    pub(super) size: u64,
    /// How many there were after the last lease.
    pub(super) level: u64,
}

/// How things are when tokens are asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseContext {
    /// Tokens at hand.
    pub(super) level: u64,
    /// Tokens that calls wait for.
    pub(super) wanted: u64,
    /// Microseconds since the last lease.
    pub(super) since: u64,
    /// What the store last said, so long ago; `None`: it was never asked.
    pub(super) standing: Option<(Standing, u64)>,
    /// Instances that share the limit.
    pub(super) live: u64,
}

impl LeaseSize {
    /// How many tokens to ask for.
    pub(super) fn ask(&mut self, scene: &LeaseContext, quota: &Quota, rules: &LeaseRules) -> u64 {
        self.learn(scene, rules);
        let useful = self.size.saturating_sub(scene.level).max(scene.wanted);
        useful
            .min(part(scene, quota, rules).max(scene.wanted))
            .min(quota.capacity())
    }

    /// What was used since the last lease tells what will be.
    fn learn(&mut self, scene: &LeaseContext, rules: &LeaseRules) {
        let used = u128::from(self.level.saturating_sub(scene.level) + scene.wanted);
        let since = scene.since.max(SHORTEST);
        let target = used * u128::from(rules.horizon()) / u128::from(since);
        let target = u64::try_from(target).unwrap_or(u64::MAX);
        let largest = self.size.max(1).saturating_mul(GROWTH);
        self.size = target.clamp(self.size / 2, largest).min(rules.most);
    }

    /// At this level it is time to ask, so that calls need not wait.
    pub(super) const fn low(&self) -> u64 {
        self.size / 4
    }
}

/// This instance's part of what is left; of little, what comes in during a pause, whoever is first.
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
        // In a pause ten come in: of no more than that, nobody has a part.
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
