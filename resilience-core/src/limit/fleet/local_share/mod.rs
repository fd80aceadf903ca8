//! This instance's share of the limits while it decides without the store, and what it then owes the store.
//!
//! A bucket of the share holds this instance's part of what the store had left by its last answer, less what other
//! instances may have taken since then at the rate of the limit: after the time in which the limit's bucket fills, an
//! answer counts for nothing. Where none is known, the bucket starts empty, at the first step that failed. So all shares
//! together never hold more than the store's bucket did, as long as instances do not use it up faster than it fills
//! without this one hearing of it.
//!
//! What is admitted meanwhile is settled before the store decides about the subject again: see [`Settling`].

mod settling;
mod subject;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    collections::HashMap,
    hash::BuildHasher,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
};

use foldhash::fast::RandomState;
use tokio::sync::Notify;

use self::{settling::Settling, subject::Subject};
use super::{
    costs::{NO_PRICES, Prices},
    demands::standings,
    plan::Plan,
    projection,
};
use crate::{
    clock::Moment,
    limit::store::{Standing, StoreDecision},
};

/// The shares of an instance, by subject.
pub(super) struct LocalShares {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    /// When the first step failed that no answer has followed, in nanoseconds of a [`Moment`]; zero: none has.
    failing_since: AtomicU64,
    /// The number of subjects that are to be settled.
    owing: AtomicUsize,
    /// A subject is no longer being settled.
    settled: Notify,
}

const SHARDS: usize = 16;
/// The number of subjects of a shard. One more, and all of them start empty again.
const SUBJECTS: usize = 4096;
/// A full shard looks for subjects that are not worth keeping once in this time, in nanoseconds.
const SWEEP: u64 = 100_000_000;

#[derive(Default)]
struct Shard {
    subjects: HashMap<Box<str>, Subject, RandomState>,
    /// When it was full and was emptied: subjects that are not in it start empty then at the earliest.
    emptied: Option<Moment>,
    next_sweep: u64,
}

