//! Many keys at once: one read, one load for what is missing.

use std::{collections::HashMap, future::Future, sync::Arc};

use futures_util::future::join_all;

use super::{Cache, CacheKey, CallOptions, GuardedOutcome, LoadError, LoadOutcome, Loaded, Lookup};

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

/// What [`load_many_with`](Cache::load_many_with) found.
#[derive(Debug)]
#[non_exhaustive]
pub struct ManyLookups<K, V, E> {
    /// What is known of each key: also of those that are known to have no value. Only keys whose load failed are missing.
    pub lookups: HashMap<K, Lookup<V>>,
    /// Why some keys may be missing: their load failed, and there was no stale value that could be served.
    pub error: Option<LoadError<E>>,
}

impl<K, V, E> ManyLookups<K, V, E> {
    /// The lookups, if none is missing because its load failed.
    ///
    /// # Errors
    /// The error of the load that failed.
    pub fn all(self) -> Result<HashMap<K, Lookup<V>>, LoadError<E>> {
        match self.error {
            None => Ok(self.lookups),
            Some(error) => Err(error),
        }
    }
}

impl<K: CacheKey, V: Send + Sync + 'static> Cache<K, V> {
    /// The values of those keys that are cached, in one read of the store for all that this process does not hold.
    pub async fn get_many(&self, keys: &[K]) -> HashMap<K, Arc<V>> {
        let mut found = HashMap::with_capacity(keys.len());
        let options = CallOptions::new();
        let wanted = self.shared.held_many(keys, &options, &mut found);
        self.shared.read_many(wanted, &mut found).await;
        values(found)
    }

    /// The values of keys, cached or loaded: those that are missing by one call of `load`, which returns the values that
    /// exist. A key that it leaves out has no value.
    ///
    /// Keys that another call is loading at the moment are waited for, and loaded one by one if that fails. Calls of one
    /// process share loads through the store only. Stale values are loaded again by the same call of `load`, unless that
    /// failed just now ([`retry_pause`](super::CacheBuilder::retry_pause)).
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
    pub async fn get_or_load_many<L, R, F>(
        &self,
        keys: &[K],
        load: impl Fn(Vec<K>) -> F + Send + Sync + 'static,
    ) -> ManyLoaded<K, V, R::Error>
    where
        L: Into<Loaded<V>>,
        R: LoadOutcome<Value = HashMap<K, L>, Error: Send + Sync + 'static>,
        F: Future<Output = R> + Send + 'static,
    {
        let found = self.load_many_with(keys, CallOptions::new(), load).await;
        ManyLoaded {
            values: values(found.lookups),
            error: found.error,
        }
    }

    /// As [`get_or_load_many`](Self::get_or_load_many), with options for this call; the answer says of each key how fresh its
    /// value is, and where it came from.
    pub async fn load_many_with<L, R, F>(
        &self,
        keys: &[K],
        options: CallOptions,
        load: impl Fn(Vec<K>) -> F + Send + Sync + 'static,
    ) -> ManyLookups<K, V, R::Error>
    where
        L: Into<Loaded<V>>,
        R: LoadOutcome<Value = HashMap<K, L>, Error: Send + Sync + 'static>,
        F: Future<Output = R> + Send + 'static,
    {
        let shared = &self.shared;
        let _in_progress = shared.in_progress();
        let load = Arc::new(load);
        let mut lookups = HashMap::with_capacity(keys.len());
        let sorted = shared.sort_many(keys, &options, &mut lookups).await;
        let mut error = None;
        if !sorted.here.is_empty() {
            let load = Arc::clone(&load);
            let loading = shared.load_many(sorted.here, move |keys| load(keys), &mut lookups);
            error = loading.await.err();
        }
        let each = sorted.elsewhere.into_iter().map(|wanted| {
            let (load, key) = (Arc::clone(&load), wanted.key.clone());
            let one = move || async move {
                let loaded = load(vec![key.clone()]).await.into_result();
                GuardedOutcome(loaded.map(|mut loaded| {
                    let one = loaded.remove(&key);
                    one.map_or(Loaded::missing(), Into::into)
                }))
            };
            async move {
                let loaded = self.load_with(&wanted.key, options, one).await;
                (wanted.key, loaded)
            }
        });
        for (key, loaded) in join_all(each).await {
            match loaded {
                Ok(lookup) => drop(lookups.insert(key, lookup)),
                Err(failed) => error = error.or(Some(failed)),
            }
        }
        ManyLookups { lookups, error }
    }
}

/// The keys that have a value.
fn values<K: CacheKey, V>(lookups: HashMap<K, Lookup<V>>) -> HashMap<K, Arc<V>> {
    let with_value = |(key, lookup): (K, Lookup<V>)| Some((key, lookup.value?));
    lookups.into_iter().filter_map(with_value).collect()
}
