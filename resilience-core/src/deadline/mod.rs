//! Deadlines: how long a call may take, known to everything beneath it.
//!
//! A [`Timeout`] gives each call a time. Its layer makes the [`Deadline`] that follows from it the [`current`] one
//! for all that the call does: inner timeouts are shortened to it, retry does not start what cannot end before it,
//! an outbound HTTP client passes the remainder on, and your own code can read it. It is not a timer per await, and
//! it does not reach into tasks that the call spawns ([`inherit`] does).
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use resilience_core::{Error, Reason, deadline::{self, Timeout}};
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
//! - The deadline of a call is the earlier of `now + timeout` and the deadline that it comes in under. So an inner
//!   timeout never outlives an outer deadline.
//! - The inner future is polled first and the timer second: an answer that is there at the deadline is kept.
//! - At the deadline the inner future is dropped while the deadline is still current, so that guards beneath (a
//!   breaker's) can see that it was time that ended the call, and not a caller that lost interest. The caller gets
//!   [`TimedOut`](crate::Reason::TimedOut): a transient failure of the dependency, for breakers and retries above.
//! - A call whose deadline has passed is not made: [`NoTimeLeft`](crate::Reason::NoTimeLeft).
//! - Waiting for readiness is bounded too. When the inner service has kept a caller waiting for the timeout,
//!   `poll_ready` answers "ready" and the next call is refused with `NoTimeLeft`; so `ready().await` never hangs, and
//!   a worker behind tower's `Buffer` survives. A wait that ends well is not deducted from the call that follows:
//!   readiness belongs to the service, not to a request. [`scope`] around both bounds the sum.
//!   [`gate`](TimeoutLayer::gate) turns this off.
//! - A call that is refused keeps nothing below: the inner service gives way to a fresh clone of itself. This is why
//!   it has to be `Clone`.
//!
//! A response body is outside: the call ends with the response. `resilience-http` bounds bodies.
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
//! attempt. A breaker notices timeouts on both sides of it.
//!
//! # Cost
//!
//! One clock reading (10 ns) and one count on the thread's own reference counter; no allocation. The timer is
//! registered when the inner future is pending for the first time (about 100 ns, once); a ready answer never pays it.
//!
//! # Differences from `tower::timeout`
//!
//! The error type stays; the deadline is visible; nested deadlines shrink; readiness is covered; no timer is made
//! for an answer that is ready.

mod current;
mod layer;
mod readiness;
mod timeout;

#[allow(unused_imports, reason = "queues move onto it one at a time")]
pub(crate) use current::before_deadline;
pub use current::{Deadline, Scope, current, inherit, scope, sync_scope};
pub use layer::{PerRequest, ResponseFuture, SameForAll, TimeoutLayer, TimeoutService};
pub use timeout::Timeout;

#[cfg(test)]
mod tests;
