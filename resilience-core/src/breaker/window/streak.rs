//! Failures in a row.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use crossbeam_utils::CachePadded;

use crate::sync::atomic::AtomicU64;

/// `generation << 32 | failures in a row`. A success only reads it, unless there is a row to end.
#[derive(Debug)]
pub(in crate::breaker) struct Streak(CachePadded<AtomicU64>);

impl Streak {
    pub(in crate::breaker) fn new(generation: u64) -> Self {
        Self(CachePadded::new(AtomicU64::new(stamp(generation))))
    }

    /// How many failures in a row there are now; zero if the result is stale.
    #[inline]
    pub(in crate::breaker) fn record(&self, generation: u64, failed: bool) -> u32 {
        let (mine, mut seen) = (stamp(generation), self.0.load(Relaxed));
        loop {
            let row = seen as u32;
            if seen ^ u64::from(row) != mine || (row == 0 && !failed) {
                return 0;
            }
            let next = if failed { row.saturating_add(1) } else { 0 };
            let swap = self
                .0
                .compare_exchange_weak(seen, mine | u64::from(next), SeqCst, Relaxed);
            match swap {
                Ok(_) => return next,
                Err(other) => seen = other,
            }
        }
    }

    pub(in crate::breaker) fn get(&self, generation: u64) -> u32 {
        let seen = self.0.load(Relaxed);
        let row = seen as u32;
        if seen ^ u64::from(row) == stamp(generation) {
            row
        } else {
            0
        }
    }

    pub(in crate::breaker) fn reset(&self, generation: u64) {
        self.0.swap(stamp(generation), SeqCst);
    }
}

fn stamp(generation: u64) -> u64 {
    generation << 32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_success_ends_the_row_and_a_stale_one_does_not() {
        let streak = Streak::new(1);
        assert_eq!((streak.record(1, true), streak.record(1, true)), (1, 2));
        assert_eq!(streak.record(0, false), 0);
        assert_eq!(streak.record(0, true), 0);
        assert_eq!(streak.get(1), 2);
        assert_eq!(streak.record(1, false), 0);
        assert_eq!(streak.record(1, true), 1);
        streak.reset(2);
        assert_eq!(
            (
                streak.get(2),
                streak.record(1, true),
                streak.record(2, true)
            ),
            (0, 0, 1)
        );
    }
}
