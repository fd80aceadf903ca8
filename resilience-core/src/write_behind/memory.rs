//! The store for one process: for tests, and the reference for other stores.

use std::{collections::HashMap, fmt, sync::Arc};

use super::{
    record::{
        DeadAction, RawDead, RawEntry, Settle, ShardRecord, ShardState, Take, Taken, TakenBatch,
        Write, Written,
    },
    store::{Shard, StoreError, StoreFuture, WriteBehindStore, validate},
};
use crate::{
    clock::{Clock, Moment},
    sync::{Mutex, lock},
};

/// Writes that wait in this process. Clones share them.
///
/// They end with the process: use it where that may happen (tests), or where the database may lose the last changes.
#[derive(Clone)]
pub struct InProcessWriteBehind(Arc<Shared>);

struct Shared {
    clock: Clock,
    started: Moment,
    shards: Mutex<HashMap<(Arc<str>, u32), ShardRecord>>,
}

impl InProcessWriteBehind {
    /// A store without entries.
    #[must_use]
    pub fn new() -> Self {
        let clock = Clock::auto();
        Self(Arc::new(Shared {
            started: clock.now(),
            clock,
            shards: Mutex::default(),
        }))
    }

    /// Removes everything, as a flushed server does.
    pub fn flush(&self) {
        lock(&self.0.shards).clear();
    }

    fn now_ms(&self) -> u64 {
        let passed = self.0.clock.now().since(self.0.started);
        // Above zero: as any server's time.
        crate::fleet::millis(passed) + 1
    }

    /// A step on a shard that exists; otherwise nothing.
    fn step<T>(
        &self,
        shard: Shard<'_>,
        checked: Result<(), StoreError>,
        step: impl FnOnce(&mut ShardRecord, u64) -> T,
    ) -> Result<Option<T>, StoreError> {
        validate::shard(shard)?;
        checked?;
        let now = self.now_ms();
        let mut shards = lock(&self.0.shards);
        let it = shards.get_mut(&(Arc::from(shard.name), shard.index));
        Ok(it.map(|it| step(it, now)))
    }

    fn write_now(&self, shard: Shard<'_>, write: &Write) -> Result<Written, StoreError> {
        validate::shard(shard)?;
        validate::write(write)?;
        let now = self.now_ms();
        let key = (Arc::from(shard.name), shard.index);
        let mut shards = lock(&self.0.shards);
        let mut existed = true;
        let it = shards.entry(key).or_insert_with(|| {
            existed = false;
            ShardRecord::new(write.incarnation, shard.of)
        });
        let mut written = it.write(write, shard.of, now);
        if !existed {
            written.before.incarnation = 0;
        }
        Ok(written)
    }
}

fn ready<'a, T: Send + 'a>(answer: Result<T, StoreError>) -> StoreFuture<'a, T> {
    Box::pin(std::future::ready(answer))
}

impl WriteBehindStore for InProcessWriteBehind {
    fn write<'a>(&'a self, shard: Shard<'a>, write: &'a Write) -> StoreFuture<'a, Written> {
        ready(self.write_now(shard, write))
    }

    fn read<'a>(&'a self, shard: Shard<'a>, key: &'a str) -> StoreFuture<'a, Option<RawEntry>> {
        let read = self.step(shard, validate::key(key), |it, _| it.read(key));
        ready(read.map(Option::flatten))
    }

    fn take<'a>(&'a self, shard: Shard<'a>, take: &'a Take) -> StoreFuture<'a, Taken> {
        let taken = self.step(shard, validate::take(take), |it, now| it.take(take, now));
        ready(taken.map(|it| it.unwrap_or_else(Taken::nothing)))
    }

    fn renew<'a>(&'a self, shard: Shard<'a>, fence: u64, lease_ms: u64) -> StoreFuture<'a, bool> {
        let checked = validate::renew(fence, lease_ms);
        let renewed = self.step(shard, checked, |it, now| it.renew(fence, lease_ms, now));
        ready(renewed.map(|it| it.unwrap_or(false)))
    }

    fn settle<'a>(&'a self, shard: Shard<'a>, settle: &'a Settle) -> StoreFuture<'a, bool> {
        let checked = validate::settle(settle);
        let settled = self.step(shard, checked, |it, now| it.settle(settle, now));
        ready(settled.map(|it| it.unwrap_or(false)))
    }

    fn state<'a>(&'a self, shard: Shard<'a>) -> StoreFuture<'a, ShardState> {
        let state = self.step(shard, Ok(()), |it, now| it.state(now));
        ready(state.map(Option::unwrap_or_default))
    }

    fn dead<'a>(
        &'a self,
        shard: Shard<'a>,
        after: Option<&'a str>,
        max: usize,
    ) -> StoreFuture<'a, Vec<RawDead>> {
        let checked = validate::page(max);
        let dead = self.step(shard, checked, |it, now| it.dead(after, max, now));
        ready(dead.map(Option::unwrap_or_default))
    }

    fn act_on_dead<'a>(
        &'a self,
        shard: Shard<'a>,
        keys: &'a [Arc<str>],
        action: DeadAction,
    ) -> StoreFuture<'a, u64> {
        let checked = validate::keys(keys);
        let acted = self.step(shard, checked, |it, now| it.act_on_dead(keys, action, now));
        ready(acted.map(Option::unwrap_or_default))
    }
}

impl Taken {
    /// The answer of a shard that does not exist.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            before: super::record::Head::default(),
            oldest_ms: 0,
            dead: 0,
            batch: TakenBatch::Idle,
        }
    }
}

impl Default for InProcessWriteBehind {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for InProcessWriteBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shards = lock(&self.0.shards).len();
        f.debug_struct("InProcessWriteBehind")
            .field("shards", &shards)
            .finish_non_exhaustive()
    }
}
