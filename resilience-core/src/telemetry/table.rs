//! The table of metrics. Its names, units and attributes are an API: `METRICS.md` is generated from it, and a change
//! fails a test.

/// One row of the table of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// Name, after the OpenTelemetry conventions.
    pub name: &'static str,
    /// Kind of instrument.
    pub kind: Kind,
    /// UCUM unit.
    pub unit: &'static str,
    /// What it counts.
    pub description: &'static str,
    /// The attribute beside `resilience.name`, if any.
    pub attribute: Option<Attribute>,
}

/// An attribute of a [`Metric`], beside `resilience.name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attribute {
    /// Its key.
    pub key: &'static str,
    /// Every value it can have. Empty if the values are names: the limits of a plan, or a capped number of keys, and
    /// `other`.
    pub values: &'static [&'static str],
}

/// Kind of instrument of a [`Metric`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Only goes up; sums over instances.
    Counter,
    /// Goes up and down; sums over instances.
    UpDownCounter,
    /// A level that says nothing when summed over instances.
    Gauge,
}

impl Kind {
    /// Lower-case name, as documentation uses it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::UpDownCounter => "up-down counter",
            Self::Gauge => "gauge",
        }
    }
}

const STATES: &[&str] = &[
    "closed",
    "open",
    "half_open",
    "ramping_up",
    "forced_open",
    "forced_closed",
    "disabled",
];

macro_rules! metrics {
    ($(
        $id:ident = $kind:ident $name:literal $unit:literal $([$key:literal: $values:expr])?, $description:literal;
    )*) => {
        $(
            #[doc = $description]
            pub const $id: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                description: $description,
                attribute: metrics!(@attribute $($key $values)?),
            };
        )*
        /// Every metric of the toolkit.
        pub const TABLE: &[Metric] = &[$($id),*];
    };
    (@attribute) => { None };
    (@attribute $key:literal $values:expr) => { Some(Attribute { key: $key, values: $values }) };
}

