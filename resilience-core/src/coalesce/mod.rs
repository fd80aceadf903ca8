//! Coalescing: callers that ask for one key at a time share one call (singleflight).
//!
//! For reads that many callers make at the same time: a popular product, a token that has just expired, a page under a
//! burst. The first caller of a key starts the call, those that come while it is in progress join it, and all get a clone
//! of its response. Nothing is stored: a caller that comes after the response starts another call.
//!
//! ```
//! use resilience_core::{Coalesce, Rejected};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let coalesce = Coalesce::builder("products").build()?;
//!
//! let service = ServiceBuilder::new()
//!     .layer(coalesce.layer(|id: &u64| Some(*id)))
//!     .service(service_fn(|id: u64| async move {
//!         tokio::task::yield_now().await;
//!         Ok::<_, Rejected>(format!("product {id}"))
//!     }));
//! let (one, other) = tokio::join!(service.clone().oneshot(7), service.oneshot(7));
//! assert_eq!((one?.as_str(), other?.as_str()), ("product 7", "product 7"));
//! assert_eq!(coalesce.snapshot().started, 1);
//!
//! // Without tower:
//! let prices = Coalesce::builder("prices").build()?;
//! let price = prices.run(7, || async { Ok::<_, std::io::Error>(399) }).await;
//! assert_eq!(price.unwrap(), 399);
//! # Ok(()) }
//! ```
//!
//! It is not a cache, which keeps responses, nor [`idempotency`](crate::idempotency), which makes writes that are repeated
//! take effect once. Only reads may be coalesced.
//!
//! # The key
//! Whatever distinguishes two responses belongs in the key: the resource, **the identity of the caller** unless all may see
//! the same response, and what was negotiated (language, encoding). A key without the identity shows one user's data to
//! another. `None` makes a call by itself: for writes, and for requests of which the key cannot be told. There is no default
//! key. The handle's layers share their calls: what two of them call under one key has to be the same.
//!
//! # How a call is shared
//! No task is spawned. One of the callers drives the call, i.e. polls it in its own task; the others wait, and are woken once,
//! when it is over. When the driver is dropped (its client hung up, its deadline is over), another one goes on with the same
//! call. When all are dropped, so is the call.
//!
//! - **Age**: a call is joined while it is younger than [`max_age`](CoalesceBuilder::max_age). A later caller starts another
//!   one, so that a call that hangs does not hold up callers that come later. A response is never from a call that began longer
//!   than that before its caller came.
//! - **Read your own write**: a read that was begun before a write may return what was there before.
//!   [`CoalesceLayer::fresh`] and [`Coalesce::run_fresh`] never join a call in progress, and are joined by later callers.
//! - **Waiters** of one call are [bounded](CoalesceBuilder::max_waiters); those beyond share another call.
//!
//! # Errors
//! Responses are cloned; errors need not be `Clone`. When a call fails, the caller that drove it gets its error. The others
//! begin again together, once, so that one unlucky call does not fail a thousand callers: one of them starts another call, which
//! the others join. If that fails too, its driver gets the error, the others [`Reason::SharedCallFailed`]. A [`Rejected`]
//! of a layer below is passed on to all callers at once (a timeout the second time: the time that was over may have been another
//! caller's). With [`share_errors`](CoalesceBuilder::share_errors) all callers get a copy of the first error. A response that
//! reports a failure, as in HTTP, is a response, and is shared.
//!
//! # Panics
//! A panic of the call goes on in the caller that drove it. For the others it is a failure.
//!
//! # Deadlines
//! A caller that runs out of time leaves alone: its own timeout, outside of this layer, ends it. The call runs under the latest
//! [deadline](crate::deadline) of its callers. Layers below that read the deadline only when they are called, as
//! [`Timeout`](crate::Timeout) does, see that of the callers that had come by then; [`min_time`](CoalesceBuilder::min_time) gives
//! each call a minimum. Other task-local values (spans, [`retry::attempt`](crate::retry::attempt)) are those of the driver.
//!
//! # Readiness and cancellation
//! Always ready, as callers that join a call need nothing of the inner service. A call drives the inner service to
//! readiness itself; callers that wait hold nothing of it. Dropping a future leaves the call. A caller that keeps its future
//! without polling it, e.g. beside another branch of a `select!`, may hold up the others until one of them is polled, e.g. the next
//! that comes.
//!
//! # Order
//! Outside of the retry, the breaker and the bulkhead, which then see one call, and inside the layers that decide for each
//! caller: deadline, authentication, rate limits per client, cache. A call that waits for its own key, i.e. a recursive one,
//! waits until its deadline.
//!
//! # Cost
//! A call without a key costs a branch. A call with one: two or three allocations, two locks of one shard of a hash map, and a clone
//! of the inner service; a caller that joins: an allocation, a lock, a clone of the response and of the inner service.
//!
//! # References
//! Go, package `golang.org/x/sync/singleflight`; M. Brooker, "Caching challenges and strategies", Amazon Builders' Library;
//! B. Fitzpatrick, groupcache, 2013.

