//! A lease that this instance holds.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio_util::sync::CancellationToken;

use crate::clock::Moment;

/// A lease of this instance.
pub(super) struct HeldLease {
    /// Key within this instance.
    pub(super) number: u64,
    pub(super) lease: Arc<str>,
    pub(super) cost: u64,
    pub(super) fence: u64,
    /// Until when the store cannot have given it to another call: nanoseconds of a [`Moment`].
    until: AtomicU64,
    lost: CancellationToken,
}

impl HeldLease {
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

    pub(super) fn extend(&self, until: Moment) {
        self.until.store(until.as_nanos(), Relaxed);
    }

    pub(super) fn lose(&self) {
        self.lost.cancel();
    }

    /// Cancelled when the lease is lost.
    pub(super) const fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    pub(super) fn is_lost(&self, now: Moment) -> bool {
        self.lost.is_cancelled() || self.until() <= now
    }
}
