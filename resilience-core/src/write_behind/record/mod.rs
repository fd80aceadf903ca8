//! The record of one shard: every step as a pure function of the record and the time.
//!
//! ```text
//! absent -- write --> dirty -- take --> dirty, leased -- settle: sunk --> absent
//!                       ^                  |-- settle: retry ----------> dirty, due later
//!                       |                  |-- settle: dead -----------> dead letter -- write --> dirty
//!                       |                  |-- lease ends -------------> dirty        -- redrive --> dirty
//!                       '--- a write meanwhile: stays dirty with the later version, whatever the settlement says
//! ```

mod messages;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;

pub use self::messages::{
    Bounds, DeadAction, EntryResult, Head, RawChange, RawDead, RawEntry, Settle, ShardState, Take,
    Taken, TakenBatch, TakenEntry, Write, WriteOutcome, Written,
};
use crate::fleet::RecordClock;

/// Due before all others.
const FIRST: u64 = 0;

/// One shard.
///
/// Times are milliseconds of the shard's own [clock](RecordClock). One counter gives versions and fences; it follows
/// the clock in microseconds, so that it goes on above all earlier ones when the record was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRecord {
    incarnation: u64,
    shards: u32,
    clock: RecordClock,
    version: u64,
    entries: BTreeMap<Arc<str>, Entry>,
    due: BTreeSet<(u64, Arc<str>)>,
    oldest: BTreeSet<(u64, Arc<str>)>,
    dead: BTreeMap<Arc<str>, Dead>,
    lease: Option<Lease>,
    /// Fence of the last batch that was settled.
    settled: u64,
    pauses: u64,
    paused_until: u64,
    /// By writer: number, first version, until when it is remembered.
    writers: BTreeMap<Arc<str>, (u64, u64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    version: u64,
    /// When the last change was written.
    at: u64,
    /// Since when the key has not been sunk.
    since: u64,
    due: u64,
    attempts: u32,
    value: Option<Bytes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Lease {
    holder: Arc<str>,
    fence: u64,
    until: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Dead {
    version: u64,
    at: u64,
    attempts: u32,
    reason: String,
    value: Option<Bytes>,
}

impl ShardRecord {
    /// A shard without entries, one of `shards`.
    #[must_use]
    pub fn new(incarnation: u64, shards: u32) -> Self {
        Self {
            incarnation,
            shards,
            clock: RecordClock::default(),
            version: 0,
            entries: BTreeMap::new(),
            due: BTreeSet::new(),
            oldest: BTreeSet::new(),
            dead: BTreeMap::new(),
            lease: None,
            settled: 0,
            pauses: 0,
            paused_until: 0,
            writers: BTreeMap::new(),
        }
    }

    /// Stores changes; see [`Write`].
    pub fn write(&mut self, write: &Write, shards: u32, shown_ms: u64) -> Written {
        let before = self.head();
        let outcome = self.write_at(write, shards, self.clock.read(shown_ms));
        Written { before, outcome }
    }

    fn write_at(&mut self, write: &Write, shards: u32, clock: RecordClock) -> WriteOutcome {
        let now = clock.now();
        self.writers.retain(|_, (_, _, until)| *until > now);
        if let Some(&(number, first, _)) = self.writers.get(&write.writer) {
            if number == write.number {
                return WriteOutcome::Repeated { first };
            }
            if number > write.number {
                return WriteOutcome::Late;
            }
        }
        if self.shards != shards {
            if !(self.entries.is_empty() && self.dead.is_empty()) {
                let shards = self.shards;
                return WriteOutcome::Resharded { shards };
            }
            self.shards = shards;
        }
        let is_full = self.is_full(write, now);
        let keys = write.changes.iter();
        let added = keys.filter(|it| !self.entries.contains_key(&it.key));
        if is_full && (self.entries.len() + added.count()) as u64 > write.bounds.max_first {
            let oldest_ms = self.oldest_ms(now);
            return WriteOutcome::Full { oldest_ms };
        }
        let first = self.next_version(write.floor, now);
        self.clock = clock;
        self.version = first + write.changes.len() as u64 - 1;
        for (version, change) in (first..).zip(&write.changes) {
            self.store(change, version, is_full, now);
        }
        let known = (write.number, first, now + write.remember_ms);
        self.writers.insert(Arc::clone(&write.writer), known);
        WriteOutcome::Stored { first, is_full }
    }

    fn is_full(&self, write: &Write, now: u64) -> bool {
        let mut keys = write.changes.iter();
        let adds = keys.any(|it| !self.entries.contains_key(&it.key));
        let bounds = &write.bounds;
        adds && self.entries.len() as u64 >= bounds.max_entries
            || self.oldest_ms(now) >= bounds.max_age_ms
    }

    fn store(&mut self, change: &RawChange, version: u64, is_first: bool, now: u64) {
        self.dead.remove(&change.key);
        let earlier = self.remove(&change.key);
        let (since, due, attempts) = earlier.map_or((now, now, 0), |earlier| {
            (earlier.since, earlier.due, earlier.attempts)
        });
        let entry = Entry {
            version,
            at: now,
            since,
            due: if is_first { FIRST } else { due },
            attempts,
            value: change.value.clone(),
        };
        self.insert(&change.key, entry);
    }

    /// Takes a batch, under a lease.
    pub fn take(&mut self, take: &Take, shown_ms: u64) -> Taken {
        let clock = self.clock.read(shown_ms);
        Taken {
            before: self.head(),
            oldest_ms: self.oldest_ms(clock.now()),
            dead: self.dead.len() as u64,
            batch: self.take_at(take, clock),
        }
    }

    fn take_at(&mut self, take: &Take, clock: RecordClock) -> TakenBatch {
        let now = clock.now();
        let Some(&(first, _)) = self.due.first() else {
            return TakenBatch::Idle;
        };
        if let Some(lease) = self.lease.as_ref().filter(|it| it.until > now) {
            let for_ms = lease.until - now;
            return TakenBatch::Busy { for_ms };
        }
        if self.paused_until > now {
            let in_ms = self.paused_until - now;
            return TakenBatch::NotDue {
                in_ms,
                is_paused: true,
            };
        }
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        let batch: Vec<_> = due.take(take.max).map(|(_, key)| Arc::clone(key)).collect();
        let ready = first.saturating_add(take.age_ms);
        if batch.is_empty() || batch.len() < take.max && ready > now {
            let in_ms = ready.saturating_sub(now).max(1);
            return TakenBatch::NotDue {
                in_ms,
                is_paused: false,
            };
        }
        self.clock = clock;
        self.version = self.next_version(take.floor, now);
        let fence = self.version;
        self.lease = Some(Lease {
            holder: Arc::clone(&take.holder),
            fence,
            until: now + take.lease_ms,
        });
        let entries = batch.into_iter().map(|key| self.taken(key)).collect();
        TakenBatch::Batch {
            fence,
            pauses: self.pauses,
            entries,
        }
    }

    fn taken(&self, key: Arc<str>) -> TakenEntry {
        let entry = &self.entries[&key];
        TakenEntry {
            version: entry.version,
            attempts: entry.attempts,
            value: entry.value.clone(),
            key,
        }
    }

    /// Begins the lease again; whether it is still the caller's.
    pub fn renew(&mut self, fence: u64, lease_ms: u64, shown_ms: u64) -> bool {
        let Some(lease) = self.lease.as_mut().filter(|it| it.fence == fence) else {
            return false;
        };
        self.clock = self.clock.read(shown_ms);
        lease.until = self.clock.now() + lease_ms;
        true
    }

    /// Ends the lease, and does what became of the entries; whether it was the caller's. Otherwise nothing changes. A repetition
    /// is answered as the first one was.
    pub fn settle(&mut self, settle: &Settle, shown_ms: u64) -> bool {
        if self.lease.as_ref().map(|it| it.fence) != Some(settle.fence) {
            return self.settled == settle.fence;
        }
        self.clock = self.clock.read(shown_ms);
        let now = self.clock.now();
        self.lease = None;
        self.settled = settle.fence;
        let mut is_sunk = false;
        for (key, version, result) in &settle.results {
            is_sunk |= *result == EntryResult::Sunk;
            self.settle_one(key, *version, result, now);
        }
        if is_sunk {
            self.pauses = 0;
        }
        if let Some(pause_ms) = settle.pause_ms {
            self.pauses += 1;
            self.paused_until = now + pause_ms;
        }
        true
    }

    fn settle_one(&mut self, key: &Arc<str>, version: u64, result: &EntryResult, now: u64) {
        let Some(mut entry) = self.remove(key) else {
            return;
        };
        let is_last = entry.version == version;
        match result {
            EntryResult::Retry { after_ms } => {
                entry.attempts += 1;
                entry.due = now + after_ms;
                self.insert(key, entry);
            }
            EntryResult::Sunk if is_last => {}
            EntryResult::Dead { reason } if is_last => {
                let dead = Dead {
                    version,
                    at: now,
                    attempts: entry.attempts + 1,
                    reason: reason.clone(),
                    value: entry.value,
                };
                self.dead.insert(Arc::clone(key), dead);
            }
            // Written meanwhile: begins again.
            EntryResult::Sunk | EntryResult::Dead { .. } => {
                (entry.since, entry.attempts) = (entry.at, 0);
                if entry.due != FIRST {
                    entry.due = entry.at;
                }
                self.insert(key, entry);
            }
        }
    }

    /// What a key was last written with, if it is not sunk yet.
    #[must_use]
    pub fn read(&self, key: &str) -> Option<RawEntry> {
        let entry = self.entries.get(key)?;
        Some(RawEntry {
            version: entry.version,
            value: entry.value.clone(),
        })
    }

    /// The state of the shard.
    #[must_use]
    pub fn state(&self, shown_ms: u64) -> ShardState {
        let now = self.clock.read(shown_ms).now();
        let lease = self.lease.as_ref().filter(|it| it.until > now);
        ShardState {
            head: self.head(),
            now_ms: now,
            oldest_since_ms: self.oldest.first().map(|&(since, _)| since),
            dead: self.dead.len() as u64,
            lease: lease.map(|it| (Arc::clone(&it.holder), it.until - now)),
            pause_ms: self.paused_until.saturating_sub(now),
        }
    }

    /// Dead letters with keys after `after`, in the order of their keys.
    #[must_use]
    pub fn dead(&self, after: Option<&str>, max: usize, shown_ms: u64) -> Vec<RawDead> {
        let now = self.clock.read(shown_ms).now();
        let later = self
            .dead
            .iter()
            .filter(|(key, _)| after.is_none_or(|it| &***key > it));
        let letter = |(key, dead): (&Arc<str>, &Dead)| RawDead {
            key: Arc::clone(key),
            version: dead.version,
            attempts: dead.attempts,
            age_ms: now.saturating_sub(dead.at),
            reason: dead.reason.clone(),
            value: dead.value.clone(),
        };
        later.take(max).map(letter).collect()
    }

    /// Acts on the dead letters of `keys`, as far as there are some; how many there were.
    pub fn act_on_dead(&mut self, keys: &[Arc<str>], action: DeadAction, shown_ms: u64) -> u64 {
        let clock = self.clock.read(shown_ms);
        let now = clock.now();
        let mut many = 0;
        for key in keys {
            let Some(dead) = self.dead.remove(key) else {
                continue;
            };
            many += 1;
            self.clock = clock;
            if action == DeadAction::Redrive {
                let entry = Entry {
                    version: dead.version,
                    at: now,
                    since: now,
                    due: now,
                    attempts: 0,
                    value: dead.value,
                };
                self.insert(key, entry);
            }
        }
        many
    }

    fn head(&self) -> Head {
        Head {
            incarnation: self.incarnation,
            version: self.version,
            entries: self.entries.len() as u64,
        }
    }

    fn next_version(&self, floor: u64, now: u64) -> u64 {
        (self.version + 1).max(floor + 1).max(now * 1000)
    }

    fn oldest_ms(&self, now: u64) -> u64 {
        let oldest = self.oldest.first();
        oldest.map_or(0, |&(since, _)| now.saturating_sub(since))
    }

    fn insert(&mut self, key: &Arc<str>, entry: Entry) {
        self.due.insert((entry.due, Arc::clone(key)));
        self.oldest.insert((entry.since, Arc::clone(key)));
        self.entries.insert(Arc::clone(key), entry);
    }

    fn remove(&mut self, key: &Arc<str>) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.due.remove(&(entry.due, Arc::clone(key)));
        self.oldest.remove(&(entry.since, Arc::clone(key)));
        Some(entry)
    }
}
