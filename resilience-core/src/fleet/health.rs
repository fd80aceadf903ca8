//! Whether a store is available: the state machine.

use std::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed},
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
}

impl Health {
    #[inline]
    pub(super) fn is_available(&self) -> bool {
        !self.unavailable.load(Acquire)
    }

    pub(super) fn succeeded(&self) -> Edge {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
        if !self.is_available() && self.unavailable.swap(false, AcqRel) {
            return Edge::Returned;
        }
        Edge::None
    }

    pub(super) fn failed(&self) -> Edge {
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        if failures >= FAILURES && !self.unavailable.swap(true, AcqRel) {
            return Edge::Lost;
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
        assert_eq!(health.failed(), Edge::None);
        assert_eq!(health.failed(), Edge::None);
        assert!(health.is_available());
        assert_eq!(health.failed(), Edge::Lost);
        assert_eq!(health.failed(), Edge::None);
        assert!(!health.is_available());
        assert_eq!(health.succeeded(), Edge::Returned);
        assert_eq!(health.succeeded(), Edge::None);
        assert!(health.is_available());
    }

    #[test]
    fn failures_count_in_a_row_only() {
        let health = Health::default();
        for _ in 0..100 {
            health.failed();
            health.failed();
            health.succeeded();
        }
        assert!(health.is_available());
    }
}
