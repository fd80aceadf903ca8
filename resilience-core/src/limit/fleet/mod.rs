//! A rate limit that the instances of a service share.
//!
//! [`FleetRateLimit`] decides about a *subject* (a tenant, an address, a token) by the limits of its [`Plan`], all of
//! them together: a call passes all and is charged on all, or on none. The buckets are kept by a
//! [`LimitStore`]: in Redis for a fleet, in
//! [`InProcessLimits`](super::store::InProcessLimits) for tests and single programs.
//!
//! It is not the [`RateLimit`](super::RateLimit) of one process, which decides in nanoseconds and needs no store.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::limit::{Quota, fleet::FleetRateLimit, store::InProcessLimits};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let limit = FleetRateLimit::builder("api", InProcessLimits::new()) // or `redis.limits()`
//!     .limit("per-second", Quota::per(10, Duration::from_secs(1))?.burst(20)?)
//!     .limit("bytes-per-day", Quota::per(1_000_000, Duration::from_secs(86_400))?)
//!     .build()?;
//!
//! let decision = limit.check("tenant-7", [("per-second", 1), ("bytes-per-day", 600_000)]).await?;
//! assert_eq!(decision.binding().unwrap().name, "bytes-per-day");
//! assert_eq!(decision.binding().unwrap().remaining, 400_000);
//!
//! let rejected = limit.check("tenant-7", [("per-second", 1), ("bytes-per-day", 600_000)]).await.unwrap_err();
//! assert!(rejected.retry_after().unwrap() > Duration::from_secs(17_000));
//! # Ok(()) }
//! ```
//!
//! # Who decides
//! By default the store, in one round trip per decision: exact, for all instances. A subject with many calls can be
//! [leased](Mode::Leased): this instance takes tokens in advance and pays calls out of them. What the store has refused
//! is [remembered](FleetRateLimitBuilder::remember_refusals) for as long as it is sure to be refused again.
//!
//! # Quotas of tenants
//! [`plans`](FleetRateLimitBuilder::plans) and [`plan_of`](FleetRateLimitBuilder::plan_of) give each subject its
//! plan, for every decision anew. A subject whose plan changes keeps its tokens.
//!
//! # Costs that are known afterwards
//! [`reserve`](FleetRateLimit::reserve) takes what a call may cost, and [`Reservation::settle`] puts back what it did
//! not, or takes more.
//!
//! # When the store cannot be reached
//! A call waits for the store for no longer than the [budget](FleetRateLimitBuilder::budget). Then the
//! [policy](Unreachable) has the word: open, closed, or this instance's share of the limit. After three questions
//! without an answer nobody asks any more but a task in the background, after 25 ms first and four times a second in the
//! end, until the store is back: one event says that it is gone, one that it is back, and the gauge
//! `resilience.fleet.degraded` tells in between.
//!
//! # Errors
//! [`Rejected`]: [`Reason::RateLimited`] with the wait, [`Reason::TooCostly`], or [`Reason::StoreUnreachable`].
//!
//! # Cancellation
//! A decision that is dropped while the store is asked may have been made: its tokens are then spent.
//!
//! # Cost
//! One round trip; none for a call that is refused from memory or by policy. A call that is paid for out of a lease
//! costs a lookup in a lock-free map, one reading of the clock and a compare-and-swap for each limit, and allocates
//! nothing; a lease costs one round trip, in the background, for all calls of a quarter of a lease time. A heartbeat
//! every two seconds.

mod agent;
mod builder;
mod costs;
mod counts;
mod decision;
mod denial_cache;
mod health;
mod layer;
mod lease_size;
mod leasing;
mod limiter;
mod plan;
mod projection;
mod queue;
mod reservation;
#[cfg(all(test, not(loom)))]
mod tests;
mod token_pool;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

pub use self::{
    builder::{FleetRateLimitBuilder, Mode, Unreachable},
    costs::Costs,
    counts::Totals,
    decision::{DecidedBy, Decision, LimitStatus},
    layer::{FleetRateLimitLayer, FleetRateLimitService, Pricing, ResponseFuture},
    lease_size::LeaseRules,
    plan::{MAX_LIMITS, Plan, Plans},
    reservation::{Reservation, Settlement},
};

use self::limiter::Limiter;
#[cfg(doc)]
use crate::error::Reason;
use crate::{
    cost::Each,
    error::Rejected,
    limit::store::{LimitStore, StoreError},
    telemetry,
};

/// A rate limit that instances share through a store, as its owner holds it. Clones share everything.
///
/// Dropping the last clone gives leased tokens back and takes this instance off the store's list.
#[derive(Clone)]
pub struct FleetRateLimit {
    front: Arc<Front>,
}

/// What all clones hold; the agent holds the core only.
struct Front {
    core: Arc<Limiter>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.core.health.close();
    }
}

impl FleetRateLimit {
    /// Starts a limit called `name`, as it appears in rejections, events, metrics and in the store. Handles of one
    /// name and store share their tokens, in whatever process.
    pub fn builder(name: impl Into<Arc<str>>, store: impl LimitStore) -> FleetRateLimitBuilder {
        FleetRateLimitBuilder::new(name.into(), Arc::new(store))
    }

    fn start(core: Limiter) -> Self {
        let core = Arc::new(core);
        telemetry::register(&core);
        tokio::spawn(agent::run(Arc::clone(&core)));
        Self {
            front: Arc::new(Front { core }),
        }
    }

