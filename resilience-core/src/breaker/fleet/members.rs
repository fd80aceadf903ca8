//! Which instances share a breaker: pure.

use std::{cmp::Reverse, sync::Arc};

use serde::Serialize;

use super::record::BreakerRecord;
use crate::breaker::snapshot::State;

/// Maximum number of instances, and of names, in one [`BreakerMembers`].
pub const MOST_MEMBERS: usize = 100;

/// The instances of a shared breaker, by name.
///
/// From [`BreakerStore::members`](super::BreakerStore::members). An instance that died without leaving is listed until its
/// last report runs out: up to an hour after a report without failures, if the store counts its members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct BreakerMembers {
    /// Number of live instances, of which at most [`MOST_MEMBERS`] are listed.
    pub live: u64,
    /// Number of names that find the dependency failing, of which at most [`MOST_MEMBERS`] are listed.
    pub failing: u64,
    /// Live instances, by name. Of more than [`MOST_MEMBERS`], those that stay live longest.
    pub instances: Vec<BreakerMember>,
    /// The [names](super::Report::voter) that find the dependency failing, sorted.
    pub failing_names: Vec<String>,
}

impl BreakerMembers {
    /// The members for a store to return, sorted by name.
    #[must_use]
    pub fn new(
        live: u64,
        failing: u64,
        mut instances: Vec<BreakerMember>,
        mut failing_names: Vec<String>,
    ) -> Self {
        instances.sort_by(|one, other| one.instance.cmp(&other.instance));
        failing_names.sort();
        Self {
            live,
            failing,
            instances,
            failing_names,
        }
    }
}

/// One instance of a shared breaker, as of its last report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct BreakerMember {
    /// The instance, unique per process start.
    pub instance: String,
    /// How long it counts as live without another report, in milliseconds.
    pub live_ms: u64,
    /// Milliseconds since its last report. `None`: its version does not tell.
    pub reported_ms: Option<u64>,
    /// Whether it finds the dependency failing. `None`: its version does not tell.
    pub failing: Option<bool>,
    /// State of its own breaker. `None`: its version does not tell.
    pub state: Option<State>,
}

impl BreakerMember {
    /// An instance for a store to return, of which nothing else is known.
    #[must_use]
    pub fn new(instance: impl Into<String>, live_ms: u64) -> Self {
        Self {
            instance: instance.into(),
            live_ms,
            ..Self::default()
        }
    }
}

impl BreakerRecord {
    /// The live instances at `now`, and those that find the dependency failing, at most [`MOST_MEMBERS`] of each.
    #[must_use]
    pub fn members(&self, now: u64) -> BreakerMembers {
        let now = self.clock.read(now).now();
        let is_failing =
            |voter: &Arc<str>| self.failing.get(voter).is_some_and(|&until| until > now);
        let live = self
            .instances
            .iter()
            .filter(|(_, one)| one.live_until > now);
        let mut instances: Vec<_> = live.collect();
        instances.sort_by_key(|(name, one)| Reverse((one.live_until, *name)));
        let mut failing: Vec<_> = self
            .failing
            .iter()
            .filter(|(_, until)| **until > now)
            .collect();
        failing.sort_by_key(|(name, until)| Reverse((**until, *name)));
        BreakerMembers::new(
            instances.len() as u64,
            failing.len() as u64,
            instances
                .into_iter()
                .take(MOST_MEMBERS)
                .map(|(name, one)| BreakerMember {
                    instance: name.to_string(),
                    live_ms: one.live_until - now,
                    reported_ms: Some(now.saturating_sub(one.reported)),
                    failing: Some(is_failing(&one.voter)),
                    state: one.state,
                })
                .collect(),
            failing
                .into_iter()
                .take(MOST_MEMBERS)
                .map(|(name, _)| name.to_string())
                .collect(),
        )
    }
}
