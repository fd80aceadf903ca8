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
    record::{Stored, Token},
    remote::Remote,
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

/// A write in progress. Dropped before its [end](Self::end), it leaves an invalidation.
struct Writing<K: CacheKey, V: Send + Sync + 'static> {
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
                // Before the truth is changed, so that an invalidation meanwhile is noticed.
                writing.tags = shared.tags_of(remote, value).await;
            }
            shared.void(&writing.key, place.id);
        }
        writing
    }

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
        let (token, tombstone_ms) = (self.token, millis(shared.tombstone()));
        let until = Instant::now() + shared.settings.write_timeout.min(LONGEST_END);
        let (name, key) = (remote.name(), &*text);
        let stored = remote
            .client
            .call_until(until, |store| {
                store.end_write(name, key, token, fill.as_ref(), tombstone_ms)
            })
            .await;
        shared.void(&self.key, self.place.id);
        shared.recent.note(Changed::Key(Arc::clone(&text)));
        // Stored, or left as an invalidation by the store.
        self.ended = stored.is_ok();
        if let Ok(Stored::Refused) = stored {
            shared.totals.fills_refused.fetch_add(1, Relaxed);
        }
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
        let rest = Arc::clone(&shared);
        // Completes by itself, also if the store does not answer.
        shared.spawn(async move { drop(rest.invalidate(key).await) });
    }
}
