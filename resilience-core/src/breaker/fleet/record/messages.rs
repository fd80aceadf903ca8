//! What instances and operators exchange with a record.

use std::sync::Arc;

use serde::Serialize;

use crate::breaker::snapshot::State;

/// State of a fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FleetState {
    /// Every instance decides by its own window.
    #[default]
    Closed,
    /// No calls pass.
    Open,
    /// Only leased probes call.
    HalfOpen,
    /// A share of the calls goes through; the stages count from zero.
    RampUp(u8),
}

/// Outcomes, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Counts {
    /// Calls that succeeded.
    pub success: u64,
    /// Calls that failed.
    pub failure: u64,
    /// Calls that were slow, whether they succeeded or failed; they are in one of the other two as well.
    pub slow: u64,
}

impl Counts {
    /// All calls.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.success + self.failure
    }

    /// What came to be counted since `before`.
    pub(in crate::breaker::fleet) const fn since(self, before: Self) -> Self {
        Self {
            success: self.success.saturating_sub(before.success),
            failure: self.failure.saturating_sub(before.failure),
            slow: self.slow.saturating_sub(before.slow),
        }
    }

    pub(super) fn add(&mut self, more: Self) {
        self.success += more.success;
        self.failure += more.failure;
        self.slow += more.slow;
    }
}

/// What one instance tells the fleet: its counts since its last accepted report.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Report {
    /// The instance, unique per process start.
    pub instance: Arc<str>,
    /// Under which name it is counted among those that find the dependency failing: the one it was given, if it was, so
    /// that an instance that crashes and comes back has one vote and not two.
    pub voter: Arc<str>,
    /// Numbers the instance's reports; one that was merged before is not counted again.
    pub sequence: u64,
    /// The epoch under which the calls were admitted: counts of another epoch are not merged.
    pub epoch: u64,
    /// Calls since the last accepted report.
    pub counts: Counts,
    /// Whether this instance by itself finds the dependency failing.
    pub failing: bool,
    /// The length of one of the fleet's [`BUCKETS`](super::BUCKETS) buckets.
    pub bucket_ms: u64,
    /// For how long the instance counts as live after this report.
    pub live_ms: u64,
    /// State of the instance's own breaker, for operators: it decides nothing. `None`: not told.
    pub state: Option<State>,
}

/// Kind of an override.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OverrideKind {
    /// Reject every call.
    ForceOpen,
    /// Let every call through, and go on counting.
    ForceClosed,
    /// Let every call through and count nothing.
    Disable,
    /// Decide as usual, reject nothing.
    MetricsOnly,
}

/// An operator's override for the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct FleetOverride {
    /// The kind.
    pub kind: OverrideKind,
    /// Why.
    pub reason: String,
    /// Who set it.
    pub by: String,
    /// Milliseconds until it expires; `None`: it does not expire.
    pub expires_ms: Option<u64>,
}

/// The record as one instance sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct BreakerView {
    /// Increases with every change of state or override, and never goes back.
    pub epoch: u64,
    /// The state.
    pub state: FleetState,
    /// How long the state has left (open, a stage of the ramp-up); zero when it is over or has no end.
    pub remaining_ms: u64,
    /// How long the state has lasted.
    pub age_ms: u64,
    /// Trips in a row, without a stable closed time between them.
    pub trips: u32,
    /// Calls of the whole fleet within its window.
    pub window: Counts,
    /// Instances that reported lately.
    pub live: u64,
    /// Those of them that find the dependency failing.
    pub failing: u64,
    /// Probes in progress.
    pub leased: u32,
    /// Results of the probes of this half-open state.
    pub probes: Counts,
    /// The override in force.
    pub active_override: Option<FleetOverride>,
    /// Who made the last change.
    pub by: String,
    /// Why.
    pub cause: String,
}

/// A change of state that an instance proposes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// The epoch that the proposal is based on: another one, and nothing happens.
    pub expected: u64,
    /// The state to enter.
    pub to: FleetState,
    /// How long it is to last; zero for no end.
    pub lasting_ms: u64,
    /// Trips in a row, this one included.
    pub trips: u32,
    /// Who proposes.
    pub by: String,
    /// Why.
    pub cause: String,
}

/// Answer to a request for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaseAnswer {
    /// Granted, under this epoch.
    Granted {
        /// The epoch to settle it under.
        epoch: u64,
    },
    /// The fleet is not half-open, or all its probes are in progress or judged.
    Denied,
}
