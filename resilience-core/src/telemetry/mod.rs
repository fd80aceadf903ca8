//! What there is to see: events for what happens, metrics for how much.
//!
//! **Events** go to `tracing`, target `resilience`: state changes at `INFO` or `WARN`, rejections at `DEBUG`, with
//! stable field names (`pattern`, `name`, `reason`, ..).
//!
//! **Metrics** are read out of the counters that the layers keep anyway: nothing is pushed per call, and with no SDK
//! installed there is no cost at all. Handles enter themselves in a process-wide list of weak references when they
//! are built; `export` (feature `otel`) makes one observable instrument per row of [`TABLE`] over all of
//! them, those still to come included. So the order of "install the SDK" and "build the breaker" does not matter.
//!
//! Every metric carries the attribute `resilience.name`, the name that the handle was built with. Keyed handles
//! (a breaker per host) report under the name of the family, never under the key: keys come from requests, and what
//! comes from requests must not become a label.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::error::Pattern;

#[cfg(feature = "otel")]
mod otel;
#[cfg(feature = "otel")]
pub use otel::export;

/// One row of the table of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name, after the OpenTelemetry conventions.
    pub name: &'static str,
    /// Counter (only goes up) or gauge.
    pub kind: Kind,
    /// UCUM unit.
    pub unit: &'static str,
    /// What it counts.
    pub description: &'static str,
    /// The pattern that it belongs to.
    pub pattern: Pattern,
    /// The attribute it has beside `resilience.name`, if any.
    pub attribute: Option<&'static str>,
}

/// What kind of instrument a [`Metric`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Only goes up; sums over instances.
    Counter,
    /// Goes up and down; sums over instances.
    UpDownCounter,
    /// A state; does not sum.
    Gauge,
}

macro_rules! metrics {
    ($($id:ident = $pattern:ident $kind:ident $name:literal $unit:literal $attribute:expr, $description:literal;)*) => {
        $(
            #[doc = $description]
            pub const $id: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                description: $description,
                pattern: Pattern::$pattern,
                attribute: $attribute,
            };
        )*
        /// Every metric of the toolkit.
        pub const TABLE: &[Metric] = &[$($id),*];
    };
}

