//! The values that this process keeps.

use std::{
    fmt,
    hash::Hash,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::Duration,
};

use foldhash::fast::RandomState;
use quick_cache::{
    Equivalent, Lifecycle, OptionsBuilder, Weighter,
    sync::{Cache as Map, EntryAction, EntryResult},
};

use super::{
    coherence::{Coherence, Ticket, Validity},
    freshness::Times,
    record::Token,
};
use crate::clock::Moment;

/// How much a cache keeps in this process.
///
/// ```
/// use resilience_core::cache::LocalCache;
///
/// let by_number = LocalCache::<String, Vec<u8>>::entries(10_000);
/// let by_size = LocalCache::<String, Vec<u8>>::weight(64 << 20, |key, value| (key.len() + value.len()) as u64);
/// # let _ = (by_number, by_size);
/// ```
#[must_use]
pub struct LocalCache<K, V> {
    pub(super) capacity: u64,
    pub(super) entries: usize,
    pub(super) weigh: Option<Weigh<K, V>>,
}

type Weigh<K, V> = Arc<dyn Fn(&K, &V) -> u64 + Send + Sync>;

impl<K, V> LocalCache<K, V> {
    /// Up to `entries` values. The least useful make room: those not read again since they came, then the oldest (S3-FIFO).
    pub const fn entries(entries: usize) -> Self {
        Self {
            capacity: entries as u64,
            entries,
            weigh: None,
        }
    }

    /// Values of up to `weight` in all. `weigh` returns the weight of one, e.g. its size in bytes; a value that is known not
    /// to exist weighs 1.
    pub fn weight(weight: u64, weigh: impl Fn(&K, &V) -> u64 + Send + Sync + 'static) -> Self {
        Self {
            capacity: weight,
            // An estimate: it only sizes tables.
            entries: usize::try_from(weight / 256)
                .unwrap_or(usize::MAX)
                .clamp(64, 1 << 20),
            weigh: Some(Arc::new(weigh)),
        }
    }
}

impl<K, V> Clone for LocalCache<K, V> {
    fn clone(&self) -> Self {
        Self {
            weigh: self.weigh.clone(),
            ..*self
        }
    }
}

impl<K, V> fmt::Debug for LocalCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCache")
            .field("capacity", &self.capacity)
            .field("weighed", &self.weigh.is_some())
            .finish_non_exhaustive()
    }
}

/// A value that the process keeps: 64 bytes, of which a hit reads all.
pub(super) struct Held<V> {
    /// `None`: known not to exist.
    pub(super) value: Option<Arc<V>>,
    pub(super) ticket: Ticket,
    /// Of the tags.
    pub(super) tags: Option<Arc<[Ticket]>>,
    /// When it was stored, by this process' clock.
    pub(super) stored: Moment,
    pub(super) fresh_until: Moment,
    pub(super) load: LoadTime,
    /// In the store.
    pub(super) version: Option<Token>,
}

impl<V> Held<V> {
    #[inline]
    pub(super) fn times(&self, now: Moment) -> Times {
        Times {
            age: now.since(self.stored),
            fresh: self.fresh_until.since(self.stored),
            load: self.load.into(),
            negative: self.value.is_none(),
        }
    }

    /// Whether it may be used: nothing changed since, or nothing is known to have, for at most `max_stale`.
    #[inline]
    pub(super) fn is_usable(
        &self,
        coherence: &Coherence,
        now: Moment,
        max_stale: Duration,
    ) -> bool {
        self.is_certain(&self.ticket, coherence, now, max_stale)
            && self.tags.as_ref().is_none_or(|tags| {
                let certain = |tag| self.is_certain(tag, coherence, now, max_stale);
                tags.iter().all(certain)
            })
    }

    #[inline]
    fn is_certain(
        &self,
        ticket: &Ticket,
        coherence: &Coherence,
        now: Moment,
        max_stale: Duration,
    ) -> bool {
        match coherence.check(ticket) {
            Validity::Valid => true,
            Validity::Doubtful(since) => now.since(since.unwrap_or(self.stored)) < max_stale,
            Validity::Void => false,
        }
    }
}

/// How long a load took: microseconds, of up to an hour.
#[derive(Clone, Copy)]
pub(super) struct LoadTime(u32);

impl From<Duration> for LoadTime {
    fn from(time: Duration) -> Self {
        Self(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))
    }
}

impl From<LoadTime> for Duration {
    fn from(LoadTime(micros): LoadTime) -> Self {
        Self::from_micros(micros.into())
    }
}

impl<V> Clone for Held<V> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            tags: self.tags.clone(),
            ..*self
        }
    }
}

/// The map of a cache: bounded, without time or coherence.
pub(super) struct Local<K, V> {
    map: Map<K, Held<V>, HeldWeight<K, V>, RandomState, CountEvictions>,
    evictions: Arc<AtomicU64>,
}

struct HeldWeight<K, V>(Option<Weigh<K, V>>);

impl<K, V> Clone for HeldWeight<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, V> Weighter<K, Held<V>> for HeldWeight<K, V> {
    fn weight(&self, key: &K, held: &Held<V>) -> u64 {
        match (&self.0, &held.value) {
            (Some(weigh), Some(value)) => weigh(key, value).max(1),
            _ => 1,
        }
    }
}

#[derive(Clone)]
struct CountEvictions(Arc<AtomicU64>);

impl<K, V> Lifecycle<K, V> for CountEvictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: K, _: V) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl<K: Hash + Eq, V> Local<K, V> {
    pub(super) fn new(settings: &LocalCache<K, V>) -> Self {
        let evictions = Arc::new(AtomicU64::new(0));
        let options = OptionsBuilder::new()
            .estimated_items_capacity(settings.entries)
            .weight_capacity(settings.capacity)
            .shards(SHARDS)
            .build()
            .expect("the capacities are set");
        let map = Map::with_options(
            options,
            HeldWeight(settings.weigh.clone()),
            RandomState::default(),
            CountEvictions(Arc::clone(&evictions)),
        );
        Self { map, evictions }
    }

    #[inline]
    pub(super) fn get<Q>(&self, key: &Q) -> Option<Held<V>>
    where
        Q: ?Sized + Hash + Equivalent<K>,
    {
        self.map.get(key)
    }

    /// Reads a value without cloning its `Arc`, which would be written by every reader of a hot key.
    #[inline]
    pub(super) fn with<Q, T>(&self, key: &Q, read: impl FnOnce(&Held<V>) -> T) -> Option<T>
    where
        Q: ?Sized + Hash + Equivalent<K> + ToOwned<Owned = K>,
    {
        let mut read = Some(read);
        let found = self.map.entry(key, Some(Duration::ZERO), |_, held| {
            EntryAction::Retain(read.take().map(|read| read(held)))
        });
        match found {
            EntryResult::Retained(answer) => answer,
            _ => None,
        }
    }

    pub(super) fn insert(&self, key: K, held: Held<V>) {
        self.map.insert(key, held);
    }

    pub(super) fn remove<Q>(&self, key: &Q)
    where
        Q: ?Sized + Hash + Equivalent<K>,
    {
        self.map.remove(key);
    }

    pub(super) fn clear(&self) {
        self.map.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn weight(&self) -> u64 {
        self.map.weight()
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Relaxed)
    }
}

/// More than the cores that read at once: with 8, two cores read no faster than one.
const SHARDS: usize = 64;
