//! Keys that several caches read while their values change.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use resilience_core::Cache;
use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};

/// The truth behind the keys `0..len`.
#[derive(Clone)]
pub(super) struct RacedKeys(Arc<[AtomicU64]>);

impl RacedKeys {
    pub(super) fn new(keys: usize) -> Self {
        Self((0..keys).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn set(&self, key: usize, number: u64) {
        self.0[key].store(number, SeqCst);
    }

    pub(super) async fn read(&self, cache: &Cache<usize, u64>, key: usize) -> u64 {
        let truth = Arc::clone(&self.0);
        let load = move || async move {
            let read = truth[key].load(SeqCst);
            // As a database takes its time, in which the value may change.
            yield_now().await;
            Ok::<_, Infallible>(read)
        };
        let got = cache.get_or_load(&key, load).await;
        *got.expect("it never fails").expect("it always has a value")
    }

    /// Number of keys that one of `caches` still has an old value of after `grace`.
    pub(super) async fn stale(&self, caches: &[Cache<usize, u64>], grace: Duration) -> usize {
        let start = Instant::now();
        let mut left: Vec<usize> = (0..self.len()).collect();
        loop {
            let mut stale = Vec::new();
            for key in left {
                let right = self.0[key].load(SeqCst);
                let read = caches.iter().map(|it| self.read(it, key));
                if join_all(read).await.iter().any(|got| *got != right) {
                    stale.push(key);
                }
            }
            if stale.is_empty() || start.elapsed() > grace {
                return stale.len();
            }
            left = stale;
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Number of reads that `caches` answered by themselves.
pub(super) fn held(caches: &[Cache<usize, u64>]) -> u64 {
    let held = |it: &Cache<usize, u64>| it.snapshot().totals.hits_local;
    caches.iter().map(held).sum()
}