metrics! {
    BREAKER_CALLS = CircuitBreaker Counter "resilience.circuit_breaker.calls" "{call}" Some("outcome"),
        "Calls that a circuit breaker let through and judged, by outcome.";
    BREAKER_REJECTED = CircuitBreaker Counter "resilience.circuit_breaker.rejected" "{call}" Some("reason"),
        "Calls that a circuit breaker rejected, by reason.";
    BREAKER_STATE = CircuitBreaker Gauge "resilience.circuit_breaker.state" "1" Some("state"),
        "How many breakers of this name are in each state; a single breaker shows 1 for its state, 0 for the others.";
    BREAKER_TRANSITIONS = CircuitBreaker Counter "resilience.circuit_breaker.transitions" "{transition}" Some("to"),
        "State changes of a circuit breaker, by the state entered.";
    BREAKER_DEGRADED = CircuitBreaker Gauge "resilience.circuit_breaker.degraded" "1" None,
        "How many shared breakers of this name cannot reach their store and go by their own window.";
    BULKHEAD_IN_FLIGHT = Bulkhead UpDownCounter "resilience.bulkhead.in_flight" "{call}" None,
        "Calls that hold a permit of the bulkhead.";
    BULKHEAD_QUEUED = Bulkhead UpDownCounter "resilience.bulkhead.queued" "{call}" None,
        "Calls that wait for a permit of the bulkhead.";
    BULKHEAD_LIMIT = Bulkhead Gauge "resilience.bulkhead.limit" "{call}" None,
        "Permits that the bulkhead has.";
    BULKHEAD_REJECTED = Bulkhead Counter "resilience.bulkhead.rejected" "{call}" Some("reason"),
        "Calls that the bulkhead rejected, by reason.";
    BULKHEAD_LEASES_LOST = Bulkhead Counter "resilience.bulkhead.leases_lost" "{call}" None,
        "Calls in flight whose lease of a fleet's bulkhead was lost.";
    BULKHEAD_DEGRADED = Bulkhead Gauge "resilience.bulkhead.degraded" "1" None,
        "How many bulkheads of this name, shared by a fleet, cannot reach their store and go by their policy for that.";
    LIMIT_REJECTED = RateLimit Counter "resilience.rate_limit.rejected" "{call}" Some("reason"),
        "Calls that a rate limit rejected, by reason.";
    LIMIT_WAITING = RateLimit UpDownCounter "resilience.rate_limit.waiting" "{call}" None,
        "Calls that wait for their tokens.";
    LIMIT_ADMITTED = RateLimit Counter "resilience.rate_limit.admitted" "{call}" Some("by"),
        "Calls that a shared rate limit admitted, by who decided: the store, a lease, a local share, ..";
    LIMIT_EXHAUSTED = RateLimit Counter "resilience.rate_limit.exhausted" "{call}" Some("limit"),
        "Calls that found a limit of a shared rate limit exhausted, by the limit.";
    LIMIT_SHADOWED = RateLimit Counter "resilience.rate_limit.shadowed" "{call}" Some("limit"),
        "Calls that a shared rate limit would have refused, and admitted because it is in shadow mode, by the limit.";
    LIMIT_NEAR = RateLimit Counter "resilience.rate_limit.near" "{call}" Some("limit"),
        "Calls that a shared rate limit admitted and that left little of a limit, by the limit.";
    LIMIT_LEASED = RateLimit UpDownCounter "resilience.rate_limit.leased" "{token}" Some("limit"),
        "Tokens of a shared rate limit that this instance has leased and not spent, by the limit.";
    LIMIT_STORE_CALLS = RateLimit Counter "resilience.rate_limit.store_calls" "{call}" Some("outcome"),
        "Questions of a shared rate limit to its store, answered or not.";
    LIMIT_DEGRADED = RateLimit Gauge "resilience.rate_limit.degraded" "1" None,
        "How many shared rate limits of this name cannot reach their store and go by their policy.";
    RETRY_CALLS = Retry Counter "resilience.retry.calls" "{call}" None,
        "Calls of the retry layer that the dependency has answered, retried or not.";
    RETRY_RETRIES = Retry Counter "resilience.retry.retries" "{attempt}" None,
        "Attempts after the first.";
    RETRY_GIVEN_UP = Retry Counter "resilience.retry.given_up" "{call}" Some("reason"),
        "Calls whose last attempt failed and was not retried, by reason.";
    RETRY_BUDGET = Retry Gauge "resilience.retry.budget" "{attempt}" None,
        "Whole retries that the budget would pay for now.";
    DEADLINE_TIMED_OUT = Deadline Counter "resilience.deadline.timed_out" "{call}" None,
        "Calls cut off at their deadline.";
    DEADLINE_REJECTED = Deadline Counter "resilience.deadline.rejected" "{call}" None,
        "Calls not made because no time was left.";
    FALLBACK_USED = Fallback Counter "resilience.fallback.used" "{call}" None,
        "Calls answered by the fallback.";
    SHED_REJECTED = LoadShed Counter "resilience.load_shed.rejected" "{call}" None,
        "Calls shed because the inner service was not ready.";
    IDEMPOTENCY_CLAIMS = Idempotency Counter "resilience.idempotency.claims" "{claim}" Some("answer"),
        "Claims on idempotency keys, by the answer.";
    IDEMPOTENCY_ENDED = Idempotency Counter "resilience.idempotency.ended" "{attempt}" Some("outcome"),
        "Attempts at the work that have ended, by what the record says of them.";
    IDEMPOTENCY_LEASES = Idempotency Counter "resilience.idempotency.leases" "{lease}" Some("event"),
        "Leases renewed, and leases lost while the work was going on.";
    IDEMPOTENCY_STORE_ERRORS = Idempotency Counter "resilience.idempotency.store_errors" "{error}" None,
        "Steps that the store of idempotency records gave no answer to.";
    IDEMPOTENCY_RECORD_BYTES = Idempotency Counter "resilience.idempotency.record_bytes" "By" None,
        "Bytes of the outcomes that were recorded.";
    IDEMPOTENCY_RUNNING = Idempotency UpDownCounter "resilience.idempotency.running" "{attempt}" None,
        "Attempts at the work that are going on.";
    IDEMPOTENCY_WAITING = Idempotency UpDownCounter "resilience.idempotency.waiting" "{call}" None,
        "Callers that wait for the outcome of somebody else's work.";
    INBOX_CLAIMS = Idempotency Counter "resilience.inbox.claims" "{claim}" Some("answer"),
        "Claims on the keys of an inbox, by the answer, and by who gave it: the database, or the front.";
    INBOX_RETRIES = Idempotency Counter "resilience.inbox.retries" "{transaction}" None,
        "Transactions of an inbox that were begun again.";
    INBOX_FRONT_ERRORS = Idempotency Counter "resilience.inbox.front_errors" "{error}" None,
        "Steps that the store in front of an inbox gave no answer to.";
}

/// One value of one metric. Readings of the same metric, name and attribute are added up by the exporter.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "otel"), allow(dead_code))]
pub(crate) struct Reading {
    pub(crate) metric: &'static Metric,
    /// The value of [`Metric::attribute`]; empty where there is none.
    pub(crate) attribute: &'static str,
    pub(crate) value: u64,
}

/// A handle that can be read by the exporter.
#[cfg_attr(not(feature = "otel"), allow(dead_code))]
pub(crate) trait Source: Send + Sync + 'static {
    /// Whose metrics it has; the exporter asks no other source for them.
    fn pattern(&self) -> Pattern;
    /// The name the handle was built with.
    fn name(&self) -> &str;
    /// Hands out every value. Called once per export, off the hot path.
    fn read(&self, out: &mut dyn FnMut(Reading));
    /// The same for metrics whose attribute is a name out of the configuration: the limits of a shared rate limit.
    fn read_named(&self, _out: &mut dyn FnMut(&'static Metric, &str, u64)) {}
}

static SOURCES: Mutex<Vec<Weak<dyn Source>>> = Mutex::new(Vec::new());

/// Enters a handle in the process-wide list. Dead entries are swept when the list would grow.
pub(crate) fn register<S: Source>(source: &Arc<S>) {
    let weak: Weak<S> = Arc::downgrade(source);
    let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
    if sources.len() == sources.capacity() {
        sources.retain(|source| source.strong_count() > 0);
    }
    sources.push(weak);
}

/// The handles that are alive, held for the length of one reading and not under the list's lock: a handle may be
/// built or dropped meanwhile.
#[cfg(feature = "otel")]
fn live() -> Vec<Arc<dyn Source>> {
    let sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
    sources.iter().filter_map(Weak::upgrade).collect()
}
