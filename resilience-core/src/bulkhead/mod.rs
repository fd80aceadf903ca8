//! Bulkhead: a limit on how many calls are in flight at once, so that one slow dependency cannot take all of a
//! program's memory, connections and threads with it.
//!
//! A call that finds no room is rejected at once ([`Reason::Full`]). With a queue
//! ([`queue`](BulkheadBuilder::queue)) it waits its turn, in order of arrival and for a bounded time, after which it is
//! rejected as [`Reason::QueueTimedOut`]. There is no queue unless it is asked for, and
//! none without bounds.
//!
//! It is not a rate limit (it counts calls in flight, not calls per second), and not tower's `ConcurrencyLimit`:
//! that one makes callers wait in `poll_ready`, where clones that have been polled and are never called keep their
//! permits. Here a place is taken in `call`, and idle clones hold nothing.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{Rejected, bulkhead::Bulkhead};
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
//! // The same places, without tower:
//! let permit = bulkhead.acquire().await?;
//! assert_eq!(bulkhead.snapshot().in_flight, 1);
//! drop(permit);
//! # Ok(()) }
//! ```
//!
//! # Between processes
//! This one counts the calls of one process. [`fleet`] holds a whole fleet to one limit, with leases in a store.
//!
//! # Order
//! Outside the circuit breaker, inside the retry: each attempt takes a place of its own and gives it back while the
//! retry waits, and what waits in the queue is no evidence against the dependency. A [`Deadline`](crate::deadline)
//! outside bounds the wait too: a call that would wait beyond it is rejected just before, as `QueueTimedOut`, so that
//! time spent in the queue never looks like a timeout of the dependency.
//!
//! # Errors
//! [`Rejected`] as above, with a [`retry_after`](Rejected::retry_after) estimated from how
//! long calls have held their places lately (see [`retry_after`](BulkheadBuilder::retry_after)). Errors of the inner
//! service are passed on.
//!
//! # Cancellation and panics
//! A dropped call gives its place to whoever has waited longest, or its position in the queue to nobody: those behind
//! move up. A panic of the inner service, in `call` or when it is polled, gives the place back as the future is
//! dropped.
//!
//! # Readiness
//! The service is ready when the inner one is; it never waits in `poll_ready` for a place. A call that has to queue
//! takes a clone of the inner service that was *not* polled ready, and drives it to readiness once it has its place:
//! nothing further down is reserved for a call that waits. For the same reason, a call that is rejected or queued
//! lets go of the readiness of the inner service it was called on. This is why the inner service has to be `Clone`.
//!
//! # Cost
//! A passing call pays one compare-and-swap, one subtraction and a reference count of its own thread's: no
//! allocation, no lock, no clock (one call in 64 reads it twice). A queued call pays for a lock, an allocation and a
//! timer.

mod builder;
pub mod fleet;
mod hold_time;
mod keyed;
mod layer;
mod queue;
mod semaphore;
mod shared;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

pub use self::{
    builder::BulkheadBuilder,
    keyed::{KeyedBulkhead, KeyedBulkheadLayer, KeyedBulkheadService},
    layer::{BulkheadLayer, BulkheadService, ResponseFuture},
};

use self::{hold_time::is_sample, queue::Wait, semaphore::Entry, shared::Shared};
use crate::{
    completion::{self, Guard},
    error::{InvalidConfig, Reason, Rejected},
    stripe::{Local, Striped},
    verdict::Verdict,
};

/// A bulkhead, as its owner holds it. Clones share the places.
#[derive(Clone)]
pub struct Bulkhead {
    shared: Striped<Shared>,
}

impl Bulkhead {
    /// Starts a bulkhead called `name`, as it appears in rejections, events and metrics.
    pub fn builder(name: impl Into<Arc<str>>) -> BulkheadBuilder {
        BulkheadBuilder::new(name.into())
    }

    /// A layer over this bulkhead's places. Any number of them share the places.
    pub fn layer(&self) -> BulkheadLayer {
        BulkheadLayer::new(self.clone(), completion::OnResponse)
    }

    /// Takes a place if there is one, without waiting in any queue.
    ///
    /// # Errors
    /// [`Reason::Full`] if all places are taken, or if others wait for one.
    pub fn try_acquire(&self) -> Result<Permit, Rejected> {
        self.pass().ok_or_else(|| self.shared.reject(Reason::Full))
    }

