//! The store for one process: for tests and programs with a single instance, and the reference for other stores.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    record::{
        Claim, Claimed, Completion, Grant, Holder, Phase, Record, RecordView, StoreResolution,
        WriteOutcome,
    },
    store::{IdempotencyStore, StoreError, StoreFuture, validate},
};
use crate::{
    clock::Clock,
    fleet::{Pushed, Subscription},
};

/// Idempotency records in this process. Clones share them.
///
/// The records are lost with the process, and so are the fences: a new process begins with lower ones. Use it where a
/// key cannot reach another process or outlive this one, and in tests. As the local store of
/// [`OnOutage::Local`](crate::fleet::OnOutage::Local) its fences are above every fence that the process was given by the store that
/// is unavailable, but not above those of other processes.
///
/// [Bounded](Self::bounded): a full store fails new claims. A record is never dropped before its time, since the next
/// caller would then run the work again.
///
/// ```
/// use resilience_core::idempotency::{InProcessIdempotency, IdempotencyStore, record::{Claim, Claimed, Takeover}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = InProcessIdempotency::new();
/// let claim = Claim {
///     owner: "instance-7-42".into(),
///     fingerprint: "of the request".into(),
///     lease_ms: 30_000,
///     retention_ms: 86_400_000,
///     takeover: Takeover::Ended,
/// };
/// assert!(matches!(store.claim("orders", "key", &claim).await?, Claimed::New(grant) if grant.attempt == 1));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct InProcessIdempotency {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    /// The highest fence given so far, here or by the store that this one stands in for.
    fence: AtomicU64,
    hasher: RandomState,
    /// Of one shard.
    max_records: usize,
    max_bytes: usize,
    shards: [Mutex<Shard>; SHARDS],
}

const SHARDS: usize = 16;

#[derive(Debug, Default)]
struct Shard {
    records: HashMap<String, Record>,
    /// Of the contents of all records.
    bytes: usize,
    /// Claims on new keys since expired records were last removed.
    entered: usize,
    /// When that was.
    swept: u64,
    listeners: HashMap<String, watch::Sender<Pushed<()>>>,
}

impl InProcessIdempotency {
    /// An empty store for up to 262,144 records and 256 MiB of outcomes, checkpoints and fingerprints.
    #[must_use]
    pub fn new() -> Self {
        Self::bounded(1 << 18, 256 << 20)
    }

    /// An empty store for up to `records` records with `bytes` of content in all, spread evenly over 16 parts of at least one
    /// record. When a part is full, claims on new keys fail; granted ones can be completed.
    #[must_use]
    pub fn bounded(records: usize, bytes: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                clock: Clock::auto(),
                fence: AtomicU64::new(0),
                hasher: RandomState::new(),
                max_records: (records / SHARDS).max(1),
                max_bytes: (bytes / SHARDS).max(1),
                shards: Default::default(),
            }),
        }
    }

    /// Number of records, including expired ones that were not removed yet.
    #[must_use]
    pub fn len(&self) -> usize {
        (0..SHARDS)
            .map(|shard| self.shared.lock(shard).records.len())
            .sum()
    }

    /// Whether there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all records, as a flushed or failed-over server does. Subscriptions stay.
    pub fn flush(&self) {
        for shard in 0..SHARDS {
            let mut shard = self.shared.lock(shard);
            shard.records.clear();
            shard.bytes = 0;
        }
    }

    /// Notes what another store has answered: fences from now on are above that.
    pub(super) fn heard(&self, claimed: &Claimed) {
        if let Claimed::New(Grant { fence, .. })
        | Claimed::Mine(Grant { fence, .. })
        | Claimed::Done { fence, .. }
        | Claimed::Unknown { fence, .. } = claimed
        {
            self.shared.fence.fetch_max(*fence, Relaxed);
        }
    }

    /// Claims a key under a fence above all before.
    fn claimed(&self, name: &str, key: &str, claim: &Claim) -> Result<Claimed, StoreError> {
        let floor = self.shared.fence.load(Relaxed);
        let claimed = self.step(name, key, true, |record, now| {
            record.claim_above(claim, floor, now)
        })?;
        self.heard(&claimed);
        Ok(claimed)
    }

    /// Runs one step on one record. With `enters`, a missing record is created.
    fn step<T>(
        &self,
        name: &str,
        key: &str,
        enters: bool,
        step: impl FnOnce(&mut Record, u64) -> T,
    ) -> Result<T, StoreError> {
        validate::key(key)?;
        let full_key = full_key(name, key);
        let mut shard = self.shared.lock(self.shared.shard_of(&full_key));
        let now = self.shared.now();
        if enters && !shard.records.contains_key(&full_key) {
            self.shared.make_room(&mut shard, now)?;
        }
        let mut record = shard.records.remove(&full_key).unwrap_or_default();
        let before = record.bytes();
        let phase = record.view(now).map(|view| view.phase);
        let done = step(&mut record, now);
        shard.bytes -= before;
        if let Some(view) = record.view(now) {
            if Some(view.phase) != phase && view.phase != Phase::Running {
                shard.notify(&full_key);
            }
            shard.bytes += record.bytes();
            shard.records.insert(full_key, record);
        }
        Ok(done)
    }
}

