//! Retries, bounded by attempts, budget and deadline, for requests that may be sent again.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use resilience_core::{Error, Retry, retry::{self, Backoff, Replayable}};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//!
//! enum Request { Read(u32), Pay(u32) }
//!
//! impl Replayable for Request {
//!     fn replay(&self) -> Option<Self> {
//!         match self {
//!             Self::Read(id) => Some(Self::Read(*id)),
//!             // Paying twice does harm: not sent again.
//!             Self::Pay(_) => None,
//!         }
//!     }
//! }
//!
//! let retry = Retry::builder("accounts")
//!     .max_attempts(3)
//!     .backoff(Backoff::decorrelated_jitter(Duration::from_millis(1), Duration::from_millis(20)))
//!     .build()?;
//! let mut accounts = ServiceBuilder::new().layer(retry.layer()).service(service_fn(async |_: Request| {
//!     if retry::attempt() < 3 { Err(Error::Service("connection reset")) } else { Ok("done") }
//! }));
//!
//! let read = accounts.ready().await.unwrap().call(Request::Read(1)).await;
//! assert_eq!(read, Ok("done"));
//! let pay = accounts.ready().await.unwrap().call(Request::Pay(1)).await;
//! assert_eq!(pay, Err(Error::Service("connection reset")));
//! assert_eq!(retry.snapshot().retries, 2);
//! # Ok(()) }
//! ```
//!
//! # What is retried
//!
//! A call with a transient [`Verdict`](crate::Verdict), if its request can be sent again ([`Replay`]) and:
//!
//! - it has attempts left;
//! - the dependency asked for no longer wait than [`max_retry_after`](RetryBuilder::max_retry_after);
//! - the backoff has another delay; the wait is that delay or the one that the dependency asked for, whichever is longer;
//! - the wait and the [shortest useful attempt](RetryBuilder::minimum_attempt_time) fit in the time left of the
//!   [deadline](crate::deadline);
//! - the [budget](RetryBudget) pays for it. This is checked last, so nothing is spent on a retry that does not happen.
//!
//! Otherwise the call gives up at once and returns its failure unchanged. The metric `resilience.retry.given_up` and a
//! debug event carry the reason ([`GaveUp`]).
//!
//! A [`Rejected`](crate::Rejected) from a layer below (breaker open, bulkhead full) is not retried, unless
//! [configured](RetryBuilder::retry_rejections): the dependency has not seen the call, and the layer would reject it
//! again. It neither earns budget nor spends any. A timeout of the attempt is a failure like any other.
//!
//! # Why budgets
//!
//! A maximum of attempts multiplies the load when all calls fail; a budget bounds the load that retries add
//! ([`RetryBudget`]). Share one budget among all stacks that lead to the same dependency.
//!
//! # Why not tower's `Policy`
//!
//! A `tower::retry::Policy` can take the same decisions: it sees request and result, its future may sleep, and tower
//! drops the failed response before that. It cannot do the following:
//!
//! - tower's future owns a clone of the whole inner stack from the start, so every call that passes pays for the
//!   reference counts of all its layers (a stack of five took 86 ns composed and 36 ns without them). Here one clone
//!   is kept and cloned again only for a retry;
//! - a policy is not asked about a request that has no copy, so such calls would neither earn budget nor show up in
//!   the metrics;
//! - it does not surround the inner service's `call` and `poll`, so [`attempt`] would be visible on the request only;
//! - it does not learn whether an attempt that it allowed was made or rejected below, before it reached the dependency;
//!   so it could not refund the budget.
//!
//! # Readiness
//!
//! The first attempt is made with the service that was polled ready. Each later one is made with a clone of its own
//! that is driven to readiness first. A deadline layer above bounds that wait. If readiness fails, its error is
//! returned.
//!
//! # Cancellation and panics
//!
//! Dropping the call drops the attempt. Between attempts it refunds what was paid for the next one. A
//! call dropped before its first answer earns nothing. Nothing else is held: while it waits, a call has neither the
//! failed response nor the attempt's future, and so no connection and no permit of layers below.
//!
//! # Errors
//!
//! Those of the inner service; this layer has none of its own.
//!
//! # Order
//!
//! Below the deadline of the whole call, above every layer that should see each attempt: bulkhead, breaker, timeout
//! per attempt. With the retry below the breaker, the breaker would record one failure instead of three.
//! Two retry layers in one stack multiply their attempts; so do retries in each of several services.
//!
//! # Cost
//!
//! A call that passes: a copy of the request ([`Replay::replay`]; none if `max_attempts` is 1), one count on the
//! thread's own reference counter and one on its own request counter. No allocation, no lock, no clock.
//!
//! # References
//!
//! Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015; "Timeouts, retries, and backoff with
//! jitter", Amazon Builders' Library; "Handling Overload", section "Deciding to Retry", in: Site Reliability Engineering,
//! O'Reilly, 2016.

mod attempt;
mod bucket;
mod budget;
mod builder;
mod future;
mod layer;
mod machine;
mod replay;

pub use crate::backoff::{Backoff, Delays};
pub use attempt::attempt;
pub use budget::{RetryBudget, RetryBudgetBuilder};
pub use builder::{GivenUp, Retry, RetryBuilder, RetrySnapshot};
pub use future::ResponseFuture;
pub use layer::{RetryLayer, RetryService};
pub use machine::GaveUp;
pub use replay::{Always, ByRequest, Replay, Replayable};

#[cfg(all(test, not(loom)))]
mod tests;
