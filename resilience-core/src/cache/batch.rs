//! How many keys are looked up and loaded: by one read, one round of leases, and one load.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{
    CacheKey, CallOptions, Freshness, LoadError, LoadOutcome, Loaded, Lookup,
    coherence::Ticket,
    freshness::Use,
    leased::{Asked, LeaseGuard},
    load::Load,
    loading::loaded_now,
    local::Held,
    record::Token,
    remote::{Found, Remote},
    shared::{Place, Shared},
};
use crate::{error::Error, fleet::StoreError};

/// A key that this process does not hold.
pub(super) struct Wanted<K, V> {
    pub(super) key: K,
    place: Place,
    fallback: Option<Held<V>>,
}

/// A key to load here.
pub(super) struct Granted<K, V: Send + Sync + 'static> {
    wanted: Wanted<K, V>,
    /// Drawn before the load.
    ticket: Ticket,
    /// `None`: what is loaded is not stored.
    lease: Option<LeaseGuard<V>>,
    /// Whether this process may hold what is loaded without a lease.
    keep: bool,
}

/// Keys to load here, and keys that are being loaded elsewhere.
pub(super) struct Sorted<K, V: Send + Sync + 'static> {
    pub(super) here: Vec<Granted<K, V>>,
    pub(super) elsewhere: Vec<Wanted<K, V>>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Shared<K, V> {
    /// Finds what may be served as it is, and says of the other keys where they are loaded.
    pub(super) async fn sort_many(
        self: &Arc<Self>,
        keys: &[K],
        options: &CallOptions,
        found: &mut HashMap<K, Lookup<V>>,
    ) -> Sorted<K, V> {
        let mut wanted = self.held_many(keys, options, found);
        if options.bypass {
            let here = wanted.into_iter().map(|wanted| self.unstored(wanted));
            return Sorted {
                here: here.collect(),
                elsewhere: Vec::new(),
            };
        }
        if !options.refresh {
            wanted = self.read_many(wanted, found).await;
            wanted = self.stale_many(wanted, found);
        }
        self.lease_many(wanted, options).await
    }

    /// Takes what this process holds; returns the rest.
    pub(super) fn held_many(
        self: &Arc<Self>,
        keys: &[K],
        options: &CallOptions,
        found: &mut HashMap<K, Lookup<V>>,
    ) -> Vec<Wanted<K, V>> {
        let now = self.clock.now();
        let use_held = !options.refresh && !options.bypass;
        let (mut wanted, mut seen) = (Vec::new(), HashSet::new());
        for key in keys {
            self.hot_keys.sample(key);
            let held = use_held.then(|| self.held(key, now, options)).flatten();
            let fallback = match held {
                Some((held, Use::Fresh | Use::Early)) => {
                    found.insert(key.clone(), self.hit(held, now));
                    continue;
                }
                Some((held, _)) => Some(held),
                None => None,
            };
            if seen.insert(key) {
                wanted.push(Wanted {
                    place: self.place(key),
                    key: key.clone(),
                    fallback,
                });
            }
        }
        wanted
    }

    /// Takes stale values whose load failed just now; returns the rest.
    fn stale_many(
        self: &Arc<Self>,
        wanted: Vec<Wanted<K, V>>,
        found: &mut HashMap<K, Lookup<V>>,
    ) -> Vec<Wanted<K, V>> {
        let now = self.clock.now();
        let mut rest = Vec::with_capacity(wanted.len());
        for mut wanted in wanted {
            let is_paused = self.background.is_paused(wanted.place.id, now);
            match wanted.fallback.take_if(|_| is_paused) {
                Some(held) => {
                    let stale = self.stale(held, Freshness::StaleOnError);
                    found.insert(wanted.key, stale);
                }
                None => rest.push(wanted),
            }
        }
        rest
    }

    /// Takes what the store holds fresh; returns the rest.
    pub(super) async fn read_many(
        self: &Arc<Self>,
        wanted: Vec<Wanted<K, V>>,
        lookups: &mut HashMap<K, Lookup<V>>,
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
                    self.keep(wanted.key.clone(), held.clone());
                    lookups.insert(wanted.key, self.store_hit(held, now));
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

    /// A key to load here, of which nothing is stored.
    fn unstored(&self, wanted: Wanted<K, V>) -> Granted<K, V> {
        Granted {
            ticket: self.coherence.ticket(wanted.place.id),
            wanted,
            lease: None,
            keep: false,
        }
    }

    /// Asks for the leases of all keys at once.
    async fn lease_many(
        self: &Arc<Self>,
        wanted: Vec<Wanted<K, V>>,
        options: &CallOptions,
    ) -> Sorted<K, V> {
        let asked = wanted.into_iter().map(|wanted| async move {
            let mut granted = self.unstored(wanted);
            let place = &granted.wanted.place;
            let (Some(remote), Some(text)) = (&self.remote, place.text.clone()) else {
                granted.keep = true;
                return Ok(granted);
            };
            match self.lease_of_many(remote, &text, options).await {
                Ok(Asked::Granted(lease)) => granted.lease = Some(lease),
                Ok(Asked::Held { .. } | Asked::Fresh(_)) => return Err(granted.wanted),
                Ok(Asked::Refused) => {}
                Err(_) => granted.keep = true,
            }
            Ok(granted)
        });
        let mut sorted = Sorted {
            here: Vec::new(),
            elsewhere: Vec::new(),
        };
        for answer in join_all(asked).await {
            match answer {
                Ok(granted) => sorted.here.push(granted),
                Err(elsewhere) => sorted.elsewhere.push(elsewhere),
            }
        }
        sorted
    }

    async fn lease_of_many(
        self: &Arc<Self>,
        remote: &Arc<Remote<V>>,
        text: &Arc<str>,
        options: &CallOptions,
    ) -> Result<Asked<V>, StoreError> {
        let token = Token::random();
        match LeaseGuard::ask(self, remote, text, token, None).await? {
            // This call wants newer ones.
            Asked::Fresh(entry) if options.refresh => {
                LeaseGuard::ask(self, remote, text, token, Some(entry.version)).await
            }
            asked => Ok(asked),
        }
    }

    /// Loads keys by one call, and stores what it returns.
    pub(super) async fn load_many<L, R, F>(
        self: &Arc<Self>,
        granted: Vec<Granted<K, V>>,
        load: impl FnOnce(Vec<K>) -> F + Send + 'static,
        lookups: &mut HashMap<K, Lookup<V>>,
    ) -> Result<(), LoadError<R::Error>>
    where
        L: Into<Loaded<V>>,
        R: LoadOutcome<Value = HashMap<K, L>, Error: Send + Sync + 'static>,
        F: Future<Output = R> + Send + 'static,
    {
        let keys: Vec<K> = granted.iter().map(|it| it.wanted.key.clone()).collect();
        let first = granted.iter().find_map(|it| it.lease.as_ref());
        let all = match first {
            Some(lease) => lease.generation_of_all(&self.coherence).await,
            None => None,
        };
        let (started, before) = (self.clock.now(), Instant::now());
        let batch: Load<HashMap<K, L>, R::Error> = Box::new(move || {
            let loading = load(keys);
            Box::pin(async move { loading.await.into_result().map(Loaded::new) })
        });
        let leases = granted.iter().filter_map(|it| it.lease.as_ref());
        let loading = self.run(batch);
        let outcome = LeaseGuard::all_renewed_while(leases, loading).await;
        let took = self.clock.now().since(started);
        let mut loaded = match outcome {
            Ok(Loaded { value, .. }) => value.and_then(Arc::into_inner).unwrap_or_default(),
            Err(error) => return self.fall_back(granted, error, lookups),
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
            let one = self.loaded(wanted.place.id, Ok::<_, LoadError<R::Error>>(one))?;
            self.totals.loaded.fetch_add(1, Relaxed);
            match lease {
                Some(lease) => lease.store(self, &one, all, took).await,
                None if keep => {
                    let id = wanted.place.id;
                    self.keep_loaded(&wanted.key, id, ticket, &one, before, took);
                }
                None => {}
            }
            lookups.insert(wanted.key, loaded_now(one));
        }
        Ok(())
    }

    /// Serves stale values in place of those that could not be loaded.
    fn fall_back<E: Send + Sync + 'static>(
        &self,
        granted: Vec<Granted<K, V>>,
        error: LoadError<E>,
        lookups: &mut HashMap<K, Lookup<V>>,
    ) -> Result<(), LoadError<E>> {
        let may = self.rules.allows_stale(&error);
        let mut lacking = false;
        for Granted { wanted, .. } in granted {
            drop(self.loaded(wanted.place.id, Err(clone(&error))));
            match wanted.fallback.filter(|_| may) {
                Some(held) => {
                    let stale = self.stale(held, Freshness::StaleOnError);
                    lookups.insert(wanted.key, stale);
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
