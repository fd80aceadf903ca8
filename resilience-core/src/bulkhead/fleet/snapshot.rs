//! The state of a fleet's bulkhead, as one instance knows it.

use serde::Serialize;

/// State of a [`FleetBulkhead`](super::FleetBulkhead) at one moment, as one instance knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FleetBulkheadSnapshot {
    /// Permits that calls of this instance hold.
    pub in_flight: u64,
    /// Calls of this instance that wait for permits.
    pub waiting: usize,
    /// Limit on concurrent calls of the whole fleet.
    pub max_concurrent: u64,
    /// Live instances, this one included, as of the last renewal that the store answered.
    pub live_instances: u64,
    /// Number of parts of the limit of which this instance takes one while the store is unavailable,
    /// with [`OnOutage::Local`](crate::fleet::OnOutage::Local): the live instances, or the
    /// [expected](crate::fleet::FleetOptions::expected_instances) ones if those are more. `None`: not
    /// known yet, so that calls would be rejected.
    pub local_parts: Option<u64>,
    /// Whether the store is unavailable.
    pub degraded: bool,
    /// Leases lost so far while their call was in progress.
    pub lost: u64,
    /// Calls rejected so far because neither permits nor room in the queue were left.
    pub rejected_full: u64,
    /// Calls rejected so far because they waited too long.
    pub rejected_queue_timed_out: u64,
    /// Calls rejected so far because they cost more than the limit.
    pub rejected_too_costly: u64,
    /// Calls rejected so far because the store gave no answer.
    pub rejected_store_unreachable: u64,
    /// Calls aborted so far because their lease was lost.
    pub rejected_lease_lost: u64,
}