metrics! {
    BREAKER_CALLS = Counter "resilience.circuit_breaker.calls" "{call}"
        ["resilience.outcome": &["success", "failure", "slow_success", "slow_failure", "ignored", "stale"]],
        "Calls that a circuit breaker let through, by outcome.";
    BREAKER_REJECTIONS = Counter "resilience.circuit_breaker.rejections" "{call}"
        ["resilience.reason": &["open", "no_probe_left", "ramping_up", "forced_open"]],
        "Calls that a circuit breaker rejected, by reason.";
    BREAKER_SHADOW_REJECTIONS = Counter "resilience.circuit_breaker.shadow_rejections" "{call}",
        "Calls that a circuit breaker would have rejected without the override `metrics_only`.";
    BREAKER_TRANSITIONS = Counter "resilience.circuit_breaker.transitions" "{transition}"
        ["resilience.state": STATES],
        "State changes of a circuit breaker, by the state entered.";
    BREAKER_STATE = UpDownCounter "resilience.circuit_breaker.state" "{breaker}" ["resilience.state": STATES],
        "Breakers of this name in each state: 1 for the state of a single breaker, 0 for all other states.";
    BREAKER_OVERRIDE = UpDownCounter "resilience.circuit_breaker.override" "{breaker}"
        ["resilience.override": &["force_open", "force_closed", "disable", "metrics_only"]],
        "Breakers of this name under an operator's override, by its kind.";
    BREAKER_PROBES = UpDownCounter "resilience.circuit_breaker.probes" "{call}",
        "Probes in progress of half-open breakers.";
    FLEET_DEGRADED = UpDownCounter "resilience.fleet.degraded" "{handle}"
        ["resilience.pattern": &["circuit_breaker", "bulkhead", "rate_limit", "idempotency", "cache", "stream", "write_behind"]],
        "Handles of this name that cannot reach their store, by pattern.";
    BULKHEAD_IN_FLIGHT = UpDownCounter "resilience.bulkhead.in_flight" "{call}",
        "Calls that hold a permit of the bulkhead.";
    BULKHEAD_QUEUED = UpDownCounter "resilience.bulkhead.queued" "{call}",
        "Calls that wait for a permit of the bulkhead.";
    BULKHEAD_LIMIT = UpDownCounter "resilience.bulkhead.limit" "{call}",
        "Permits of the bulkhead; of a bulkhead that a fleet shares, those of the whole fleet.";
    BULKHEAD_REJECTIONS = Counter "resilience.bulkhead.rejections" "{call}"
        ["resilience.reason": &["full", "queue_timed_out", "too_costly", "store_unreachable", "lease_lost"]],
        "Calls that the bulkhead rejected, by reason.";
    BULKHEAD_LEASES_LOST = Counter "resilience.bulkhead.leases_lost" "{lease}",
        "Leases of a fleet's bulkhead that were lost during the call.";
    LIMIT_ADMISSIONS = Counter "resilience.rate_limit.admissions" "{call}"
        ["resilience.decider": &["unlimited", "store", "lease", "memory", "local", "local_share", "policy"]],
        "Calls that a fleet's rate limit admitted, by what decided.";
    LIMIT_REJECTIONS = Counter "resilience.rate_limit.rejections" "{call}"
        ["resilience.reason": &["rate_limited", "too_costly", "store_unreachable"]],
        "Calls that a rate limit rejected, by reason.";
    LIMIT_WAITING = UpDownCounter "resilience.rate_limit.waiting" "{call}",
        "Calls that wait for their tokens.";
    LIMIT_EXHAUSTIONS = Counter "resilience.rate_limit.exhaustions" "{call}" ["resilience.limit.name": &[]],
        "Calls that found a limit of a fleet's rate limit exhausted, by limit.";
    LIMIT_SHADOW_EXHAUSTIONS = Counter "resilience.rate_limit.shadow_exhaustions" "{call}"
        ["resilience.limit.name": &[]],
        "Calls that found a limit of a fleet's rate limit exhausted and were admitted in shadow mode, by limit.";
    LIMIT_NEAR = Counter "resilience.rate_limit.near" "{call}" ["resilience.limit.name": &[]],
        "Calls that a fleet's rate limit admitted and that left little of a limit, by limit.";
    LIMIT_LEASED = UpDownCounter "resilience.rate_limit.leased" "{token}" ["resilience.limit.name": &[]],
        "Tokens of a fleet's rate limit that this instance has leased and not spent, by limit.";
    LIMIT_STORE_CALLS = Counter "resilience.rate_limit.store_calls" "{call}"
        ["resilience.outcome": &["answered", "unanswered"]],
        "Requests of a fleet's rate limit to its store, answered or not.";
    RETRY_CALLS = Counter "resilience.retry.calls" "{call}",
        "Calls of the retry layer that the dependency has answered, retried or not.";
    RETRY_RETRIES = Counter "resilience.retry.retries" "{attempt}",
        "Attempts after the first.";
    RETRY_GIVEN_UP = Counter "resilience.retry.given_up" "{call}"
        ["resilience.reason": &[
            "permanent", "rejected", "attempts", "not_replayable", "retry_after_too_long", "backoff_ended", "no_time",
            "budget",
        ]],
        "Calls whose last attempt failed and was not retried, by reason.";
    RETRY_BUDGET = Gauge "resilience.retry.budget" "{attempt}",
        "Whole retries that the budget allows now.";
    DEADLINE_TIMEOUTS = Counter "resilience.deadline.timeouts" "{call}",
        "Calls cut off at their deadline.";
    DEADLINE_REJECTIONS = Counter "resilience.deadline.rejections" "{call}",
        "Calls not made because no time was left.";
    FALLBACK_FALLBACKS = Counter "resilience.fallback.fallbacks" "{call}",
        "Calls answered by the fallback.";
    SHED_REJECTIONS = Counter "resilience.load_shed.rejections" "{call}",
        "Calls shed because the inner service was not ready.";
    CACHE_REQUESTS = Counter "resilience.cache.requests" "{request}"
        ["resilience.cache.result": &["hit_local", "hit_store", "stale", "stale_on_error", "loaded", "missing", "failed"]],
        "Requests to a cache, by what answered them.";
    CACHE_LOADS = Counter "resilience.cache.loads" "{load}" ["resilience.outcome": &["loaded", "missing", "failed"]],
        "Calls of a cache's loader, by outcome.";
    CACHE_REFRESHES = Counter "resilience.cache.refreshes" "{load}",
        "Loads of a cache in the background, of a value that was stale or soon would be.";
    CACHE_FILLS = Counter "resilience.cache.fills" "{value}" ["resilience.outcome": &["stored", "refused", "not_stored"]],
        "Values that a cache loaded, by what its store made of them.";
    CACHE_WAITS = Counter "resilience.cache.waits" "{wait}",
        "Waits of a cache for a load of another instance.";
    CACHE_INVALIDATIONS = Counter "resilience.cache.invalidations" "{invalidation}",
        "Keys and tags that a cache invalidated.";
    CACHE_UNUSABLE = Counter "resilience.cache.unusable" "{value}",
        "Values that a cache could not encode, or not decode.";
    CACHE_STORE_ERRORS = Counter "resilience.cache.store_errors" "{step}",
        "Steps of a cache's store that failed or had no answer in time.";
    CACHE_EVICTIONS = Counter "resilience.cache.evictions" "{value}",
        "Values that made room for others in the local part of a cache.";
    CACHE_ENTRIES = UpDownCounter "resilience.cache.entries" "{value}",
        "Values that the local part of a cache holds.";
    CACHE_COHERENT = UpDownCounter "resilience.cache.coherent" "{handle}",
        "Handles of this cache whose store reports changes at present.";
    CACHE_HOT_KEY_REQUESTS = UpDownCounter "resilience.cache.hot_key.requests" "{request}" ["resilience.cache.key": &[]],
        "About how often the most requested keys of a cache were requested, where that is switched on (`hot_key_metrics`).";
    COALESCE_CALLS = Counter "resilience.coalesce.calls" "{call}"
        ["resilience.coalesce.role": &["started", "joined"]],
        "Callers with a key, by whether they started a call or joined one in progress.";
    COALESCE_RERUNS = Counter "resilience.coalesce.reruns" "{call}",
        "Callers that began again because the call they had joined failed.";
    COALESCE_REJECTIONS = Counter "resilience.coalesce.rejections" "{call}",
        "Callers rejected because the second call they had joined failed too.";
    COALESCE_IN_PROGRESS = UpDownCounter "resilience.coalesce.in_progress" "{call}",
        "Shared calls in progress that can be joined.";
    COALESCE_WAITING = UpDownCounter "resilience.coalesce.waiting" "{call}",
        "Callers that wait for a shared call, those that started one included.";
    IDEMPOTENCY_CLAIMS = Counter "resilience.idempotency.claims" "{claim}"
        ["resilience.claim.answer": &["granted", "replayed", "replayed_here", "in_flight", "mismatched", "unknown"]],
        "Claims on idempotency keys, by answer.";
    IDEMPOTENCY_ENDINGS = Counter "resilience.idempotency.endings" "{attempt}"
        ["resilience.outcome": &["recorded", "released", "unknown", "lost", "not_stored", "unguarded"]],
        "Attempts at the work that have ended, by what the record says of them.";
    IDEMPOTENCY_LEASES = Counter "resilience.idempotency.leases" "{lease}"
        ["resilience.lease.event": &["renewed", "lost"]],
        "Leases renewed, and leases lost while the work was in progress.";
    IDEMPOTENCY_STORE_ERRORS = Counter "resilience.idempotency.store_errors" "{error}",
        "Steps that the store of idempotency records did not answer.";
    IDEMPOTENCY_OUTCOME_SIZE = Counter "resilience.idempotency.outcome.size" "By",
        "Size of the outcomes that were recorded.";
    IDEMPOTENCY_RUNNING = UpDownCounter "resilience.idempotency.running" "{attempt}",
        "Attempts at the work that are in progress.";
    IDEMPOTENCY_WAITING = UpDownCounter "resilience.idempotency.waiting" "{call}",
        "Callers that wait for the outcome of another call.";
    STREAM_PUBLISHED = Counter "resilience.stream.published" "{event}"
        ["resilience.outcome": &["stored", "delayed", "duplicate", "failed"]],
        "Events that producers published, by what the broker made of them.";
    STREAM_REJECTIONS = Counter "resilience.stream.rejections" "{publish}",
        "Publishes that a producer rejected: the broker is unavailable, or consumers are too far behind.";
    STREAM_TRIMMED = Counter "resilience.stream.trimmed" "{message}",
        "Messages that producers removed from their stream, by its retention.";
    STREAM_DELIVERIES = Counter "resilience.stream.deliveries" "{message}"
        ["resilience.delivery": &["first", "again"]],
        "Messages delivered to consumers, for the first time or again.";
    STREAM_SETTLEMENTS = Counter "resilience.stream.settlements" "{message}"
        ["resilience.outcome": &["acknowledged", "retried", "given_back", "dead", "lost"]],
        "Deliveries that consumers ended, by outcome.";
    STREAM_REPLAYS = Counter "resilience.stream.replays" "{message}",
        "Messages whose effect had been recorded before, acknowledged without being handled.";
    STREAM_SKIPPED = Gauge "resilience.stream.skipped" "{message}",
        "Messages that were trimmed before the group was given them, since the group was created.";
    STREAM_LEASES_LOST = Counter "resilience.stream.leases_lost" "{lease}",
        "Leases of messages that consumers lost.";
    STREAM_PAUSES = Counter "resilience.stream.pauses" "{pause}",
        "Pauses of consumers because a layer rejected a message.";
    STREAM_LOSSES = Counter "resilience.stream.losses" "{loss}",
        "Groups or streams that were lost in the broker and created again.";
    STREAM_STORE_ERRORS = Counter "resilience.stream.store_errors" "{step}",
        "Steps of a consumer's broker that failed or had no answer in time.";
    STREAM_RUNNING = UpDownCounter "resilience.stream.running" "{message}",
        "Messages that consumers handle at present.";
    STREAM_BUFFERED = UpDownCounter "resilience.stream.buffered" "{message}",
        "Messages that wait in the consumer's process.";
    WRITE_BEHIND_WRITES = Counter "resilience.write_behind.writes" "{change}"
        ["resilience.outcome": &["stored", "repeated", "rejected", "failed"]],
        "Changes written to a write-behind, by what became of them.";
    WRITE_BEHIND_BATCHES = Counter "resilience.write_behind.batches" "{batch}",
        "Batches of a write-behind that were taken to be sunk.";
    WRITE_BEHIND_SINKS = Counter "resilience.write_behind.sinks" "{change}"
        ["resilience.outcome": &["sunk", "retried", "dead"]],
        "Changes of a write-behind that the sink was given, by outcome.";
    WRITE_BEHIND_PAUSES = Counter "resilience.write_behind.pauses" "{pause}",
        "Pauses of shards of a write-behind because the sink failed.";
    WRITE_BEHIND_LEASES_LOST = Counter "resilience.write_behind.leases_lost" "{lease}",
        "Leases of batches that were lost while they were sunk.";
    WRITE_BEHIND_LOSSES = Counter "resilience.write_behind.losses" "{loss}",
        "Shards of a write-behind whose store lost what it had acknowledged.";
    WRITE_BEHIND_STORE_ERRORS = Counter "resilience.write_behind.store_errors" "{step}",
        "Steps of a sinker's store that failed or had no answer in time.";
    WRITE_BEHIND_SINKING = UpDownCounter "resilience.write_behind.sinking" "{change}",
        "Changes of a write-behind that are being sunk.";
    WRITE_BEHIND_ENTRIES = Gauge "resilience.write_behind.entries" "{key}",
        "Keys of a write-behind that are not sunk yet, as this handle last saw them.";
    WRITE_BEHIND_OLDEST = Gauge "resilience.write_behind.oldest" "s",
        "Age of the oldest key that is not sunk yet, as this handle last saw it.";
    WRITE_BEHIND_DEAD = Gauge "resilience.write_behind.dead_letters" "{change}",
        "Dead letters of a write-behind, as this handle last saw them.";
    INBOX_CLAIMS = Counter "resilience.inbox.claims" "{claim}"
        ["resilience.claim.answer": &["fresh", "replayed", "replayed_in_front", "mismatched", "busy"]],
        "Claims on the keys of an inbox, by answer, from the database or from the front.";
    INBOX_RETRIES = Counter "resilience.inbox.retries" "{transaction}",
        "Transactions of an inbox that were begun again.";
    INBOX_FRONT_ERRORS = Counter "resilience.inbox.front_errors" "{error}",
        "Steps that the store in front of an inbox did not answer.";
    OUTBOX_WRITTEN = Counter "resilience.outbox.written" "{event}",
        "Events that were written to an outbox, whether or not their transactions were committed.";
    OUTBOX_PUBLISHED = Counter "resilience.outbox.published" "{event}"
        ["resilience.outcome": &["stored", "duplicate", "dead"]],
        "Events of an outbox by what the broker made of them.";
    OUTBOX_ERRORS = Counter "resilience.outbox.errors" "{step}"
        ["resilience.part": &["broker", "database"]],
        "Steps of a relay that failed or had no answer in time, by what did not answer.";
    OUTBOX_TAKEOVERS = Counter "resilience.outbox.takeovers" "{lease}",
        "Leases of an outbox that relays took.";
    OUTBOX_LEASES_LOST = Counter "resilience.outbox.leases_lost" "{lease}",
        "Leases of an outbox that relays lost to others.";
    OUTBOX_LEADING = UpDownCounter "resilience.outbox.leading" "{relay}",
        "Relays that have the lease of their outbox.";
    OUTBOX_WAITING = UpDownCounter "resilience.outbox.waiting" "{event}",
        "Events that wait in an outbox, as the relay with the lease sees it; at most 100,000 are counted.";
    OUTBOX_OLDEST = Gauge "resilience.outbox.oldest" "s",
        "Age of the oldest event that waits in an outbox, as the relay with the lease sees it.";
    OUTBOX_DEAD = UpDownCounter "resilience.outbox.dead_letters" "{event}",
        "Dead letters in an outbox, as the relay with the lease sees it; at most 100,000 are counted.";
}
