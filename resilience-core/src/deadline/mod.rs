//! Deadlines: time limits of calls, visible to every layer and service below.
//!
//! A [`Timeout`] limits the time of each call. Its layer makes the resulting [`Deadline`] the [`current`] one during the
//! call: inner timeouts are shortened to it, retry starts no attempt that cannot end before it, an outbound HTTP client
//! passes the remainder on, and application code can read it. It sets no timer per await, and tasks that the call spawns
//! do not see it unless they [`inherit`] it.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use resilience_core::{Error, Reason, Timeout, deadline};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//!
//! let timeout = Timeout::new("api", Duration::from_millis(20))?;
//! let mut api = ServiceBuilder::new().layer(timeout.layer()).service(service_fn(async |patient: bool| {
//!     assert!(deadline::current().is_some());
//!     if patient { std::future::pending::<()>().await }
//!     Ok::<_, Error<std::io::Error>>("in time")
//! }));
//!
//! assert_eq!(api.ready().await?.call(false).await?, "in time");
//! let late = api.ready().await?.call(true).await.unwrap_err();
//! assert_eq!(late.rejected().map(|no| no.reason()), Some(Reason::TimedOut));
//! # Ok(()) }
//! ```
//!
//! # What is bounded, and how
//!
//! - The deadline of a call is the earlier of `now + timeout` and the current deadline. So an inner timeout never ends
//!   after an outer deadline.
//! - The inner future is polled first and the timer second: a response that is available at the deadline is kept.
//! - At the deadline the inner future is dropped while the deadline is still current, so that guards below (a
//!   breaker's) can tell an expired call from one that was cancelled. The caller gets
//!   [`TimedOut`](crate::Reason::TimedOut): a transient failure of the dependency, for breakers and retries above.
//! - A call whose deadline has passed is not made: [`NoTimeLeft`](crate::Reason::NoTimeLeft).
//! - Waiting for readiness is bounded too. When the inner service was not ready for the timeout, `poll_ready`
//!   returns ready and the next call is rejected with `NoTimeLeft`; so `ready().await` never hangs, and a worker behind
//!   tower's `Buffer` survives. A wait that succeeds is not deducted from the call that follows: readiness belongs to
//!   the service, not to a request. [`scope`] around both bounds the sum.
//!   [`gate`](TimeoutLayer::gate) turns this off.
//! - A rejected call reserves nothing below: a fresh clone replaces the inner service, which therefore has to be
//!   `Clone`.
//!
//! Response bodies are not covered: the call ends with the response. `resilience-http` bounds bodies.
//!
//! # What is not ended
//!
//! A deadline ends a call by dropping its future. Work that the call has started elsewhere goes on: a spawned task, a
//! blocking job, idempotent work.
//!
//! | work | its own time limit | its place in a bulkhead around it |
//! |---|---|---|
//! | polled by the call | the deadline | given back at the deadline |
//! | idempotent ([`idempotency`](crate::idempotency)) | [`max_lease_time`](crate::idempotency::IdempotencyBuilder::max_lease_time), 10 minutes by default, then it is cancelled | held until the work ends |
//! | a task, spawned with [`carry`](crate::admission::carry) | none, unless you set one | held until the task ends |
//! | a blocking job, with [`carry_fn`](crate::admission::carry_fn) | none: it cannot be stopped | held until the job ends |
//! | a task or a job without either | none | given back at the deadline: the work in progress is not bounded |
//!
//! So a bulkhead around work that hangs is full until the work's own time limit, and rejects calls meanwhile.
//!
//! # Cancellation
//!
//! A call that is dropped drops the inner future, under its deadline. Nothing else is held.
//!
//! # Errors
//!
//! `S::Error` from [`Rejected`](crate::Rejected), with the handle's name.
//!
//! # Order
//!
//! Outermost for the deadline of the whole call, retries included; a second one innermost for the deadline of each
//! attempt. A breaker records timeouts on both sides of it.
//!
//! # Cost
//!
//! One clock reading (10 ns) and one count on the thread's own reference counter; no allocation. The timer is
//! registered when the inner future is pending for the first time (about 100 ns, once), never for a ready response.
//!
//! # Differences from `tower::timeout`
//!
//! The error type stays; the deadline is visible; nested deadlines shrink; readiness is covered; no timer is made
//! for a response that is ready.
//!
//! # References
//!
//! "Addressing Cascading Failures", section "Latency and Deadlines", in: Site Reliability Engineering, O'Reilly, 2016;
//! gRPC, "Deadlines".

mod current;
mod future;
mod layer;
mod readiness;
mod service;
mod timeout;

#[cfg(feature = "idempotency")]
pub(crate) use current::before;
pub use current::{Deadline, Scope, current, inherit, scope, sync_scope};
pub(crate) use current::{before_deadline, enter};
pub use future::ResponseFuture;
pub use layer::{PerRequest, SameForAll, TimeoutLayer};
pub use service::TimeoutService;
pub use timeout::{Timeout, TimeoutSnapshot};

#[cfg(all(test, not(loom)))]
mod tests;
