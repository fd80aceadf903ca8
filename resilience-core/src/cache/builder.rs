//! The builder of a cache. Invalid settings are errors when it is built.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    Cache, CacheKey,
    envelope::Envelope,
    freshness::RefreshEarly,
    guarded::{GuardedOutcome, LoadOutcome},
    load::{ErrorRules, Loaded, load},
    local::LocalCache,
    remote::Remote,
    repeat, report,
    settings::Settings,
    shared::{Loader, Parts, Shared},
    store::{CacheStore, Observer},
};
use crate::{
    classify::Classify,
    codec::{Codec, Json},
    error::{Error, InvalidConfig},
    fleet::{FleetOptions, IntoStore, runtime},
    sealing::Sealing,
};

/// Settings of a [`Cache`].
///
/// # Default
/// | setting | value |
/// |---|---|
/// | [`ttl`](Self::ttl), [`jitter`](Self::jitter) | 60 s, shorter by up to 10 % |
/// | [`negative_ttl`](Self::negative_ttl) | zero: that there is no value is not cached |
/// | [`stale_while_revalidate`](Self::stale_while_revalidate), [`stale_if_error`](Self::stale_if_error) | zero: no stale values are served |
/// | [`refresh_early`](Self::refresh_early) | off |
/// | [`load_timeout`](Self::load_timeout) | 10 s, no soft timeout |
/// | [`max_loads`](Self::max_loads), [`retry_pause`](Self::retry_pause) | 64, 1 s |
/// | [`local`](Self::local) | 10,000 values |
/// | [`store`](Self::store) | none: this process only |
/// | [`lease`](Self::lease), [`tombstone`](Self::tombstone), [`write_timeout`](Self::write_timeout) | 2 s, 100 ms over a store and none without, 10 s |
/// | [`max_stale`](Self::max_stale) | zero: without word from the store, what this process holds is not served |
/// | [`fleet`](Self::fleet) | budget: 250 ms, or the lease if that is shorter; on outage: `Local` |
/// | [`max_value_bytes`](Self::max_value_bytes) | 1 MiB |
/// | [`hot_key_metrics`](Self::hot_key_metrics) | off: keys are no labels of metrics |
#[must_use]
pub struct CacheBuilder<K, V> {
    name: Arc<str>,
    settings: Settings,
    local: Option<LocalCache<K, V>>,
    store: Option<Attached<V>>,
    fleet: Option<FleetOptions>,
    schema: u16,
    sealing: Sealing,
    loader: Option<Loader<K, V>>,
    rules: ErrorRules,
}

/// A store, and how values are written to it.
type Attached<V> = (Arc<dyn CacheStore>, Arc<dyn Codec<V>>);

