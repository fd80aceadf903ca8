//! Many keys at once: one read, one load for what is missing.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{
    Cache, CacheKey, CallOptions, Freshness, LoadError, Loaded,
    coherence::Ticket,
    freshness::Use,
    leased::{Asked, LeaseGuard},
    load::{Load, load},
    local::Held,
    record::Token,
    remote::Found,
    shared::{Place, Shared},
};
use crate::error::Error;

/// What [`get_or_load_many`](Cache::get_or_load_many) found.
#[derive(Debug)]
#[non_exhaustive]
pub struct ManyLoaded<K, V, E> {
    /// The keys that have a value.
    pub values: HashMap<K, Arc<V>>,
    /// Why some keys may be missing: their load failed, and there was no stale value that could be served.
    pub error: Option<LoadError<E>>,
}

impl<K, V, E> ManyLoaded<K, V, E> {
    /// The values, if none is missing because its load failed.
    ///
    /// # Errors
    /// The error of the load that failed.
    pub fn all(self) -> Result<HashMap<K, Arc<V>>, LoadError<E>> {
        match self.error {
            None => Ok(self.values),
            Some(error) => Err(error),
        }
    }
}

/// A key that this process does not hold.
struct Wanted<K, V> {
    key: K,
    place: Place,
    fallback: Option<Held<V>>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Cache<K, V> {
    /// The values of those keys that are cached, in one read of the store for all that this process does not hold.
    pub async fn get_many(&self, keys: &[K]) -> HashMap<K, Arc<V>> {
        let mut values = HashMap::with_capacity(keys.len());
        let wanted = self.shared.held_many(keys, &mut values);
        self.shared.read_many(wanted, &mut values).await;
        values
    }

    /// The values of keys, cached or loaded: those that are missing by one call of `load`, which returns the values that
    /// exist. A key that it leaves out has no value.
    ///
    /// Keys that another call is loading at the moment are waited for, and loaded one by one if that fails. Calls of one
    /// process share loads through the store only. Stale values are loaded again by the same call of `load`.
    ///
    /// ```
    /// # use std::collections::HashMap;
    /// # use resilience_core::Cache;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let squares = Cache::<u64, u64>::builder("squares").build()?;
    /// let found = squares
    ///     .get_or_load_many(&[1, 2, 3], |missing: Vec<u64>| async move {
    ///         // One query for all of them.
    ///         Ok::<HashMap<u64, u64>, std::io::Error>(missing.into_iter().map(|n| (n, n * n)).collect())
    ///     })
    ///     .await
    ///     .all()?;
    /// assert_eq!(*found[&3], 9);
    /// # Ok(()) }
    /// ```
    pub async fn get_or_load_many<L, E, F>(
        &self,
        keys: &[K],
        load: impl Fn(Vec<K>) -> F + Send + Sync + 'static,
    ) -> ManyLoaded<K, V, E>
    where
        L: Into<Loaded<V>>,
        E: Send + Sync + 'static,
        F: Future<Output = Result<HashMap<K, L>, E>> + Send + 'static,
    {
        let shared = &self.shared;
        let _in_progress = shared.in_progress();
        let load = Arc::new(load);
        let mut values = HashMap::with_capacity(keys.len());
        let wanted = shared.held_many(keys, &mut values);
        let wanted = shared.read_many(wanted, &mut values).await;
        let mut error = None;
        let Sorted { granted, elsewhere } = shared.lease_many(wanted).await;
        if !granted.is_empty() {
            let load = Arc::clone(&load);
            let loading = shared.load_many(granted, move |keys| load(keys), &mut values);
            error = loading.await.err();
        }
        let each = elsewhere.into_iter().map(|wanted| {
            let (load, key) = (Arc::clone(&load), wanted.key.clone());
            let one = move || async move {
                let mut loaded = load(vec![key.clone()]).await?;
                Ok::<_, E>(loaded.remove(&key).map_or(Loaded::missing(), Into::into))
            };
            async move {
                let loaded = self.load_with(&wanted.key, CallOptions::new(), one).await;
                (wanted.key, loaded)
            }
        });
        for (key, loaded) in join_all(each).await {
            match loaded.map(|lookup| lookup.value) {
                Ok(Some(value)) => drop(values.insert(key, value)),
                Ok(None) => {}
                Err(failed) => error = error.or(Some(failed)),
            }
        }
        ManyLoaded { values, error }
    }
}

/// A key to load here.
struct Granted<K, V: Send + Sync + 'static> {
    wanted: Wanted<K, V>,
    /// Drawn before the load.
    ticket: Ticket,
    /// `None`: what is loaded is not stored.
    lease: Option<LeaseGuard<V>>,
    /// Whether this process may hold what is loaded without a lease.
    keep: bool,
}