    /// Takes what a call of `subject` costs, on all limits of its plan or on none.
    ///
    /// # Errors
    /// [`Reason::RateLimited`] with the exact wait, [`Reason::TooCostly`], or [`Reason::StoreUnreachable`].
    ///
    /// # Panics
    /// If a cost names a limit that no plan has: see [`Costs`].
    pub async fn check(
        &self,
        subject: &str,
        costs: impl Into<Costs<'_>>,
    ) -> Result<Decision, Rejected> {
        self.ask(subject, costs).await.into_result()
    }

    /// The same, but a refusal is a ruling too: with all that there is to say about the limits.
    ///
    /// # Panics
    /// As [`check`](Self::check).
    #[must_use = "a call that is not admitted must not be made"]
    pub async fn ask(&self, subject: &str, costs: impl Into<Costs<'_>>) -> Decision {
        self.core().ask(subject, costs.into()).await
    }

    /// Takes what a call of `subject` costs, waiting for it if the handle has a
    /// [queue](FleetRateLimitBuilder::queue): calls of a subject are served in order of arrival, nobody overtakes.
    /// A call is told at once if its turn would come too late, or after its [deadline](crate::deadline), as far as
    /// that can be told. Nothing happens before the future is polled; dropping it leaves the line.
    ///
    /// # Errors
    /// As [`check`](Self::check), with [`Reason::RateLimited`] if the wait would be too long or the queue is full.
    ///
    /// # Panics
    /// As [`check`](Self::check).
    pub async fn acquire(
        &self,
        subject: &str,
        costs: impl Into<Costs<'_>>,
    ) -> Result<Decision, Rejected> {
        self.core()
            .acquire(subject, costs.into())
            .await
            .into_result()
    }

    /// Takes `costs` for a call whose true cost is known when it is over: see [`Reservation`].
    ///
    /// # Errors
    /// As [`check`](Self::check).
    ///
    /// # Panics
    /// As [`check`](Self::check).
    pub async fn reserve(
        &self,
        subject: &str,
        costs: impl Into<Costs<'_>>,
    ) -> Result<Reservation, Rejected> {
        let costs = costs.into();
        let decision = self.check(subject, costs).await?;
        let prices = self.core().prices(&decision.plan, &costs);
        let core = Arc::clone(self.core());
        Ok(Reservation::new(core, subject.into(), decision, prices))
    }

    /// A layer that charges each request to the subject `of(&request)`: one token of each limit, unless
    /// [`FleetRateLimitLayer::costs`] says otherwise. Any number of them share the limit.
    pub fn layer<F>(&self, of: F) -> FleetRateLimitLayer<F> {
        FleetRateLimitLayer::new(self.clone(), of, Each(1))
    }

    /// How the limits of `subject` stand: takes nothing, and is not counted.
    ///
    /// # Errors
    /// When the store gives no answer.
    pub async fn peek(&self, subject: &str) -> Result<Decision, StoreError> {
        self.core().put_back(subject, Costs::each(0)).await
    }

    /// Puts back tokens that calls of `subject` paid for and did not use, as far as there is room for them.
    ///
    /// # Errors
    /// When the store gives no answer; it may have put them back all the same, so this is not to be repeated.
    ///
    /// # Panics
    /// As [`check`](Self::check).
    pub async fn refund(
        &self,
        subject: &str,
        costs: impl Into<Costs<'_>>,
    ) -> Result<Decision, StoreError> {
        self.core().put_back(subject, costs.into()).await
    }

    /// Fills all buckets of `subject`.
    ///
    /// # Errors
    /// When the store gives no answer. Filling can be repeated.
    pub async fn reset(&self, subject: &str) -> Result<Decision, StoreError> {
        self.core().put_back(subject, Costs::each(u64::MAX)).await
    }

    /// Gives all leased tokens that were not spent back to the store, and waits for that: for a program about to end.
    /// (Dropping the last clone gives them back too, if the runtime lives on for a moment.) The handle stays of use.
    ///
    /// # Errors
    /// When the store gives no answer. The tokens are lost then, and come in again at the rate of the limit.
    pub async fn return_leases(&self) -> Result<(), StoreError> {
        self.core().sweep(true).await
    }

    /// The plan of `subject` at this moment.
    #[must_use]
    pub fn plan_of(&self, subject: &str) -> Plan {
        self.core().plan_of(subject)
    }

    /// In shadow mode everything is decided and counted as ever, and admitted: to see what a limit would do.
    pub fn set_shadow(&self, shadow: bool) {
        self.core().shadow.store(shadow, Relaxed);
    }

    /// Whether it is in shadow mode.
    #[must_use]
    pub fn is_shadow(&self) -> bool {
        self.core().shadow.load(Relaxed)
    }

    /// Whether the store could not be reached the last few times, and the policy has the word.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.core().health.is_degraded()
    }

    /// How many instances share the limit, this one among them, as far as the store last said.
    #[must_use]
    pub fn live_instances(&self) -> u64 {
        self.core().health.live()
    }

    /// How many calls wait for their tokens.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.core().queues.waiting()
    }

    /// What was decided so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.core().counts.totals()
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core().settings.name
    }

    /// What this instance calls itself.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.core().settings.instance
    }

    fn core(&self) -> &Arc<Limiter> {
        &self.front.core
    }
}

impl fmt::Debug for FleetRateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetRateLimit")
            .field("name", &self.name())
            .field("instance", &self.instance())
            .field("degraded", &self.is_degraded())
            .finish_non_exhaustive()
    }
}
