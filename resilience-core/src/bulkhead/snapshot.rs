//! The state of a bulkhead at one moment.

use std::time::Duration;

use serde::Serialize;

use crate::telemetry::seconds;

/// State of a [`Bulkhead`](super::Bulkhead) at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BulkheadSnapshot {
    /// Calls in progress: permits that are held.
    pub in_flight: usize,
    /// Calls that wait in the queue.
    pub queued: usize,
    /// Limit on concurrent calls.
    pub max_concurrent: usize,
    /// Calls rejected so far because neither a permit nor room in the queue was left. Of a keyed
    /// bulkhead: of the whole family.
    pub rejected_full: u64,
    /// Calls rejected so far because they waited too long. Of a keyed bulkhead: of the whole
    /// family.
    pub rejected_queue_timed_out: u64,
    /// Time that a call holds its permit, as a moving average over samples; `None` before the
    /// first.
    #[serde(serialize_with = "seconds")]
    pub typical_hold: Option<Duration>,
}