    /// Takes a place, waiting for it if the bulkhead has a queue. Nothing happens before the future is polled;
    /// dropping it leaves the queue, or gives the place back.
    ///
    /// # Errors
    /// [`Reason::Full`] if there is neither a place nor room in the queue, [`Reason::QueueTimedOut`] if the wait
    /// was too long.
    pub async fn acquire(&self) -> Result<Permit, Rejected> {
        match self.admit() {
            Ok(permit) => Ok(permit),
            Err(denied) => match *denied {
                Denied::Queued(wait) => wait.await,
                Denied::Rejected(rejected) => Err(rejected),
            },
        }
    }

    /// Changes how many calls may be in flight, from now on. Calls that are in flight stay; waiting ones get the
    /// places that are new.
    ///
    /// # Errors
    /// If `max_concurrent` is zero or above 1,048,575.
    pub fn set_max_concurrent(&self, max_concurrent: usize) -> Result<(), InvalidConfig> {
        builder::validate_limit(max_concurrent)?;
        self.shared.semaphore.resize(max_concurrent);
        self.shared.hand_over();
        Ok(())
    }

    /// The state of things at this moment.
    #[must_use]
    pub fn snapshot(&self) -> BulkheadSnapshot {
        self.shared.snapshot()
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// A permit, a place in the queue, or no.
    /// A permit if there is room.
    #[inline]
    fn pass(&self) -> Option<Permit> {
        let passed = self.shared.semaphore.enter()?;
        Some(Permit::fast(self.shared.local(), passed))
    }

    #[inline]
    fn admit(&self) -> Admission {
        match self.pass() {
            Some(permit) => Ok(permit),
            None => self.admit_full(),
        }
    }

    #[cold]
    fn admit_full(&self) -> Admission {
        match self.shared.semaphore.enter_or_queue() {
            Entry::Passed => Ok(Permit::measured(self.shared.local())),
            Entry::Queued(ticket) => {
                let wait = Wait::new(self.shared.local(), ticket);
                Err(Box::new(Denied::Queued(wait)))
            }
            Entry::Full => {
                let rejected = self.shared.reject(Reason::Full);
                Err(Box::new(Denied::Rejected(rejected)))
            }
        }
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulkhead")
            .field("name", &self.name())
            .field("snapshot", &self.snapshot())
            .finish()
    }
}

/// What a [`Bulkhead`] looks like at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BulkheadSnapshot {
    /// Calls that hold a place.
    pub in_flight: usize,
    /// Calls that wait for one.
    pub queued: usize,
    /// How many places there are.
    pub max_concurrent: usize,
    /// Calls rejected so far because there was neither a place nor room in the queue. Of a keyed bulkhead: of the
    /// whole family.
    pub rejected_full: u64,
    /// Calls rejected so far because they waited too long. Of a keyed bulkhead: of the whole family.
    pub rejected_queue_timed_out: u64,
    /// How long a call holds its place, as a moving average over samples; none before the first.
    pub typical_hold: Option<Duration>,
}

/// A place in a [`Bulkhead`], given back when it is dropped.
#[must_use = "a permit that is dropped is given back"]
pub struct Permit {
    shared: Local<Shared>,
    /// When it was given out, in nanoseconds of a [`Moment`], if this permit measures; else zero.
    since: u64,
}

impl Permit {
    #[inline]
    fn fast(shared: Local<Shared>, passed: u32) -> Self {
        if is_sample(passed) {
            return Self::measured(shared);
        }
        Self { shared, since: 0 }
    }

    fn measured(shared: Local<Shared>) -> Self {
        let since = shared.clock.now().as_nanos();
        Self { shared, since }
    }
}

/// How a call ends makes no difference to a bulkhead; that it ends does.
impl Guard for Permit {
    #[inline]
    fn settle(&mut self, _: Verdict) {}
}

impl Drop for Permit {
    #[inline]
    fn drop(&mut self) {
        if self.since != 0 {
            self.shared.record(self.since);
        }
        if self.shared.semaphore.leave() {
            self.shared.hand_over();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("bulkhead", &self.shared.name)
            .finish_non_exhaustive()
    }
}

/// A permit, or something that is only pointed at: a call that passes stays in registers this way.
type Admission = Result<Permit, Box<Denied>>;

/// What becomes of a call that finds no room.
enum Denied {
    Queued(Wait),
    Rejected(Rejected),
}
