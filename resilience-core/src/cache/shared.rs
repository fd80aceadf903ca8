//! What the clones of a handle share, and how it reads what this process holds.

use std::{
    any::{Any, TypeId},
    borrow::Borrow,
    error::Error as StdError,
    fmt::{self, Display},
    future::Future,
    hash::{BuildHasher, Hash},
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use tokio::runtime::Handle;

use super::{
    CacheKey,
    background::Background,
    coherence::{Coherence, Ticket, Validity},
    counters::Totals,
    freshness::{Use, jittered},
    hot_keys::{HotKeys, Labels},
    load::{ErrorRules, Load, Loaded},
    local::{Held, Local, LocalCache},
    lookup::{CallOptions, Freshness, Level, Lookup},
    recent::Recent,
    remote::Remote,
    settings::Settings,
    store::{Observer, Subject, validate::MAX_KEY},
    tag_times::TagTimes,
};
use crate::{
    bulkhead::Bulkhead,
    clock::{Clock, Moment},
    coalesce::{FlightOptions, Flights},
    error::{InvalidConfig, Pattern, Reason, Rejected},
    fleet::{HandleTasks, StoreHandle},
    stripe::Counter,
    telemetry::{self, Scope},
};

pub(super) type Loader<K, V> =
    Arc<dyn Fn(K) -> Load<V, Box<dyn StdError + Send + Sync>> + Send + Sync>;

/// Callers share a load if they ask for one key, with errors of one type, and nothing changed between them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct FlightKey<K> {
    pub(super) key: K,
    pub(super) error: TypeId,
    pub(super) mark: u64,
}

/// Of a type that the [`FlightKey`] knows.
pub(super) type Answer = Arc<dyn Any + Send + Sync>;

pub(super) struct Shared<K: CacheKey, V: Send + Sync + 'static> {
    pub(super) name: Arc<str>,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    pub(super) coherence: Arc<Coherence>,
    pub(super) local: Option<Local<K, V>>,
    pub(super) remote: Option<Arc<Remote<V>>>,
    pub(super) flights: Flights<FlightKey<K>, Answer>,
    /// The loads that may run at a time.
    pub(super) loads: Bulkhead,
    pub(super) loader: Option<Loader<K, V>>,
    pub(super) rules: ErrorRules,
    pub(super) background: Background,
    pub(super) hot_keys: HotKeys<K>,
    pub(super) labels: Labels,
    pub(super) totals: Totals,
    pub(super) tasks: HandleTasks,
    pub(super) tag_times: TagTimes,
    pub(super) recent: Recent,
    /// Loads and writes in progress.
    outstanding: AtomicUsize,
    pub(super) hits: Counter,
    hasher: RandomState,
    /// Kept alive: its last clone ends the tasks.
    _store_handle: StoreHandle,
}

pub(super) struct Parts<K, V> {
    pub(super) name: Arc<str>,
    pub(super) settings: Settings,
    pub(super) local: Option<LocalCache<K, V>>,
    pub(super) remote: Option<Remote<V>>,
    pub(super) loader: Option<Loader<K, V>>,
    pub(super) rules: ErrorRules,
}

/// Where a key is.
#[derive(Clone)]
pub(super) struct Place {
    /// As the store names it; `None`: there is no store, or it takes no such key.
    pub(super) text: Option<Arc<str>>,
    pub(super) id: u64,
}

