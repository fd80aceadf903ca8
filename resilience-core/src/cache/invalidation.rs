//! Invalidation by key, by tag, and of everything; and values that are put in from outside.

use std::{
    borrow::Borrow,
    fmt::Display,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Cache, CacheKey, Loaded,
    pending::Changed,
    record::{Fill, Stored, TagGeneration, Token},
    remote::{PendingChange, Remote},
    shared::Shared,
    store::{Observer, StoreError},
};
use crate::fleet::millis;

impl<K: CacheKey, V: Send + Sync + 'static> Cache<K, V> {
    /// Drops the value of a key, here and in the store: call it after the truth was changed, or let
    /// [`change`](Self::change) do so. When this returns `Ok`, the store has
    /// it, and other instances have heard of it within a round trip. A load that began before is not stored.
    ///
    /// Over a store nothing is cached under the key for the [`tombstone`](super::CacheBuilder::tombstone) (100 ms by default), in
    /// which a loader may still read an old value from a replica.
    ///
    /// Dropped, it is completed in the background.
    ///
    /// # Errors
    /// [`StoreError`] if the store did not answer in time. The invalidation is then repeated in the background until it has, or
    /// until no value of that time can be left; this process does not use what the store holds meanwhile.
    pub async fn invalidate<Q>(&self, key: &Q) -> Result<(), StoreError>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K> + Sync,
    {
        let shared = &self.shared;
        shared.totals.invalidations.fetch_add(1, Relaxed);
        shared.invalidate(key.to_owned()).await
    }

    /// Drops all values that were loaded with a [tag](Loaded::tag): one step, however many they are.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate).
    pub async fn invalidate_tag(&self, tag: &str) -> Result<(), StoreError> {
        let shared = &self.shared;
        shared.totals.invalidations.fetch_add(1, Relaxed);
        shared.invalidate_tag(tag.into()).await
    }

    /// Drops all values of this cache.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate).
    pub async fn clear(&self) -> Result<(), StoreError> {
        self.invalidate_tag("").await
    }

    /// Puts in a value that is known to be the latest. After a change of the truth, prefer [`write`](Self::write) or
    /// [`invalidate`](Self::invalidate): of two callers that put at the same time, the last to reach the store wins, which need not
    /// be the last that changed the truth. Without effect while a [`write`](Self::write) of the key is in progress.
    ///
    /// # Errors
    /// [`StoreError`] if the store did not answer in time; the key is then invalidated, as by
    /// [`invalidate`](Self::invalidate).
    pub async fn put<Q>(&self, key: &Q, value: impl Into<Loaded<V>>) -> Result<(), StoreError>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K> + Sync,
    {
        let shared = &self.shared;
        let (place, value) = (shared.place(key), value.into());
        shared.void(key, place.id);
        let (Some(remote), Some(text)) = (&shared.remote, &place.text) else {
            let ticket = shared.coherence.ticket(place.id);
            let tags = shared.local_tags(&value, Instant::now());
            let held = shared.held_from(&value, ticket, tags.flatten(), Duration::ZERO);
            if let Some(held) = held {
                shared.keep(key.to_owned(), held);
            }
            return Ok(());
        };
        let stored = match shared.fill_of(remote, text, &value).await {
            Some(fill) => {
                let (version, name) = (Token::random(), remote.name());
                remote
                    .client
                    .call(|store| store.put(name, text, version, &fill))
                    .await
            }
            None => Ok(Stored::Refused),
        };
        shared.void(key, place.id);
        match stored {
            Ok(Stored::Stored) => {
                shared.recent.note(Changed::Key(Arc::clone(text)));
                Ok(())
            }
            // It cannot be stored, so what is stored is out of date.
            Ok(Stored::Refused) => shared.invalidate(key.to_owned()).await,
            Err(error) => {
                let invalidated = shared.invalidate(key.to_owned()).await;
                invalidated.and(Err(error))
            }
        }
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Shared<K, V> {
    /// Invalidates a key; goes on in the background if it is dropped, or the store does not answer.
    pub(super) async fn invalidate(self: &Arc<Self>, key: K) -> Result<(), StoreError> {
        let place = self.place(&key);
        self.void(&key, place.id);
        self.background
            .tombstone(place.id, self.tombstone(), self.clock.now());
        match place.text {
            Some(text) => self.change(Changed::Key(text), place.id).await,
            None => Ok(()),
        }
    }

    pub(super) async fn invalidate_tag(self: &Arc<Self>, tag: Arc<str>) -> Result<(), StoreError> {
        let id = self.tag_id(&tag);
        self.tag_times.note(&tag);
        self.void_tag(&tag, id);
        self.change(Changed::Tag(tag), id).await
    }

    /// Invalidates a key or a tag in the store, if there is one; goes on in the background if it is dropped, or the store
    /// does not answer. `id`: the number of the key or tag.
    async fn change(self: &Arc<Self>, changed: Changed, id: u64) -> Result<(), StoreError> {
        let Some(remote) = self.remote.clone() else {
            return Ok(());
        };
        let tombstone_ms = millis(self.tombstone());
        // A tag would keep all values from being used: only if the first attempt fails.
        let is_key = matches!(changed, Changed::Key(_));
        let pending = is_key.then(|| PendingChange::new(&remote, &changed));
        let shared = Arc::clone(self);
        let step = async move {
            let invalidate = |store| remote.invalidate(store, &changed, tombstone_ms);
            let answer = remote.client.attempt(invalidate).await;
            // Again: what was read in between is void.
            shared.coherence.changed(id);
            shared.recent.note(changed.clone());
            if answer.is_err() {
                let (mut changed, mut id, mut pending) = (changed, id, pending);
                if is_key && remote.pending.len() > MOST_PENDING {
                    // Too many to remember: everything instead.
                    (changed, id, pending) = (Changed::Tag("".into()), shared.tag_id(""), None);
                    shared.void_tag("", id);
                    shared.recent.note(changed.clone());
                }
                let pending = pending.unwrap_or_else(|| PendingChange::new(&remote, &changed));
                let (rest, remote) = (Arc::clone(&shared), Arc::clone(&remote));
                shared.spawn(async move {
                    let invalidate = |store| remote.invalidate(store, &changed, tombstone_ms);
                    // Given up when nothing that old can be left.
                    let until = rest.last_end();
                    let _ = remote.client.call_until(until, invalidate).await;
                    rest.coherence.changed(id);
                    drop(pending);
                });
            }
            answer
        };
        self.completed(step).await
    }

    pub(super) fn void_tag(&self, tag: &str, id: u64) {
        if tag.is_empty() {
            self.coherence.cleared();
            if let Some(local) = &self.local {
                local.clear();
            }
        } else {
            self.coherence.changed(id);
        }
    }

    /// When every value that is stored now is over.
    fn last_end(&self) -> Instant {
        let remote = self.remote.as_ref();
        let keep_ms = remote.map_or(0, |remote| remote.keep_ms.load(Relaxed));
        Instant::now() + Duration::from_millis(keep_ms)
    }

    /// How long nothing is cached after an invalidation.
    pub(super) fn tombstone(&self) -> Duration {
        let usual = if self.remote.is_some() {
            TOMBSTONE
        } else {
            Duration::ZERO
        };
        self.settings.tombstone.unwrap_or(usual)
    }

    /// What to store of a value that was not loaded under a lease. `None`: it cannot be stored.
    async fn fill_of(&self, remote: &Remote<V>, text: &str, value: &Loaded<V>) -> Option<Fill> {
        let tags = self.tags_of(remote, value).await?;
        self.fill_with(remote, text, value, tags, Duration::ZERO)
    }

    /// The generations of a value's tags as they are now. `None`: not known, or not allowed.
    pub(super) async fn tags_of(
        &self,
        remote: &Remote<V>,
        value: &Loaded<V>,
    ) -> Option<Arc<[TagGeneration]>> {
        let tags = value.all_tags()?;
        let names: Vec<&str> = tags.iter().map(|tag| &**tag).collect();
        let known = remote.generations(&names, &self.coherence).await.ok()?;
        let tags = tags.into_iter().zip(known);
        let tags = tags.map(|(tag, known)| TagGeneration {
            tag,
            generation: known.number,
        });
        Some(tags.collect())
    }

    /// What to store of a value. `None`: it is not to be cached, or cannot be encoded.
    pub(super) fn fill_with(
        &self,
        remote: &Remote<V>,
        text: &str,
        value: &Loaded<V>,
        tags: Arc<[TagGeneration]>,
        took: Duration,
    ) -> Option<Fill> {
        let fresh = self.fresh_time(value);
        let fresh_ms = millis(fresh);
        if fresh_ms == 0 {
            return None;
        }
        let body = remote.encode(text, value.value.as_deref())?;
        let keep_ms = millis(self.settings.windows.keep(fresh, value.value.is_none()));
        // Tags live at least as long as the values that have them.
        remote.keep_ms.fetch_max(keep_ms, Relaxed);
        Some(Fill {
            body,
            fresh_ms,
            keep_ms,
            load_ms: millis(took),
            tags,
        })
    }

    /// Completes `work`, in the background if the caller does not wait for it.
    pub(super) fn completed<F>(self: &Arc<Self>, work: F) -> Completed<K, V, F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        Completed {
            work: Some(Box::pin(work)),
            shared: Arc::clone(self),
        }
    }
}

/// Invalidations that are remembered one by one while the store does not answer.
const MOST_PENDING: usize = 10_000;
/// By default, over a store.
const TOMBSTONE: Duration = Duration::from_millis(100);

/// Work that goes on in the background when it is dropped.
pub(super) struct Completed<K: CacheKey, V: Send + Sync + 'static, T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    shared: Arc<Shared<K, V>>,
}

impl<K: CacheKey, V: Send + Sync + 'static, T: Send + 'static> Future for Completed<K, V, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(work) = &mut self.work else {
            panic!("polled after it was done");
        };
        let done = std::task::ready!(work.as_mut().poll(cx));
        self.work = None;
        Poll::Ready(done)
    }
}

impl<K: CacheKey, V: Send + Sync + 'static, T: Send + 'static> Drop for Completed<K, V, T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take()
            && !std::thread::panicking()
        {
            self.shared.spawn(async move { drop(work.await) });
        }
    }
}
