//! Rate limit: so many permits per period, saved up to a burst; exact.
//!
//! A bucket of [`burst`](RateLimitBuilder::burst) tokens begins full and gains [`permits`](RateLimitBuilder::permits)
//! of them per period, evenly. A call takes its cost in tokens, or is rejected ([`Reason::RateLimited`]) with the exact
//! time after which it would have passed; a call that costs more than the bucket can hold is rejected as
//! [`Reason::TooCostly`], because waiting is of no use to it. What is admitted in any time `t` is never more than the
//! burst and `t` times the rate. Rejections cost no tokens.
//!
//! It is not a bulkhead (it counts calls per second, not calls in flight), and not tower's `RateLimit`, which is a
//! fixed window, cannot be shared by clones, and makes callers wait in `poll_ready`.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{Rejected, limit::RateLimit};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let limit = RateLimit::builder("api").permits(100, Duration::from_secs(1)).burst(200).build()?;
//!
//! let service = ServiceBuilder::new()
//!     .layer(limit.layer().cost(|bytes: &usize| *bytes as u64 / 1024 + 1))
//!     .service(service_fn(|bytes: usize| async move { Ok::<_, Rejected>(bytes) }));
//! service.oneshot(3000).await?;
//!
//! // The same tokens, without tower:
//! limit.try_acquire(10)?;
//! assert!(limit.snapshot().remaining >= 187);
//! let too_much = limit.try_acquire(201).unwrap_err();
//! assert_eq!(too_much.retry_after(), None);
//! # Ok(()) }
//! ```
//!
//! # Keys
//! [`keyed`](RateLimitBuilder::keyed) makes a bucket per key (tenant, address, token), bounded in number; with
//! [`keyed_with`](RateLimitBuilder::keyed_with), each by its own quota.
//!
//! # Between processes
//! A [`FleetRateLimit`](fleet::FleetRateLimit) is a limit of many instances, over a [`LimitStore`](store::LimitStore)
//! that keeps the buckets. It decides about several limits of a subject at once (per second *and* per day, requests
//! *and* bytes), all or nothing.
//!
//! # Of others
//! [`peer`] keeps this service to the limits that the servers which it calls ask for.
//!
//! # Waiting
//! With a [`queue`](RateLimitBuilder::queue), calls wait for their tokens in order of arrival; nobody overtakes. A call
//! is told at once if its turn would come too late, or after its [deadline](crate::deadline).
//!
//! # Order
//! To protect a dependency: inside the retry, so that each attempt is counted, and outside the circuit breaker. To
//! protect this service: outermost, before anything costs something.
//!
//! # Errors
//! [`Rejected`] as above. Errors of the inner service are passed on.
//!
//! # Cancellation and panics
//! A call that is dropped while it waits leaves the line and costs nothing, also between its turn and the moment when
//! the inner service is ready for it. Tokens of a call that was made are spent, whatever becomes of it:
//! [`refund`](RateLimit::refund) puts back what it did not use.
//!
//! # Readiness
//! As with the [bulkhead](crate::bulkhead): the service is ready when the inner one is, and a call that has to wait
//! takes a clone of the inner service, which it drives to readiness when its turn has come. This is why the inner
//! service has to be `Clone`.
//!
//! # Cost
//! A passing call pays for one reading of the clock and one compare-and-swap: no allocation, no lock. A keyed one pays
//! for a lookup in a lock-free map too. A call that waits pays for a lock, an allocation and a timer.
//!
#![doc = include_str!("comparison.md")]

mod atomic_bucket;
mod builder;
pub mod fleet;
mod keyed;
mod layer;
mod queue;
mod quota;
pub mod regions;
mod sharded;
mod shared;
pub mod store;
#[cfg(all(test, not(loom)))]
mod tests;
pub mod token_bucket;
#[cfg(all(test, not(loom)))]
mod token_bucket_tests;
pub mod upstream;

use std::{fmt, sync::Arc, time::Duration};

pub use self::{
    builder::RateLimitBuilder,
    keyed::KeyedRateLimit,
    layer::{Admit, ByKey, RateLimitLayer, RateLimitService, ResponseFuture, Whole},
    quota::Quota,
};

pub use crate::cost::{Cost, Each};

use self::shared::{Denied, Shared};
#[cfg(doc)]
use crate::error::Reason;
use crate::error::Rejected;

/// A rate limit within this process, as its owner holds it. Clones share the tokens.
#[derive(Clone)]
pub struct RateLimit {
    shared: Arc<Shared>,
}

impl RateLimit {
    /// Starts a limit called `name`, as it appears in rejections, events and metrics.
    pub fn builder(name: impl Into<Arc<str>>) -> RateLimitBuilder {
        RateLimitBuilder::new(name.into())
    }

    /// A layer over this limit's tokens; each call costs one unless [`RateLimitLayer::cost`] says otherwise. Any number
    /// of them share the tokens.
    pub fn layer(&self) -> RateLimitLayer<Whole> {
        RateLimitLayer::new(Whole::new(self.clone(), Each(1)))
    }

    /// Takes `cost` tokens if they are there, and if nobody waits for them. A cost of zero always passes.
    ///
    /// # Errors
    /// [`Reason::RateLimited`] with the exact wait, or [`Reason::TooCostly`].
    #[inline]
    pub fn try_acquire(&self, cost: u64) -> Result<(), Rejected> {
        self.shared
            .pass(cost)
            .map_err(|refusal| self.shared.reject(refusal))
    }

    /// Takes `cost` tokens, waiting for them if the limit has a queue. Nothing happens before the future is polled;
    /// dropping it leaves the queue.
    ///
    /// # Errors
    /// [`Reason::RateLimited`] if the wait would be too long or the queue is full, or [`Reason::TooCostly`].
    pub async fn acquire(&self, cost: u64) -> Result<(), Rejected> {
        match self.admit(cost) {
            Ok(()) => Ok(()),
            Err(denied) => match *denied {
                Denied::Queued(wait) => {
                    wait.await.spend();
                    Ok(())
                }
                Denied::Rejected(rejected) => Err(rejected),
            },
        }
    }

    /// Puts back tokens that a call paid for and did not use, as far as there is room for them.
    pub fn refund(&self, tokens: u64) {
        self.shared.refund(tokens);
    }

    /// The state of things at this moment.
    #[must_use]
    pub fn snapshot(&self) -> RateLimitSnapshot {
        self.shared.snapshot()
    }

    /// What it allows.
    #[must_use]
    pub fn quota(&self) -> Quota {
        *self.shared.bucket.quota()
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    fn from_shared(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    #[inline]
    fn admit(&self, cost: u64) -> Result<(), Box<Denied>> {
        self.shared
            .pass(cost)
            .or_else(|refusal| self.shared.wait_or_reject(cost, refusal))
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("name", &self.name())
            .field("snapshot", &self.snapshot())
            .finish()
    }
}

/// What a [`RateLimit`] looks like at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimitSnapshot {
    /// Whole tokens that can be taken at once.
    pub remaining: u64,
    /// How many there can be.
    pub capacity: u64,
    /// The time until there are as many, if nobody takes any.
    pub full_in: Duration,
    /// Calls that wait.
    pub waiting: usize,
    /// Calls rejected so far for lack of tokens. Of a keyed limit: of the whole family.
    pub rejected_limited: u64,
    /// Calls rejected so far because they cost more than there can ever be. Of a keyed limit: of the whole family.
    pub rejected_too_costly: u64,
}