impl LocalShares {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::default(),
            shards: std::array::from_fn(|_| Mutex::default()),
            failing_since: AtomicU64::new(0),
            owing: AtomicUsize::new(0),
            settled: Notify::new(),
        }
    }

    /// Notes that the store has answered.
    pub(super) fn heard(&self) {
        if self.failing_since.load(Relaxed) != 0 {
            self.failing_since.store(0, Release);
        }
    }

    /// Notes an answer about `subject` to what the store was asked at `now`, after `errors` failed steps. Not while
    /// something is to be settled: what was known before tells how much the store can hold.
    pub(super) fn note(
        &self,
        subject: &str,
        plan: &Plan,
        limits: &[Standing],
        errors: u64,
        now: Moment,
    ) {
        let mut shard = self.shard(subject);
        if let Some(known) = shard.subjects.get_mut(subject) {
            if known.is_settling || known.is_unsettled(errors) {
                return;
            }
            if known.plan.is(plan) {
                known.see(limits, now);
                return;
            }
        }
        if shard.has_room_for(subject, now) {
            let known = Subject::new(plan, Some((now, limits.into())), errors);
            shard.subjects.insert(subject.into(), known);
        }
    }

    /// Decides about a call by one of `parts` parts of each limit.
    pub(super) fn decide(
        &self,
        subject: &str,
        plan: &Plan,
        parts: u64,
        errors: u64,
        cost: impl Fn(usize) -> i64,
        now: Moment,
    ) -> StoreDecision {
        let mut since = self.failing_since(now);
        let mut shard = self.shard(subject);
        if !shard.has_room_for(subject, now) {
            self.owing.fetch_sub(shard.owing(), Relaxed);
            shard.subjects.clear();
            shard.emptied = Some(now);
        }
        since = shard.emptied.map_or(since, |emptied| emptied.max(since));
        let unknown = || Subject::new(plan, None, errors);
        let known = shard.subjects.entry(subject.into()).or_insert_with(unknown);
        if !known.plan.is(plan) {
            // Tokens of another plan are not carried over.
            self.owing.fetch_sub(known.alone.iter().len(), Relaxed);
            (*known, since) = (unknown(), now);
        }
        if known.alone.is_none() {
            self.owing.fetch_add(1, Relaxed);
        }
        known.alone(parts, since).decide(plan, cost, now)
    }

    /// Notes tokens that were put back into the store: it can hold more than was known.
    pub(super) fn put_back(&self, subject: &str, plan: &Plan, cost: impl Fn(usize) -> i64) {
        let mut shard = self.shard(subject);
        let known = shard.subjects.get_mut(subject);
        let Some(known) = known.filter(|known| known.plan.is(plan)) else {
            return;
        };
        let Some((_, seen)) = &mut known.seen else {
            return;
        };
        for (index, limit) in plan.as_slice().iter().enumerate() {
            let back = u64::try_from(-cost(index)).unwrap_or(0);
            seen[index] = projection::with(&limit.quota, seen[index], back);
        }
    }

    /// Whether calls of `subject` are decided by its share until it is settled.
    pub(super) fn has(&self, subject: &str) -> bool {
        let shard = self.shard(subject);
        let known = shard.subjects.get(subject);
        known.is_some_and(|known| known.alone.is_some())
    }

    /// Notes that the store was charged for a call that was admitted here too.
    pub(super) fn charged(&self, subject: &str, prices: &Prices) {
        let mut shard = self.shard(subject);
        let known = shard.subjects.get_mut(subject);
        if let Some(alone) = known.and_then(|known| known.alone.as_mut()) {
            alone.settle(prices);
        }
    }

    /// Waits until no call settles `subject`.
    pub(super) async fn settled(&self, subject: &str) {
        loop {
            // Made before the look: it hears what happens from here on.
            let settled = self.settled.notified();
            let is_settling = |known: &Subject| known.is_settling;
            let known = self
                .shard(subject)
                .subjects
                .get(subject)
                .is_some_and(is_settling);
            if !known {
                return;
            }
            settled.await;
        }
    }

    /// Begins to settle `subject` with the store, if there is anything to settle and no other call is doing it. Unless it
    /// `stays`, a share that owes nothing ends.
    pub(super) fn settle<'a>(
        &'a self,
        subject: &'a str,
        errors: u64,
        stays: bool,
        now: Moment,
    ) -> Option<Settling<'a>> {
        let mut shard = self.shard(subject);
        let known = shard.subjects.get_mut(subject)?;
        if known.is_settling {
            return None;
        }
        if known.errors == errors && !known.is_owing() {
            if !stays {
                self.owing
                    .fetch_sub(known.alone.take().iter().len(), Relaxed);
            }
            return None;
        }
        known.is_settling = true;
        Some(Settling {
            shares: self,
            subject,
            plan: known.plan.clone(),
            seen: known.seen.as_ref().map(|(at, seen)| (*at, standings(seen))),
            spent: known.alone.as_ref().map_or(NO_PRICES, |alone| alone.spent),
            owes: known.owes(now),
            errors,
        })
    }

    /// The subjects that were decided about without the store and are not settled.
    pub(super) fn owing(&self) -> Vec<Box<str>> {
        if self.owing.load(Relaxed) == 0 {
            return Vec::new();
        }
        let of = |shard: &Mutex<Shard>| -> Vec<Box<str>> {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let owing = shard.subjects.iter().filter(|(_, one)| one.alone.is_some());
            owing.map(|(subject, _)| subject.clone()).collect()
        };
        self.shards.iter().flat_map(of).collect()
    }

    fn failing_since(&self, now: Moment) -> Moment {
        let since = &self.failing_since;
        match since.compare_exchange(0, now.as_nanos(), AcqRel, Acquire) {
            Ok(_) => now,
            Err(since) => Moment::from_nanos(since),
        }
    }

    fn shard(&self, subject: &str) -> MutexGuard<'_, Shard> {
        let shard = self.hasher.hash_one(subject) as usize % SHARDS;
        let shard = self.shards[shard].lock();
        shard.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    /// Whether `subject` is known, or there is room for one more.
    fn has_room_for(&mut self, subject: &str, now: Moment) -> bool {
        if self.subjects.len() < SUBJECTS || self.subjects.contains_key(subject) {
            return true;
        }
        if now.as_nanos() >= self.next_sweep {
            self.next_sweep = now.as_nanos().saturating_add(SWEEP);
            self.subjects
                .retain(|_, known| known.alone.is_some() || known.is_worth_keeping(now));
        }
        self.subjects.len() < SUBJECTS
    }

    fn owing(&self) -> usize {
        self.subjects
            .values()
            .filter(|one| one.alone.is_some())
            .count()
    }
}