mod builder;
mod call;
mod flight;
mod group;
mod layer;
#[cfg(all(test, loom))]
mod loom_tests;
mod outcome;
mod shared;
mod snapshot;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{fmt, hash::Hash, sync::Arc};

pub use self::{
    builder::CoalesceBuilder,
    layer::{CoalesceLayer, CoalesceService, IsFresh, NeverFresh, ResponseFuture},
    snapshot::CoalesceSnapshot,
};

pub(crate) use self::group::{FlightOptions, FlightPanicked, Flights, Joined};
use self::{
    call::{Closure, SharedCall},
    shared::Shared,
};
use crate::error::Error;
#[cfg(doc)]
use crate::error::{Reason, Rejected};

/// Calls that callers of one key share: keys `K`, responses `T`, errors `E`. Clones share the calls.
///
/// The types follow from the use; where they are written, as in a field: `Coalesce<u64, Product, sqlx::Error>`.
pub struct Coalesce<K, T, E> {
    shared: Arc<Shared<K, T, E>>,
}

impl<K, T, E> Coalesce<K, T, E> {
    /// Returns a builder for a handle called `name` in rejections, events and metrics.
    pub fn builder(name: impl Into<Arc<str>>) -> CoalesceBuilder<K, T, E> {
        CoalesceBuilder::new(name.into())
    }
}

impl<K, T, E> Coalesce<K, T, E>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
    E: Send + 'static,
{
    /// Creates a layer that coalesces requests by `key`. `None`: this request is called by itself.
    pub fn layer<Req, F>(&self, key: F) -> CoalesceLayer<K, T, E, F>
    where
        F: Fn(&Req) -> Option<K>,
    {
        CoalesceLayer::new(self.clone(), key)
    }

    /// Runs `work`, or waits for the work of `key` that is in progress. Does nothing until polled.
    ///
    /// `work` is called at most once, possibly later, if the work that was joined fails. Its future has to be `'static`, as
    /// other callers may go on with it.
    ///
    /// # Errors
    /// [`Error::Service`] with the error of the work; [`Error::Rejected`] with [`Reason::SharedCallFailed`] if other
    /// callers' work failed twice.
    pub async fn run<F, Fut>(&self, key: K, work: F) -> Result<T, Error<E>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        SharedCall::new(self, key, false, Closure(work)).await
    }

    /// As [`run`](Self::run), but never joins work that is in progress: the work begins after this was called, and later
    /// callers join it. For reads after a write of one's own.
    ///
    /// # Errors
    /// [`Error::Service`] with the error of the work.
    pub async fn run_fresh<F, Fut>(&self, key: K, work: F) -> Result<T, Error<E>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        SharedCall::new(self, key, true, Closure(work)).await
    }

    /// Lets the next caller of `key` start a new call, e.g. after a write. A call in progress goes on for those that wait
    /// for it.
    pub fn forget(&self, key: &K) {
        self.shared.flights.forget(key);
    }
}

impl<K, T, E> Coalesce<K, T, E> {
    /// Returns the name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.count.name
    }

    /// Returns the state at this moment. Locks each shard of the map of calls in turn.
    #[must_use]
    pub fn snapshot(&self) -> CoalesceSnapshot {
        self.shared.count.snapshot()
    }
}

impl<K, T, E> Clone for Coalesce<K, T, E> {
    fn clone(&self) -> Self {
        let shared = Arc::clone(&self.shared);
        Self { shared }
    }
}

impl<K, T, E> fmt::Debug for Coalesce<K, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coalesce")
            .field("name", &self.name())
            .field("snapshot", &self.snapshot())
            .finish()
    }
}
