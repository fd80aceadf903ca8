//! Releases that the store has not confirmed yet.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::record::Release;
use crate::clock::Moment;

/// A release, and until when it matters: the lease ends by itself then.
pub(super) struct PendingRelease {
    pub(super) release: Release,
    pub(super) until: Moment,
}

/// Pending releases in order of arrival. Bounded by the calls in progress; outlives the bulkhead.
#[derive(Default)]
pub(super) struct ReleaseQueue(Mutex<Vec<PendingRelease>>);

impl ReleaseQueue {
    pub(super) fn push(&self, pending: PendingRelease) {
        self.lock().push(pending);
    }

    /// Takes up to `most` of the oldest.
    pub(super) fn take(&self, most: usize) -> Vec<PendingRelease> {
        let mut queue = self.lock();
        let count = queue.len().min(most);
        queue.drain(..count).collect()
    }

    /// Takes back what could not be sent. Whether there was any.
    pub(super) fn put_back(&self, pending: &mut Vec<PendingRelease>) -> bool {
        if pending.is_empty() {
            return false;
        }
        self.lock().append(pending);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PendingRelease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
