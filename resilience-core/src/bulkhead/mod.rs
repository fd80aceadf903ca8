//! Bulkhead: a limit on concurrent calls, so that one slow dependency cannot take all memory,
//! connections and threads of a program.
//!
//! A call that finds no permit is rejected at once ([`Reason::Full`]). With a queue
//! ([`queue`](BulkheadBuilder::queue)) it waits, in order of arrival and for a bounded time, after
//! which it is rejected as [`Reason::QueueTimedOut`]. By default there is no queue; a queue is
//! always bounded.
//!
//! It is not a rate limit (it counts calls in flight, not calls per second), and not tower's
//! `ConcurrencyLimit`: that one makes callers wait in `poll_ready`, where clones that were polled
//! and are never called keep their permits. Here a permit is taken in `call`, and idle clones hold
//! nothing.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{Bulkhead, Rejected};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let bulkhead = Bulkhead::builder("db")
//!     .max_concurrent(32)
//!     .queue(64, Duration::from_millis(100))
//!     .build()?;
//!
//! let service = ServiceBuilder::new()
//!     .layer(bulkhead.layer())
//!     .service(service_fn(|n: u32| async move { Ok::<_, Rejected>(n + 1) }));
//! assert_eq!(service.oneshot(1).await?, 2);
//!
//! // The same permits, without tower:
//! let permit = bulkhead.acquire().await?;
//! assert_eq!(bulkhead.snapshot().in_flight, 1);
//! drop(permit);
//! # Ok(()) }
//! ```
//!
//! # Between processes
//! This bulkhead counts the calls of one process. [`fleet`] limits the calls of a whole fleet, with
//! leases in a store.
//!
//! # Order
//! Outside the circuit breaker, inside the retry: each attempt takes a permit of its own and gives
//! it back while the retry waits, and time spent in the queue is no evidence against the
//! dependency. A [`Deadline`](crate::deadline) further out bounds the wait too: a call that would
//! wait beyond it is rejected just before, as `QueueTimedOut`, so that time spent in the queue never
//! looks like a timeout of the dependency.
//!
//! # Errors
//! [`Rejected`] as above, with a [`retry_after`](Rejected::retry_after) estimated from recent hold
//! times (see [`retry_after`](BulkheadBuilder::retry_after)). Errors of the inner service are passed
//! on.
//!
//! # Cancellation and panics
//! A dropped call passes its permit to the call that has waited longest; one that is dropped in the
//! queue leaves it, and those behind it move up. A panic of the inner service, in `call` or when it
//! is polled, gives the permit back as the future is dropped.
//!
//! # Work that outlives its call
//! Dropping a call does not stop work that it has started elsewhere: a spawned task, a blocking job.
//! Started under [`admission::carry`](crate::admission::carry) or
//! [`carry_fn`](crate::admission::carry_fn), such work holds the permit of its call until it ends, and
//! work in progress is never more than the limit, whatever ends its callers. Idempotent work
//! ([`idempotency`](crate::idempotency)), which goes on when its caller goes away, does so by itself.
//! Otherwise the permit is given back with the call, and each caller that goes away adds one more
//! piece of work.
//!
//! # Readiness
//! As in every layer of [`admission`](crate::admission#readiness): ready when the inner service is;
//! a call that waits reserves nothing further down.
//!
//! # Cost
//! A passing call pays one compare-and-swap, one subtraction and one count on its thread's own
//! reference counter: no allocation, no lock, no clock (one call in 64 reads it twice). A queued
//! call pays for a lock, two allocations and a timer.
//!
//! # References
//! M. Nygard, *Release It!*, 2nd ed. 2018, "Bulkheads"; Little's law for the size of a limit.

mod builder;
pub mod fleet;
mod hold_time;
mod keyed;
mod layer;
mod permit;
mod queue;
mod semaphore;
mod settings;
mod shared;
mod snapshot;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{fmt, sync::Arc};

pub use self::{
    builder::BulkheadBuilder,
    keyed::{KeyedBulkhead, KeyedBulkheadLayer, KeyedBulkheadService},
    layer::{BulkheadLayer, BulkheadService, ResponseFuture},
    permit::Permit,
    queue::Wait,
    snapshot::BulkheadSnapshot,
};

