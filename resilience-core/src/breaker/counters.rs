//! What is counted: the calls of one generation, and counters that only go up, striped by thread.

use std::sync::atomic::Ordering::Relaxed;

use crossbeam_utils::CachePadded;
use serde::Serialize;

use super::window::Kind;
use crate::{error::Reason, stripe, sync::atomic::AtomicU64};

/// How the calls of one generation have ended so far: those in the window, or the probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Calls that were judged.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Those of them that were slow, failed or not.
    pub slow: u64,
    /// Failures in a row, up to now; zero where they are not watched.
    pub consecutive_failures: u32,
}

impl Counts {
    /// The share of calls that failed; `None` of no calls.
    #[must_use]
    pub fn failure_rate(&self) -> Option<f64> {
        (self.calls > 0).then(|| self.failures as f64 / self.calls as f64)
    }

    /// The share of calls that were slow; `None` of no calls.
    #[must_use]
    pub fn slow_rate(&self) -> Option<f64> {
        (self.calls > 0).then(|| self.slow as f64 / self.calls as f64)
    }
}

/// What the counters count. Results that a window counts itself are not: all of a time window, and the plain successes of
/// a count window.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    Judged(Kind),
    Ignored,
    Stale,
    Rejected(Reason),
    WouldReject,
}

const COUNTERS: usize = 11;

impl Count {
    const fn index(self) -> usize {
        match self {
            Self::Judged(kind) => kind as usize,
            Self::Ignored => 4,
            Self::Stale => 5,
            Self::Rejected(Reason::Open) => 6,
            Self::Rejected(Reason::NoProbeLeft) => 7,
            Self::Rejected(Reason::RampingUp) => 8,
            // The one other reason that a breaker has: forced open.
            Self::Rejected(_) => 9,
            Self::WouldReject => 10,
        }
    }
}

#[derive(Debug)]
pub(super) struct Counters(Box<[CachePadded<[AtomicU64; COUNTERS]>]>);

impl Counters {
    /// `stripes`: a power of two.
    pub(super) fn new(stripes: usize) -> Self {
        let stripe = || CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0)));
        Self((0..stripes).map(|_| stripe()).collect())
    }

    #[inline]
    pub(super) fn add(&self, what: Count) {
        let stripe = &self.0[stripe::thread() & (self.0.len() - 1)];
        stripe[what.index()].fetch_add(1, Relaxed);
    }

    pub(super) fn get(&self, what: Count) -> u64 {
        let stripes = self.0.iter();
        stripes
            .map(|stripe| stripe[what.index()].load(Relaxed))
            .sum()
    }
}
