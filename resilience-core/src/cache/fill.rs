//! What happens on a miss: one load, by one caller of the process, and of the fleet.

use std::{
    borrow::Borrow,
    fmt::Display,
    future::Future,
    hash::Hash,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{
    CacheKey,
    coherence::Ticket,
    freshness::Use,
    leased::LeaseGuard,
    load::{Load, LoadError, Loaded},
    local::Held,
    lookup::{CallOptions, Freshness, Level, Lookup},
    record::{Lease, Leased, Token},
    remote::{Found, Remote},
    shared::{Place, Shared},
};
use crate::{
    clock::Moment,
    error::{Error, Reason},
    fleet::millis,
};

/// One call that found nothing fresh in its process.
pub(super) struct Request<K, V: Send + Sync + 'static, E> {
    pub(super) key: K,
    pub(super) place: Place,
    pub(super) load: Load<V, E>,
    /// A value that serves if there is no better one.
    pub(super) fallback: Option<Held<V>>,
    pub(super) options: CallOptions,
}

type Outcome<V, E> = Result<Lookup<V>, LoadError<E>>;

impl<K: CacheKey, V: Send + Sync + 'static> Shared<K, V> {
    /// Gets the value from the store or the loader.
    pub(super) async fn fill<E>(self: Arc<Self>, request: Request<K, V, E>) -> Outcome<V, E>
    where
        E: Send + Sync + 'static,
    {
        let remote = self.remote.clone();
        match (remote, request.place.text.clone()) {
            (Some(remote), Some(text)) => self.fill_from(remote, text, request).await,
            _ => self.load_alone(request, true).await,
        }
    }

    async fn fill_from<E>(
        self: Arc<Self>,
        remote: Arc<Remote<V>>,
        text: Arc<str>,
        mut request: Request<K, V, E>,
    ) -> Outcome<V, E>
    where
        E: Send + Sync + 'static,
    {
        let id = request.place.id;
        let token = Token::random();
        let mut renew = None;
        let coherence = Arc::clone(&self.coherence);
        let began = Instant::now();
        let give_up = began + self.settings.lease + self.settings.load_timeout;
        loop {
            // Both before the read: whatever happens from now on is noticed.
            let change = coherence.change_of(id);
            let ticket = coherence.ticket(id);
            if Instant::now() >= give_up {
                return self.load_alone(request, false).await;
            }
            if !request.options.refresh {
                let read = remote.get_one(&text, ticket, &coherence, self.clock);
                match read.await {
                    Ok(Found::Usable(held)) => match self.serve(held, &request) {
                        Ok(lookup) => {
                            self.after_serving(&lookup, request);
                            return Ok(lookup);
                        }
                        Err(fallback) => request.fallback = fallback,
                    },
                    Ok(Found::Unusable(version)) => renew = Some(version),
                    Ok(Found::Nothing) => {}
                    Err(_) => return self.load_alone(request, true).await,
                }
            }
            let lease = Lease {
                token,
                lease_ms: millis(self.settings.lease),
                renew,
            };
            let client = &remote.client;
            let leased = client
                .call(|store| store.lease(remote.name(), &text, &lease))
                .await;
            match leased {
                Ok(Leased::Granted { .. }) => {
                    drop(change);
                    let guard = LeaseGuard::new(&remote, &text, &self.tasks, lease);
                    return self.load_leased(guard, request).await;
                }
                // This caller wants a newer one than that.
                Ok(Leased::Fresh(entry)) if request.options.refresh => renew = Some(entry.version),
                // Stored meanwhile, or not as old as it seemed: the store's own clock decides.
                Ok(Leased::Fresh(entry)) => {
                    let now = self.clock.now();
                    match remote.open(&text, entry, ticket, &coherence, now).await {
                        // The answer of a script: the store does not report later changes of it, so it is not kept.
                        Ok(Found::Usable(held)) => return Ok(self.store_hit(held, now)),
                        Ok(Found::Unusable(version)) => renew = Some(version),
                        Ok(Found::Nothing) => {}
                        Err(_) => return self.load_alone(request, true).await,
                    }
                }
                Ok(Leased::Refused { .. }) => return self.load_alone(request, false).await,
                Ok(Leased::Held { left_ms, .. }) => {
                    self.totals.waits.fetch_add(1, Relaxed);
                    let mut left = Duration::from_millis(left_ms.max(1));
                    if let (Some(soft), Some(_)) = (self.settings.soft_timeout, &request.fallback) {
                        let Some(rest) = soft.checked_sub(began.elapsed()) else {
                            // Another instance goes on loading.
                            let held = request.fallback.expect("matched above");
                            return Ok(self.stale(held, Freshness::Stale));
                        };
                        left = left.min(rest.max(Duration::from_millis(1)));
                    }
                    let longest = if self.coherence.is_told() {
                        left
                    } else {
                        left.min(POLL)
                    };
                    tokio::select! {
                        () = change.happened() => {}
                        () = sleep(longest) => {}
                    }
                }
                Err(_) => return self.load_alone(request, true).await,
            }
        }
    }

    /// Serves a value that was read from the store, or makes a fallback of it.
    fn serve<E>(
        self: &Arc<Self>,
        held: Held<V>,
        request: &Request<K, V, E>,
    ) -> Result<Lookup<V>, Option<Held<V>>> {
        let now = self.clock.now();
        let good_for = self.judge(&held, now);
        self.keep(request.key.clone(), held.clone());
        match good_for {
            Use::Fresh | Use::Early => Ok(self.store_hit(held, now)),
            Use::Stale => Ok(self.stale(held, Freshness::Stale)),
            Use::Fallback if self.background.is_paused(request.place.id, now) => {
                Ok(self.stale(held, Freshness::StaleOnError))
            }
            Use::Fallback => Err(Some(held)),
            Use::Gone => Err(None),
        }
    }

    /// Loads a stale value that was served again.
    fn after_serving<E>(self: &Arc<Self>, lookup: &Lookup<V>, request: Request<K, V, E>)
    where
        E: Send + Sync + 'static,
    {
        if lookup.freshness == Freshness::Stale {
            self.refresh(request.key, request.place, None, request.load);
        }
    }

    /// Loads a key again in the background, unless that is in progress.
    pub(super) fn refresh<E>(
        self: &Arc<Self>,
        key: K,
        place: Place,
        version: Option<Token>,
        load: Load<V, E>,
    ) where
        E: Send + Sync + 'static,
    {
        let id = place.id;
        if !self.background.begin_refresh(id, self.clock.now()) {
            return;
        }
        self.totals.refreshes.fetch_add(1, Relaxed);
        let shared = Arc::clone(self);
        let refreshing = Refreshing {
            shared: Arc::clone(self),
            id,
        };
        let in_progress = self.in_progress();
        self.spawn(async move {
            let _held = (refreshing, in_progress);
            // A failure is counted and noted where it happens.
            let _ = shared.load_again(key, place, version, load).await;
        });
    }

    async fn load_again<E>(
        self: Arc<Self>,
        key: K,
        place: Place,
        version: Option<Token>,
        load: Load<V, E>,
    ) -> Option<()>
    where
        E: Send + Sync + 'static,
    {
        let request = Request {
            key,
            place,
            load,
            fallback: None,
            options: CallOptions::new(),
        };
        let (Some(remote), Some(text)) = (self.remote.clone(), request.place.text.clone()) else {
            return self.load_alone(request, true).await.ok().map(drop);
        };
        let lease = Lease {
            token: Token::random(),
            lease_ms: millis(self.settings.lease),
            renew: version,
        };
        let client = &remote.client;
        let leased = client
            .call(|store| store.lease(remote.name(), &text, &lease))
            .await;
        // Anything else: another instance loads it, has loaded it, or the store is away.
        if let Ok(Leased::Granted { .. }) = leased {
            let guard = LeaseGuard::new(&remote, &text, &self.tasks, lease);
            self.load_leased(guard, request).await.ok()?;
        }
        Some(())
    }

    /// Loads under a lease, and stores what was loaded.
    async fn load_leased<E>(
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

    /// Reads a key from the store, without a loader.
    pub(super) async fn read<Q>(self: &Arc<Self>, key: &Q) -> Option<Lookup<V>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K>,
    {
        let remote = self.remote.as_ref()?;
        let place = self.place(key);
        let text = place.text?;
        let ticket = self.coherence.ticket(place.id);
        let read = remote.get_one(&text, ticket, &self.coherence, self.clock);
        let Found::Usable(held) = read.await.ok()? else {
            return None;
        };
        let now = self.clock.now();
        let good_for = self.judge(&held, now);
        self.keep(key.to_owned(), held.clone());
        match good_for {
            Use::Fresh | Use::Early => Some(self.store_hit(held, now)),
            Use::Stale => Some(self.stale(held, Freshness::Stale)),
            Use::Fallback | Use::Gone => None,
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

    /// A fresh value of the store.
    fn store_hit(&self, held: Held<V>, now: Moment) -> Lookup<V> {
        self.totals.hits_store.fetch_add(1, Relaxed);
        Lookup {
            age: now.since(held.stored),
            value: held.value,
            freshness: Freshness::Fresh,
            level: Level::Store,
        }
    }

    /// Runs a load, within the number of loads and the time of one.
    pub(super) async fn run<T, E>(&self, load: Load<T, E>) -> Result<Loaded<T>, LoadError<E>> {
        let _permit = self.loads.acquire().await?;
        match timeout(self.settings.load_timeout, load()).await {
            Ok(Ok(loaded)) => Ok(loaded),
            Ok(Err(error)) => Err(Error::Service(Arc::new(error))),
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

fn loaded_now<V>(loaded: Loaded<V>) -> Lookup<V> {
    Lookup {
        value: loaded.value,
        freshness: Freshness::Fresh,
        level: Level::Loaded,
        age: Duration::ZERO,
    }
}

/// Interval at which a waiter reads again while the store reports no changes.
const POLL: Duration = Duration::from_millis(20);

/// A refresh in progress.
struct Refreshing<K: CacheKey, V: Send + Sync + 'static> {
    shared: Arc<Shared<K, V>>,
    id: u64,
}

impl<K: CacheKey, V: Send + Sync + 'static> Drop for Refreshing<K, V> {
    fn drop(&mut self) {
        let now = self.shared.clock.now();
        self.shared.background.end_refresh(self.id, now);
    }
}
