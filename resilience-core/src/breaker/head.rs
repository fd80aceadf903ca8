//! The part of the machine that calls read without its lock.

use std::sync::atomic::Ordering::Acquire;

use super::{
    overrides::OverrideKind,
    packed_state::{PackedState, Phase},
};
use crate::{
    clock::Moment,
    sync::atomic::{AtomicBool, AtomicU64},
};

/// Read by every call, seldom written. The moments are written under the lock, before the packed state that they belong
/// to; a decision based on a stale one is made again under the lock.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) packed: AtomicU64,
    pub(super) open_until: AtomicU64,
    pub(super) stage_until: AtomicU64,
    pub(super) wait_until: AtomicU64,
    pub(super) override_until: AtomicU64,
    /// The share of calls to let through, of 2^32.
    pub(super) share: AtomicU64,
    /// A rate is too high, but the window holds fewer calls than the minimum: every call must look at the rates.
    pub(super) awaiting_minimum: AtomicBool,
    /// There are transitions that were not announced yet.
    pub(super) news: AtomicBool,
}

/// In place of a moment that does not come.
pub(super) const NEVER: u64 = u64::MAX;

impl Head {
    pub(super) fn new() -> Self {
        Self {
            packed: AtomicU64::new(PackedState::new(0, OverrideKind::None, Phase::Closed).bits()),
            open_until: AtomicU64::new(NEVER),
            stage_until: AtomicU64::new(NEVER),
            wait_until: AtomicU64::new(NEVER),
            override_until: AtomicU64::new(NEVER),
            share: AtomicU64::new(0),
            awaiting_minimum: AtomicBool::new(false),
            news: AtomicBool::new(false),
        }
    }
}

pub(super) fn moment(until: &AtomicU64) -> Option<Moment> {
    match until.load(Acquire) {
        NEVER => None,
        nanos => Some(Moment::from_nanos(nanos)),
    }
}
