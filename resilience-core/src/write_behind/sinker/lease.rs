//! The lease of a batch, as its holder sees it. Pure: time comes in.

use std::time::Duration;

use tokio::time::Instant;

/// A lease that was taken by a request, or renewed by one.
#[derive(Debug)]
pub(super) struct Lease {
    fence: u64,
    length: Duration,
    sent: Instant,
}

impl Lease {
    pub(super) const fn new(fence: u64, sent: Instant, length: Duration) -> Self {
        Self {
            fence,
            length,
            sent,
        }
    }

    pub(super) const fn fence(&self) -> u64 {
        self.fence
    }

    /// By a request that was sent then.
    pub(super) const fn renewed(&mut self, sent: Instant) {
        self.sent = sent;
    }

    /// Until when no other process can have taken the shard: the store counts from when it receives the request, which is after it
    /// was sent. The last twentieth is left to clocks that run at different speeds.
    pub(super) fn certain(&self) -> Instant {
        self.sent + self.length.mul_f64(0.95)
    }

    pub(super) fn renew_at(&self) -> Instant {
        self.sent + self.length / 3
    }

    /// Whether it is certain for this long.
    pub(super) fn covers(&self, time: Duration) -> bool {
        Instant::now() + time.min(self.length / 2) < self.certain()
    }
}
