//! What a call holds while it is in progress.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{current, lease::HeldLease, settings::WhenLost, shared::Shared};
use crate::{
    admission::{self, Portable},
    clock::Moment,
    completion::Guard,
    error::{Reason, Rejected},
    verdict::Verdict,
};

/// Permits of a [`FleetBulkhead`](super::FleetBulkhead). Dropping it gives them back: at once for
/// this instance, in the background for the fleet. If work of the call has taken them
/// [along](crate::admission::carry), their lease is renewed until that has ended too.
#[must_use = "a permit that is dropped is given back"]
pub struct FleetPermit {
    permits: Portable<Held>,
    /// Waits for the loss of the lease, where that ends the call.
    losing: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

/// Some of the bulkhead's permits, under one lease.
struct Held {
    shared: Arc<Shared>,
    cost: u64,
    since: Moment,
    /// `None`: admitted without the store.
    lease: Option<Arc<HeldLease>>,
}

impl FleetPermit {
    pub(super) fn new(shared: Arc<Shared>, cost: u64, lease: Option<Arc<HeldLease>>) -> Self {
        if let Some(lease) = &lease {
            shared.hold(lease);
        }
        let permits = Portable::new(Held {
            since: shared.clock.now(),
            shared,
            cost,
            lease,
        });
        Self {
            permits,
            losing: None,
        }
    }

    /// Returns the fencing token of the lease; `None` for a permit granted without the store.
    ///
    /// It is greater than that of every lease granted before under this name, also after the store
    /// has lost its data (it is never below the store's clock in microseconds). Pass it to a
    /// resource that can reject the older of two writers.
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        self.permits.lease.as_ref().map(|lease| lease.fence)
    }

    /// Returns the lease's id in the store; `None` for a permit granted without the store.
    #[must_use]
    pub fn lease(&self) -> Option<&str> {
        self.permits.lease.as_ref().map(|lease| &*lease.lease)
    }

    /// Returns whether other calls may have taken the permits: the lease ended before it could be
    /// renewed, or the store has given it up. Giving it back then changes nothing. A permit granted
    /// without the store is never lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let now = self.permits.shared.clock.now();
        let lease = self.permits.lease.as_ref();
        lease.is_some_and(|lease| lease.is_lost(now))
    }

    /// Waits until the lease is lost; forever, if it is not. While the store is unavailable, the end
    /// of the lease is noticed at most one time budget of a store step late.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let lease = self.permits.lease.as_ref();
        let lost = lease.map(|lease| lease.lost().clone());
        async move {
            match lost {
                Some(lost) => lost.cancelled().await,
                None => std::future::pending().await,
            }
        }
    }
}

/// How a call ends makes no difference to a bulkhead.
impl Guard for FleetPermit {
    fn settle(&mut self, _: Verdict) {}

    fn name(&self) -> Option<&Arc<str>> {
        Some(&self.permits.shared.name)
    }
}

impl admission::Permit for FleetPermit {
    /// Makes the fencing token visible: see [`current_fence`](super::current_fence).
    #[inline]
    fn enter(&mut self) -> impl Sized {
        (current::enter(self.fence()), self.permits.enter())
    }

    /// Completes when the lease is lost, with [`WhenLost::Abort`].
    #[inline]
    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<Rejected> {
        let Held { shared, lease, .. } = &*self.permits;
        match lease {
            Some(lease) if shared.when_lost == WhenLost::Abort => {
                let wait = || Box::pin(lease.lost().clone().cancelled_owned());
                let losing = self.losing.get_or_insert_with(wait);
                ready!(losing.as_mut().poll(cx));
                Poll::Ready(shared.reject(Reason::LeaseLost))
            }
            _ => Poll::Pending,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(held) = &self.lease {
            self.shared.let_go(held);
            let lease = Arc::clone(&held.lease);
            self.shared.give_back(lease, Some(held.fence));
        } else {
            self.shared.left_without_lease(self.cost);
        }
        self.shared.leave(self.cost, self.since);
    }
}

impl fmt::Debug for FleetPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetPermit")
            .field("bulkhead", &self.permits.shared.name)
            .field("cost", &self.permits.cost)
            .field("fence", &self.fence())
            .field("lost", &self.is_lost())
            .finish()
    }
}
