//! Retries that know when to stop: by attempts, by budget, by deadline, and by what the request says about itself.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use resilience_core::{Error, retry::{self, Backoff, Replayable, Retry}};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//!
//! enum Request { Read(u32), Pay(u32) }
//!
//! impl Replayable for Request {
//!     fn replay(&self) -> Option<Self> {
//!         match self {
//!             Self::Read(id) => Some(Self::Read(*id)),
//!             // Paying twice does harm: never sent again.
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
//! assert_eq!(retry.retries(), 2);
//! # Ok(()) }
//! ```
//!
//! # What is retried
//!
//! A call whose [`Verdict`](crate::Verdict) is transient, if its request can be sent again ([`Replay`]) and all of
//! these hold:
//!
//! - it has attempts left;
//! - the dependency did not ask for a longer pause than [`max_retry_after`](RetryBuilder::max_retry_after);
//! - the backoff has another delay; the wait is the longer one of that and of what the dependency asked for;
//! - the wait and the [shortest useful attempt](RetryBuilder::minimum_attempt_time) fit in what is left of the
//!   [deadline](crate::deadline);
//! - the [budget](RetryBudget) pays for it. It is asked last, so nothing is spent on a retry that does not happen.
//!
//! Otherwise the call gives up at once and returns the failure that it has, as it is. Why is in the metric
//! `resilience.retry.given_up` and in a debug event ([`GaveUp`]).
//!
//! A [`Rejected`](crate::Rejected) from a layer beneath (breaker open, bulkhead full) is not retried, unless
//! [asked for](RetryBuilder::retry_rejections): the dependency has not seen the call, and the layer that said no will
//! say it again. It neither earns budget nor spends any. A timeout of the attempt is a failure like any other.
//!
//! # Why budgets
//!
//! See [`RetryBudget`]. In short: a maximum of attempts multiplies the load when everything fails, a budget bounds
//! what retries add to it, whatever fails. Share one budget among all stacks that lead to the same dependency.
//!
//! # Why not tower's `Policy`
//!
//! A `tower::retry::Policy` can take the same decisions: it sees request and result, its future may sleep, and tower
//! drops the failed response before that. What it cannot do is what surrounds them:
//!
//! - tower's future owns a clone of the whole stack beneath from the start, so every call that passes pays for the
//!   reference counts of all its layers (a stack of five took 86 ns composed and 36 ns without them). Here one clone
//!   is kept aside, and cloned again only when there is a retry;
//! - a policy is not asked about a request that has no copy, so such calls would neither earn budget nor show up in
//!   the metrics;
//! - it does not surround the inner service's `call` and `poll`, so [`attempt`] would not be visible beneath, only on
//!   the request;
//! - it does not learn whether the attempt that it has allowed was made, or was rejected beneath without reaching the
//!   dependency; so it could not give the budget back.
//!
//! # Readiness
//!
//! The first attempt is made with the service that was polled ready. Each later one is made with a clone of its own
//! that is driven to readiness first. A deadline layer above bounds that wait. If readiness fails, its error is
//! returned.
//!
//! # Cancellation and panics
//!
//! Dropping the call drops the attempt. Between attempts it gives the budget back what was paid for the next one. A
//! call dropped before its first answer earns nothing. Nothing else is held: while it waits, a call has neither the
//! failed response nor the attempt's future, and so no connection and no permit of layers beneath.
//!
//! # Errors
//!
//! Those of the inner service; this layer has none of its own.
//!
//! # Order
//!
//! Beneath the deadline of the whole call, above everything that should see each attempt: bulkhead, breaker, timeout
//! per attempt. With the retry beneath the breaker, the breaker would see one failure where there were three.
//! Two retry layers in one stack multiply their attempts; so do retries in each of several services.
//!
//! # Cost
//!
//! A call that passes: a copy of the request ([`Replay::replay`]; none if `max_attempts` is 1), one count on the
//! thread's own reference counter and one on its own request counter. No allocation, no lock, no clock.

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
pub use builder::{Retry, RetryBuilder};
pub use future::ResponseFuture;
pub use layer::{RetryLayer, RetryService};
pub use machine::GaveUp;
pub use replay::{Always, ByRequest, Replay, Replayable};

#[cfg(test)]
mod tests;