/// Unambiguous: the length says where the name ends.
fn full_key(name: &str, key: &str) -> String {
    format!("{}:{name}{key}", name.len())
}

impl Shared {
    fn now(&self) -> u64 {
        self.clock.now().as_nanos() / 1000
    }

    fn shard_of(&self, full_key: &str) -> usize {
        self.hasher.hash_one(full_key) as usize % SHARDS
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard> {
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes expired records when as many were added as there are, and, at most ten times a second, when there is no
    /// room.
    fn make_room(&self, shard: &mut Shard, now: u64) -> Result<(), StoreError> {
        shard.entered += 1;
        let rested = now.saturating_sub(shard.swept) >= 100_000;
        if shard.entered > shard.records.len() + 16 || (rested && self.is_full(shard)) {
            (shard.entered, shard.swept) = (0, now);
            shard.records.retain(|_, record| !record.is_gone(now));
            shard.bytes = shard.records.values().map(Record::bytes).sum();
        }
        if self.is_full(shard) {
            let reason = "the store in this process is full, and nothing in it has expired";
            return Err(StoreError::new(reason, false));
        }
        Ok(())
    }

    fn is_full(&self, shard: &Shard) -> bool {
        shard.records.len() >= self.max_records || shard.bytes >= self.max_bytes
    }
}

impl Shard {
    fn notify(&mut self, full_key: &str) {
        let listeners = self.listeners.get(full_key);
        if listeners.is_some_and(|listeners| listeners.send(Pushed::Value(())).is_err()) {
            self.listeners.remove(full_key);
        }
    }
}

impl Default for InProcessIdempotency {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for InProcessIdempotency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcessIdempotency")
            .field("records", &self.len())
            .finish()
    }
}

fn ready<T: Send + 'static>(answer: Result<T, StoreError>) -> StoreFuture<'static, T> {
    Box::pin(std::future::ready(answer))
}

impl IdempotencyStore for InProcessIdempotency {
    fn claim<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        claim: &'a Claim,
    ) -> StoreFuture<'a, Claimed> {
        ready(validate::claim(claim).and_then(|()| self.claimed(name, key, claim)))
    }

    fn extend<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        lease_ms: u64,
    ) -> StoreFuture<'a, WriteOutcome> {
        let valid = validate::holder(holder).and_then(|()| validate::lease(lease_ms));
        ready(valid.and_then(|()| {
            self.step(name, key, false, |record, now| {
                record.extend(holder, lease_ms, now)
            })
        }))
    }

    fn checkpoint<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        checkpoint: &'a Bytes,
        lease_ms: u64,
    ) -> StoreFuture<'a, WriteOutcome> {
        let valid = validate::holder(holder)
            .and_then(|()| validate::lease(lease_ms))
            .and_then(|()| validate::checkpoint(checkpoint.len()));
        ready(valid.and_then(|()| {
            self.step(name, key, false, |record, now| {
                record.checkpoint(holder, checkpoint, lease_ms, now)
            })
        }))
    }

    fn complete<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
        completion: &'a Completion,
    ) -> StoreFuture<'a, WriteOutcome> {
        let valid = validate::holder(holder).and_then(|()| validate::completion(completion));
        ready(valid.and_then(|()| {
            self.step(name, key, false, |record, now| {
                record.complete(holder, completion, now)
            })
        }))
    }

    fn release<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
    ) -> StoreFuture<'a, WriteOutcome> {
        ready(
            validate::holder(holder).and_then(|()| {
                self.step(name, key, false, |record, now| record.release(holder, now))
            }),
        )
    }

    fn unknown<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        holder: &'a Holder,
    ) -> StoreFuture<'a, WriteOutcome> {
        ready(
            validate::holder(holder).and_then(|()| {
                self.step(name, key, false, |record, now| record.unknown(holder, now))
            }),
        )
    }

    fn resolve<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        fence: u64,
        resolution: &'a StoreResolution,
    ) -> StoreFuture<'a, WriteOutcome> {
        let valid = validate::fence(fence).and_then(|()| validate::resolution(resolution));
        ready(valid.and_then(|()| {
            self.step(name, key, false, |record, now| {
                record.resolve(fence, resolution, now)
            })
        }))
    }

    fn get<'a>(&'a self, name: &'a str, key: &'a str) -> StoreFuture<'a, Option<RecordView>> {
        ready(self.step(name, key, false, |record, now| record.view(now)))
    }

    fn subscribe(&self, name: &str, key: &str) -> Subscription<()> {
        let full_key = full_key(name, key);
        let mut shard = self.shared.lock(self.shared.shard_of(&full_key));
        // Channels without receivers are removed when the map would grow.
        if shard.listeners.len() == shard.listeners.capacity() {
            shard.listeners.retain(|_, sender| !sender.is_closed());
        }
        let sender = shard
            .listeners
            .entry(full_key)
            .or_insert_with(|| watch::Sender::new(Pushed::None));
        Subscription::new(sender.subscribe())
    }
}
