//! Reads, and dead letters.

use std::{fmt::Display, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    WriteBehind,
    change::{DeadChange, Dirty},
    error::ReadError,
    record::{DeadAction, RawDead},
    store::validate,
};
use crate::{
    codec::Codec,
    fleet::{OnOutage, StoreError},
};

/// What a loader that is made by [`WriteBehind::through`] returns.
type Loading<V, E> = Pin<Box<dyn Future<Output = Result<Option<V>, E>> + Send>>;

impl<V: Send + Sync + 'static> WriteBehind<V> {
    /// The last write of a key, if it is not sunk yet. Nothing: the database has the key's value. A dead letter is not read.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(&self, key: &str) -> Result<Option<Dirty<V>>, ReadError> {
        let shard = self.shared.of_key(key);
        let read = self
            .shared
            .client
            .call(|store| store.read(shard, key))
            .await;
        let Some(entry) = read.map_err(ReadError::Store)? else {
            return Ok(None);
        };
        Ok(Some(Dirty {
            version: entry.version,
            value: decode(&*self.codec, entry.value).map_err(ReadError::Decode)?,
        }))
    }

    /// The last write of a key, or what `load` finds in the database if that is sunk. `None`: the key was deleted, or `load` found
    /// nothing.
    ///
    /// `load` runs after the store was asked: what was sunk before is there. A database that is read from a replica may not have
    /// it yet.
    ///
    /// # Errors
    /// That of `load`, or of the [read](Self::read).
    pub async fn read_or_load<E, F>(
        &self,
        key: &str,
        load: impl FnOnce() -> F,
    ) -> Result<Option<V>, E>
    where
        E: From<ReadError>,
        F: Future<Output = Result<Option<V>, E>>,
    {
        match self.read(key).await {
            Ok(Some(dirty)) => Ok(dirty.into_value()),
            Ok(None) => load().await,
            Err(ReadError::Store(_)) if self.shared.client.on_outage() == OnOutage::FailOpen => {
                load().await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A loader that reads through what is not sunk yet, for a cache in front: what the cache loads is the last write of the
    /// key, or what `load` finds in the database. Keys are written as they are displayed.
    ///
    /// Write by `cache.write(&key, value, || write_behind.write(..))`: then the cache stores nothing that was loaded before the write.
    pub fn through<K, E, F>(
        &self,
        load: impl Fn(K) -> F + Send + Sync + 'static,
    ) -> impl Fn(K) -> Loading<V, E> + Send + Sync + 'static
    where
        K: Display + Send + Sync + 'static,
        E: From<ReadError> + Send + 'static,
        F: Future<Output = Result<Option<V>, E>> + Send + 'static,
    {
        let (this, load) = (self.clone(), Arc::new(load));
        move |key: K| {
            let (this, load) = (this.clone(), Arc::clone(&load));
            Box::pin(async move {
                let name = key.to_string();
                this.read_or_load(&name, || load(key)).await
            })
        }
    }

    /// At most `max` dead letters, of all shards; at most 1000 of each.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn dead(&self, max: usize) -> Result<Vec<DeadChange<V>>, StoreError> {
        let shared = &self.shared;
        let mut all = Vec::new();
        for index in 0..shared.settings.shards {
            let left = (max - all.len()).min(validate::MAX_BATCH);
            if left == 0 {
                break;
            }
            let step =
                |store| super::WriteBehindStore::dead(store, shared.shard(index), None, left);
            let letters = shared.client.call(step).await?;
            all.extend(letters.into_iter().map(|it| self.dead_change(it)));
        }
        Ok(all)
    }

    fn dead_change(&self, dead: RawDead) -> DeadChange<V> {
        DeadChange {
            key: dead.key,
            version: dead.version,
            attempts: dead.attempts,
            age: Duration::from_millis(dead.age_ms),
            reason: dead.reason,
            value: decode(&*self.codec, dead.value).map_err(|error| error.to_string()),
        }
    }

    /// Lets dead letters be sunk again; how many there were. A key that was written since has none.
    ///
    /// # Errors
    /// If the store does not answer; some may be redriven then.
    pub async fn redrive<K: AsRef<str>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<u64, StoreError> {
        let many = self.act(keys, DeadAction::Redrive).await;
        self.shared.wake_all();
        many
    }

    /// Removes dead letters: what they hold is not sunk. How many there were.
    ///
    /// # Errors
    /// If the store does not answer; some may be removed then.
    pub async fn discard<K: AsRef<str>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<u64, StoreError> {
        self.act(keys, DeadAction::Discard).await
    }

    async fn act<K: AsRef<str>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        action: DeadAction,
    ) -> Result<u64, StoreError> {
        let shared = &self.shared;
        let mut shards: Vec<Vec<Arc<str>>> = vec![Vec::new(); shared.settings.shards as usize];
        for key in keys {
            let key = key.as_ref();
            shards[shared.of_key(key).index as usize].push(key.into());
        }
        let mut many = 0;
        for (index, keys) in (0..).zip(&shards) {
            for keys in keys.chunks(validate::MAX_BATCH) {
                let step = |store| {
                    super::WriteBehindStore::act_on_dead(store, shared.shard(index), keys, action)
                };
                many += shared.client.call(step).await?;
            }
        }
        Ok(many)
    }
}

pub(super) fn decode<V: 'static>(
    codec: &dyn Codec<V>,
    value: Option<Bytes>,
) -> Result<Option<V>, crate::codec::CodecError> {
    value.map(|it| codec.decode(&it)).transpose()
}
