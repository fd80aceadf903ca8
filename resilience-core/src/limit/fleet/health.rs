//! Whether the store answers, and how many instances there were when it last did.

use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use tokio::sync::Notify;

use crate::error::Pattern;

/// A store that gave no answer so many times in a row is lost; once may be a hiccup.
const LOST: u32 = 3;

/// Calls do not ask a store that is lost: the agent does, and tells when it is back.
pub(super) struct Health {
    unanswered: AtomicU32,
    degraded: AtomicBool,
    live: AtomicU64,
    closing: AtomicBool,
    /// Rings when there is something for the agent to do before its time.
    pub(super) bell: Notify,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            unanswered: AtomicU32::new(0),
            degraded: AtomicBool::new(false),
            live: AtomicU64::new(1),
            closing: AtomicBool::new(false),
            bell: Notify::new(),
        }
    }

    #[inline]
    pub(super) fn is_degraded(&self) -> bool {
        self.degraded.load(Relaxed)
    }

    /// How many instances there were, this one among them.
    pub(super) fn live(&self) -> u64 {
        self.live.load(Relaxed)
    }

    pub(super) fn saw(&self, live: u64) {
        self.live.store(live.max(1), Relaxed);
    }

    pub(super) fn answered(&self, name: &str) {
        // Written on change only: every call reads these.
        if self.unanswered.load(Relaxed) != 0 {
            self.unanswered.store(0, Relaxed);
        }
        if self.is_degraded() && self.degraded.swap(false, AcqRel) {
            tracing::info!(
                target: "resilience",
                pattern = Pattern::RateLimit.as_str(),
                name,
                "shared state is back"
            );
        }
    }

    pub(super) fn failed(&self, name: &str, reason: &dyn std::fmt::Display, policy: &'static str) {
        let times = self.unanswered.fetch_add(1, Relaxed).saturating_add(1);
        if times >= LOST && !self.degraded.swap(true, AcqRel) {
            tracing::warn!(
                target: "resilience",
                pattern = Pattern::RateLimit.as_str(),
                name,
                reason = %reason,
                policy,
                "no shared state: going on by the policy"
            );
            self.bell.notify_one();
        }
    }

    /// The last handle is gone.
    pub(super) fn close(&self) {
        self.closing.store(true, Release);
        self.bell.notify_one();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Acquire)
    }
}
