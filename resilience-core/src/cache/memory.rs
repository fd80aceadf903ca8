//! The store for one process: for tests, and the reference for other stores.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    record::{Entry, Fill, Generation, Lease, Leased, Record, Stored, Token},
    store::{CacheStore, Observer, StoreError, StoreFuture, Subject, validate},
};
use crate::{
    clock::Clock,
    sync::{Mutex, lock},
};

/// Cached values in this process, encoded as other stores keep them. Clones share them.
///
/// It lets several caches in one process, as tests and simulations have, share one store. A cache in one process alone needs
/// none: it keeps its values [by itself](super::CacheBuilder::local), without encoding them.
///
/// [Bounded](Self::bounded): a full store makes room by dropping values of its fullest moment, at random.
///
/// ```
/// use resilience_core::{Cache, cache::InProcessCache};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = InProcessCache::new();
/// let one = Cache::<String, u32>::builder("prices").store(store.clone()).build()?;
/// let other = Cache::<String, u32>::builder("prices").store(store).build()?;
/// one.put("apple", 3).await?;
/// assert_eq!(other.get("apple").await.as_deref(), Some(&3));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct InProcessCache(Arc<Shared>);

struct Shared {
    clock: Clock,
    /// Records per shard.
    most: usize,
    hasher: RandomState,
    shards: [Mutex<HashMap<(String, String), Record>>; SHARDS],
    tags: Mutex<HashMap<(String, String), Tag>>,
    generation: AtomicU64,
    observers: Mutex<Vec<Weak<dyn Observer>>>,
}

/// The generation of a tag, and when it was last invalidated.
#[derive(Clone, Copy, Debug)]
struct Tag {
    number: u64,
    invalidated: Option<u64>,
}

const SHARDS: usize = 16;

impl InProcessCache {
    /// An empty store for up to 262,144 values.
    #[must_use]
    pub fn new() -> Self {
        Self::bounded(1 << 18)
    }

    /// An empty store for up to `values` values, spread over 16 parts of at least one.
    #[must_use]
    pub fn bounded(values: usize) -> Self {
        Self(Arc::new(Shared {
            clock: Clock::auto(),
            most: (values / SHARDS).max(1),
            hasher: RandomState::new(),
            shards: Default::default(),
            tags: Mutex::default(),
            generation: AtomicU64::new(0),
            observers: Mutex::default(),
        }))
    }

    /// Number of records: values, leases and tombstones, including those that are over and were not removed yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes everything, as a flushed server does.
    pub fn flush(&self) {
        for shard in &self.0.shards {
            lock(shard).clear();
        }
        lock(&self.0.tags).clear();
        self.0.tell(|observer| observer.cleared());
    }

    /// One step on the record of a key. `tell`: whether it may change the value.
    fn step<T>(
        &self,
        name: &str,
        key: &str,
        tell: bool,
        step: impl FnOnce(&mut Record, u64) -> T,
    ) -> Result<T, StoreError> {
        validate::key(key)?;
        let shared = &*self.0;
        let now = shared.now();
        let at = (name.to_owned(), key.to_owned());
        let shard = shared.hasher.hash_one(&at) as usize % SHARDS;
        let mut records = lock(&shared.shards[shard]);
        if records.len() >= shared.most && !records.contains_key(&at) {
            records.retain(|_, record| record.left(now).is_some());
            let over = (records.len() + 1).saturating_sub(shared.most);
            let dropped: Vec<_> = records.keys().take(over).cloned().collect();
            for at in dropped {
                records.remove(&at);
                shared.tell_of(self, &at.0, &at.1);
            }
        }
        let record = records.entry(at.clone()).or_default();
        let answer = step(record, now);
        if record.left(now).is_none() {
            records.remove(&at);
        }
        // Under the lock: reports come in the order of the changes.
        if tell {
            shared.tell_of(self, name, key);
        }
        Ok(answer)
    }
}

impl Shared {
    /// Milliseconds.
    fn now(&self) -> u64 {
        self.clock.now().as_nanos() / 1_000_000
    }

    fn tell_of(&self, store: &InProcessCache, name: &str, key: &str) {
        let id = store.id(name, Subject::Key(key));
        self.tell(|observer| observer.changed(id));
    }

    fn tell(&self, tell: impl Fn(&dyn Observer)) {
        lock(&self.observers).retain(|observer| {
            let observer = observer.upgrade();
            observer.inspect(|observer| tell(&**observer)).is_some()
        });
    }

    fn next_tag(&self, invalidated: Option<u64>) -> Tag {
        let number = self.generation.fetch_add(1, Relaxed) + 1;
        Tag {
            number,
            invalidated,
        }
    }
}

impl Default for InProcessCache {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for InProcessCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcessCache")
            .field("records", &self.len())
            .finish_non_exhaustive()
    }
}

