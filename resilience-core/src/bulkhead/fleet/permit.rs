//! What a call holds.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::watch;

use super::shared::Shared;
use crate::{
    clock::Moment,
    completion::Guard,
    error::{Reason, Rejected},
    verdict::Verdict,
};

/// A lease of this instance.
pub(super) struct Held {
    pub(super) number: u64,
    pub(super) lease: Arc<str>,
    pub(super) cost: u64,
    pub(super) fence: u64,
    /// Until when it is certain that the store has not given it to others: nanoseconds of a [`Moment`].
    until: AtomicU64,
    lost: watch::Sender<bool>,
}

impl Held {
    pub(super) fn new(number: u64, lease: Arc<str>, cost: u64, fence: u64, until: Moment) -> Self {
        Self {
            number,
            lease,
            cost,
            fence,
            until: AtomicU64::new(until.as_nanos()),
            lost: watch::Sender::new(false),
        }
    }

    pub(super) fn until(&self) -> Moment {
        Moment::from_nanos(self.until.load(Relaxed))
    }

    pub(super) fn prolong(&self, until: Moment) {
        self.until.store(until.as_nanos(), Relaxed);
    }

    pub(super) fn lose(&self) {
        self.lost.send_replace(true);
    }

    fn is_lost(&self, now: Moment) -> bool {
        *self.lost.borrow() || self.until() <= now
    }
}

/// Places in a [`FleetBulkhead`](super::FleetBulkhead), given back when it is dropped: at once for this instance, and
/// in the background for the fleet.
#[must_use = "a permit that is dropped is given back"]
pub struct FleetPermit {
    shared: Arc<Shared>,
    cost: u64,
    since: Moment,
    /// None: admitted without the store.
    held: Option<Arc<Held>>,
}

impl FleetPermit {
    pub(super) fn new(shared: Arc<Shared>, cost: u64, held: Option<Arc<Held>>) -> Self {
        let since = shared.clock.now();
        if let Some(held) = &held {
            shared.hold(held);
        }
        Self {
            shared,
            cost,
            since,
            held,
        }
    }

    /// The fencing token of the lease: greater than that of every lease granted before under this name, also when the
    /// store has lost its memory in between (it is never below the store's clock in microseconds). Hand it to whatever
    /// can refuse the older of two writers. None for a permit that was given without the store.
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.fence)
    }

    /// The lease's id in the store. None for a permit that was given without the store.
    #[must_use]
    pub fn lease(&self) -> Option<&str> {
        self.held.as_ref().map(|held| &*held.lease)
    }

    /// Whether others may have taken the places: the lease ran out before it could be renewed, or the store said so.
    /// Releasing it then changes nothing. A permit that was given without the store is never lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let now = self.shared.clock.now();
        self.held.as_ref().is_some_and(|held| held.is_lost(now))
    }

    pub(super) fn given_up(self, reason: Reason) -> Rejected {
        self.shared.reject(reason)
    }

    /// Waits until the lease is lost; for ever, if it is not. Told by the heartbeat: within a tenth of the lease after
    /// its end while the store is away.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let lost = self.held.as_ref().map(|held| held.lost.subscribe());
        async move {
            if let Some(mut lost) = lost
                && lost.wait_for(|lost| *lost).await.is_ok()
            {
                return;
            }
            std::future::pending().await
        }
    }
}

/// How a call ends makes no difference to a bulkhead; that it ends does.
impl Guard for FleetPermit {
    fn settle(&mut self, _: Verdict) {}
}

impl Drop for FleetPermit {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            self.shared.let_go(held);
            self.shared
                .give_back(Arc::clone(&held.lease), Some(held.fence));
        }
        self.shared.leave(self.cost, self.since);
    }
}

impl fmt::Debug for FleetPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetPermit")
            .field("bulkhead", &self.shared.name)
            .field("cost", &self.cost)
            .field("fence", &self.fence())
            .field("lost", &self.is_lost())
            .finish()
    }
}