impl<K, V> Shared<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    pub(super) fn new(parts: Parts<K, V>) -> Result<Arc<Self>, InvalidConfig> {
        let Parts {
            name,
            settings,
            local,
            remote,
            loader,
            rules,
        } = parts;
        let clock = Clock::auto();
        let entries = local.as_ref().map_or(0, |local| local.entries);
        let all = remote.as_ref().map(|remote| remote.id(Subject::Tag("")));
        let store = remote.as_ref().and_then(|it| it.client.store().handle());
        let store_handle = store.cloned().unwrap_or_default();
        let loads = Bulkhead::builder(format!("{name}.loads"))
            .max_concurrent(settings.max_loads)
            .queue(MOST_WAITING, settings.load_timeout)
            .build()?;
        let shared = Arc::new(Self {
            coherence: Arc::new(Coherence::new(entries, all, clock)),
            local: local.as_ref().map(Local::new),
            remote: remote.map(Arc::new),
            flights: Flights::new(FlightOptions {
                max_age: None,
                max_waiters: usize::MAX,
                min_time: None,
                clock,
            }),
            loads,
            loader,
            rules,
            background: Background::default(),
            hot_keys: HotKeys::new(),
            labels: Labels::new(settings.hot_key_metrics),
            totals: Totals::default(),
            tasks: store_handle.of_handle(),
            tag_times: TagTimes::default(),
            recent: Recent::default(),
            outstanding: AtomicUsize::new(0),
            hits: Counter::new(),
            hasher: RandomState::default(),
            _store_handle: store_handle,
            name,
            settings,
            clock,
        });
        telemetry::register(&shared);
        Ok(shared)
    }

    pub(super) fn place<Q>(&self, key: &Q) -> Place
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Display,
    {
        let Some(remote) = &self.remote else {
            let id = self.hasher.hash_one(key);
            return Place { text: None, id };
        };
        let text = key.to_string();
        let id = remote.id(Subject::Key(&text));
        // No key that the store would refuse.
        let text = (1..=MAX_KEY).contains(&text.len()).then(|| text.into());
        Place { text, id }
    }

    pub(super) fn tag_id(&self, tag: &str) -> u64 {
        match &self.remote {
            Some(remote) => remote.id(Subject::Tag(tag)),
            None => self.hasher.hash_one(("tag", tag)),
        }
    }

    /// What this process holds under a key, and what it is good for.
    #[inline]
    pub(super) fn held<Q>(
        &self,
        key: &Q,
        now: Moment,
        options: &CallOptions,
    ) -> Option<(Held<V>, Use)>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        let held = self.local.as_ref()?.get(key)?;
        let max_stale = options.max_stale.unwrap_or(self.settings.max_stale);
        if !held.is_usable(&self.coherence, now, max_stale) {
            return None;
        }
        let good_for = self.judge(&held, now);
        (good_for != Use::Gone).then_some((held, good_for))
    }

    #[inline]
    pub(super) fn judge(&self, held: &Held<V>, now: Moment) -> Use {
        self.settings.windows.judge(&held.times(now), fastrand::f64)
    }

    /// A fresh value that this process held.
    #[inline]
    pub(super) fn hit(&self, held: Held<V>, now: Moment) -> Lookup<V> {
        self.hits.increment();
        Lookup {
            age: now.since(held.stored),
            value: held.value,
            freshness: Freshness::Fresh,
            level: Level::Local,
        }
    }

    /// A fresh value that this process holds, by itself.
    #[inline]
    pub(super) fn fresh<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
        V: Clone,
    {
        let now = self.clock.now();
        let (held, good_for) = self.held(key, now, &CallOptions::new())?;
        if good_for != Use::Fresh {
            return None;
        }
        self.hot_keys.sample(key);
        self.hits.increment();
        held.value.as_deref().cloned()
    }

    pub(super) fn peek_with<Q, T>(&self, key: &Q, read: impl FnOnce(&V) -> T) -> Option<T>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
    {
        let now = self.clock.now();
        let found = self.local.as_ref()?.with(key, |held| {
            let usable = held.is_usable(&self.coherence, now, self.settings.max_stale);
            if usable && now < held.fresh_until {
                held.value.as_deref().map(read)
            } else {
                None
            }
        });
        let found = found.flatten();
        if found.is_some() {
            self.hits.increment();
        }
        found
    }

    /// A stale value.
    #[cold]
    pub(super) fn stale(&self, held: Held<V>, freshness: Freshness) -> Lookup<V> {
        let counter = match freshness {
            Freshness::StaleOnError => &self.totals.stale_on_error,
            _ => &self.totals.stale,
        };
        counter.fetch_add(1, Relaxed);
        let level = if held.version.is_some() {
            Level::Store
        } else {
            Level::Local
        };
        Lookup {
            age: self.clock.now().since(held.stored),
            value: held.value,
            freshness,
            level,
        }
    }

    /// Keeps a value in this process, unless something has changed since its ticket was drawn.
    pub(super) fn keep(&self, key: K, held: Held<V>) {
        // It would not be used, and may take the place of a later one.
        let is_void = self.coherence.check(&held.ticket) == Validity::Void;
        if let Some(local) = self.local.as_ref().filter(|_| !is_void) {
            local.insert(key, held);
        }
    }

    /// Loads and writes in progress, until what is returned is dropped. Begun before a ticket is drawn.
    pub(super) fn in_progress(self: &Arc<Self>) -> InProgress<K, V> {
        self.outstanding.fetch_add(1, SeqCst);
        InProgress(Arc::clone(self))
    }

    /// What this process holds of a value that it has loaded itself. `None`: it is not to be cached.
    pub(super) fn held_from(
        &self,
        loaded: &Loaded<V>,
        ticket: Ticket,
        tags: Option<Arc<[Ticket]>>,
        load: Duration,
    ) -> Option<Held<V>> {
        let fresh = self.fresh_time(loaded);
        if fresh.is_zero() {
            return None;
        }
        let stored = self.clock.now();
        Some(Held {
            value: loaded.value.clone(),
            ticket,
            tags,
            stored,
            fresh_until: stored + fresh,
            load: load.into(),
            version: None,
        })
    }

    /// How long a loaded value is fresh; zero: not at all.
    pub(super) fn fresh_time(&self, loaded: &Loaded<V>) -> Duration {
        let usual = match loaded.value {
            Some(_) => self.settings.ttl,
            None => self.settings.negative_ttl,
        };
        let ttl = loaded.ttl.unwrap_or(usual);
        jittered(ttl, self.settings.jitter, fastrand::f64())
    }

    /// Drops what this process holds under a key, and what it is about to.
    pub(super) fn void<Q>(&self, key: &Q, id: u64)
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq,
    {
        // Without loads in progress there is no ticket but that of the value itself: other values of its slot are spared.
        if self.remote.is_some() || self.outstanding.load(SeqCst) > 0 {
            self.coherence.changed(id);
        }
        if let Some(local) = &self.local {
            local.remove(key);
        }
    }

    #[cold]
    pub(super) fn reject(&self, reason: Reason) -> Rejected {
        Scope::new(Pattern::Cache, &self.name).reject(reason, None)
    }
}

/// Loads that wait for others to end.
const MOST_WAITING: usize = 100_000;
impl<K: CacheKey, V: Send + Sync + 'static> Shared<K, V> {
    /// Runs `task` in the background, where a shutdown waits for it; drops it outside of a runtime.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            self.tasks.spawn(&runtime, task);
        }
    }
}

/// A load or write in progress.
pub(super) struct InProgress<K: CacheKey, V: Send + Sync + 'static>(Arc<Shared<K, V>>);

impl<K: CacheKey, V: Send + Sync + 'static> Drop for InProgress<K, V> {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, SeqCst);
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> fmt::Debug for Shared<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .field("store", &self.remote.as_ref().map(|it| &it.client))
            .finish_non_exhaustive()
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Drop for Shared<K, V> {
    fn drop(&mut self) {
        telemetry::retire(self);
        // Ends the task that waits for it.
        self.coherence.again().notify_one();
    }
}