/// Keys to load here, and keys that are being loaded elsewhere.
struct Sorted<K, V: Send + Sync + 'static> {
    granted: Vec<Granted<K, V>>,
    elsewhere: Vec<Wanted<K, V>>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Shared<K, V> {
    /// Takes what this process holds; returns the rest.
    fn held_many(
        self: &Arc<Self>,
        keys: &[K],
        values: &mut HashMap<K, Arc<V>>,
    ) -> Vec<Wanted<K, V>> {
        let (now, options) = (self.clock.now(), CallOptions::new());
        let mut wanted: Vec<Wanted<K, V>> = Vec::new();
        for key in keys {
            let fallback = match self.held(key, now, &options) {
                Some((held, Use::Fresh | Use::Early)) => {
                    if let Some(value) = self.hit(held, now).value {
                        values.insert(key.clone(), value);
                    }
                    continue;
                }
                Some((held, _)) => Some(held),
                None => None,
            };
            if wanted.iter().any(|it| it.key == *key) {
                continue;
            }
            wanted.push(Wanted {
                place: self.place(key),
                key: key.clone(),
                fallback,
            });
        }
        wanted
    }

    /// Takes what the store holds fresh; returns the rest.
    async fn read_many(
        self: &Arc<Self>,
        wanted: Vec<Wanted<K, V>>,
        values: &mut HashMap<K, Arc<V>>,
    ) -> Vec<Wanted<K, V>> {
        let Some(remote) = self.remote.clone().filter(|_| !wanted.is_empty()) else {
            return wanted;
        };
        let (asked, mut rest): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|it| it.place.text.is_some());
        let ticket = |it: &Wanted<K, V>| self.coherence.ticket(it.place.id);
        let tickets: Vec<Ticket> = asked.iter().map(ticket).collect();
        let texts: Vec<&str> = asked
            .iter()
            .filter_map(|it| it.place.text.as_deref())
            .collect();
        let found = remote
            .get(&texts, &tickets, &self.coherence, self.clock)
            .await;
        drop(texts);
        let Ok(found) = found else {
            rest.extend(asked);
            return rest;
        };
        let now = self.clock.now();
        for (mut wanted, found) in asked.into_iter().zip(found) {
            let Found::Usable(held) = found else {
                rest.push(wanted);
                continue;
            };
            match self.judge(&held, now) {
                Use::Fresh | Use::Early => {
                    self.totals.hits_store.fetch_add(1, Relaxed);
                    self.keep(wanted.key.clone(), held.clone());
                    if let Some(value) = held.value {
                        values.insert(wanted.key, value);
                    }
                }
                Use::Stale | Use::Fallback => {
                    wanted.fallback = Some(held);
                    rest.push(wanted);
                }
                Use::Gone => rest.push(wanted),
            }
        }
        rest
    }

    /// Asks for the leases of all keys at once.
    async fn lease_many(self: &Arc<Self>, wanted: Vec<Wanted<K, V>>) -> Sorted<K, V> {
        let granted = |wanted, ticket, lease, keep| {
            Ok(Granted {
                wanted,
                ticket,
                lease,
                keep,
            })
        };
        let asked = wanted.into_iter().map(|wanted| async move {
            let ticket = self.coherence.ticket(wanted.place.id);
            let (Some(remote), Some(text)) = (&self.remote, wanted.place.text.clone()) else {
                return granted(wanted, ticket, None, true);
            };
            match LeaseGuard::ask(self, remote, &text, Token::random(), None).await {
                Ok(Asked::Granted(lease)) => granted(wanted, ticket, Some(lease), false),
                Ok(Asked::Held { .. } | Asked::Fresh(_)) => Err(wanted),
                Ok(Asked::Refused) => granted(wanted, ticket, None, false),
                Err(_) => granted(wanted, ticket, None, true),
            }
        });
        let mut sorted = Sorted {
            granted: Vec::new(),
            elsewhere: Vec::new(),
        };
        for answer in join_all(asked).await {
            match answer {
                Ok(granted) => sorted.granted.push(granted),
                Err(elsewhere) => sorted.elsewhere.push(elsewhere),
            }
        }
        sorted
    }

    /// Loads keys by one call, and stores what it returns.
    async fn load_many<L, E, F>(
        self: &Arc<Self>,
        granted: Vec<Granted<K, V>>,
        load: impl FnOnce(Vec<K>) -> F + Send + 'static,
        values: &mut HashMap<K, Arc<V>>,
    ) -> Result<(), LoadError<E>>
    where
        L: Into<Loaded<V>>,
        E: Send + Sync + 'static,
        F: Future<Output = Result<HashMap<K, L>, E>> + Send + 'static,
    {
        let keys: Vec<K> = granted.iter().map(|it| it.wanted.key.clone()).collect();
        let first = granted.iter().find_map(|it| it.lease.as_ref());
        let all = match first {
            Some(lease) => lease.generation_of_all(&self.coherence).await,
            None => None,
        };
        let (started, before) = (self.clock.now(), Instant::now());
        let batch: Load<HashMap<K, L>, E> = self::load(move || async move {
            let loaded = load(keys).await?;
            Ok(Loaded::new(loaded))
        });
        let leases = granted.iter().filter_map(|it| it.lease.as_ref());
        let loading = self.run(batch);
        let outcome = LeaseGuard::all_renewed_while(leases, loading).await;
        let took = self.clock.now().since(started);
        let mut loaded = match outcome {
            Ok(Loaded { value, .. }) => value.and_then(Arc::into_inner).unwrap_or_default(),
            Err(error) => return self.fall_back(granted, error, values),
        };
        for one in granted {
            let Granted {
                wanted,
                ticket,
                lease,
                keep,
            } = one;
            let one = loaded
                .remove(&wanted.key)
                .map_or(Loaded::missing(), Into::into);
            let one = self.loaded(wanted.place.id, Ok::<_, LoadError<E>>(one))?;
            self.totals.loaded.fetch_add(1, Relaxed);
            match lease {
                Some(lease) => lease.store(self, &one, all, took).await,
                None if keep => {
                    let id = wanted.place.id;
                    self.keep_loaded(&wanted.key, id, ticket, &one, before, took);
                }
                None => {}
            }
            if let Some(value) = one.value {
                values.insert(wanted.key, value);
            }
        }
        Ok(())
    }

    /// Serves stale values in place of those that could not be loaded.
    fn fall_back<E: Send + Sync + 'static>(
        &self,
        granted: Vec<Granted<K, V>>,
        error: LoadError<E>,
        values: &mut HashMap<K, Arc<V>>,
    ) -> Result<(), LoadError<E>> {
        let may = self.rules.allows_stale(&error);
        let mut lacking = false;
        for Granted { wanted, .. } in granted {
            drop(self.loaded(wanted.place.id, Err(clone(&error))));
            match wanted.fallback.filter(|_| may) {
                Some(held) => {
                    let value = self.stale(held, Freshness::StaleOnError).value;
                    values.extend(value.map(|value| (wanted.key, value)));
                }
                None => {
                    self.totals.failed.fetch_add(1, Relaxed);
                    lacking = true;
                }
            }
        }
        if lacking { Err(error) } else { Ok(()) }
    }
}

fn clone<E>(error: &LoadError<E>) -> LoadError<E> {
    match error {
        Error::Service(error) => Error::Service(Arc::clone(error)),
        Error::Rejected(rejected) => Error::Rejected(rejected.clone()),
    }
}
