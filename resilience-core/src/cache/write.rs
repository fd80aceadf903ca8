//! Write-through: the truth first, then the cache.

use std::{
    borrow::Borrow,
    fmt::Display,
    future::Future,
    hash::Hash,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Cache, CacheKey, Loaded,
    pending::Changed,
    record::{Fill, Stored, Token},
    remote::{PendingChange, Remote},
    shared::{InProgress, Place, Shared},
};
use crate::fleet::millis;

impl<K: CacheKey, V: Send + Sync + 'static> Cache<K, V> {
    /// Changes the truth by `save`, then the cache to `value`, and returns what `save` returned.
    ///
    /// The key is announced to the store as being written first: from then on nothing that was loaded before or meanwhile is
    /// stored. If `save` fails or is dropped, or another instance writes the key at the same time, the key is left
    /// invalidated: the cache never holds a value that the truth does not have. A process that dies in `save`
    /// leaves the key without a value for the rest of the [`write_timeout`](super::CacheBuilder::write_timeout).
    ///
    /// The truth is changed whatever the store does. If that does not answer, the key is invalidated as soon as it does.
    ///
    /// # Errors
    /// That of `save`.
    pub async fn write<Q, T, E, F>(
        &self,
        key: &Q,
        value: impl Into<Loaded<V>>,
        save: impl FnOnce() -> F,
    ) -> Result<T, E>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + Display + ToOwned<Owned = K> + Sync,
        F: Future<Output = Result<T, E>>,
    {
        let value = value.into();
        let writing = Writing::begin(&self.shared, key.to_owned(), &value).await;
        let saved = save().await;
        if saved.is_ok() {
            writing.end(&value).await;
        }
        // Otherwise dropped: whether the truth was changed is not known.
        saved
    }
}

/// A write in progress. Dropped before its end, it leaves an invalidation.
pub(super) struct Writing<K: CacheKey, V: Send + Sync + 'static> {
    shared: Arc<Shared<K, V>>,
    key: K,
    token: Token,
    /// The store knows of it.
    announced: Option<(Arc<Remote<V>>, Arc<str>)>,
    tags: Option<Arc<[super::record::TagGeneration]>>,
    place: Place,
    ticket: super::coherence::Ticket,
    began: Instant,
    ended: bool,
    _in_progress: InProgress<K, V>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Writing<K, V> {
    async fn begin(shared: &Arc<Shared<K, V>>, key: K, value: &Loaded<V>) -> Self {
        let mut writing = Self::announce(shared, key).await;
        if let Some((remote, _)) = &writing.announced {
            // Before the truth is changed, so that an invalidation meanwhile is noticed.
            writing.tags = shared.tags_of(remote, value).await;
        }
        writing
    }

    /// Announces to the store that the truth behind a key is about to change.
    pub(super) async fn announce(shared: &Arc<Shared<K, V>>, key: K) -> Self {
        let in_progress = shared.in_progress();
        let place = shared.place(&key);
        shared.void(&key, place.id);
        let token = Token::random();
        let mut writing = Self {
            shared: Arc::clone(shared),
            ticket: shared.coherence.ticket(place.id),
            place: place.clone(),
            began: Instant::now(),
            announced: None,
            tags: None,
            ended: false,
            _in_progress: in_progress,
            key,
            token,
        };
        if let (Some(remote), Some(text)) = (&shared.remote, &place.text) {
            let write_ms = millis(shared.settings.write_timeout);
            if remote
                .client
                .call(|store| store.begin_write(remote.name(), text, token, write_ms))
                .await
                .is_ok()
            {
                writing.announced = Some((Arc::clone(remote), Arc::clone(text)));
            }
            shared.void(&writing.key, place.id);
        }
        writing
    }

    /// Caches the value, or leaves an invalidation.
    async fn end(mut self, value: &Loaded<V>) {
        let shared = Arc::clone(&self.shared);
        if shared.remote.is_none() {
            self.ended = true;
            if let Some(tags) = shared.local_tags(value, self.began)
                && let Some(held) = shared.held_from(value, self.ticket, tags, Duration::ZERO)
            {
                shared.keep(self.key.clone(), held);
            }
            return;
        }
        let Some((remote, text)) = self.announced.clone() else {
            return;
        };
        let tags = self.tags.take();
        let fill =
            tags.and_then(|tags| shared.fill_with(&remote, &text, value, tags, Duration::ZERO));
        if let Some(Stored::Refused) = self.end_in(&remote, &text, fill.as_ref()).await {
            shared.totals.fills_refused.fetch_add(1, Relaxed);
        }
    }

    /// Leaves an invalidation: what the value is now is not known here. In the store before this returns, unless that does
    /// not answer.
    pub(super) async fn end_invalidated(mut self) {
        let Some((remote, text)) = self.announced.clone() else {
            self.ended = true;
            // Repeated in the background until the store has it.
            let _ = self.shared.invalidate(self.key.clone()).await;
            return;
        };
        self.end_in(&remote, &text, None).await;
    }

    /// Ends the write in the store. `None`: it did not answer.
    async fn end_in(
        &mut self,
        remote: &Remote<V>,
        text: &Arc<str>,
        fill: Option<&Fill>,
    ) -> Option<Stored> {
        let shared = &self.shared;
        let (token, tombstone_ms) = (self.token, millis(shared.tombstone()));
        let until = Instant::now() + shared.settings.write_timeout.min(LONGEST_END);
        let (name, key) = (remote.name(), &**text);
        let stored = remote
            .client
            .call_until(until, |store| {
                store.end_write(name, key, token, fill, tombstone_ms)
            })
            .await;
        shared.void(&self.key, self.place.id);
        shared.recent.note(Changed::Key(Arc::clone(text)));
        // Stored, or left as an invalidation by the store.
        self.ended = stored.is_ok();
        stored.ok()
    }
}

/// How long a caller waits for the store after its truth was changed.
const LONGEST_END: Duration = Duration::from_secs(1);

impl<K: CacheKey, V: Send + Sync + 'static> Drop for Writing<K, V> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (shared, key) = (Arc::clone(&self.shared), self.key.clone());
        shared.void(&key, self.place.id);
        // What the store holds may be from before, and is not used from now on.
        let pending = match (&shared.remote, &self.place.text) {
            (Some(remote), Some(text)) => {
                Some(PendingChange::new(remote, &Changed::Key(Arc::clone(text))))
            }
            _ => None,
        };
        let rest = Arc::clone(&shared);
        // Completes by itself, also if the store does not answer.
        shared.spawn(async move {
            let _ = rest.invalidate(key).await;
            drop(pending);
        });
    }
}
