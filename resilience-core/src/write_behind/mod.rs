//! Write-behind: writes that are acknowledged when a store has them, and that reach the database later, in batches.
//!
//! For values that change more often than their database can be written: counters, positions, carts, sessions, documents that are
//! saved while they are typed. Of several changes of a key only the last one is written. Not for events of which each one counts
//! (see [`stream`](crate::stream)). Not for what must be visible in the database when the call returns: see
//! `Cache::write`.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::write_behind::{Batch, InProcessWriteBehind, WriteBehind};
//!
//! # async fn upsert(key: &str, version: u64, total: Option<&u64>) -> std::io::Result<()> { let _ = (key, version, total); Ok(()) }
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = InProcessWriteBehind::new(); // or `redis.write_behind()`
//! let carts = WriteBehind::<u64>::builder("carts", store)
//!     .sink(|batch: Batch<u64>| async move {
//!         for change in &batch {
//!             // `None`: the key was deleted.
//!             upsert(change.key(), change.version(), change.value()).await?;
//!         }
//!         Ok::<_, std::io::Error>(())
//!     })
//!     .build()?;
//!
//! carts.write("customer-3", &1200).await?; // acknowledged: the store has it
//! let now = carts.read("customer-3").await?.expect("not written to the database yet");
//! assert_eq!(now.value(), Some(&1200));
//! carts.shutdown(Duration::from_secs(10)).await?; // written to the database
//! # Ok(()) }
//! ```
//!
//! # What is promised
//! - A write that was acknowledged is not lost when processes are killed, at any moment: it is in the store until the sink has
//!   returned success for it, or for a later write of its key. It is as durable as the store is.
//! - The last write of a key wins. Each write has a [version](Change::version), which rises with every write of its key: also after
//!   the key was sunk, after the store lost its data, and when a clock is set back.
//! - The sink is given the changes of a key in the order of their versions, by one process at a time. A change that is written while
//!   an earlier one of its key is being sunk is sunk after it.
//! - A write that is repeated after a lost answer is stored once.
//! - A key that the sink refuses does not keep others from being sunk. It is tried again, and at last set aside as a [dead
//!   letter](DeadChange), until it is written again, [redriven](WriteBehind::redrive) or [discarded](WriteBehind::discard).
//!
//! # What a sink must do
//! A sink is called at least once for a change: a process may be killed between the sink's success and its record of it. And a
//! process that was stopped for longer than its [lease](WriteBehindBuilder::lease) may have a call of its sink in progress while another
//! process sinks later changes. So a sink compares versions, in the same statement that writes:
//!
//! ```sql
//! insert into carts (key, version, total) values ($1, $2, $3)
//! on conflict (key) do update set version = $2, total = $3 where carts.version < $2
//! ```
//!
//! A deletion is written in the same way, as a row with a version and without a value; rows of deletions may be removed when they are
//! older than any lease and any statement (a day is long enough). A sink that deletes the row instead lets a late write of a stopped
//! process bring the value back.
//!
//! # Processes
//! Any number of processes write, and any number of those with a [sink](WriteBehindBuilder::sink) sink. Keys are divided into
//! [shards](WriteBehindBuilder::shards). A shard is sunk by one process at a time, under a lease that is taken for a batch, renewed
//! while the sink runs, and given back after it. A process that loses its lease drops its call of the sink, and what it records
//! afterwards changes nothing.
//!
//! # Reads
//! [`read`](WriteBehind::read) returns what is not sunk yet, and [`read_or_load`](WriteBehind::read_or_load) that or what a loader
//! finds in the database. A cache in front takes [`through`](WriteBehind::through) as its loader, and writes with
//! `cache.write(&key, value, || write_behind.write(..))`. Invalidating the cache changes nothing here. A dead letter is not
//! read: the database's value is.
//!
//! # Back-pressure
//! With [`max_entries`](WriteBehindBuilder::max_entries) keys that are not sunk, or when the oldest of them is older than
//! [`max_age`](WriteBehindBuilder::max_age), writes are rejected with [`Reason::SinkBehind`]; or, with
//! [`write_through_when_full`](WriteBehindBuilder::write_through_when_full), sunk first, and waited for.
//!
//! # Errors
//! [`WriteError`] tells a write that was not done from one of which that is not known. The store away: writes fail, and are never
//! acknowledged; what is in the store is sunk when it is back.
//!
//! # Events
//! | event | level | when |
//! |---|---|---|
//! | `write-behind lost its entries` | `WARN` | the store has lost what it acknowledged: it was flushed, or came back without its last writes |
//! | `write-behind pauses` | `WARN` | the sink fails; told once until it works again |
//! | `write-behind sinks again` | `INFO` | the sink works again |
//! | `write-behind dead letter` | `WARN` | a change was set aside |
//! | `write-behind lost its lease` | `WARN` | another process may have sunk the batch meanwhile |
//!
//! # Cancellation
//! A dropped write may or may not be done. A dropped read does nothing.
//!
//! # Cost
//! A write is one step of the store, a read another one; [`write_all`](WriteBehind::write_all) takes one step per shard. A batch is two steps: one that
//! takes it and one that ends it. A process without work asks each shard once per [`poll`](WriteBehindBuilder::poll).
//!
//! # References
//! - Write-behind: [Hazelcast, Map Persistence](https://docs.hazelcast.org/docs/3.3/manual/html/map-persistence.html); others are compared in `comparison.md`, beside this file.
//! - Fencing by versions: Martin Kleppmann, "How to do distributed locking", 2016.

