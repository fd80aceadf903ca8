//! What happens on a miss: one load, by one caller of the process, and of the fleet.

use std::{
    borrow::Borrow,
    fmt::Display,
    hash::Hash,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    CacheKey,
    freshness::Use,
    leased::{Asked, LeaseGuard},
    load::{Load, LoadError},
    local::Held,
    lookup::{CallOptions, Freshness, Level, Lookup},
    record::Token,
    remote::{Found, Remote},
    shared::{Place, Shared},
};
use crate::clock::Moment;

/// One call that found nothing fresh in its process.
pub(super) struct Request<K, V: Send + Sync + 'static, E> {
    pub(super) key: K,
    pub(super) place: Place,
    pub(super) load: Load<V, E>,
    /// A value that serves if there is no better one.
    pub(super) fallback: Option<Held<V>>,
    pub(super) options: CallOptions,
}

pub(super) type Outcome<V, E> = Result<Lookup<V>, LoadError<E>>;

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
            let asked = LeaseGuard::ask(&self, &remote, &text, token, renew).await;
            match asked {
                Ok(Asked::Granted(lease)) => {
                    drop(change);
                    return self.load_leased(lease, request).await;
                }
                // This caller wants a newer one than that.
                Ok(Asked::Fresh(entry)) if request.options.refresh => renew = Some(entry.version),
                // Stored meanwhile, or not as old as it seemed: the store's own clock decides.
                Ok(Asked::Fresh(entry)) => {
                    let now = self.clock.now();
                    match remote.open(&text, entry, ticket, &coherence, now).await {
                        // The answer of a script: the store does not report later changes of it, so it is not kept.
                        Ok(Found::Usable(held)) => return Ok(self.store_hit(held, now)),
                        Ok(Found::Unusable(version)) => renew = Some(version),
                        Ok(Found::Nothing) => {}
                        Err(_) => return self.load_alone(request, true).await,
                    }
                }
                Ok(Asked::Refused) => return self.load_alone(request, false).await,
                Ok(Asked::Held { mut left }) => {
                    self.totals.waits.fetch_add(1, Relaxed);
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
        let asked = LeaseGuard::ask(&self, &remote, &text, Token::random(), version).await;
        // Anything else: another instance loads it, has loaded it, or the store is away.
        if let Ok(Asked::Granted(lease)) = asked {
            self.load_leased(lease, request).await.ok()?;
        }
        Some(())
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

    /// A fresh value of the store.
    pub(super) fn store_hit(&self, held: Held<V>, now: Moment) -> Lookup<V> {
        self.totals.hits_store.fetch_add(1, Relaxed);
        Lookup {
            age: now.since(held.stored),
            value: held.value,
            freshness: Freshness::Fresh,
            level: Level::Store,
        }
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
