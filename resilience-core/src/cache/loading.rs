//! One load: its bounds, what its error means, and where its value goes.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::{
    CacheKey,
    coherence::Ticket,
    fill::{Outcome, Request},
    leased::LeaseGuard,
    load::{Load, LoadError, Loaded},
    local::Held,
    lookup::{Freshness, Level, Lookup},
    shared::Shared,
};
use crate::error::{Error, Reason};

impl<K: CacheKey, V: Send + Sync + 'static> Shared<K, V> {
    /// Loads under a lease, and stores what was loaded.
    pub(super) async fn load_leased<E>(
        self: Arc<Self>,
        lease: LeaseGuard<V>,
        request: Request<K, V, E>,
    ) -> Outcome<V, E>
    where
        E: Send + Sync + 'static,
    {
        let Request {
            place,
            load,
            fallback,
            ..
        } = request;
        let shared = Arc::clone(&self);
        let work = async move {
            // Of all values: before the load, so that a clearing meanwhile is noticed.
            let all = lease.generation_of_all(&shared.coherence).await;
            let started = shared.clock.now();
            let loaded = {
                let loading = shared.run(load);
                lease.renewed_while(loading).await
            };
            let loaded = shared.loaded(place.id, loaded)?;
            let took = shared.clock.now().since(started);
            lease.store(&shared, &loaded, all, took).await;
            Ok(loaded)
        };
        self.within_soft_timeout(work, fallback).await
    }

    /// Loads without a lease: there is no store, it does not answer, or the key was changed just now.
    /// `keep`: whether this process may hold the value.
    pub(super) async fn load_alone<E>(
        self: Arc<Self>,
        request: Request<K, V, E>,
        keep: bool,
    ) -> Outcome<V, E>
    where
        E: Send + Sync + 'static,
    {
        let Request {
            key,
            place,
            load,
            fallback,
            ..
        } = request;
        let shared = Arc::clone(&self);
        let in_progress = self.in_progress();
        let ticket = self.coherence.ticket(place.id);
        let work = async move {
            let _in_progress = in_progress;
            let started = shared.clock.now();
            let before = Instant::now();
            let loaded = shared.run(load).await;
            let loaded = shared.loaded(place.id, loaded)?;
            if keep {
                let took = shared.clock.now().since(started);
                shared.keep_loaded(&key, place.id, ticket, &loaded, before, took);
            }
            Ok(loaded)
        };
        self.within_soft_timeout(work, fallback).await
    }

    /// The outcome of `work`: in time, or a stale value while it goes on; or, if it fails, a stale value in its place.
    async fn within_soft_timeout<E>(
        self: &Arc<Self>,
        work: impl Future<Output = Result<Loaded<V>, LoadError<E>>> + Send + 'static,
        fallback: Option<Held<V>>,
    ) -> Outcome<V, E>
    where
        E: Send + Sync + 'static,
    {
        let mut work = Box::pin(work);
        let outcome = match (self.settings.soft_timeout, &fallback) {
            (Some(soft), Some(_)) => match timeout(soft, &mut work).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    self.spawn(async move { drop(work.await) });
                    let held = fallback.expect("matched above");
                    return Ok(self.stale(held, Freshness::Stale));
                }
            },
            _ => work.await,
        };
        match (outcome, fallback) {
            (Ok(loaded), _) => {
                self.totals.loaded.fetch_add(1, Relaxed);
                Ok(loaded_now(loaded))
            }
            (Err(error), Some(held)) if self.rules.allows_stale(&error) => {
                Ok(self.stale(held, Freshness::StaleOnError))
            }
            (Err(error), _) => {
                self.totals.failed.fetch_add(1, Relaxed);
                Err(error)
            }
        }
    }

    /// Keeps a loaded value in this process, unless something has changed since `before`.
    pub(super) fn keep_loaded(
        &self,
        key: &K,
        id: u64,
        ticket: Ticket,
        loaded: &Loaded<V>,
        before: Instant,
        took: Duration,
    ) {
        // A store that reports changes does so only for values that were read from it.
        let is_untold = self.remote.is_some() && ticket.is_told();
        if is_untold || self.background.has_tombstone(id, self.clock.now()) {
            return;
        }
        if let Some(tags) = self.local_tags(loaded, before)
            && let Some(held) = self.held_from(loaded, ticket, tags, took)
        {
            self.keep(key.clone(), held);
        }
    }

    /// Calls the loader and nothing else.
    pub(super) async fn bypass<E: Send + Sync + 'static>(
        self: &Arc<Self>,
        load: Load<V, E>,
    ) -> Outcome<V, E> {
        let loaded = self.run(load).await;
        let loaded = self.counted(loaded)?;
        self.totals.loaded.fetch_add(1, Relaxed);
        Ok(loaded_now(loaded))
    }

    /// Runs a load, within the number of loads and the time of one.
    pub(super) async fn run<T, E>(&self, load: Load<T, E>) -> Result<Loaded<T>, LoadError<E>> {
        let _permit = self.loads.acquire().await?;
        match timeout(self.settings.load_timeout, load()).await {
            Ok(Ok(loaded)) => Ok(loaded),
            Ok(Err(Error::Service(error))) => Err(Error::Service(Arc::new(error))),
            Ok(Err(Error::Rejected(rejected))) => Err(Error::Rejected(rejected)),
            Err(_) => Err(Error::Rejected(self.reject(Reason::TimedOut))),
        }
    }

    /// Notes what came of a load of a key; see [`counted`](Self::counted).
    pub(super) fn loaded<E: 'static>(
        &self,
        id: u64,
        outcome: Result<Loaded<V>, LoadError<E>>,
    ) -> Result<Loaded<V>, LoadError<E>> {
        let outcome = self.counted(outcome);
        let now = self.clock.now();
        let pause = now + self.settings.retry_pause;
        self.background
            .pause(id, outcome.is_err().then_some(pause), now);
        outcome
    }

    /// Counts what came of a load, and makes a value of an error that says that there is none.
    fn counted<E: 'static>(
        &self,
        outcome: Result<Loaded<V>, LoadError<E>>,
    ) -> Result<Loaded<V>, LoadError<E>> {
        let outcome = match outcome {
            Err(Error::Service(error)) if self.rules.is_not_found(&*error) => Ok(Loaded::missing()),
            outcome => outcome,
        };
        let counter = match &outcome {
            Ok(Loaded { value: Some(_), .. }) => &self.totals.loads,
            Ok(_) => &self.totals.loads_missing,
            Err(_) => &self.totals.loads_failed,
        };
        counter.fetch_add(1, Relaxed);
        outcome
    }

    /// The tickets of the tags of a value that only this process holds. `None`: one was invalidated since `before`.
    pub(super) fn local_tags(
        &self,
        loaded: &Loaded<V>,
        before: Instant,
    ) -> Option<Option<Arc<[Ticket]>>> {
        if loaded.tags.is_empty() {
            return Some(None);
        }
        // Drawn first: whatever happens from now on voids them.
        let ticket = |tag: &Arc<str>| self.coherence.ticket(self.tag_id(tag));
        let tickets: Arc<[Ticket]> = loaded.tags.iter().map(ticket).collect();
        let changed = |tag: &Arc<str>| self.tag_times.changed_since(tag, before);
        let is_changed = loaded.tags.iter().any(changed);
        (!is_changed).then_some(Some(tickets))
    }
}

pub(super) fn loaded_now<V>(loaded: Loaded<V>) -> Lookup<V> {
    Lookup {
        value: loaded.value,
        freshness: Freshness::Fresh,
        level: Level::Loaded,
        age: Duration::ZERO,
    }
}