impl<K, V> CacheBuilder<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            settings: Settings::default(),
            local: Some(LocalCache::entries(10_000)),
            store: None,
            fleet: None,
            schema: 0,
            sealing: Sealing::new(),
            loader: None,
            rules: ErrorRules::default(),
        }
    }

    /// How long a value is fresh; at least 1 ms. A loader may [set](Loaded::ttl) another time.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.settings.ttl = ttl;
        self
    }

    /// By which part of it at most a value's time to live is shortened, at random, so that values that were stored together do
    /// not end together; 0 to 0.9.
    pub const fn jitter(mut self, part: f64) -> Self {
        self.settings.jitter = part;
        self
    }

    /// How long it is remembered that a key has no value (the loader returned [`None`], or an error that is
    /// [`not_found`](Self::not_found)). Such an entry is never served stale.
    pub const fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.settings.negative_ttl = ttl;
        self
    }

    /// How long after its time to live a value is still served while one caller loads it again in the background.
    pub const fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.settings.windows.while_revalidate = window;
        self
    }

    /// How long after its time to live a value is served when it cannot be loaded: the loader fails, a layer in it rejects
    /// the call, the load times out, or there are too many loads. Not when the error is the caller's own fault, by the
    /// [classifier](Self::classify), and not for a call that asked for a [refresh](super::CallOptions::refresh). What was
    /// invalidated is never served.
    pub const fn stale_if_error(mut self, window: Duration) -> Self {
        self.settings.windows.if_error = window;
        self
    }

    /// Loads values again before they are stale: one caller in the background, while everybody is served the fresh value.
    pub const fn refresh_early(mut self, when: RefreshEarly) -> Self {
        self.settings.windows.early = Some(when);
        self
    }

    /// `soft`: the time after which a caller is served a stale value, if there is one, while the load goes on. `hard`: the time
    /// after which a load is cut off, with [`Reason::TimedOut`](crate::Reason::TimedOut); at least 1 ms, and longer than
    /// `soft`.
    pub const fn load_timeout(mut self, soft: Duration, hard: Duration) -> Self {
        self.settings.soft_timeout = Some(soft);
        self.settings.load_timeout = hard;
        self
    }

    /// How many loads this handle runs at a time; others wait for up to the hard [timeout](Self::load_timeout). So a
    /// cache that is lost does not become a database that is overrun.
    pub const fn max_loads(mut self, loads: usize) -> Self {
        self.settings.max_loads = loads;
        self
    }

    /// How long after a failed load a stale value is served without trying again, by this process.
    pub const fn retry_pause(mut self, pause: Duration) -> Self {
        self.settings.retry_pause = pause;
        self
    }

    /// How much this process keeps.
    pub fn local(mut self, local: LocalCache<K, V>) -> Self {
        self.local = Some(local);
        self
    }

    /// Keeps nothing in this process: every read asks the store.
    pub fn without_local(mut self) -> Self {
        self.local = None;
        self
    }

    /// Keeps values in `store` too, as [`Json`], so that all caches of this name and store share them.
    pub fn store(self, store: impl IntoStore<dyn CacheStore>) -> Self
    where
        V: Serialize + DeserializeOwned,
    {
        self.store_with(store, Json)
    }

    /// As [`store`](Self::store), with another codec.
    pub fn store_with(
        mut self,
        store: impl IntoStore<dyn CacheStore>,
        codec: impl Codec<V>,
    ) -> Self {
        self.store = Some((store.into_store(), Arc::new(codec)));
        self
    }

    /// Version of the type of the values. Values of another version are not read, and loaded again: raise it when the
    /// type changed in a way that the codec does not notice. Old and new instances of a rollout then replace each other's
    /// values; a new name for the cache avoids that.
    pub const fn schema(mut self, version: u16) -> Self {
        self.schema = version;
        self
    }

    /// Compression and encryption of values before they are stored.
    pub fn sealing(mut self, sealing: Sealing) -> Self {
        self.sealing = sealing;
        self
    }

    /// Maximum size of a value in the store, in bytes as encoded. A larger one is not stored; up to 32 MiB.
    pub const fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_value_bytes = bytes;
        self
    }

    /// Names the `most` requested keys in the metric `resilience.cache.hot_key.requests`; up to 20. Zero, the default, names
    /// none.
    ///
    /// Keys become labels of your metrics: not for keys that are confidential, such as names of users or tokens. In the
    /// life of the handle at most eight times as many keys get a label, of at most 64 characters; the keys that are hot after
    /// that are one series called `other`. The [`snapshot`](Cache::snapshot) names hot keys in any case.
    pub const fn hot_key_metrics(mut self, most: usize) -> Self {
        self.settings.hot_key_metrics = most;
        self
    }

    /// How the handle takes part in its fleet: the time budget of one step of the store, and the name of this instance in what
    /// operators see. Needs a [`store`](Self::store).
    ///
    /// While the store is unavailable the outage policy is [`Local`](crate::OnOutage::Local), and there is no other: calls go on
    /// with what this process holds (within [`max_stale`](Self::max_stale)) and with the loader, at most
    /// [`max_loads`](Self::max_loads) at a time. Invalidations are repeated until the store has them.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = Some(options);
        self
    }

    /// How long the right to load a key holds without a renewal; at least 10 ms. It is renewed every third of it, so this
    /// is how long a process that dies makes the others wait.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How long after an invalidation nothing is stored under the key: longer than a replica that the loader reads from may be
    /// behind. Zero, if the loader reads what was written last.
    pub const fn tombstone(mut self, time: Duration) -> Self {
        self.settings.tombstone = Some(time);
        self
    }

    /// How long the `save` of a [`write`](Cache::write), or the `commit` of a [`change`](Cache::change), may take: nothing is
    /// stored under the key until then if its process dies; at least 10 ms.
    pub const fn write_timeout(mut self, time: Duration) -> Self {
        self.settings.write_timeout = time;
        self
    }

    /// Maximum time for which a value in this process is served after the connection to the store was lost, although it may
    /// have changed since. Also the maximum time for which a value is kept if the store reports no changes. A call may
    /// set [another](super::CallOptions::max_stale).
    pub const fn max_stale(mut self, time: Duration) -> Self {
        self.settings.max_stale = time;
        self
    }

    /// What loads the value of a key, for [`fetch`](Cache::fetch).
    pub fn loader<F, Fut, R>(mut self, loader: F) -> Self
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
        R: LoadOutcome,
        R::Value: Into<Loaded<V>>,
        R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let loader = Arc::new(loader);
        self.loader = Some(Arc::new(move |key| {
            let loader = Arc::clone(&loader);
            load(move || {
                let loading = loader(key);
                async move {
                    let loaded = loading.await.into_result();
                    GuardedOutcome(loaded.map_err(|error| match error {
                        Error::Service(error) => Error::Service(error.into()),
                        Error::Rejected(rejected) => Error::Rejected(rejected),
                    }))
                }
            })
        }));
        self
    }

    /// Which errors of type `E` say that a key has no value: remembered for the [`negative_ttl`](Self::negative_ttl), and
    /// returned as `None`. Other errors are not cached.
    pub fn not_found<E: 'static>(
        mut self,
        rule: impl Fn(&E) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.rules.add_not_found(rule);
        self
    }

    /// What errors of type `E` say: an [ignored](crate::Verdict::Ignored) one is the caller's own fault, and is returned even if
    /// a stale value could be served. Default: every error is a failure.
    pub fn classify<E: 'static>(
        mut self,
        classifier: impl Classify<(), E> + Send + Sync + 'static,
    ) -> Self {
        self.rules.add_classifier(classifier);
        self
    }

    /// Builds the handle. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// [`InvalidConfig`] if a value is out of bounds, [`fleet`](Self::fleet) is set without a [`store`](Self::store),
    /// there is neither a local part nor a store, or there is a store and no tokio runtime.
    pub fn build(self) -> Result<Cache<K, V>, InvalidConfig> {
        self.settings.check()?;
        if self.fleet.is_some() && self.store.is_none() {
            let rule = "needs a `store`: without one, nothing is shared";
            return Err(InvalidConfig::new("fleet", "set", rule));
        }
        if let Some(LocalCache { capacity: 0, .. }) = &self.local {
            let rule = "must have room for at least 1; use `without_local` to keep nothing";
            return Err(InvalidConfig::new("local", 0, rule));
        }
        if self.local.is_none() && self.store.is_none() {
            let rule = "a cache without a local part needs a `store`";
            return Err(InvalidConfig::new("local", "none", rule));
        }
        let fleet = self
            .settings
            .resolve_fleet(&self.fleet.unwrap_or_default())?;
        let remote = match self.store {
            None => None,
            Some((store, codec)) => {
                runtime()?;
                let envelope = Envelope {
                    codec,
                    schema: self.schema,
                    sealing: self.sealing,
                    max_bytes: self.settings.max_value_bytes,
                };
                Some(Remote::new(
                    store,
                    &self.name,
                    &fleet,
                    envelope,
                    &self.settings,
                ))
            }
        };
        let shared = Shared::new(Parts {
            name: self.name,
            settings: self.settings,
            local: self.local,
            remote,
            loader: self.loader,
            rules: self.rules,
        })?;
        if let Some(remote) = &shared.remote {
            let observer: Weak<dyn Observer> = Arc::downgrade(&shared.coherence) as _;
            remote.observe(observer);
            repeat::start(&shared);
            report::start(&shared);
        }
        Ok(Cache { shared })
    }
}

impl<K, V> fmt::Debug for CacheBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .field("local", &self.local)
            .field("store", &self.store.as_ref().map(|(store, _)| store))
            .field("loader", &self.loader.is_some())
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}
