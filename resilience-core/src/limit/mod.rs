//! Rate limit: a number of permits per period, saved up to a burst; exact.
//!
//! A bucket of [`burst`](RateLimitBuilder::burst) tokens starts full and gains [`permits`](RateLimitBuilder::permits)
//! of them per period, evenly. A call takes its cost in tokens, or is rejected ([`Reason::RateLimited`]) with the exact
//! time after which it would have passed; a call that costs more than the bucket can hold is rejected as
//! [`Reason::TooCostly`], because waiting does not help it. In any time `t`, at most the burst plus `t` times the rate is
//! admitted. Rejections cost no tokens.
//!
//! It is not a bulkhead (it counts calls per second, not calls in flight), and not tower's `RateLimit`, which is a
//! fixed window, cannot be shared by clones, and makes callers wait in `poll_ready`.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{RateLimit, Rejected};
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
//! # Limits of other services
//! [`upstream`] keeps this service to the limits that the servers it calls advertise.
//!
//! # Waiting
//! With a [`queue`](RateLimitBuilder::queue), calls wait for their tokens in order of arrival. A call is rejected at once
//! if its turn would come too late, or after its [deadline](crate::deadline).
//!
//! # Order
//! To protect a dependency: inside the retry, so that each attempt is counted, and outside the circuit breaker. To
//! protect this service: outermost, before anything costly.
//!
//! # Errors
//! [`Rejected`] as above. Errors of the inner service are passed on.
//!
//! # Cancellation and panics
//! A call that is dropped while it waits leaves the queue and costs nothing, also between its turn and the moment when
//! the inner service is ready for it. Tokens of a call that was started are spent, however it ends:
//! [`refund`](RateLimit::refund) puts back what it did not use.
//!
//! # Readiness
//! As for [every admission layer](crate::admission#readiness).
//!
//! # Cost
//! A passing call costs one reading of the clock and one compare-and-swap: no allocation, no lock. A keyed one also costs
//! a lookup in a lock-free map. A call that waits costs a lock, two allocations and a timer.
//!
//! # References
//! Token bucket: J. Turner, "New directions in communications", 1986; [RFC 2697](https://www.rfc-editor.org/rfc/rfc2697).
//!
#![doc = include_str!("comparison.md")]

mod atomic_bucket;
mod builder;
pub mod fleet;
mod held_tokens;
mod keyed;
mod layer;
mod memory;
mod queue;
mod quota;
pub mod regions;
mod settings;
mod sharded;
mod shared;
mod snapshot;
pub mod store;
#[cfg(all(test, not(loom)))]
mod tests;
pub mod token_bucket;
#[cfg(all(test, not(loom)))]
mod token_bucket_tests;
pub mod upstream;

use std::{fmt, sync::Arc};

pub use self::{
    builder::RateLimitBuilder,
    held_tokens::HeldTokens,
    keyed::KeyedRateLimit,
    layer::{ByKey, RateLimitLayer, RateLimitService, Whole},
    queue::WaitForTokens,
    quota::Quota,
    snapshot::{KeyedRateLimitSnapshot, RateLimitSnapshot},
};

pub use crate::cost::{Cost, Each};

use self::{settings::Settings, shared::Shared};
#[cfg(doc)]
use crate::error::Reason;
use crate::{
    admission::{Permit, Refused},
    error::{Pattern, Rejected},
    order::{self, Part, setting},
};

/// A rate limit within this process. Clones share the tokens.
#[derive(Clone)]
pub struct RateLimit {
    shared: Arc<Shared>,
}

impl RateLimit {
    /// Starts the builder of a limit called `name`, as it appears in rejections, events and metrics.
    pub fn builder(name: impl Into<Arc<str>>) -> RateLimitBuilder {
        RateLimitBuilder::new(name.into())
    }

    /// A layer over this limit's tokens; each call costs one unless `.cost(..)` says otherwise. All layers share the
    /// tokens.
    pub fn layer(&self) -> RateLimitLayer<Whole> {
        RateLimitLayer::new(Whole::new(self.clone()))
    }

    /// Takes `cost` tokens if they are there, and no call waits for them. A cost of zero always passes.
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
        let mut tokens = match queue::admit(&self.shared, cost) {
            Ok(tokens) => tokens,
            Err(refused) => match *refused {
                Refused::Wait(wait) => wait.await?,
                Refused::No(rejected) => return Err(rejected),
            },
        };
        tokens.started();
        Ok(())
    }

    /// Puts back tokens that a call paid for and did not use, as far as there is room for them.
    pub fn refund(&self, tokens: u64) {
        self.shared.refund(tokens);
    }

    /// The state of the limit now.
    #[must_use]
    pub fn snapshot(&self) -> RateLimitSnapshot {
        self.shared.snapshot()
    }

    /// The quota: rate and burst.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.shared.settings.rules.quota
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.settings.name
    }

    fn part(&self) -> Part {
        let settings = &*self.shared.settings;
        let quota = settings.rules.quota;
        Part::new(Pattern::RateLimit, Arc::clone(&settings.name))
            .set("permits", quota.permits())
            .set("period", quota.period())
            .set("burst", quota.capacity())
            .set_some(setting::QUEUE, settings.queue.map(|queue| queue.length))
    }

    /// A limit that the exporter does not know of.
    fn new(settings: Arc<Settings>) -> Self {
        Self {
            shared: Arc::new(Shared::new(settings)),
        }
    }

    #[inline]
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        order::policy_part(|| self.part());
        f.debug_struct("RateLimit")
            .field("name", &self.name())
            .field("snapshot", &self.snapshot())
            .finish()
    }
}
