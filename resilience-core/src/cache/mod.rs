//! Cache: values kept in this process and in a store that a fleet shares, loaded by one caller at a time, and never stale by
//! accident.
//!
//! ```
//! use std::{io, time::Duration};
//! use resilience_core::{Cache, cache::LocalCache};
//!
//! # async fn product(id: u64) -> io::Result<Option<String>> { Ok(Some(format!("product {id}"))) }
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let products = Cache::<u64, String>::builder("products")
//!     .ttl(Duration::from_secs(300))
//!     .stale_while_revalidate(Duration::from_secs(60))
//!     .stale_if_error(Duration::from_secs(3600))
//!     .local(LocalCache::entries(10_000))
//!     // .store(redis.cache())             // one fill in the fleet, and a change is seen by every instance
//!     .build()?;
//!
//! let seven = products.get_or_load(&7, || product(7)).await?;
//! assert_eq!(seven.as_deref().map(String::as_str), Some("product 7"));
//! products.invalidate(&7).await?;          // after the database was changed
//! # Ok(()) }
//! ```
//!
//! # Strategies
//! | strategy | call |
//! |---|---|
//! | cache-aside | [`get_or_load`](Cache::get_or_load), [`get`](Cache::get), [`put`](Cache::put), [`invalidate`](Cache::invalidate); many keys at once: [`get_or_load_many`](Cache::get_or_load_many) |
//! | read-through | [`loader`](CacheBuilder::loader) and [`fetch`](Cache::fetch); around a tower service: [`layer`](Cache::layer) |
//! | write-through | [`write`](Cache::write): the truth first, then the cache |
//! | commit, then invalidate | [`change`](Cache::change): several keys and tags, whose new values are not known here |
//! | refresh-ahead | [`refresh_early`](CacheBuilder::refresh_early), [`warm_up`](Cache::warm_up) |
//!
//! # Where a value is
//! In this process (a hit allocates nothing and asks nothing of the store), in the store (one GET), or with the loader. On a miss one caller
//! of the process asks for a lease in the key's record; of a fleet, one gets it, loads, and stores the value. The
//! others wait until the store reports the change, or the lease ends: then they compete for it again. A holder that dies
//! blocks its key for one [`lease`](CacheBuilder::lease). A caller that has waited for a lease and a load loads by itself.
//!
//! # What is never served
//! - A value that was invalidated: the fill of a load that began before the invalidation is refused, by the store and by every
//!   process. An invalidation that does not reach the store is repeated until it does, and meanwhile this process does not
//!   use what the store holds.
//! - What this process holds, while the store does not report changes; up to [`max_stale`](CacheBuilder::max_stale), if set.
//! - A stale value in place of an error that is the caller's own fault.
//!
//! There is no sliding expiry (a time to live that begins again with every read): such reads write, so that a store cannot
//! report later changes, and a popular value would never be loaded again. Use
//! [`refresh_early`](CacheBuilder::refresh_early).
//!
//! # Errors
//! A loader's error is returned to all callers that shared the load, in an `Arc` ([`LoadError`]). The cache itself
//! rejects calls whose load took longer than its [timeout](CacheBuilder::load_timeout), and those that found too many
//! loads in progress. A loader behind a stack of layers is called through [`guarded`](fn@guarded), so that the rejections of the stack
//! are those of the call, and errors do not nest. Errors are not cached. A store that is away is no error of a call: it is loaded then.
//!
//! # Cancellation
//! A load belongs to all who wait for it: it goes on while one of them does. A dropped invalidation or write is completed
//! in the background.
//!
//! # Cost
//! | call | allocations | commands to the store |
//! |---|---|---|
//! | hit in this process | 0 | 0 |
//! | hit in the store | some | 1 |
//! | miss | some | 3: read, lease, fill; the caller waits for two |
//! | invalidation | some | 1 |
//!
//! Tags cost no command while the store reports changes, otherwise one read each time.
//!
//! # References
//! - Leases: Nishtala et al., [Scaling Memcache at
//!   Facebook](https://www.usenix.org/conference/nsdi13/technical-sessions/presentation/nishtala) (NSDI 2013).
//! - Early refresh: Vattani et al., [Optimal Probabilistic Cache Stampede
//!   Prevention](https://www.vldb.org/pvldb/vol8/p886-vattani.pdf) (VLDB 2015).
//! - Stale values: [RFC 5861](https://www.rfc-editor.org/rfc/rfc5861).
//! - Eviction: Yang et al., [FIFO queues are all you need for cache eviction](https://dl.acm.org/doi/10.1145/3600006.3613147)
//!   (SOSP 2023).