impl CacheStore for InProcessCache {
    fn get<'a>(
        &'a self,
        name: &'a str,
        keys: &'a [&'a str],
    ) -> StoreFuture<'a, Vec<Option<Entry>>> {
        let get = |key: &&str| self.step(name, key, false, |record, now| record.get(now));
        ready(keys.iter().map(get).collect())
    }

    fn lease<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        lease: &'a Lease,
    ) -> StoreFuture<'a, Leased> {
        ready(
            validate::lease(lease)
                .and_then(|()| self.step(name, key, false, |record, now| record.lease(now, lease))),
        )
    }

    fn fill<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        fill: &'a Fill,
    ) -> StoreFuture<'a, Stored> {
        ready(
            validate::fill(fill).and_then(|()| {
                self.step(name, key, true, |record, now| record.fill(now, token, fill))
            }),
        )
    }

    fn extend<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        lease_ms: u64,
    ) -> StoreFuture<'a, Stored> {
        ready(validate::ms("lease", lease_ms).and_then(|()| {
            self.step(name, key, false, |record, now| {
                record.extend(now, token, lease_ms)
            })
        }))
    }

    fn release<'a>(&'a self, name: &'a str, key: &'a str, token: Token) -> StoreFuture<'a, ()> {
        ready(self.step(name, key, true, |record, _| record.release(token)))
    }

    fn put<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        version: Token,
        fill: &'a Fill,
    ) -> StoreFuture<'a, Stored> {
        ready(validate::fill(fill).and_then(|()| {
            self.step(name, key, true, |record, now| {
                record.put(now, version, fill)
            })
        }))
    }

    fn invalidate<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        tombstone_ms: u64,
    ) -> StoreFuture<'a, ()> {
        ready(validate::ms("tombstone", tombstone_ms).and_then(|()| {
            self.step(name, key, true, |record, now| {
                record.invalidate(now, tombstone_ms);
            })
        }))
    }

    fn begin_write<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        write_ms: u64,
    ) -> StoreFuture<'a, ()> {
        ready(validate::ms("write", write_ms).and_then(|()| {
            self.step(name, key, true, |record, now| {
                record.begin_write(now, token, write_ms);
            })
        }))
    }

    fn end_write<'a>(
        &'a self,
        name: &'a str,
        key: &'a str,
        token: Token,
        fill: Option<&'a Fill>,
        tombstone_ms: u64,
    ) -> StoreFuture<'a, Stored> {
        let checked = fill.map_or(Ok(()), validate::fill);
        let checked = checked.and_then(|()| validate::ms("tombstone", tombstone_ms));
        ready(checked.and_then(|()| {
            self.step(name, key, true, |record, now| {
                record.end_write(now, token, fill, tombstone_ms)
            })
        }))
    }

    fn generations<'a>(
        &'a self,
        name: &'a str,
        tags: &'a [&'a str],
        keep_ms: u64,
    ) -> StoreFuture<'a, Vec<Generation>> {
        if let Err(error) = validate::ms("keep", keep_ms) {
            return ready(Err(error));
        }
        let now = self.0.now();
        let mut known = lock(&self.0.tags);
        if known.len() >= self.0.most * SHARDS {
            // Values with a tag that is not known count as invalidated.
            known.clear();
            self.0.tell(|observer| observer.cleared());
        }
        let generation = |tag: &&str| {
            validate::tag(tag)?;
            let at = (name.to_owned(), (*tag).to_owned());
            let tag = known.entry(at).or_insert_with(|| self.0.next_tag(None));
            Ok(Generation {
                number: tag.number,
                invalidated_ms: tag.invalidated.map(|then| now.saturating_sub(then)),
            })
        };
        ready(tags.iter().map(generation).collect())
    }

    fn invalidate_tag<'a>(
        &'a self,
        name: &'a str,
        tag: &'a str,
        keep_ms: u64,
    ) -> StoreFuture<'a, ()> {
        let checked = validate::ms("keep", keep_ms).and_then(|()| validate::tag(tag));
        ready(checked.map(|()| {
            let mut known = lock(&self.0.tags);
            let at = (name.to_owned(), tag.to_owned());
            known.insert(at, self.0.next_tag(Some(self.0.now())));
            let id = self.id(name, Subject::Tag(tag));
            self.0.tell(|observer| observer.changed(id));
        }))
    }

    fn observe(&self, observer: Weak<dyn Observer>) -> Option<Arc<dyn Any + Send + Sync>> {
        let told = observer.upgrade();
        lock(&self.0.observers).push(observer);
        if let Some(told) = told {
            told.restored();
        }
        // The weak reference ends with the observer.
        Some(Arc::new(()))
    }
}

fn ready<'a, T: Send + 'a>(answer: Result<T, StoreError>) -> StoreFuture<'a, T> {
    Box::pin(std::future::ready(answer))
}
