//! Counters that only go up, striped by thread.

use std::sync::atomic::Ordering::Relaxed;

use crossbeam_utils::CachePadded;

use super::window::Kind;
use crate::{error::Reason, stripe, sync::atomic::AtomicU64};

/// What is counted here. The results of a time window are not: it keeps them itself.
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
