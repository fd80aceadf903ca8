//! What a write-behind counts, and what its handle shows.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use serde::Serialize;

use super::seen::Seen;
use crate::telemetry::counters;

counters! {
    /// Counters of a write-behind.
    pub(super) struct Totals;
    /// Counts of a [`WriteBehind`](super::WriteBehind) since it was built; in its [`snapshot`](super::WriteBehind::snapshot).
    pub struct WriteBehindCounts;
    stored = WRITE_BEHIND_WRITES "stored", "Changes that the store took.";
    repeated = WRITE_BEHIND_WRITES "repeated", "Changes that the store had taken before: the answer was lost.";
    rejected = WRITE_BEHIND_WRITES "rejected", "Changes that were rejected: the store is unavailable, the sink is too far behind, or the handle is shutting down.";
    failed = WRITE_BEHIND_WRITES "failed", "Changes that the store refused, or did not answer about in time.";
    batches = WRITE_BEHIND_BATCHES, "Batches that this handle has taken.";
    sunk = WRITE_BEHIND_SINKS "sunk", "Changes that the sink took.";
    retried = WRITE_BEHIND_SINKS "retried", "Changes that the sink refused, and that are tried again.";
    dead = WRITE_BEHIND_SINKS "dead", "Changes that were set aside as dead letters.";
    pauses = WRITE_BEHIND_PAUSES, "Pauses of shards because the sink failed.";
    leases_lost = WRITE_BEHIND_LEASES_LOST, "Leases that were lost while a batch was sunk.";
    losses = WRITE_BEHIND_LOSSES, "Shards whose store lost what it had acknowledged.";
    store_errors = WRITE_BEHIND_STORE_ERRORS, "Steps of a sinker's store that failed or had no answer in time.";
    sinking = WRITE_BEHIND_SINKING, "Changes that are being sunk.";
}

/// The state of a [`WriteBehind`](super::WriteBehind) at one moment, as far as this handle knows it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct WriteBehindSnapshot {
    /// Name of the write-behind.
    pub name: String,
    /// Whether the store is available.
    pub available: bool,
    /// Whether this handle has a sink.
    pub sinks: bool,
    /// Keys that are not sunk yet, as this handle last saw them.
    pub entries: u64,
    /// Age of the oldest of them.
    pub oldest: Duration,
    /// Dead letters.
    pub dead: u64,
    /// Counts since the handle was built.
    pub totals: WriteBehindCounts,
}

/// Entries, age of the oldest in milliseconds, and dead letters of all shards.
pub(super) fn sums(seen: &[Seen]) -> (u64, u64, u64) {
    let entries = seen.iter().map(|it| it.entries.load(Relaxed)).sum();
    let oldest = seen.iter().map(|it| it.oldest_ms.load(Relaxed)).max();
    let dead = seen.iter().map(|it| it.dead.load(Relaxed)).sum();
    (entries, oldest.unwrap_or(0), dead)
}
