//! Snapshots of a breaker.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};

use super::{
    counters::Counts,
    overrides::{OverrideInfo, OverrideKind},
    packed_state::{PackedState, Phase},
};
use crate::telemetry::seconds;

/// State of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Lets all calls through and judges them.
    Closed,
    /// Rejects all calls until its interval is over.
    Open,
    /// Lets a few calls through as probes.
    HalfOpen,
    /// Lets a share of the calls through and judges them.
    RampingUp,
    /// Rejects all calls, by an override.
    ForcedOpen,
    /// Lets all calls through, by an override, and records them.
    ForcedClosed,
    /// Lets all calls through, by an override, and records nothing.
    Disabled,
}

impl State {
    pub(super) const ALL: [Self; 7] = [
        Self::Closed,
        Self::Open,
        Self::HalfOpen,
        Self::RampingUp,
        Self::ForcedOpen,
        Self::ForcedClosed,
        Self::Disabled,
    ];

    /// A stable lower-case name, as metrics and logs use it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::RampingUp => "ramping_up",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
            Self::Disabled => "disabled",
        }
    }

    /// Under a metrics-only override, the state of the machine that measures.
    pub(super) const fn of(packed: PackedState) -> Self {
        match (packed.override_kind(), packed.phase()) {
            (OverrideKind::ForceOpen, _) => Self::ForcedOpen,
            (OverrideKind::ForceClosed, _) => Self::ForcedClosed,
            (OverrideKind::Disabled, _) => Self::Disabled,
            (_, Phase::Closed) => Self::Closed,
            (_, Phase::Open | Phase::FleetOpen) => Self::Open,
            (_, Phase::HalfOpen | Phase::FleetHalfOpen) => Self::HalfOpen,
            (_, Phase::RampUp) => Self::RampingUp,
        }
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// State and counts of a breaker at one moment. From [`CircuitBreaker::snapshot`](super::CircuitBreaker::snapshot).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BreakerSnapshot {
    /// The breaker's name; of a keyed breaker, its key.
    pub name: Arc<str>,
    /// The state.
    pub state: State,
    /// How many times the state has changed. Results of calls admitted in an earlier generation change nothing.
    pub generation: u64,
    /// The calls in the window; half-open, the probes that were judged.
    pub counts: Counts,
    /// How long calls are still rejected, while it is open or forced open with an expiry.
    #[serde(serialize_with = "seconds")]
    pub open_for: Option<Duration>,
    /// Trips in the current series, with which the open interval grows.
    pub trips: u32,
    /// The probes, while it is half-open.
    pub probes: Option<Probes>,
    /// The stage, while it is ramping up.
    pub stage: Option<Stage>,
    /// The override in force.
    pub active_override: Option<OverrideInfo>,
    /// Whether the breaker has a store and it is unavailable: this instance then decides by its own window.
    pub degraded: bool,
    /// Totals since it was built.
    pub totals: Totals,
}

/// The probes of a half-open breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Probes {
    /// Number of probes of the half-open state.
    pub limit: u32,
    /// Probes in progress.
    pub out: u32,
    /// Probes that ended and count.
    pub judged: u32,
}

/// The stage of a ramp-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stage {
    /// Number of the stage, from 0.
    pub index: usize,
    /// The share of calls that it lets through.
    pub share: f64,
    /// The time it has left.
    #[serde(serialize_with = "seconds")]
    pub left: Duration,
}

/// Totals of a breaker since it was built. None of them decreases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// Calls judged a success, in time.
    pub successes: u64,
    /// Calls judged a failure, in time.
    pub failures: u64,
    /// Calls judged a success, but slow.
    pub slow_successes: u64,
    /// Calls judged a failure, and slow.
    pub slow_failures: u64,
    /// Calls whose result said nothing about the dependency, or that were dropped young.
    pub ignored: u64,
    /// Calls that ended after the state had changed since they were admitted.
    pub stale: u64,
    /// Calls rejected while open.
    pub rejected_open: u64,
    /// Calls rejected while half-open, with all probes in progress.
    pub rejected_no_probe: u64,
    /// Calls rejected at random while ramping up.
    pub rejected_ramping_up: u64,
    /// Calls rejected by an override.
    pub rejected_forced_open: u64,
    /// Calls that would have been rejected without a metrics-only override.
    pub would_reject: u64,
    /// Times it opened by itself.
    pub trips: u64,
}

impl Totals {
    pub(super) fn combine(&mut self, other: &Self, with: fn(u64, u64) -> u64) {
        let pairs = [
            (&mut self.successes, other.successes),
            (&mut self.failures, other.failures),
            (&mut self.slow_successes, other.slow_successes),
            (&mut self.slow_failures, other.slow_failures),
            (&mut self.ignored, other.ignored),
            (&mut self.stale, other.stale),
            (&mut self.rejected_open, other.rejected_open),
            (&mut self.rejected_no_probe, other.rejected_no_probe),
            (&mut self.rejected_ramping_up, other.rejected_ramping_up),
            (&mut self.rejected_forced_open, other.rejected_forced_open),
            (&mut self.would_reject, other.would_reject),
            (&mut self.trips, other.trips),
        ];
        for (mine, theirs) in pairs {
            *mine = with(*mine, theirs);
        }
    }

    /// All rejected calls.
    #[must_use]
    pub const fn rejected(&self) -> u64 {
        self.rejected_open
            + self.rejected_no_probe
            + self.rejected_ramping_up
            + self.rejected_forced_open
    }
}
