//! Rejections as HTTP responses: status, `Retry-After`, and an `application/problem+json` document.
//!
//! | reason | status | `Retry-After` if the wait is unknown | title |
//! |---|---|---|---|
//! | `open` | 503 | 1 | A dependency is failing |
//! | `no_probe_left` | 503 | 1 | A dependency is failing |
//! | `ramping_up` | 503 | 1 | A dependency is failing |
//! | `forced_open` | 503 | none | A dependency is switched off |
//! | `full` | 503 | 1 | Too busy |
//! | `sink_behind` | 503 | 1 | Too busy |
//! | `queue_timed_out` | 503 | 1 | Too busy |
//! | `timed_out` | 504 | none | Out of time |
//! | `no_time_left` | 504 | none | Out of time |
//! | `overloaded` | 503 | 1 | Too busy |
//! | `rate_limited` | 429 | 1 | Too many requests |
//! | `too_costly` | 422 | none | Request too costly |
//! | `store_unreachable` | 503 | 1 | A dependency is failing |
//! | `in_flight` | 409 | 1 | A request is outstanding for this key |
//! | `key_reused` | 422 | none | Idempotency key is already used |
//! | `lease_lost` | 503 | none | Request abandoned |
//! | `outcome_unknown` | 409 | none | The outcome is unknown |
//! | `superseded` | 409 | 1 | The outcome is unknown |
//! | `outcome_unreadable` | 500 | none | Processed before, and cannot be replayed |
//! | `outcome_not_kept` | 409 | none | Processed before, and cannot be replayed |
//! | `unrecorded` | 503 | none | Processed, and not recorded yet |
//! | `shared_call_failed` | 503 | 1 | A dependency is failing |
//! | `shutting_down` | 503 | 1 | Shutting down |
//! | `load_panicked` | 500 | none | Internal error |
//! | `no_loader` | 500 | none | Internal error |
//! | `not_found` | 422 | none | Not found |
//!
//! For programs, the same table is [`TABLE`]. If the layer knows how long to wait, `Retry-After` is
//! that time, whatever the table says: in whole seconds, rounded up, at least 1, since a client
//! retries a "0" at once. A reason that a later version of the core adds has the status of its
//! [kind](resilience_core::error::ReasonKind).
//!
//! The response to `unrecorded` carries [`Idempotency-Unrecorded:
//! true`](crate::headers::IDEMPOTENCY_UNRECORDED).
//!
//! An example of a document:
//!
//! ```json
//! {
//!   "type": "urn:problem-type:resilience:circuit_breaker:open",
//!   "title": "A dependency is failing",
//!   "status": 503,
//!   "detail": "A service that this request depends on is failing, so it was not called. Try again in 3 s.",
//!   "pattern": "circuit_breaker",
//!   "reason": "open",
//!   "retry_after_ms": 2480
//! }
//! ```
//!
//! `type` is `urn:problem-type:resilience:PATTERN:REASON`, with the names of
//! [`Pattern::as_str`](resilience_core::Pattern::as_str) and
//! [`Reason::as_str`](resilience_core::Reason::as_str). It is a name and not a URL to fetch. It is
//! stable, as are the members `pattern` and `reason`: clients may match on them. `retry_after_ms` is
//! the exact wait, in milliseconds, and absent if the layer does not know it.
//!
//! The **name** of the breaker or bulkhead is not in the document: "orders-db-replica-2" is
//! internal, and the name of a keyed handle may contain another client's key.
//! [`Problems::show_names`] adds it as `name`, for internal services.
//!
//! In a handler, [`Problem`] is an error type that `?` converts rejections to. With the feature
//! `axum` it is a response as well:
//!
//! ```
//! use resilience_core::{Error, Pattern, Reason, Rejected};
//! use resilience_http::Problem;
//!
//! fn reserve() -> Result<u32, Rejected> {
//!     Err(Rejected::new(Pattern::Bulkhead, Reason::Full, "orders-db"))
//! }
//!
//! fn handler() -> Result<String, Problem> {
//!     Ok(reserve()?.to_string())
//! }
//!
//! let problem = handler().unwrap_err();
//! assert_eq!(problem.status(), 503);
//! let response: http::Response<String> = problem.into_response();
//! assert_eq!(response.headers()["retry-after"], "1");
//! assert!(!response.body().contains("orders-db"));
//! ```
//!
//! # References
//! RFC 9457 (problem details); RFC 9110 section 10.2.3 (`Retry-After`); RFC 6585 section 4 (429).

mod document;
mod responses;
mod table;
#[cfg(test)]
mod tests;

pub use self::{
    document::{CONTENT_TYPE, Problem},
    responses::{Problems, RejectionResponse},
    table::{Row, TABLE, TYPE_PREFIX, type_uri},
};
