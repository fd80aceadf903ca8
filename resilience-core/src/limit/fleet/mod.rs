//! A rate limit that the instances of a service share.
//!
//! [`FleetRateLimit`] decides about a *subject* (a tenant, an address, a token) by the limits of its [`Plan`], all of
//! them together: a call passes all and is charged on all, or on none. The buckets are kept by a
//! [`LimitStore`](super::store::LimitStore): in Redis for a fleet, in
//! [`InProcessLimits`](super::store::InProcessLimits) for tests and single programs.
//!
//! It is not the [`RateLimit`](super::RateLimit) of one process, which decides in nanoseconds and needs no store.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{FleetRateLimit, Quota, limit::store::InProcessLimits};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let limit = FleetRateLimit::builder("api")
//!     .store(InProcessLimits::new()) // or `redis.limits()`
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
//! # Modes
//! By default the store decides, in one round trip per decision: exact, for all instances. A subject with many calls
//! can be [leased](Mode::Leased): this instance takes tokens in advance and pays calls out of them. A denial by the
//! store is [cached](FleetRateLimitBuilder::remember_refusals) for as long as it is certain to be repeated.
//!
//! # Quotas of tenants
//! [`plans`](FleetRateLimitBuilder::plans) and [`plan_of`](FleetRateLimitBuilder::plan_of) give each subject its
//! plan, looked up for every decision. A subject whose plan changes keeps its tokens.
//!
//! # Costs that are known afterwards
//! [`reserve`](FleetRateLimit::reserve) takes the highest cost that a call may have, and [`Reservation::settle`] puts
//! back the unused part, or takes more.
//!
//! # When the store is unavailable
//! Each step has a [budget](crate::fleet::FleetOptions::budget) (100 ms). A call whose step fails is decided by the
//! [outage policy](crate::fleet::OnOutage):
//!
//! | policy | meaning |
//! |---|---|
//! | `FailOpen` | calls pass without limit |
//! | `FailClosed` | calls are rejected ([`Reason::StoreUnreachable`]) |
//! | `Local` (default) | calls are limited by this instance's [share](crate::fleet#shares): the limit divided by the instances |
//!
//! What a fleet admits of a subject at most, in any time that contains an outage:
//!
//! | policy | bound |
//! |---|---|
//! | `FailOpen` | none |
//! | `FailClosed` | the limit, and one burst more each time that the store loses its data |
//! | `Local` | the limit, if all instances lose the store. An instance that loses it alone admits its share of the rate on top for as long as that lasts |
//!
//! A share begins with this instance's part of what the store had left by its last answer about the subject, less what comes
//! in at the rate of the limit since then, since others may have taken that; without such an answer it begins empty. So
//! the bound of `Local` is exceeded by what other instances took faster than that after the last answer, divided by the
//! instances; by what was admitted by shares of a fleet that is larger than [`live_instances`](FleetRateLimitSnapshot::live_instances)
//! (instances that started after the last heartbeat) or of processes that end before the store is back and are not
//! replaced; by a second of the rate when an instance starts as the store returns; and, for bursts of fewer tokens than
//! instances, by one token for each instance. A share that is not known admits nothing: see
//! [`local_parts`](FleetRateLimitSnapshot::local_parts).
//!
//! When the store is available again, each instance charges it for what it admitted, as far as its share is short of it
//! (an instance that never had an answer, for all that its share is short of, since it may have taken the place of
//! another one), and for tokens that the store can only have because it has lost its data. For two seconds and a budget
//! more, in which the other instances find the store too, calls have to pass the share as well. A refund or a reset by
//! another instance during the outage may be undone by that.
//!
//! After three failures in a row the store is [unavailable](crate::fleet#health): calls go by the policy at once, and a
//! background task asks the store until it answers. Leased tokens that were not spent, unused reservations and refunds are
//! offered to it for up to a second all the same. The gauge `resilience.fleet.degraded` is 1 meanwhile.
//!
//! # Errors
//! [`Rejected`]: [`Reason::RateLimited`] with the wait, [`Reason::TooCostly`], or [`Reason::StoreUnreachable`].
//!
//! # Cancellation
//! A decision that is dropped during its round trip may have been made: its tokens are then spent.
//!
//! # Cost
//! One round trip; none for a call that is denied from the cache or decided by policy. A call that is paid for out of a
//! lease costs a lookup in a lock-free map, one reading of the clock and a compare-and-swap for each limit, and allocates
//! nothing; a lease costs one round trip, in the background, for all calls of a quarter of a lease time. One heartbeat
//! per [interval](crate::fleet::FleetOptions::heartbeat) (2 seconds); where the store has a
//! [heartbeat of its own](crate::fleet::StoreHandle), one every 20 minutes.
//!
//! # References
//! Token bucket: [RFC 2697](https://www.rfc-editor.org/rfc/rfc2697); leases of tokens as in Google Doorman and in
//! [Gubernator](https://github.com/gubernator-io/gubernator)'s batching.

mod agent;
mod builder;
mod costs;
mod counts;
mod decision;
mod demands;
mod denial_cache;
mod export;
mod layer;
mod lease_size;
mod leasing;
mod limiter;
mod local_share;
mod outage;
mod plan;
mod projection;
mod queue;
mod refill;
mod reservation;
mod settings;
mod snapshot;
mod store_steps;
#[cfg(all(test, not(loom)))]
mod tests;
mod token_pool;
mod waiting;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