mod background;
mod batch;
mod builder;
mod change;
mod coherence;
mod counters;
mod envelope;
mod fill;
mod freshness;
mod generations;
mod guarded;
mod hot_keys;
mod invalidation;
mod layer;
mod leased;
mod load;
mod loading;
mod local;
mod lookup;
mod many;
mod memory;
mod pending;
mod recent;
pub mod record;
mod remote;
mod repeat;
mod report;
mod settings;
mod shared;
mod snapshot;
pub mod store;
mod tag_times;
#[cfg(all(test, not(loom)))]
mod tests;
mod warm_up;
mod write;

use std::{
    any::TypeId,
    borrow::Borrow,
    error::Error as StdError,
    fmt::{self, Display},
    future::Future,
    hash::Hash,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

#[cfg(feature = "messagepack")]
pub use crate::codec::MessagePack;
pub use crate::codec::{Codec, CodecError, Json, Raw};

pub use self::{
    builder::CacheBuilder,
    change::Affected,
    counters::CacheTotals,
    freshness::RefreshEarly,
    guarded::{GuardedLoad, GuardedOutcome, LoadOutcome, guarded},
    layer::{CacheFuture, CacheLayer, CacheService},
    load::{LoadError, Loaded},
    local::LocalCache,
    lookup::{CallOptions, Freshness, Level, Lookup},
    many::{ManyLoaded, ManyLookups},
    memory::InProcessCache,
    snapshot::{CacheSnapshot, HotKey},
    store::CacheStore,
    warm_up::WarmUp,
};
use self::{
    fill::Request,
    freshness::Use,
    load::{Load, load},
    shared::{Answer, FlightKey, Shared},
};
use crate::{
    coalesce::FlightPanicked,
    error::{Error, Reason},
    fleet::StillRunning,
};

/// What can be the key of a [`Cache`]: implemented for every type that has what it takes.
///
/// In a store, a key is what its `Display` writes: two keys that are displayed alike are one. Keys of up to 1,024 bytes
/// are stored; over a store, values of longer ones, and of an empty one, are not cached.
pub trait CacheKey: Hash + Eq + Clone + Display + Send + Sync + 'static {}

impl<K: Hash + Eq + Clone + Display + Send + Sync + 'static> CacheKey for K {}

/// A cache. Cheap to clone; clones share it. See the [module](self).
///
/// Keys are looked up borrowed: a `Cache<String, V>` by `&str`.
pub struct Cache<K: CacheKey, V: Send + Sync + 'static> {
    shared: Arc<Shared<K, V>>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Cache<K, V> {
    /// Settings of a cache called `name`. Caches of one name and store share their values.
    pub fn builder(name: impl Into<Arc<str>>) -> CacheBuilder<K, V> {
        CacheBuilder::new(name.into())
    }

    /// The value of a key, if it is cached: fresh, or stale within
    /// [`stale_while_revalidate`](CacheBuilder::stale_while_revalidate). `None` also for a key that is known to have no value:
    /// [`lookup`](Self::lookup) tells the two apart.
    pub async fn get<Q>(&self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K> + Sync,
    {
        self.lookup(key).await?.value
    }

    /// What is cached under a key, how old it is, and where it was. Does not load.
    pub async fn lookup<Q>(&self, key: &Q) -> Option<Lookup<V>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K> + Sync,
    {
        let shared = &self.shared;
        shared.hot_keys.sample(key);
        let now = shared.clock.now();
        match shared.held(key, now, &CallOptions::new()) {
            Some((held, Use::Fresh | Use::Early)) => return Some(shared.hit(held, now)),
            Some((held, Use::Stale)) => return Some(shared.stale(held, Freshness::Stale)),
            _ => {}
        }
        let found = shared.read(key).await;
        if found.is_none() {
            shared.totals.missing.fetch_add(1, Relaxed);
        }
        found
    }

    /// Calls `read` with the value that this process holds, if it is fresh. Nothing is cloned, so that readers of a hot key
    /// on several cores do not write to one counter. Readers of one part of the keys exclude each other meanwhile: `read` should
    /// be quick, and must not use this cache.
    pub fn peek_with<Q, T>(&self, key: &Q, read: impl FnOnce(&V) -> T) -> Option<T>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
    {
        self.shared.peek_with(key, read)
    }

    /// The value of a key: cached, or loaded by `load`, whichever caller's. `None`: there is none.
    ///
    /// `load` may return a value, an `Option`, or a [`Loaded`] with a time to live and tags of its own. It is called at most once,
    /// and its future may be driven by another caller's task, or by one in the background: it owns what it uses. If it calls
    /// through a stack of layers, wrap that call in [`guarded`](fn@guarded).
    ///
    /// # Errors
    /// [`LoadError`]: the loader's error, or a rejection: the load took longer than its
    /// [timeout](CacheBuilder::load_timeout), or there were too many. A stale value is served in place of either within
    /// [`stale_if_error`](CacheBuilder::stale_if_error).
    pub async fn get_or_load<Q, R, F>(
        &self,
        key: &Q,
        load: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Option<Arc<V>>, LoadError<R::Error>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K> + Sync,
        R: LoadOutcome<Value: Into<Loaded<V>>, Error: Send + Sync + 'static>,
        F: Future<Output = R> + Send + 'static,
    {
        let lookup = self.load_with(key, CallOptions::new(), load).await?;
        Ok(lookup.value)
    }

    /// As [`get_or_load`](Self::get_or_load), with options for this call; the answer says how fresh the value is.
    ///
    /// # Errors
    /// As [`get_or_load`](Self::get_or_load).
    pub async fn load_with<Q, R, F>(
        &self,
        key: &Q,
        options: CallOptions,
        load: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Lookup<V>, LoadError<R::Error>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K> + Sync,
        R: LoadOutcome<Value: Into<Loaded<V>>, Error: Send + Sync + 'static>,
        F: Future<Output = R> + Send + 'static,
    {
        self.load_or(key, options, || self::load(load)).await
    }

    /// What this process holds, or what comes of a load.
    async fn load_or<Q, E>(
        &self,
        key: &Q,
        options: CallOptions,
        load: impl FnOnce() -> Load<V, E>,
    ) -> Result<Lookup<V>, LoadError<E>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K> + Sync,
        E: Send + Sync + 'static,
    {
        let shared = &self.shared;
        shared.hot_keys.sample(key);
        if options.bypass {
            return shared.bypass(load()).await;
        }
        if !options.refresh {
            let now = shared.clock.now();
            match shared.held(key, now, &options) {
                Some((held, Use::Fresh)) => return Ok(shared.hit(held, now)),
                Some((held, good_for)) => {
                    return match self.serve_again(key, held, good_for, load) {
                        Ok(lookup) => Ok(lookup),
                        Err((held, load)) => self.load_shared(key, options, Some(held), load).await,
                    };
                }
                None => {}
            }
        }
        self.load_shared(key, options, None, load()).await
    }

    /// Serves a value that is to be loaded again meanwhile, or returns it as a fallback.
    #[cold]
    #[expect(clippy::type_complexity, reason = "the two halves of a request")]
    fn serve_again<Q, E>(
        &self,
        key: &Q,
        held: local::Held<V>,
        good_for: Use,
        load: impl FnOnce() -> Load<V, E>,
    ) -> Result<Lookup<V>, (local::Held<V>, Load<V, E>)>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K>,
        E: Send + Sync + 'static,
    {
        let shared = &self.shared;
        let place = shared.place(key);
        let now = shared.clock.now();
        if good_for == Use::Fallback {
            return if shared.background.is_paused(place.id, now) {
                Ok(shared.stale(held, Freshness::StaleOnError))
            } else {
                Err((held, load()))
            };
        }
        shared.refresh(key.to_owned(), place, held.version, load());
        Ok(match good_for {
            Use::Early => shared.hit(held, now),
            _ => shared.stale(held, Freshness::Stale),
        })
    }

    /// Loads, or shares the load of another caller.
    async fn load_shared<Q, E>(
        &self,
        key: &Q,
        options: CallOptions,
        fallback: Option<local::Held<V>>,
        load: Load<V, E>,
    ) -> Result<Lookup<V>, LoadError<E>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K>,
        E: Send + Sync + 'static,
    {
        let shared = &self.shared;
        let place = shared.place(key);
        let in_progress = shared.in_progress();
        let flight = FlightKey {
            key: key.to_owned(),
            error: TypeId::of::<E>(),
            mark: shared.coherence.ticket(place.id).mark(),
        };
        let work = Arc::clone(shared);
        let request = Request {
            key: key.to_owned(),
            place,
            load,
            fallback,
            options,
        };
        let start = move || async move {
            let _in_progress = in_progress;
            Arc::new(work.fill::<E>(request).await) as Answer
        };
        let joined = if options.refresh {
            shared.flights.join_fresh(flight, start)
        } else {
            shared.flights.join(flight, start)
        };
        match joined.await {
            Ok(answer) => {
                let outcome = answer.downcast_ref::<Result<Lookup<V>, LoadError<E>>>();
                outcome.expect("of the type in the flight's key").clone()
            }
            Err(FlightPanicked) => Err(Error::Rejected(shared.reject(Reason::LoadPanicked))),
        }
    }

    /// Read-through: the value of a key, cached or loaded by the cache's own [loader](CacheBuilder::loader).
    ///
    /// # Errors
    /// As [`get_or_load`](Self::get_or_load); [`Reason::NoLoader`] if the cache was built without a loader.
    pub async fn fetch<Q>(
        &self,
        key: &Q,
    ) -> Result<Option<Arc<V>>, LoadError<Box<dyn StdError + Send + Sync>>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K> + Sync,
    {
        let lookup = self.fetch_with(key, CallOptions::new()).await?;
        Ok(lookup.value)
    }

    /// As [`fetch`](Self::fetch), with options for this call; the answer says how fresh the value is, and where it came from.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub async fn fetch_with<Q>(
        &self,
        key: &Q,
        options: CallOptions,
    ) -> Result<Lookup<V>, LoadError<Box<dyn StdError + Send + Sync>>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K> + Sync,
    {
        let Some(loader) = self.shared.loader.clone() else {
            return Err(Error::Rejected(self.shared.reject(Reason::NoLoader)));
        };
        self.load_or(key, options, || loader(key.to_owned())).await
    }

    /// Name that the cache was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The state of the cache now, with its hot keys.
    #[must_use]
    pub fn snapshot(&self) -> CacheSnapshot {
        self.shared.snapshot()
    }

    /// Waits for loads in the background, fills and invalidations that the store does not have yet, for at most `within`. A
    /// store's [`shutdown`](crate::fleet::StoreHandle::shutdown) includes this.
    ///
    /// # Errors
    /// [`StillRunning`] when some had not ended by then.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.shared.tasks.shutdown(within).await
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}
