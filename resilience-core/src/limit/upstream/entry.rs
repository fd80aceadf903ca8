//! One upstream server: until when it takes no calls, and how many it takes until then.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicI64, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use crate::{
    clock::{Clock, Moment},
    keyed::Evict,
};

/// Moments are nanoseconds on the clock.
#[derive(Debug)]
pub(super) struct Upstream {
    clock: Clock,
    closed_until: AtomicU64,
    /// Until then, at most `left` more calls.
    window_until: AtomicU64,
    left: AtomicI64,
    in_flight: AtomicI64,
    /// Called since the store was last read.
    used: AtomicBool,
    /// Closed by what this instance was told, which the store has not taken yet.
    unwritten: AtomicBool,
}

impl Upstream {
    pub(super) const fn new(clock: Clock) -> Self {
        Self {
            clock,
            closed_until: AtomicU64::new(0),
            window_until: AtomicU64::new(0),
            left: AtomicI64::new(0),
            in_flight: AtomicI64::new(0),
            used: AtomicBool::new(false),
            unwritten: AtomicBool::new(false),
        }
    }

    /// Notes a call. Whether it is the first since the store was read.
    pub(super) fn wanted(&self) -> bool {
        !self.used.load(Relaxed) && !self.used.swap(true, AcqRel)
    }

    /// Admits a call, or returns the time to wait.
    pub(super) fn enter(&self, now: Moment) -> Result<(), Duration> {
        if let Some(wait) = self.closed_for(now) {
            return Err(wait);
        }
        let window = Moment::from_nanos(self.window_until.load(Acquire)).since(now);
        if !window.is_zero() && self.left.fetch_sub(1, AcqRel) <= 0 {
            self.left.fetch_add(1, AcqRel);
            return Err(window);
        }
        self.in_flight.fetch_add(1, AcqRel);
        Ok(())
    }

    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, AcqRel);
    }

    pub(super) fn closed_for(&self, now: Moment) -> Option<Duration> {
        let wait = Moment::from_nanos(self.closed_until.load(Acquire)).since(now);
        (!wait.is_zero()).then_some(wait)
    }

    /// Admits no call until then. Whether that is later than before.
    pub(super) fn close(&self, until: Moment) -> bool {
        let until = until.as_nanos();
        self.closed_until.fetch_max(until, AcqRel) < until
    }

    /// Admits `calls` more calls until then, those in flight included: the server may not have counted them yet. The
    /// caller's own call is one of those, and over.
    pub(super) fn allow(&self, calls: u64, until: Moment) {
        let others = self.in_flight.load(Acquire) - 1;
        let calls = i64::try_from(calls).unwrap_or(i64::MAX);
        self.left.store((calls - others).max(0), Release);
        self.window_until.store(until.as_nanos(), Release);
    }

    pub(super) fn mark_unwritten(&self) {
        self.unwritten.store(true, Release);
    }

    /// Whether the store has to be written to; true once.
    pub(super) fn take_unwritten(&self) -> bool {
        self.unwritten.swap(false, AcqRel)
    }

    /// Whether it was called since the last time.
    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, AcqRel)
    }
}

impl Evict for Arc<Upstream> {
    fn evictable(&self) -> bool {
        let now = self.clock.now().as_nanos();
        self.in_flight.load(Acquire) == 0
            && self.closed_until.load(Acquire) <= now
            && self.window_until.load(Acquire) <= now
    }
}
