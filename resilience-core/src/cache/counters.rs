//! What a cache counts.

use crate::telemetry::counters;

counters! {
    /// Counters of a cache. What this process holds and serves is counted beside them, by stripe.
    pub(super) struct Totals;
    /// Counts of a [`Cache`](super::Cache) since it was built; in its [`snapshot`](super::Cache::snapshot).
    pub struct CacheTotals;
    // Always zero in the counters: `Shared` adds the stripes.
    hits_local = CACHE_REQUESTS "hit_local", "Requests answered with a fresh value that this process held.";
    hits_store = CACHE_REQUESTS "hit_store", "Requests answered with a fresh value of the store.";
    stale = CACHE_REQUESTS "stale", "Requests answered with a stale value, while it was loaded again.";
    stale_on_error = CACHE_REQUESTS "stale_on_error", "Requests answered with a stale value, because it could not be loaded.";
    loaded = CACHE_REQUESTS "loaded", "Requests answered by the loader, by a load of their own or one that they shared.";
    missing = CACHE_REQUESTS "missing", "Requests without a loader that found nothing.";
    failed = CACHE_REQUESTS "failed", "Requests that ended with an error.";
    loads = CACHE_LOADS "loaded", "Loads that returned a value.";
    loads_missing = CACHE_LOADS "missing", "Loads that found no value.";
    loads_failed = CACHE_LOADS "failed", "Loads that failed, timed out, or were dropped.";
    refreshes = CACHE_REFRESHES, "Loads in the background, of a value that was stale or soon would be.";
    fills_stored = CACHE_FILLS "stored", "Values that the store took.";
    fills_refused = CACHE_FILLS "refused", "Values that the store refused, since the key was changed while they were loaded.";
    fills_not_stored = CACHE_FILLS "not_stored",
        "Values that were not offered to the store: too large, not to be cached, or without an answer.";
    waits = CACHE_WAITS, "Waits for a load of another instance.";
    invalidations = CACHE_INVALIDATIONS, "Keys and tags invalidated by this handle.";
    unusable = CACHE_UNUSABLE, "Values in the store that could not be read, or values that could not be encoded.";
    store_errors = CACHE_STORE_ERRORS, "Steps of the store that failed or had no answer in time.";
    evictions = CACHE_EVICTIONS, "Values that made room for others in this process.";
}