pub use self::{
    builder::FleetRateLimitBuilder,
    costs::Costs,
    decision::{DecidedBy, Decision, LimitStatus},
    layer::{BySubject, FleetRateLimitLayer, FleetRateLimitService, Pricing, WaitForTokens},
    lease_size::LeaseRules,
    plan::{MAX_LIMITS, Plan, Plans},
    reservation::{Reservation, Settlement},
    settings::Mode,
    snapshot::FleetRateLimitSnapshot,
};
pub use super::held_tokens::HeldTokens;

use self::{agent::LimitAgent, limiter::Limiter};
#[cfg(doc)]
use crate::error::Reason;
use crate::{
    error::{Pattern, Rejected},
    fleet::{self, AgentHandle, StillRunning, StoreHandle, Waker},
    limit::store::StoreError,
    order::{self, Part, setting},
    telemetry,
};

/// A rate limit that instances share through a store. Clones share everything.
///
/// Dropping the last clone gives leased tokens back and takes this instance off the store's list, in the background;
/// [`shutdown`](Self::shutdown) waits for that.
#[derive(Clone)]
pub struct FleetRateLimit {
    front: Arc<Front>,
}

/// The part that all clones hold; the agent holds the limiter only.
struct Front {
    core: Arc<Limiter>,
    agent: AgentHandle,
}

impl FleetRateLimit {
    /// Starts the builder of a limit called `name`, as it appears in rejections, events, metrics and in the store.
    pub fn builder(name: impl Into<Arc<str>>) -> FleetRateLimitBuilder {
        FleetRateLimitBuilder::new(name.into())
    }

    fn start(core: Limiter, handle: &StoreHandle) -> Self {
        let (core, waker) = (Arc::new(core), Waker::new());
        telemetry::register(&core);
        core.client.wake_on_return(waker.clone());
        let agent = LimitAgent::new(Arc::clone(&core));
        let agent = fleet::spawn(agent, None, waker, handle, &core.settings.runtime);
        core.run_in(agent.tasks());
        Self {
            front: Arc::new(Front { core, agent }),
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

    /// Decides as [`check`](Self::check) does, and returns the decision also when the call is rejected: with the state
    /// of all limits.
    ///
    /// # Panics
    /// As [`check`](Self::check).
    #[must_use = "a call that is not admitted must not be made"]
    pub async fn ask(&self, subject: &str, costs: impl Into<Costs<'_>>) -> Decision {
        self.core().ask(subject, costs.into()).await
    }

    /// Takes what a call of `subject` costs, waiting for it if the handle has a
    /// [queue](FleetRateLimitBuilder::queue): calls of a subject are served in order of arrival.
    /// A call is rejected at once if its turn would come too late, or after its [deadline](crate::deadline), as far as
    /// that is known. Nothing happens before the future is polled; dropping it leaves the queue.
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

    /// Takes `costs` for a call whose true cost is known when it is over. See [`Reservation`].
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
    /// [`costs`](FleetRateLimitLayer::costs) says otherwise. All layers share the limit.
    pub fn layer<F>(&self, of: F) -> FleetRateLimitLayer<F> {
        FleetRateLimitLayer::new(BySubject::new(self.clone(), of))
    }

    /// Reads the state of the limits of `subject` from the store. Takes nothing, and is not counted.
    ///
    /// # Errors
    /// When the store gives no answer; at once while it is unavailable.
    pub async fn peek(&self, subject: &str) -> Result<Decision, StoreError> {
        self.core().peek(subject).await
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

    /// Gives all leased tokens that were not spent back to the store, and waits for that. The handle stays usable, and
    /// leases again.
    ///
    /// # Errors
    /// When the store gives no answer. The tokens are lost then, and come in again at the rate of the limit.
    pub async fn return_leases(&self) -> Result<(), StoreError> {
        self.core().sweep(true).await
    }

    /// Ends the background task: gives all leased tokens back to the store, takes this instance off its list, and waits
    /// for that, for at most `within`. The handle stays usable, but leases no more: each call is a round trip.
    ///
    /// # Errors
    /// [`StillRunning`] when it was not done by then. It goes on in the background.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.front.agent.shutdown(within).await
    }

    /// The plan of `subject` now.
    #[must_use]
    pub fn plan_of(&self, subject: &str) -> Plan {
        self.core().plan_of(subject)
    }

    /// Sets shadow mode: everything is decided and counted as usual, and admitted, to see the effect of a limit.
    pub fn set_shadow(&self, shadow: bool) {
        self.core().shadow.store(shadow, Relaxed);
    }

    /// The state of this instance now, and the counts of its decisions so far.
    #[must_use]
    pub fn snapshot(&self) -> FleetRateLimitSnapshot {
        self.core().snapshot()
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core().settings.name
    }

    /// The name of this instance in the store: the configured one, if any, and a random part.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.core().settings.fleet.instance
    }

    fn core(&self) -> &Arc<Limiter> {
        &self.front.core
    }
}

impl fmt::Debug for FleetRateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        order::policy_part(|| {
            let queue = self.core().settings.queue;
            Part::new(Pattern::RateLimit, self.name())
                .set(setting::FLEET, true)
                .set_some(setting::QUEUE, queue.map(|queue| queue.length))
        });
        f.debug_struct("FleetRateLimit")
            .field("name", &self.name())
            .field("instance", &self.instance())
            .field("snapshot", &self.snapshot())
            .finish_non_exhaustive()
    }
}
