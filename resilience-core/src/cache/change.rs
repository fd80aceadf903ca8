//! Changes of the truth that affect several keys and tags: commit, then invalidate, tied together.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use futures_util::future::{join, join_all};

use super::{Cache, CacheKey, shared::Shared, write::Writing};

/// The keys and tags that a [change](Cache::change) of the truth affects. A key, an array or a `Vec` of keys converts into it.
///
/// ```
/// use resilience_core::cache::Affected;
///
/// let order = Affected::new().key(7).keys([8, 9]).tag("customer:42");
/// let one_key = Affected::from(7);
/// # let _ = (order, one_key);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Affected<K> {
    keys: Vec<K>,
    tags: Vec<Arc<str>>,
}

impl<K> Affected<K> {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            keys: Vec::new(),
            tags: Vec::new(),
        }
    }

    /// Adds a key.
    pub fn key(mut self, key: K) -> Self {
        self.keys.push(key);
        self
    }

    /// Adds keys.
    pub fn keys(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.keys.extend(keys);
        self
    }

    /// Adds a tag: all values that were [loaded](super::Loaded::tag) with it.
    pub fn tag(mut self, tag: impl Into<Arc<str>>) -> Self {
        self.tags.push(tag.into());
        self
    }
}

impl<K> Default for Affected<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K> From<K> for Affected<K> {
    fn from(key: K) -> Self {
        Self::new().keys([key])
    }
}

impl<K> From<Vec<K>> for Affected<K> {
    fn from(keys: Vec<K>) -> Self {
        Self::new().keys(keys)
    }
}

impl<K, const N: usize> From<[K; N]> for Affected<K> {
    fn from(keys: [K; N]) -> Self {
        Self::new().keys(keys)
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Cache<K, V> {
    /// Changes the truth by `commit`, then invalidates what the change affects, and returns what `commit` returned.
    ///
    /// What [`write`](Self::write) does for one key whose new value is known, this does for any number of keys and tags:
    /// - Keys are announced to the store as being written first. From then on nothing that is loaded under them is cached,
    ///   here or elsewhere; callers are served what they load.
    /// - Tags are invalidated before and after `commit`. What is loaded in between is cached, and dropped afterwards.
    ///
    /// All is invalidated in the end, also if `commit` fails (a commit whose answer was lost has been made all the same) or
    /// this is dropped: in the background then. When this returns `Ok`, no instance serves what was there before, unless the
    /// store did not answer: the invalidation is then repeated until it does, as [`invalidate`](Self::invalidate) does.
    /// If the process dies in `commit`, the keys stay without a value for the rest of the
    /// [`write_timeout`](super::CacheBuilder::write_timeout). A value that was loaded by tag while the change was in progress
    /// may then stay as it is until its time to live is over.
    ///
    /// `commit` should be short: the commit of a transaction, with its statements before. What takes longer than the
    /// [`write_timeout`](super::CacheBuilder::write_timeout) is still invalidated after it, but no longer announced meanwhile.
    ///
    /// The truth is changed whatever the store does. **Cost**: two commands a key, and two a tag, all keys and tags at a time.
    ///
    /// ```
    /// # use std::io;
    /// # use resilience_core::{Cache, cache::Affected};
    /// # struct Transaction; impl Transaction { async fn commit(self) -> io::Result<()> { Ok(()) } }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (accounts, transaction) = (Cache::<u64, i64>::builder("accounts").build()?, Transaction);
    /// // Both rows were updated in the transaction.
    /// accounts.change([7, 8], || transaction.commit()).await?;
    /// # let transaction = Transaction;
    /// // All that were loaded with a tag, and one more.
    /// let affected = Affected::new().tag("branch:north").key(9);
    /// accounts.change(affected, || transaction.commit()).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// That of `commit`.
    pub async fn change<T, E, F>(
        &self,
        affected: impl Into<Affected<K>>,
        commit: impl FnOnce() -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let changing = Changing::begin(&self.shared, affected.into()).await;
        let committed = commit().await;
        if committed.is_ok() {
            changing.end().await;
        }
        // Otherwise dropped: whether the truth was changed is not known.
        committed
    }
}

/// A change in progress. Dropped before its [end](Self::end), it leaves invalidations.
struct Changing<K: CacheKey, V: Send + Sync + 'static> {
    keys: Vec<Writing<K, V>>,
    tags: ChangingTags<K, V>,
}

impl<K: CacheKey, V: Send + Sync + 'static> Changing<K, V> {
    async fn begin(shared: &Arc<Shared<K, V>>, affected: Affected<K>) -> Self {
        let Affected { keys, tags } = affected;
        let number = (keys.len() + tags.len()) as u64;
        shared.totals.invalidations.fetch_add(number, Relaxed);
        let announced = keys.into_iter().map(|key| Writing::announce(shared, key));
        let shared = Arc::clone(shared);
        let tags = ChangingTags { shared, tags };
        let (keys, ()) = join(join_all(announced), tags.invalidate()).await;
        Self { keys, tags }
    }

    async fn end(self) {
        let keys = join_all(self.keys.into_iter().map(Writing::end_invalidated));
        join(keys, self.tags.end()).await;
    }
}

/// The tags of a change in progress.
struct ChangingTags<K: CacheKey, V: Send + Sync + 'static> {
    shared: Arc<Shared<K, V>>,
    tags: Vec<Arc<str>>,
}

impl<K: CacheKey, V: Send + Sync + 'static> ChangingTags<K, V> {
    async fn invalidate(&self) {
        let all = self.tags.iter().cloned();
        // One that the store does not answer is repeated in the background.
        join_all(all.map(|tag| self.shared.invalidate_tag(tag))).await;
    }

    async fn end(mut self) {
        self.invalidate().await;
        self.tags.clear();
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Drop for ChangingTags<K, V> {
    fn drop(&mut self) {
        for tag in self.tags.drain(..) {
            let shared = Arc::clone(&self.shared);
            shared.void_tag(&tag, shared.tag_id(&tag));
            let rest = Arc::clone(&shared);
            shared.spawn(async move { drop(rest.invalidate_tag(tag).await) });
        }
    }
}
