//! What an outbox and its relays count, and what their handles show.

use std::time::Duration;

use serde::Serialize;

use crate::telemetry::{counters, seconds};

counters! {
    /// Counters of an outbox.
    pub(super) struct OutboxTotals;
    /// Counts of an [`Outbox`](super::Outbox) since it was built; from [`snapshot`](super::Outbox::snapshot).
    pub struct OutboxCounts;
    written = OUTBOX_WRITTEN, "Events that were written, whether or not their transactions were committed.";
}

counters! {
    /// Counters of a relay.
    pub(super) struct RelayTotals;
    /// Counts of an [`OutboxRelay`](super::OutboxRelay) since it was built; in its [`snapshot`](super::OutboxRelay::snapshot).
    pub struct RelayCounts;
    stored = OUTBOX_PUBLISHED "stored", "Events that the broker stored.";
    duplicates = OUTBOX_PUBLISHED "duplicate", "Events that the broker had stored before, by their number: sent again after a lost answer.";
    dead = OUTBOX_PUBLISHED "dead", "Events that became dead letters.";
    broker_errors = OUTBOX_ERRORS "broker", "Publishes that the broker did not take, or did not answer in time.";
    database_errors = OUTBOX_ERRORS "database", "Steps in the database that failed, or had no answer in time.";
    takeovers = OUTBOX_TAKEOVERS, "Leases that this relay took.";
    leases_lost = OUTBOX_LEASES_LOST, "Leases that another relay took from this one.";
}

/// The state of an [`OutboxRelay`](super::OutboxRelay) at one moment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RelaySnapshot {
    /// Name of the outbox.
    pub name: String,
    /// Whether this relay has the lease, as far as it knows. The fields on what waits are zero without.
    pub leading: bool,
    /// Whether the broker is available.
    pub broker_available: bool,
    /// Whether the database answers.
    pub database_available: bool,
    /// Events that wait to be published, as last read; at most 100,000 are counted.
    pub waiting: u64,
    /// Age of the oldest of them, by the database's clock.
    #[serde(serialize_with = "seconds")]
    pub oldest: Option<Duration>,
    /// Dead letters, as last read; at most 100,000 are counted.
    pub dead_letters: u64,
    /// Counts since the relay was built.
    pub totals: RelayCounts,
}
