//! One peer: until when it is to be left alone, and how many calls it will still take.

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
    /// Until then, `left` counts.
    window_until: AtomicU64,
    left: AtomicI64,
    in_flight: AtomicI64,
    /// Wanted since the store was last asked.
    used: AtomicBool,
    /// What the store is to be told: so many milliseconds.
    to_tell: AtomicU64,
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
            to_tell: AtomicU64::new(0),
        }
    }

    /// Notes that somebody wants to call it, and whether that is news since the store was asked.
    pub(super) fn wanted(&self) -> bool {
        !self.used.load(Relaxed) && !self.used.swap(true, AcqRel)
    }

    /// Lets a call go, or says how long to wait.
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

    /// Leaves it alone until then; whether that is later than what was known.
    pub(super) fn close(&self, until: Moment) -> bool {
        let until = until.as_nanos();
        self.closed_until.fetch_max(until, AcqRel) < until
    }

    /// So many calls until then, those under way among them: the peer may not have counted them yet. The caller's own
    /// call is one of them, and over.
    pub(super) fn allow(&self, calls: u64, until: Moment) {
        let others = self.in_flight.load(Acquire) - 1;
        let calls = i64::try_from(calls).unwrap_or(i64::MAX);
        self.left.store((calls - others).max(0), Release);
        self.window_until.store(until.as_nanos(), Release);
    }

    pub(super) fn tell(&self, wait: Duration) {
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        self.to_tell.fetch_max(millis, AcqRel);
    }

    /// What the store is to be told, once.
    pub(super) fn take_told(&self) -> Option<u64> {
        match self.to_tell.swap(0, AcqRel) {
            0 => None,
            millis => Some(millis),
        }
    }

    /// Whether it was wanted since this was last asked.
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