use self::{
    semaphore::Entry,
    settings::{Settings, check_limit},
    shared::{Shared, Totals},
};
use crate::{
    admission::{Admission, AdmissionLayer, Refused},
    error::{InvalidConfig, Pattern, Reason, Rejected},
    order::{self, Part, setting},
    stripe::Striped,
};

/// Limit on concurrent calls. Clones share the permits.
#[derive(Clone)]
pub struct Bulkhead {
    shared: Striped<Shared>,
}

impl Bulkhead {
    fn new(settings: &Settings, totals: &Arc<Totals>) -> Self {
        let shared = Striped::new(Shared::new(settings, Arc::clone(totals)));
        Self { shared }
    }

    /// Returns a builder for a bulkhead called `name` in rejections, events and metrics.
    pub fn builder(name: impl Into<Arc<str>>) -> BulkheadBuilder {
        BulkheadBuilder::new(name.into())
    }

    /// Creates a layer over this bulkhead's permits. Any number of layers share them.
    pub fn layer(&self) -> BulkheadLayer {
        AdmissionLayer::new(self.clone())
    }

    /// Acquires a permit without waiting.
    ///
    /// # Errors
    /// [`Reason::Full`] if all permits are held, or if calls wait for one.
    pub fn try_acquire(&self) -> Result<Permit, Rejected> {
        self.pass().ok_or_else(|| self.shared.reject(Reason::Full))
    }

    /// Acquires a permit, waiting up to the queue's maximum if there is a queue. Nothing happens
    /// before the future is polled; dropping it leaves the queue, or gives the permit back.
    ///
    /// # Errors
    /// [`Reason::Full`] if neither a permit nor room in the queue is left,
    /// [`Reason::QueueTimedOut`] if the wait was too long.
    pub async fn acquire(&self) -> Result<Permit, Rejected> {
        match self.admission() {
            Ok(permit) => Ok(permit),
            Err(refused) => match *refused {
                Refused::Wait(wait) => wait.await,
                Refused::No(rejected) => Err(rejected),
            },
        }
    }

    /// Changes the limit on concurrent calls. Calls in flight go on; queued calls get the permits
    /// that are added.
    ///
    /// # Errors
    /// If `max_concurrent` is zero or above 1,048,575.
    pub fn set_max_concurrent(&self, max_concurrent: usize) -> Result<(), InvalidConfig> {
        check_limit(max_concurrent)?;
        self.shared.semaphore.resize(max_concurrent);
        self.shared.hand_over();
        Ok(())
    }

    /// Returns the state at this moment.
    #[must_use]
    pub fn snapshot(&self) -> BulkheadSnapshot {
        self.shared.snapshot()
    }

    /// Returns the name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Takes a permit if there is room.
    #[inline(always)]
    fn pass(&self) -> Option<Permit> {
        let passed = self.shared.semaphore.enter()?;
        Some(Permit::sampled(self.shared.local(), passed))
    }

    /// Takes a permit or a position in the queue.
    #[inline(always)]
    fn admission(&self) -> Admission<Permit, Wait> {
        match self.pass() {
            Some(permit) => Ok(permit),
            None => self.admission_when_full(),
        }
    }

    #[cold]
    fn admission_when_full(&self) -> Admission<Permit, Wait> {
        match self.shared.semaphore.enter_or_queue() {
            Entry::Passed => Ok(Permit::measured(self.shared.local())),
            Entry::Queued(ticket) => Err(Refused::wait(Wait::new(self.shared.local(), ticket))),
            Entry::Full => Err(Refused::no(self.shared.reject(Reason::Full))),
        }
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        order::policy_part(|| {
            let semaphore = &self.shared.semaphore;
            let queue = semaphore.longest_queue();
            Part::new(Pattern::Bulkhead, self.name())
                .set("max_concurrent", semaphore.load().limit)
                .set_some(setting::QUEUE, (queue > 0).then_some(queue))
        });
        f.debug_struct("Bulkhead")
            .field("name", &self.name())
            .field("snapshot", &self.snapshot())
            .finish()
    }
}
