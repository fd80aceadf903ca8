//! A lease that is held while a value is loaded.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use super::{
    CacheKey,
    coherence::Coherence,
    generations::Known,
    load::Loaded,
    record::{Fill, Lease, Stored, TagGeneration},
    remote::{Remote, begun},
    shared::Shared,
    store::{CacheStore, validate},
};
use crate::fleet::{HandleTasks, millis};

/// A granted lease. Given back when it is dropped before it was [used](Self::store): the loader failed, panicked, or all
/// of its callers have gone.
pub(super) struct LeaseGuard<V: Send + Sync + 'static> {
    remote: Arc<Remote<V>>,
    key: Arc<str>,
    lease: Lease,
    tasks: HandleTasks,
    given_back: bool,
}

impl<V: Send + Sync + 'static> LeaseGuard<V> {
    pub(super) fn new(
        remote: &Arc<Remote<V>>,
        key: &Arc<str>,
        tasks: &HandleTasks,
        lease: Lease,
    ) -> Self {
        Self {
            remote: Arc::clone(remote),
            key: Arc::clone(key),
            lease,
            tasks: tasks.clone(),
            given_back: false,
        }
    }

    fn lease_time(&self) -> Duration {
        Duration::from_millis(self.lease.lease_ms)
    }

    /// The generation of the tag that all values have. `None`: not known, so that nothing may be stored.
    pub(super) async fn generation_of_all(&self, coherence: &Coherence) -> Option<Known> {
        let known = self.remote.generations(&[""], coherence).await.ok()?;
        known.first().copied()
    }

    /// Awaits `work`, and renews the lease every third of it meanwhile. A lease that was lost makes no difference to
    /// the work: what it loads is refused.
    pub(super) async fn renewed_while<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let renewing = async {
            loop {
                sleep(self.lease_time() / 3).await;
                let (store, name) = (&self.remote.client, self.remote.name());
                let step = |it: &_| CacheStore::lease(it, name, &self.key, &self.lease);
                // Without an answer: the next one.
                drop(store.call(|it| step(it)).await);
            }
        };
        let mut renewing = pin!(renewing);
        tokio::select! {
            biased;
            done = &mut work => done,
            () = &mut renewing => unreachable!("it has no end"),
        }
    }

    /// Stores what was loaded, in `took`. Returns as soon as the step is on its way: steps that follow come after it.
    pub(super) async fn store<K: CacheKey>(
        mut self,
        shared: &Arc<Shared<K, V>>,
        loaded: &Loaded<V>,
        all: Option<Known>,
        took: Duration,
    ) {
        let Some(fill) = self.fill(shared, loaded, all, took).await else {
            shared.totals.fills_not_stored.fetch_add(1, Relaxed);
            return;
        };
        self.given_back = true;
        let until = Instant::now() + self.lease_time();
        let done = Arc::clone(shared);
        let filling = async move {
            let stored = self.remote.fill(&self.key, self.lease.token, &fill, until);
            let counter = match stored.await {
                Ok(Stored::Stored) => &done.totals.fills_stored,
                Ok(Stored::Refused) => &done.totals.fills_refused,
                Err(_) => &done.totals.fills_not_stored,
            };
            counter.fetch_add(1, Relaxed);
        };
        if let Some(rest) = begun(Box::pin(filling)).await {
            shared.spawn(rest);
        }
        shared.announce();
    }

    /// What to store. `None`: nothing.
    async fn fill<K: CacheKey>(
        &self,
        shared: &Arc<Shared<K, V>>,
        loaded: &Loaded<V>,
        all: Option<Known>,
        took: Duration,
    ) -> Option<Fill> {
        let fresh = shared.fresh_time(loaded);
        let fresh_ms = millis(fresh);
        if fresh_ms == 0 {
            return None;
        }
        let all = all?;
        let tags = self.tags(shared, loaded, all, took).await?;
        let body = self.remote.encode(&self.key, loaded.value.as_deref())?;
        let keep = shared.settings.windows.keep(fresh, loaded.value.is_none());
        let keep_ms = millis(keep);
        // Tags live at least as long as the values that have them.
        self.remote.keep_ms.fetch_max(keep_ms, Relaxed);
        Some(Fill {
            body,
            fresh_ms,
            keep_ms,
            load_ms: millis(took),
            tags,
        })
    }

    /// The tags of the value with their generations. `None`: one was invalidated while the value was loaded, or they are not
    /// known.
    async fn tags<K: CacheKey>(
        &self,
        shared: &Arc<Shared<K, V>>,
        loaded: &Loaded<V>,
        all: Known,
        took: Duration,
    ) -> Option<Arc<[TagGeneration]>> {
        let names: Vec<&str> = loaded.tags.iter().map(|tag| &**tag).collect();
        let is_valid = |tag: &&str| !tag.is_empty() && tag.len() <= validate::MAX_TAG;
        if names.len() >= validate::MAX_TAGS || !names.iter().all(is_valid) {
            return None;
        }
        let known = match &names[..] {
            [] => Vec::new(),
            names => self.remote.generations(names, &shared.coherence).await.ok()?,
        };
        let lag = shared.settings.tombstone;
        if !known.iter().all(|known| known.is_older_than(took, lag)) {
            return None;
        }
        let of_all = TagGeneration {
            tag: Arc::from(""),
            generation: all.number,
        };
        let own = loaded.tags.iter().zip(known).map(|(tag, known)| TagGeneration {
            tag: Arc::clone(tag),
            generation: known.number,
        });
        Some(std::iter::once(of_all).chain(own).collect())
    }
}

impl<V: Send + Sync + 'static> Drop for LeaseGuard<V> {
    fn drop(&mut self) {
        if self.given_back {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let (remote, key) = (Arc::clone(&self.remote), Arc::clone(&self.key));
        let (token, until) = (self.lease.token, Instant::now() + self.lease_time());
        self.tasks.spawn(&runtime, async move {
            let step = |it: &_| CacheStore::release(it, remote.name(), &key, token);
            // Unanswered, the lease ends by itself.
            let _ = remote.client.call_until(until, |it| step(it)).await;
        });
    }
}
