//! A limit on the concurrent calls of a whole fleet.
//!
//! Many dependencies limit the concurrent calls of all their clients together: a report engine with
//! sixteen workers, a partner that allows eight connections. A bulkhead in each process can only get
//! a fixed part of that. Here a call acquires its permits from a store that the fleet shares, as a
//! **lease** with an id and an end on the store's clock, and gives them back when it has ended. The
//! permits of a process that died become free when their lease ends.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{FleetBulkhead, Rejected, bulkhead::fleet::InProcessBulkheads};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! // In production the store is `redis.bulkheads()`.
//! let reports = FleetBulkhead::builder("reports")
//!     .store(InProcessBulkheads::new())
//!     .max_concurrent(16)
//!     .queue(32, Duration::from_millis(500))
//!     .build()?;
//!
//! let service = ServiceBuilder::new()
//!     .layer(reports.layer().cost(|pages: &u64| pages / 100 + 1))
//!     .service(service_fn(|pages: u64| async move { Ok::<_, Rejected>(pages) }));
//! service.oneshot(250).await?;
//!
//! // The same permits, without tower:
//! let permit = reports.acquire(2).await?;
//! println!("a writer with an older token than {:?} is late", permit.fence());
//! # Ok(()) }
//! ```
//!
//! It is not a mutex for work that must never run twice: the process of a holder can be stopped for
//! longer than its lease, and go on. [`FleetPermit::lost`] completes in the holder, giving the lease
//! back then changes nothing, and its [fencing token](FleetPermit::fence) is older than that of the
//! next holder; but only the resource that it writes to can reject it.
//!
//! # The pieces
//! - [`BulkheadRecord`] is the shared state of one bulkhead with all its transitions, as a pure
//!   state machine. The in-process store keeps it in a map; the scripts of the Redis store make the
//!   same transitions on the same fields, and one conformance suite tests both.
//! - [`BulkheadStore`] is the trait of a store.
//! - One task per bulkhead and instance renews all leases of the instance in one command, about
//!   three times per lease, and gives leases back, as many in one command as are pending.
//!
//! # Cost
//! A call that is admitted waits for one round trip, and for none when it ends. A call in the queue
//! repeats its request when it is woken, and every 200 ms in case the wakeup was lost. An idle
//! instance sends three to four commands per lease.
//!
//! # Errors
//! [`Full`](crate::Reason::Full) and [`QueueTimedOut`](crate::Reason::QueueTimedOut) as with the
//! bulkhead of one process; [`TooCostly`](crate::Reason::TooCostly) for a call that costs more than
//! the limit; [`StoreUnreachable`](crate::Reason::StoreUnreachable) and
//! [`LeaseLost`](crate::Reason::LeaseLost) where the settings say so.
//!
//! # Store outages
//! Each step has a time budget of 250 ms, so that a store that hangs delays a call by two budgets at
//! most. After three failures in a row calls no longer ask the store, until it answers again (see
//! [`fleet`](crate::fleet#health)). [`OnOutage`](crate::fleet::OnOutage) decides about new calls:
//!
//! | policy | new calls |
//! |---|---|
//! | `FailOpen` | pass, counted and without a limit: the dependency is better off overloaded than unused |
//! | `FailClosed` | are rejected as [`StoreUnreachable`](crate::Reason::StoreUnreachable): the limit is a promise |
//! | `Local` (default) | pass up to this instance's [share](crate::fleet#shares), rounded down |
//!
//! For one lease from the first step that failed, the share is what the instance holds, and its part
//! of what the last renewal found free; afterwards its part of the limit. With more instances than
//! permits, nothing passes. A share that is not known admits nothing
//! ([`StoreUnreachable`](crate::Reason::StoreUnreachable)).
//!
//! With `Local` the fleet stays within its limit if all instances lose the store. It exceeds the limit
//! by what was acquired between the last renewal and the outage (at most a third of a lease), divided by the instances;
//! by calls in progress whose leases have ended; and, where one instance loses the store alone, by its share.
//! When the store is back, calls that were admitted without it are entered in it, and for two seconds
//! and a budget more, in which the other instances do the same, new calls must be within the share too.
//!
//! Calls in progress keep their leases until these end, and lose them then. A store that has lost
//! its data (a flushed server, a failover to a replica that lags behind) gets the leases in progress
//! back by the next renewals; until then, for up to a third of a lease, it may grant permits that
//! are held. A request whose answer was lost is repeated under the same id, and given back in the
//! background where that fails too. Releases that fail are repeated until their lease has ended.
//!
//! # Cancellation and panics
//! A dropped call gives its permits back at whatever point: in the queue, while the store is asked,
//! in progress. So does a panic. [Work that outlives its call](super#work-that-outlives-its-call)
//! holds them until it ends, and the lease is renewed for as long. A call that ends because its
//! lease was lost ([`WhenLost::Abort`]) does not end such work.
//!
//! # Readiness
//! As in every layer of [`admission`](crate::admission#readiness): each call waits for the store, so
//! it releases the readiness of the inner service, and readies a clone once it has its permits.
//!
//! # References
//! C. Gray, D. Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache
//! consistency", SOSP 1989; M. Kleppmann, "How to do distributed locking", 2016, for fencing tokens.

