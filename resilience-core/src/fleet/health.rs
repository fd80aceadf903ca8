//! Whether a store is available: the state machine.

use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// A store that failed this many times in a row is unavailable; fewer may be one lost packet.
const FAILURES: u32 = 3;

/// What one result changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    /// Nothing.
    None,
    /// Available until now.
    Lost,
    /// Unavailable until now.
    Returned,
}

/// Counts failures in a row. Written on change only, since every call reads it.
#[derive(Debug, Default)]
pub(super) struct Health {
    failures: AtomicU32,
    unavailable: AtomicBool,
    /// When that last changed, in nanoseconds of the caller's clock, which is never at zero; zero: it has not.
    changed: AtomicU64,
}

impl Health {
    #[inline]
    pub(super) fn is_available(&self) -> bool {
        !self.unavailable.load(Acquire)
    }

    /// When the store became unavailable; `None` while it is available.
    pub(super) fn lost_at(&self) -> Option<u64> {
        (!self.is_available()).then(|| self.changed.load(Acquire))
    }

    /// When the store became available again; `None` if it always was, or is not.
    #[inline]
    pub(super) fn returned_at(&self) -> Option<u64> {
        let changed = self.changed.load(Acquire);
        (changed > 0 && self.is_available()).then_some(changed)
    }

    /// `now` is read at an edge only.
    pub(super) fn succeeded(&self, now: impl FnOnce() -> u64) -> Edge {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
        if !self.is_available() {
            let now = now();
            if self.unavailable.swap(false, AcqRel) {
                self.changed.store(now, Release);
                return Edge::Returned;
            }
        }
        Edge::None
    }

    /// `now` is read at an edge only.
    pub(super) fn failed(&self, now: impl FnOnce() -> u64) -> Edge {
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        if failures >= FAILURES && self.is_available() {
            let now = now();
            if !self.unavailable.swap(true, AcqRel) {
                self.changed.store(now, Release);
                return Edge::Lost;
            }
        }
        Edge::None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_lost_answer_is_no_outage_and_each_edge_is_told_once() {
        let health = Health::default();
        assert_eq!(health.failed(|| 1), Edge::None);
        assert_eq!(health.failed(|| 2), Edge::None);
        assert!(health.is_available());
        assert_eq!((health.lost_at(), health.returned_at()), (None, None));
        assert_eq!(health.failed(|| 3), Edge::Lost);
        assert_eq!(health.failed(|| 4), Edge::None);
        assert!(!health.is_available());
        assert_eq!((health.lost_at(), health.returned_at()), (Some(3), None));
        assert_eq!(health.succeeded(|| 5), Edge::Returned);
        assert_eq!(health.succeeded(|| 6), Edge::None);
        assert!(health.is_available());
        assert_eq!((health.lost_at(), health.returned_at()), (None, Some(5)));
    }

    #[test]
    fn failures_count_in_a_row_only() {
        let health = Health::default();
        for _ in 0..100 {
            health.failed(|| 1);
            health.failed(|| 1);
            health.succeeded(|| 1);
        }
        assert!(health.is_available());
    }
}
