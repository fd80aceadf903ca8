//! A limit on how many calls a whole fleet has in flight at once.
//!
//! Many dependencies take so many calls at a time, whoever makes them: a report engine with sixteen workers, a partner
//! that allows eight connections. A bulkhead in each process can only be given a fixed part of that. Here a call takes
//! its places from a store that the fleet shares, as a **lease** with an id and an end on the store's clock, and gives
//! them back when it is over. Places of a process that died come free by themselves.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{Rejected, bulkhead::fleet::{FleetBulkhead, InProcessBulkheads}};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! // In production the store is `redis.bulkheads()`.
//! let reports = FleetBulkhead::builder("reports", InProcessBulkheads::new())
//!     .max_concurrent(16)
//!     .queue(32, Duration::from_millis(500))
//!     .build()?;
//!
//! let service = ServiceBuilder::new()
//!     .layer(reports.layer().cost(|pages: &u64| pages / 100 + 1))
//!     .service(service_fn(|pages: u64| async move { Ok::<_, Rejected>(pages) }));
//! service.oneshot(250).await?;
//!
//! // The same places, without tower:
//! let permit = reports.acquire(2).await?;
//! println!("whoever writes with an older token than {:?} is late", permit.fence());
//! # Ok(()) }
//! ```
//!
//! It is not a mutex for what must never happen twice: a holder can be stopped for longer than its lease, and go on.
//! It is told ([`FleetPermit::lost`]), what it gives back then changes nothing, and its
//! [fencing token](FleetPermit::fence) is older than that of whoever came after it; but only what it writes to can
//! refuse it.
//!
//! # The pieces
//! - [`BulkheadRecord`] is the shared state of one bulkhead, and everything that may happen to it: pure. The in-process store
//!   keeps it in a map; the Redis store's scripts do the same things to the same fields, and one conformance suite holds
//!   both to it.
//! - [`BulkheadStore`] is what a store offers.
//! - One task per bulkhead and instance renews all leases of the instance in one command, three times a lease, and gives
//!   back what calls held, as many in one command as have piled up.
//!
//! # Cost
//! One round trip for a call that finds room, and none that it waits for when it is over. A call that waits asks again
//! when it is called up, and every 200 ms in case that got lost. An instance at rest sends three commands a lease.
//!
//! # Errors
//! [`Full`](crate::Reason::Full) and [`QueueTimedOut`](crate::Reason::QueueTimedOut) as with the bulkhead of one process;
//! [`TooCostly`](crate::Reason::TooCostly) for a call that wants more places than there are;
//! [`StoreUnreachable`](crate::Reason::StoreUnreachable) and [`LeaseLost`](crate::Reason::LeaseLost) where the settings say so.
//!
//! # When the store is away
//! [`Unreachable`] says what becomes of new calls. Those in flight keep their leases until these run out, and lose them
//! then. A store that has forgotten (a flushed server, a failover to a replica that had not heard) is told by the
//! heartbeats what is in flight; until then, for up to a third of a lease, it may grant places that are taken. A wish
//! whose answer was lost is asked again under the same id, and given back in the background where that fails too; what
//! cannot be given back comes free with its lease.
//!
//! # Cancellation and panics
//! A dropped call gives its places back, at whatever point: in the queue, while the store is asked, in flight. So does a
//! panic.
//!
//! # Readiness
//! The service is ready when the inner one is. A call lets go of what it readied below, and readies a clone once it has
//! its places: nothing further down is held while the store is asked. This is why the inner service has to be `Clone`.

mod acquire;
mod agent;
mod builder;
mod current;
mod layer;
mod memory;
mod permit;
mod record;
mod shared;
mod store;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

pub use self::{
    builder::{FleetBulkheadBuilder, Unreachable, WhenLost},
    current::current_fence,
    layer::{FleetAdmission, FleetBulkheadLayer, FleetBulkheadService, ResponseFuture, Wait},
    memory::InProcessBulkheads,
    permit::FleetPermit,
    record::{
        AcquireRequest, Admission, BulkheadRecord, BulkheadView, Heartbeat, Holding, Release, Step,
    },
    store::{BulkheadStore, StoreError, StoreFuture, Wakeup, Wakeups},
};

