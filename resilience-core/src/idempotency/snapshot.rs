//! What a handle counts.

use crate::telemetry::counters;

counters! {
    /// Counters of an idempotency handle.
    pub(super) struct Totals;
    /// Counts of an [`Idempotency`](super::Idempotency) since it was built; from
    /// [`snapshot`](super::Idempotency::snapshot).
    pub struct IdempotencySnapshot;
    granted = IDEMPOTENCY_CLAIMS "granted", "Claims that were granted.";
    replayed = IDEMPOTENCY_CLAIMS "replayed", "Claims that the store answered with a recorded outcome.";
    replayed_here = IDEMPOTENCY_CLAIMS "replayed_here",
        "Claims that the local cache answered with a recorded outcome.";
    in_flight = IDEMPOTENCY_CLAIMS "in_flight", "Claims that found another attempt in progress.";
    mismatched = IDEMPOTENCY_CLAIMS "mismatched", "Claims on a key that belongs to other work.";
    unknown = IDEMPOTENCY_CLAIMS "unknown", "Claims that found an unknown outcome.";
    recorded = IDEMPOTENCY_ENDINGS "recorded", "Attempts whose outcome was recorded.";
    released = IDEMPOTENCY_ENDINGS "released", "Attempts that released the key.";
    left_unknown = IDEMPOTENCY_ENDINGS "unknown", "Attempts that left an unknown outcome.";
    lost = IDEMPOTENCY_ENDINGS "lost", "Attempts whose outcome was refused, because another attempt holds the key.";
    not_stored = IDEMPOTENCY_ENDINGS "not_stored", "Attempts whose outcome never reached the store.";
    unguarded = IDEMPOTENCY_ENDINGS "unguarded", "Attempts without a record, because the store was unavailable.";
    renewed = IDEMPOTENCY_LEASES "renewed", "Leases that were renewed.";
    leases_lost = IDEMPOTENCY_LEASES "lost", "Leases that ended or were lost while the work was in progress.";
    // Always zero in the counters: the store clients count, and `Shared` adds their numbers.
    store_errors = IDEMPOTENCY_STORE_ERRORS, "Steps of the store that failed or had no answer in time.";
    record_bytes = IDEMPOTENCY_OUTCOME_SIZE, "Bytes of recorded outcomes.";
    running = IDEMPOTENCY_RUNNING, "Attempts in progress.";
    waiting = IDEMPOTENCY_WAITING, "Callers that wait for another attempt's outcome.";
}
