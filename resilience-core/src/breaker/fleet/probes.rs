//! The fleet's probes that this instance holds.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::probe_lease::Lease;
use crate::clock::Moment;

/// Probes are all alike: whichever call comes back first settles the one that is longest out. So a call need not
/// carry its own, and the calls that have none are not larger for it.
#[derive(Default)]
pub(in crate::breaker) struct HeldProbes(Mutex<Held>);

#[derive(Default)]
struct Held {
    out: Vec<Lease>,
    /// One that came too late for the call that it was asked for, and until when it may wait for another.
    parked: Option<(Lease, Moment)>,
}

impl HeldProbes {
    pub(in crate::breaker) fn send(&self, lease: Lease) {
        self.lock().out.push(lease);
    }

    /// A call came back: `None` says nothing, and gives the probe back.
    pub(in crate::breaker) fn settle(&self, success: Option<bool>) {
        let mut held = self.lock();
        if !held.out.is_empty() {
            held.out.remove(0).settle(success);
        }
    }

    /// Keeps a probe for the next call that cannot wait for one.
    pub(in crate::breaker) fn park(&self, lease: Lease, now: Moment) {
        let until = now + lease.time() / 2;
        self.lock().parked = Some((lease, until));
    }

    pub(in crate::breaker) fn unpark(&self, now: Moment) -> Option<Lease> {
        let (lease, until) = self.lock().parked.take()?;
        (now < until).then_some(lease)
    }

    /// The fleet has moved on: what comes back now says nothing.
    pub(in crate::breaker) fn give_all_back(&self) {
        let held = std::mem::take(&mut *self.lock());
        drop(held);
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
