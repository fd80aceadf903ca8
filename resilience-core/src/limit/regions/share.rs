//! The share as this process knows it, and the buckets that may already be refilled at it.
//!
//! A bucket is refilled for the time since its last write, at the rate of the moment. When the share has grown in between,
//! that would include time in which the region had less: so each is first refilled at the smallest share of the region since
//! this process saw it written. Then the sum over all regions is exact.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::ledger::WHOLE;
use crate::clock::Moment;

/// The number of buckets that are remembered; others start at the floor again.
const BUCKETS: usize = 1 << 16;
/// The number of changes of the share that are remembered.
const CHANGES: usize = 256;

/// The share as it was read, on this process' clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    /// Parts that do not end by themselves.
    pub(super) own: u32,
    /// Parts that are borrowed, and until when.
    pub(super) borrowed: Vec<(u32, Moment)>,
    /// Until when any of this may be used.
    pub(super) until: Option<Moment>,
}

#[derive(Debug)]
pub(super) struct ShareTracker {
    floor: u32,
    hasher: RandomState,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    reading: Reading,
    /// The shares that there were, the newest last, each with its number.
    shares: VecDeque<u32>,
    /// The number of the newest.
    newest: u64,
    /// By bucket: the number of the share at which it was last seen written.
    written: HashMap<u64, u64>,
}

/// The share that a decision uses, and what [`ShareTracker::written`] needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) parts: u32,
    bucket: u64,
    number: u64,
}

impl ShareTracker {
    pub(super) fn new(floor: u32) -> Self {
        Self {
            floor,
            hasher: RandomState::new(),
            state: Mutex::new(State {
                shares: VecDeque::from([floor]),
                ..State::default()
            }),
        }
    }

    /// Notes a read. The share at the end of the previous one and the new one count for every bucket, whether or not a
    /// decision was made in between.
    pub(super) fn read(&self, reading: Reading, now: Moment) {
        let mut state = self.lock();
        state.note(now, self.floor);
        state.reading = reading;
        state.note(now, self.floor);
    }

    /// The share now.
    pub(super) fn share(&self, now: Moment) -> u32 {
        self.lock().reading.share(now, self.floor)
    }

    /// The share for a bucket, which may be smaller.
    pub(super) fn for_bucket(&self, bucket: &impl Hash, now: Moment) -> Used {
        let bucket = self.hasher.hash_one(bucket);
        let mut state = self.lock();
        let share = state.note(now, self.floor);
        let since = state.written.get(&bucket).copied();
        let back = since.map(|since| (state.newest - since) as usize);
        let parts = match back {
            Some(back) if back < state.shares.len() => {
                let recent = state.shares.iter().rev().take(back + 1);
                recent.copied().min().unwrap_or(self.floor)
            }
            _ => self.floor.min(share),
        };
        Used {
            parts,
            bucket,
            number: state.newest,
        }
    }

    /// Notes that these buckets were written after their share was looked up.
    pub(super) fn written(&self, all: impl Iterator<Item = Used>) {
        let mut state = self.lock();
        for used in all {
            if state.written.len() >= BUCKETS && !state.written.contains_key(&used.bucket) {
                // A bucket that is written again is back at once.
                state.written.clear();
            }
            state.written.insert(used.bucket, used.number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes the share now.
    fn note(&mut self, now: Moment, floor: u32) -> u32 {
        let share = self.reading.share(now, floor);
        if self.shares.back() != Some(&share) {
            self.newest += 1;
            self.shares.push_back(share);
            if self.shares.len() > CHANGES {
                self.shares.pop_front();
            }
        }
        share
    }
}

impl Reading {
    fn share(&self, now: Moment, floor: u32) -> u32 {
        if self.until.is_none_or(|until| until <= now) {
            return floor;
        }
        let borrowed = self.borrowed.iter().filter(|(_, until)| *until > now);
        let borrowed: u32 = borrowed.map(|(parts, _)| parts).sum();
        (self.own + borrowed).min(WHOLE)
    }
}