mod acquire;
mod agent;
mod builder;
mod current;
mod layer;
mod lease;
mod local_share;
mod memory;
mod permit;
mod record;
mod release_queue;
mod settings;
mod settling;
mod shared;
mod snapshot;
mod store;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::runtime::Handle;

pub use self::{
    builder::FleetBulkheadBuilder,
    current::current_fence,
    layer::{FleetAdmission, FleetBulkheadLayer, FleetBulkheadService, ResponseFuture, Wait},
    memory::InProcessBulkheads,
    permit::FleetPermit,
    record::{
        AcquireRequest, Admission, BulkheadRecord, BulkheadView, Heartbeat, Holding, Release, Step,
    },
    settings::WhenLost,
    snapshot::FleetBulkheadSnapshot,
    store::{BulkheadStore, StoreError, StoreFuture, Wakeup, Wakeups},
};

use self::{agent::BulkheadAgent, settings::Settings, shared::Shared};
use super::settings::check_limit;
use crate::{
    admission::AdmissionLayer,
    error::{InvalidConfig, Rejected},
    fleet::{StillRunning, spawn},
    telemetry,
};

/// Limit on the concurrent calls of a fleet. Clones share it.
#[derive(Clone)]
pub struct FleetBulkhead {
    shared: Arc<Shared>,
}

impl FleetBulkhead {
    /// Returns a builder for a bulkhead called `name` in rejections, events and metrics, and in its
    /// store.
    pub fn builder(name: impl Into<Arc<str>>) -> FleetBulkheadBuilder {
        FleetBulkheadBuilder::new(name.into())
    }

    fn start(settings: Settings, runtime: &Handle) -> Self {
        let shared = Arc::new(Shared::new(settings));
        telemetry::register(&shared);
        let (agent, waker) = (BulkheadAgent::new(&shared), shared.waker.clone());
        shared.client.wake_on_return(waker.clone());
        shared.keep(spawn(agent, None, waker, &shared.store_handle, runtime));
        Self { shared }
    }

    /// Creates a layer over this bulkhead's permits. Each call takes one unless
    /// [`cost`](FleetBulkheadLayer::cost) says otherwise. Any number of layers share the permits.
    pub fn layer(&self) -> FleetBulkheadLayer {
        AdmissionLayer::new(FleetAdmission::new(Arc::clone(&self.shared)))
    }

    /// Acquires `cost` permits, waiting up to the queue's maximum if there is a queue. A cost of
    /// zero always passes. Nothing happens before the future is polled; dropping it leaves the
    /// queue, or gives the permits back. One round trip.
    ///
    /// # Errors
    /// [`Full`](crate::Reason::Full) if neither permits nor room in the queue are left,
    /// [`QueueTimedOut`](crate::Reason::QueueTimedOut) if the wait was too long,
    /// [`TooCostly`](crate::Reason::TooCostly) if `cost` is above the limit,
    /// [`StoreUnreachable`](crate::Reason::StoreUnreachable) if the store gives no answer and the
    /// outage policy is `FailClosed`, or `Local` and the share is not known.
    pub async fn acquire(&self, cost: u64) -> Result<FleetPermit, Rejected> {
        acquire::acquire(Arc::clone(&self.shared), cost).await
    }

    /// Changes the limit that this instance's requests carry. Calls in progress go on.
    ///
    /// # Errors
    /// If `max_concurrent` is zero or above 1,048,575.
    pub fn set_max_concurrent(&self, max_concurrent: usize) -> Result<(), InvalidConfig> {
        check_limit(max_concurrent)?;
        self.shared.limit.store(max_concurrent as u64, Relaxed);
        Ok(())
    }

    /// Reads the state of the whole fleet. One round trip.
    ///
    /// # Errors
    /// If the store gives no answer within its time budget; at once while it is unavailable.
    pub async fn fleet_view(&self) -> Result<BulkheadView, StoreError> {
        let (client, name) = (&self.shared.client, &*self.shared.name);
        client.call(|store| store.view(name)).await
    }

    /// Ends the background task: keeps the leases of calls in progress until these have ended, gives
    /// back all permits, and leaves the list of live instances. Waits for that, for at most
    /// `within`.
    ///
    /// From then on new calls and those in the queue are decided by the outage policy, without the
    /// store. Cancel safe: the shutdown goes on.
    ///
    /// # Errors
    /// [`StillRunning`] if calls were still in progress, or the store was still unavailable, by
    /// then. The task goes on in the background.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        match self.shared.agent() {
            Some(agent) => agent.shutdown(within).await,
            None => Ok(()),
        }
    }

    /// Returns the state at this moment, as this instance knows it.
    #[must_use]
    pub fn snapshot(&self) -> FleetBulkheadSnapshot {
        self.shared.snapshot()
    }

    /// Returns the name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Returns the name of this instance, with its random part.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.shared.instance
    }
}

impl fmt::Debug for FleetBulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetBulkhead")
            .field("name", &self.name())
            .field("store", self.shared.client.store())
            .field("snapshot", &self.snapshot())
            .finish()
    }
}
