//! What producers and consumers count, and what their handles show.

use serde::Serialize;

use crate::telemetry::counters;

counters! {
    /// Counters of a producer.
    pub(super) struct ProducerTotals;
    /// Counts of a [`Producer`](super::Producer) since it was built; in its [`snapshot`](super::Producer::snapshot).
    pub struct ProducerCounts;
    stored = STREAM_PUBLISHED "stored", "Events that were stored.";
    delayed = STREAM_PUBLISHED "delayed", "Events that will be stored after their delay.";
    duplicates = STREAM_PUBLISHED "duplicate", "Events that had been published before, by their number.";
    failed = STREAM_PUBLISHED "failed", "Events that the broker did not take, or did not answer about in time.";
    rejected = STREAM_REJECTIONS, "Publishes that were rejected: the broker is unavailable, or consumers are too far behind.";
    trimmed = STREAM_TRIMMED, "Messages that this handle removed, by the retention.";
}

/// The state of a [`Producer`](super::Producer) at one moment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ProducerSnapshot {
    /// Name of the stream.
    pub name: String,
    /// Whether the broker is available.
    pub available: bool,
    /// The most messages that a group has not settled, as last read; zero without
    /// [`max_backlog`](super::ProducerBuilder::max_backlog).
    pub backlog: u64,
    /// Counts since the handle was built.
    pub totals: ProducerCounts,
}

counters! {
    /// Counters of a consumer.
    pub(super) struct ConsumerTotals;
    /// Counts of a [`Consumer`](super::Consumer) since it was built; in its [`snapshot`](super::Consumer::snapshot).
    pub struct ConsumerCounts;
    delivered = STREAM_DELIVERIES "first", "Messages delivered for the first time.";
    redelivered = STREAM_DELIVERIES "again", "Messages delivered again: after a retry, a lease that ended, or when given back.";
    acknowledged = STREAM_SETTLEMENTS "acknowledged", "Messages acknowledged.";
    retried = STREAM_SETTLEMENTS "retried", "Messages to be delivered again after a failure.";
    given_back = STREAM_SETTLEMENTS "given_back", "Messages given back untried.";
    dead = STREAM_SETTLEMENTS "dead", "Messages moved to the dead letters.";
    lost = STREAM_SETTLEMENTS "lost", "Messages that another consumer had been given before this one settled them.";
    replayed = STREAM_REPLAYS, "Messages whose effect had been recorded before: acknowledged without being handled.";
    skipped = STREAM_SKIPPED, "Messages that were trimmed before the group was given them, as far as this consumer knows.";
    leases_lost = STREAM_LEASES_LOST, "Leases that were lost while this consumer held a message.";
    pauses = STREAM_PAUSES, "Pauses of this consumer because a layer rejected a message.";
    losses = STREAM_LOSSES, "Groups or streams that were lost and created again.";
    store_errors = STREAM_STORE_ERRORS, "Steps of the broker that failed or had no answer in time.";
    running = STREAM_RUNNING, "Messages that are being handled.";
    buffered = STREAM_BUFFERED, "Messages that wait in this process.";
}

/// The state of a [`Consumer`](super::Consumer) at one moment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ConsumerSnapshot {
    /// Name of the stream.
    pub name: String,
    /// Name of the group.
    pub group: String,
    /// Name of this consumer in the group.
    pub consumer: String,
    /// Whether the broker is available.
    pub available: bool,
    /// Whether it delivers messages: neither paused by an operator nor by a rejection.
    pub consuming: bool,
    /// Counts since the handle was built.
    pub totals: ConsumerCounts,
}
