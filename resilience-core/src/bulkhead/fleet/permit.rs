//! What a call holds.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{builder::WhenLost, shared::Shared};
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
    lost: CancellationToken,
}

impl Held {
    pub(super) fn new(number: u64, lease: Arc<str>, cost: u64, fence: u64, until: Moment) -> Self {
        Self {
            number,
            lease,
            cost,
            fence,
            until: AtomicU64::new(until.as_nanos()),
            lost: CancellationToken::new(),
        }
    }

    pub(super) fn until(&self) -> Moment {
        Moment::from_nanos(self.until.load(Relaxed))
    }

    pub(super) fn prolong(&self, until: Moment) {
        self.until.store(until.as_nanos(), Relaxed);
    }

    pub(super) fn lose(&self) {
        self.lost.cancel();
    }

    fn is_lost(&self, now: Moment) -> bool {
        self.lost.is_cancelled() || self.until() <= now
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
    /// Waits for the loss of the lease, where that ends the call.
    losing: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
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
            losing: None,
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

    /// Completes when the lease is lost and [`WhenLost::Abort`] is set.
    pub(super) fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<Rejected> {
        if self.shared.when_lost != WhenLost::Abort {
            return Poll::Pending;
        }
        let Some(held) = &self.held else {
            return Poll::Pending;
        };
        let losing = self
            .losing
            .get_or_insert_with(|| Box::pin(held.lost.clone().cancelled_owned()));
        ready!(losing.as_mut().poll(cx));
        Poll::Ready(self.shared.reject(Reason::LeaseLost))
    }

    /// Waits until the lease is lost; forever, if it is not. While the store is unavailable, the end of the lease is
    /// noticed within a tenth of its length.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let lost = self.held.as_ref().map(|held| held.lost.clone());
        async move {
            match lost {
                Some(lost) => lost.cancelled().await,
                None => std::future::pending().await,
            }
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
