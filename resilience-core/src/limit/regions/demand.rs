//! The demand of a process: how much of the whole rate its callers would use.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::time::Instant;

use crate::limit::store::Demand;

/// Number of groups of subjects.
const GROUPS: usize = 1024;

/// Counts what the subjects ask for, whether or not it is granted. A share is needed for the subject that asks for most, so
/// subjects are not added up, apart from those that fall into one group.
#[derive(Debug)]
pub(super) struct DemandCounter {
    hasher: RandomState,
    /// Microseconds of the whole rate that were asked for since the last report.
    groups: Box<[AtomicU64]>,
}

impl DemandCounter {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            groups: (0..GROUPS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Counts the part of the whole rate that one call would use: of the limit of which it would use most.
    pub(super) fn count(&self, name: &str, subject: &str, demands: &[Demand<'_>]) {
        let most = demands.iter().map(micros).max().unwrap_or(0);
        let group = self.hasher.hash_one((name, subject)) as usize % GROUPS;
        // At most a day at once, so that the sum does not overflow.
        self.groups[group].fetch_add(most.min(86_400_000_000), Relaxed);
    }

    /// The microseconds of the group that asked for most since the last time.
    pub(super) fn take(&self) -> u64 {
        let all = self.groups.iter().map(|group| group.swap(0, Relaxed));
        all.max().unwrap_or(0)
    }
}

fn micros(demand: &Demand<'_>) -> u64 {
    let cost = demand.cost.max(0).unsigned_abs();
    cost.saturating_mul(demand.quota.unit()) / demand.quota.rate()
}

/// The use that this process would make of the whole, smoothed over some intervals.
pub(super) struct DemandRate {
    since: Instant,
    smooth: f64,
}

impl DemandRate {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            smooth: 0.0,
        }
    }

    pub(super) fn millionths(&mut self, asked: u64) -> u64 {
        let now = Instant::now();
        let passed = now.duration_since(self.since).as_micros().max(1);
        self.since = now;
        self.smooth += (asked as f64 * 1e6 / passed as f64 - self.smooth) / 2.0;
        // Less than a millionth counts as none.
        self.smooth.min(1e12) as u64
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limit::Quota;

    #[test]
    fn the_demand_is_that_of_the_subject_that_asks_for_most() {
        let counter = DemandCounter::new();
        let quota = Quota::per(10, Duration::from_secs(1)).unwrap();
        let ask = |subject: &str, cost| {
            let limit = "l";
            counter.count("n", subject, &[Demand { limit, quota, cost }]);
        };
        for subject in 0..50 {
            ask(&subject.to_string(), 1);
        }
        ask("greedy", 20);
        ask("greedy", 10);
        ask("giver", -100);
        let most = counter.take();
        assert!((3_000_000..4_000_000).contains(&most), "{most}");
        assert_eq!(counter.take(), 0);
    }
}
