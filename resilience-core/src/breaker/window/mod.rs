//! The breaker's memory of the calls of one generation: the last N seconds, or the last N calls.
//!
//! Both windows slide exactly, in constant time per call, without a lock. Every cell carries the generation that it
//! was written in, and is written by compare-and-swap: a result that belongs to an earlier generation cannot land in
//! a later one, however long its thread was held up between the check and the write.

mod count;
mod streak;
mod time;

use crate::clock::Moment;

pub(super) use count::{CountWindow, MAX_CALLS};
pub(super) use streak::Streak;
pub(super) use time::TimeWindow;

/// How a call that counts ended. The low bit says failed, the high bit says slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Success = 0,
    Failure = 1,
    SlowSuccess = 2,
    SlowFailure = 3,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [
        Self::Success,
        Self::Failure,
        Self::SlowSuccess,
        Self::SlowFailure,
    ];

    pub(super) const fn new(failed: bool, slow: bool) -> Self {
        match (failed, slow) {
            (false, false) => Self::Success,
            (true, false) => Self::Failure,
            (false, true) => Self::SlowSuccess,
            (true, true) => Self::SlowFailure,
        }
    }

    pub(super) const fn failed(self) -> bool {
        self as u8 & 1 != 0
    }

    pub(super) const fn slow(self) -> bool {
        self as u8 & 2 != 0
    }
}

/// What recording a call brought to light.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// Counted, and nothing else left the window.
    Quietly,
    /// Counted, and older calls may have left the window: the rates may have risen.
    AfterSliding,
    /// Not counted: the window has gone on to a later generation.
    Stale,
}

/// What a window holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) calls: u64,
    pub(super) failures: u64,
    pub(super) slow: u64,
}

#[derive(Debug)]
pub(super) enum Window {
    Time(TimeWindow),
    Count(Box<CountWindow>),
}

impl Window {
    #[inline]
    pub(super) fn record(
        &self,
        generation: u64,
        kind: Kind,
        now: impl FnOnce() -> Moment,
    ) -> Noted {
        match self {
            Self::Time(window) => window.record(generation, kind, now()),
            Self::Count(window) => window.record(generation, kind),
        }
    }

    /// Counts a plain success if that is all there is to do. False: it was not counted.
    #[inline(always)]
    pub(super) fn record_success(&self, generation: u64, now: impl FnOnce() -> Moment) -> bool {
        match self {
            Self::Time(window) => window.record_in_place(generation, Kind::Success, now()),
            Self::Count(window) => window.record_success(generation) != Noted::Stale,
        }
    }

    /// All plain successes ever recorded.
    pub(super) fn successes(&self) -> u64 {
        match self {
            Self::Time(window) => window.total(Kind::Success),
            Self::Count(window) => window.successes(),
        }
    }

    pub(super) fn sums(&self, generation: u64, now: Moment) -> Sums {
        match self {
            Self::Time(window) => window.sums(generation, now),
            Self::Count(window) => window.sums(generation),
        }
    }

    /// Forgets all calls and goes on to `generation`. Only one thread at a time, and before any permit of that
    /// generation is out.
    pub(super) fn reset(&self, generation: u64, now: Moment) {
        match self {
            Self::Time(window) => window.reset(generation, now),
            Self::Count(window) => window.reset(generation),
        }
    }
}