mod builder;
mod change;
mod error;
mod memory;
mod reads;
pub mod record;
mod seen;
mod sink;
mod sinker;
mod snapshot;
pub mod store;
mod sweep;
#[cfg(all(test, not(loom)))]
mod tests;
mod writes;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use self::{
    builder::Settings,
    record::{Head, ShardState},
    seen::{Known, Seen},
    snapshot::{Totals, sums},
    store::{Client, Shard},
};
pub use self::{
    builder::WriteBehindBuilder,
    change::{Acknowledged, Batch, Change, DeadChange, Dirty, Iter, Pending},
    error::{ReadError, WriteError},
    memory::InProcessWriteBehind,
    snapshot::{WriteBehindCounts, WriteBehindSnapshot},
    store::WriteBehindStore,
};
use crate::{
    codec::Codec,
    error::{Pattern, Reason, Rejected},
    fleet::{HandleTasks, IntoStore, StillRunning, StoreError, StoreHandle, Waker},
    stream::Sequences,
    telemetry::{
        self, FLEET_DEGRADED, Reading, Scope, Source, WRITE_BEHIND_DEAD, WRITE_BEHIND_ENTRIES,
        WRITE_BEHIND_OLDEST,
    },
};

/// Writes, reads and sinks the values of a write-behind. Cheap to clone; clones share it.
///
/// When the last clone is dropped, its tasks sink what waits, for some seconds, and end. [`shutdown`](Self::shutdown) waits for that.
pub struct WriteBehind<V> {
    shared: Arc<Shared>,
    codec: Arc<dyn Codec<V>>,
    owner: Arc<Owner>,
}

struct Shared {
    name: Arc<str>,
    scope: Scope,
    settings: Settings,
    client: Client,
    /// By shard.
    seen: Vec<Seen>,
    /// By shard: wakes the task that sinks it.
    wakers: Vec<Waker>,
    writers: Sequences,
    totals: Totals,
    /// Calls that wait for entries to be sunk: batches do not wait for more meanwhile.
    flushing: AtomicUsize,
    /// The last handle is gone.
    dropped: AtomicBool,
}

/// What the last clone of a handle ends.
struct Owner {
    shared: Arc<Shared>,
    tasks: HandleTasks,
    /// The last clone of a store's handle ends all tasks of the store.
    _store: StoreHandle,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.dropped.store(true, Relaxed);
        self.tasks.close();
    }
}

const PATTERN: &str = Pattern::WriteBehind.as_str();
/// Between two looks of a call that waits.
const LOOK: Duration = Duration::from_millis(20);

impl<V: Send + Sync + 'static> WriteBehind<V> {
    /// Settings of a write-behind of this name, over `store`.
    pub fn builder(
        name: impl Into<Arc<str>>,
        store: impl IntoStore<dyn WriteBehindStore>,
    ) -> WriteBehindBuilder<V>
    where
        V: serde::Serialize + serde::de::DeserializeOwned,
    {
        WriteBehindBuilder::new(
            name.into(),
            store.into_store(),
            Arc::new(crate::codec::Json),
        )
    }

    /// What waits in all shards, as the store has it.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn pending(&self) -> Result<Pending, StoreError> {
        let mut pending = Pending::default();
        for state in self.shared.states().await? {
            let oldest = state.oldest_since_ms;
            let age = oldest.map(|since| Duration::from_millis(state.now_ms.saturating_sub(since)));
            pending.entries += state.head.entries;
            pending.oldest = pending.oldest.max(age);
            pending.dead += state.dead;
            pending.paused_shards += u32::from(state.pause_ms > 0);
        }
        Ok(pending)
    }

    /// Waits until everything that was written before is sunk or set aside, for at most `within`. Batches do not wait
    /// for more meanwhile, in this process. Does not sink by itself if the handle has no sink.
    ///
    /// # Errors
    /// [`FlushError`] if something is left then.
    pub async fn flush(&self, within: Duration) -> Result<(), FlushError> {
        let until = Instant::now().checked_add(within);
        let _flushing = Flushing::begin(&self.shared);
        let mut begun: Option<Vec<u64>> = None;
        loop {
            self.shared.wake_all();
            let left = match self.shared.states().await {
                Ok(states) => {
                    let begun =
                        begun.get_or_insert_with(|| states.iter().map(|it| it.now_ms).collect());
                    let waits = |(state, begun): (&ShardState, &u64)| {
                        state.oldest_since_ms.is_some_and(|since| since <= *begun)
                    };
                    let left = states.iter().zip(begun.iter()).filter(|it| waits(*it));
                    FlushError::Entries(left.map(|(state, _)| state.head.entries).sum())
                }
                Err(error) => FlushError::Store(error),
            };
            if left == FlushError::Entries(0) {
                return Ok(());
            }
            if until.is_some_and(|until| Instant::now() + LOOK >= until) {
                return Err(left);
            }
            sleep(LOOK).await;
        }
    }
}

