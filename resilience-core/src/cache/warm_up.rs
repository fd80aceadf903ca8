//! Filling a cache before it is asked.

use std::{future::Future, sync::Arc};

use futures_util::{StreamExt, stream};

use super::{Cache, CacheKey, CallOptions, Level, LoadOutcome, Loaded};

/// What a warm-up has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WarmUp {
    /// Keys that were loaded.
    pub loaded: u64,
    /// Keys that were cached already.
    pub cached: u64,
    /// Keys whose load failed.
    pub failed: u64,
}

impl<K: CacheKey, V: Send + Sync + 'static> Cache<K, V> {
    /// Loads those of `keys` that are not cached, up to `concurrency` at a time, and calls `progress` after each key. An
    /// error does not end it. Dropped, it stops.
    ///
    /// ```
    /// # use resilience_core::Cache;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let squares = Cache::<u64, u64>::builder("squares").build()?;
    /// let done = squares
    ///     .warm_up(1..=100, 8, |n| async move { Ok::<_, std::io::Error>(n * n) }, |so_far| {
    ///         if so_far.loaded % 50 == 0 { println!("{so_far:?}") }
    ///     })
    ///     .await;
    /// assert_eq!(done.loaded, 100);
    /// # Ok(()) }
    /// ```
    pub async fn warm_up<R, F>(
        &self,
        keys: impl IntoIterator<Item = K>,
        concurrency: usize,
        load: impl Fn(K) -> F + Send + Sync + 'static,
        mut progress: impl FnMut(&WarmUp),
    ) -> WarmUp
    where
        R: LoadOutcome<Value: Into<Loaded<V>>, Error: Send + Sync + 'static>,
        F: Future<Output = R> + Send + 'static,
    {
        let load = Arc::new(load);
        let one = |key: K| {
            let (load, of) = (Arc::clone(&load), key.clone());
            async move {
                let loaded = self.load_with(&key, CallOptions::new(), move || load(of));
                loaded.await.map(|lookup| lookup.level)
            }
        };
        let mut done = WarmUp::default();
        let mut answers = stream::iter(keys)
            .map(one)
            .buffer_unordered(concurrency.max(1));
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Level::Loaded) => done.loaded += 1,
                Ok(_) => done.cached += 1,
                Err(_) => done.failed += 1,
            }
            progress(&done);
        }
        done
    }
}