use self::shared::Shared;
use super::settings::check_limit;
use crate::{
    admission::AdmissionLayer,
    error::{InvalidConfig, Rejected},
};

/// A limit on what a fleet has in flight, as one instance holds it. Clones share it.
#[derive(Clone)]
pub struct FleetBulkhead {
    shared: Arc<Shared>,
}

impl FleetBulkhead {
    /// Starts a bulkhead called `name`, as it appears in rejections, events and metrics, and in `store`: instances
    /// share what has the same name in the same store.
    pub fn builder(name: impl Into<Arc<str>>, store: impl BulkheadStore) -> FleetBulkheadBuilder {
        FleetBulkheadBuilder::new(name.into(), Arc::new(store))
    }

    /// A layer over this bulkhead's places; each call takes one unless [`cost`](FleetBulkheadLayer::cost) says otherwise. Any
    /// number of them share the places.
    pub fn layer(&self) -> FleetBulkheadLayer {
        AdmissionLayer::new(FleetAdmission::new(Arc::clone(&self.shared)))
    }

    /// Takes `cost` places, waiting for them if the bulkhead has a queue. A cost of zero always passes. Nothing happens
    /// before the future is polled; dropping it leaves the queue, or gives the places back.
    ///
    /// # Errors
    /// [`Full`](crate::Reason::Full) if there are neither places nor room in the queue,
    /// [`QueueTimedOut`](crate::Reason::QueueTimedOut) if the wait was too long,
    /// [`TooCostly`](crate::Reason::TooCostly) if there are not so many places at all,
    /// [`StoreUnreachable`](crate::Reason::StoreUnreachable) if the store gives no answer and calls are not to pass without it.
    pub async fn acquire(&self, cost: u64) -> Result<FleetPermit, Rejected> {
        acquire::acquire(Arc::clone(&self.shared), cost).await
    }

    /// Changes how many places there are, as far as this instance is concerned. Calls that are in flight stay.
    ///
    /// # Errors
    /// If `max_concurrent` is zero or above 1,048,575.
    pub fn set_max_concurrent(&self, max_concurrent: usize) -> Result<(), InvalidConfig> {
        check_limit(max_concurrent)?;
        self.shared.limit.store(max_concurrent as u64, Relaxed);
        Ok(())
    }

    /// How the whole fleet stands: one round trip to the store.
    ///
    /// # Errors
    /// When the store gives no answer.
    pub async fn view(&self) -> Result<BulkheadView, StoreError> {
        self.shared.store.view(&self.shared.name).await
    }

    /// How this instance stands at this moment.
    #[must_use]
    pub fn snapshot(&self) -> FleetBulkheadSnapshot {
        self.shared.snapshot()
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What this instance calls itself.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.shared.instance
    }
}

impl fmt::Debug for FleetBulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetBulkhead")
            .field("name", &self.name())
            .field("store", &self.shared.store)
            .field("snapshot", &self.snapshot())
            .finish()
    }
}

/// What a [`FleetBulkhead`] looks like at one moment, from within one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FleetBulkheadSnapshot {
    /// Places that calls of this instance hold.
    pub in_flight: u64,
    /// Calls of this instance that wait for places.
    pub waiting: usize,
    /// How many places the whole fleet has.
    pub max_concurrent: u64,
    /// Instances alive, this one included, when the store last answered a heartbeat.
    pub live_instances: u64,
    /// Whether the store could not be reached the last time.
    pub degraded: bool,
    /// Calls so far whose lease was lost while they were in flight.
    pub lost: u64,
    /// Calls rejected so far because there were neither places nor room in the queue.
    pub rejected_full: u64,
    /// Calls rejected so far because they waited too long.
    pub rejected_queue_timed_out: u64,
    /// Calls rejected so far because they wanted more places than there are.
    pub rejected_too_costly: u64,
    /// Calls rejected so far because the store gave no answer.
    pub rejected_store_unreachable: u64,
    /// Calls given up so far because their lease was lost.
    pub rejected_lease_lost: u64,
}