impl<V> WriteBehind<V> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The state of the handle.
    #[must_use]
    pub fn snapshot(&self) -> WriteBehindSnapshot {
        let (entries, oldest_ms, dead) = sums(&self.shared.seen);
        WriteBehindSnapshot {
            name: self.shared.name.to_string(),
            available: self.shared.client.is_available(),
            sinks: self.shared.settings.sinks,
            entries,
            oldest: Duration::from_millis(oldest_ms),
            dead,
            totals: self.shared.totals.snapshot(),
        }
    }

    /// Rejects further writes, sinks what waits, and ends the tasks. What is not sunk by then stays in the store, for other
    /// processes, or for this one when it starts again; an event tells how much. Entries that wait for another try after a failure
    /// are not waited for.
    ///
    /// Part of [`StoreHandle::shutdown`](crate::fleet::StoreHandle::shutdown).
    ///
    /// # Errors
    /// [`StillRunning`] if a task did not end in time.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.owner.tasks.shutdown(within).await
    }
}

impl Shared {
    fn shard(&self, index: u32) -> Shard<'_> {
        Shard {
            name: &self.name,
            index,
            of: self.settings.shards,
        }
    }

    fn of_key(&self, key: &str) -> Shard<'_> {
        Shard::of_key(&self.name, key, self.settings.shards)
    }

    async fn states(&self) -> Result<Vec<ShardState>, StoreError> {
        let ask = |index| {
            self.client
                .call(move |store| store.state(self.shard(index)))
        };
        futures_util::future::try_join_all((0..self.settings.shards).map(ask)).await
    }

    fn reject(&self, reason: Reason, retry_after: Option<Duration>) -> Rejected {
        self.scope.reject(reason, retry_after)
    }

    /// Compares what a step found with what was known.
    fn look(&self, index: u32, known: Known, before: Head) {
        let Some(entries) = self.seen[index as usize].found(known, before) else {
            return;
        };
        self.totals.losses.fetch_add(1, Relaxed);
        tracing::warn!(
            target: "resilience",
            pattern = PATTERN,
            name = &*self.name,
            shard = index,
            entries,
            "write-behind lost its entries"
        );
    }

    fn wake_all(&self) {
        for waker in &self.wakers {
            waker.wake();
        }
    }

    fn is_flushing(&self) -> bool {
        self.flushing.load(Relaxed) > 0
    }
}

/// Counts as a call that waits for entries to be sunk, for as long as it lives.
struct Flushing<'a>(&'a Shared);

impl<'a> Flushing<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.flushing.fetch_add(1, Relaxed);
        Self(shared)
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        self.0.flushing.fetch_sub(1, Relaxed);
    }
}

/// Why not everything was flushed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// This many entries are left, about, in the shards that were not flushed.
    #[error("{0} entries are not sunk yet")]
    Entries(u64),
    /// The store does not answer.
    #[error("unknown what is sunk: {0}")]
    Store(#[source] StoreError),
}

impl Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::WriteBehind
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.totals.read(out);
        let (entries, oldest_ms, dead) = sums(&self.seen);
        let gauges = [
            (&WRITE_BEHIND_ENTRIES, entries),
            (&WRITE_BEHIND_OLDEST, oldest_ms.div_ceil(1000)),
            (&WRITE_BEHIND_DEAD, dead),
        ];
        for (metric, value) in gauges {
            out(Reading {
                metric,
                attribute: "",
                value,
            });
        }
        out(Reading {
            metric: &FLEET_DEGRADED,
            attribute: PATTERN,
            value: u64::from(!self.client.is_available()),
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

impl<V> Clone for WriteBehind<V> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            codec: Arc::clone(&self.codec),
            owner: Arc::clone(&self.owner),
        }
    }
}

impl<V> fmt::Debug for WriteBehind<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBehind")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}
