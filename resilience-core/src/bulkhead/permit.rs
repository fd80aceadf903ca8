//! What a call holds while it is in progress.

use std::{fmt, sync::Arc};

use super::{hold_time::is_sample, shared::Shared};
use crate::{
    admission::{self, Portable},
    completion::Guard,
    stripe::Local,
    verdict::Verdict,
};

/// Permit of a [`Bulkhead`](super::Bulkhead). Dropping it gives it back, unless work of the call has
/// taken it [along](crate::admission::carry): then it is given back when that has ended too.
#[must_use = "a permit that is dropped is given back"]
pub struct Permit(Portable<Held>);

/// One of the bulkhead's permits.
struct Held {
    shared: Local<Shared>,
    /// When it was given out, in nanoseconds of a [`Moment`](crate::Moment), if its hold time is
    /// measured; otherwise zero.
    since: u64,
}

impl Permit {
    /// The permit of a call that passed without waiting; one in 64 is measured.
    #[inline]
    pub(super) fn sampled(shared: Local<Shared>, passed: u32) -> Self {
        let since = if is_sample(passed) { now(&shared) } else { 0 };
        Self(Portable::new(Held { shared, since }))
    }

    pub(super) fn measured(shared: Local<Shared>) -> Self {
        let since = now(&shared);
        Self(Portable::new(Held { shared, since }))
    }

    #[inline]
    pub(super) const fn unmeasured(shared: Local<Shared>) -> Self {
        Self(Portable::new(Held { shared, since: 0 }))
    }
}

#[cold]
#[inline(never)]
fn now(shared: &Shared) -> u64 {
    shared.clock.now().as_nanos()
}

/// How a call ends makes no difference to a bulkhead.
impl Guard for Permit {
    #[inline]
    fn settle(&mut self, _: Verdict) {}

    fn name(&self) -> Option<&Arc<str>> {
        Some(&self.0.shared.name)
    }
}

impl admission::Permit for Permit {
    #[inline(always)]
    fn enter(&mut self) -> impl Sized {
        self.0.enter()
    }
}

impl Drop for Held {
    #[inline(always)]
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
            .field("bulkhead", &self.0.shared.name)
            .finish_non_exhaustive()
    }
}
