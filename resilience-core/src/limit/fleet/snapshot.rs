//! The state of a fleet rate limit, as one instance knows it.

use serde::Serialize;

/// State of a [`FleetRateLimit`](super::FleetRateLimit) at one moment, as one instance knows it, and the counts of its
/// decisions since it was built. The state of a subject: [`peek`](super::FleetRateLimit::peek).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FleetRateLimitSnapshot {
    /// Calls that wait for their tokens.
    pub waiting: usize,
    /// Instances that share the limit, this one included, as of the last answer of the store.
    pub live_instances: u64,
    /// Number of parts of the limits of which this instance takes one while the store is unavailable, with
    /// [`OnOutage::Local`](crate::fleet::OnOutage::Local): the live instances, or the
    /// [expected](crate::fleet::FleetOptions::expected_instances) ones if those are more. `None`: not known yet, so that
    /// calls would be rejected.
    pub local_parts: Option<u64>,
    /// Whether the store is unavailable, so that the outage policy decides.
    pub degraded: bool,
    /// Whether shadow mode is set.
    pub shadow: bool,
    /// Calls admitted, those of shadow mode included.
    pub admitted: u64,
    /// Calls rejected for lack of tokens.
    pub rejected_limited: u64,
    /// Calls rejected because they cost more than a limit can hold.
    pub rejected_too_costly: u64,
    /// Calls rejected because the store was unavailable.
    pub rejected_store_unreachable: u64,
    /// Calls admitted because of shadow mode.
    pub shadowed: u64,
    /// Steps that the store was asked for, heartbeats included.
    pub store_calls: u64,
}
