//! A lease that is held while a value is loaded.

use std::{
    future::pending,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use super::{
    CacheKey,
    coherence::Coherence,
    generations::Known,
    load::Loaded,
    record::{Entry, Fill, Lease, Leased, Stored, TagGeneration, Token},
    remote::{Remote, begun},
    shared::Shared,
};
use crate::fleet::{HandleTasks, StoreError, millis};

/// A granted lease. Given back when it is dropped before it was [used](Self::store): the loader failed, panicked, or all
/// of its callers have gone.
pub(super) struct LeaseGuard<V: Send + Sync + 'static> {
    remote: Arc<Remote<V>>,
    key: Arc<str>,
    lease: Lease,
    tasks: HandleTasks,
    given_back: bool,
}

/// Answer to a request for a lease.
pub(super) enum Asked<V: Send + Sync + 'static> {
    /// This process loads.
    Granted(LeaseGuard<V>),
    /// The store has a fresh value.
    Fresh(Entry),
    /// Another process loads.
    Held {
        /// Time until its lease ends.
        left: Duration,
    },
    /// The key was invalidated just now, or is being written: what is loaded now must not be kept.
    Refused,
}

impl<V: Send + Sync + 'static> LeaseGuard<V> {
    /// Asks the store for the right to load a key. `renew`: the version of a fresh value that is to be loaded again.
    pub(super) async fn ask<K: CacheKey>(
        shared: &Shared<K, V>,
        remote: &Arc<Remote<V>>,
        key: &Arc<str>,
        token: Token,
        renew: Option<Token>,
    ) -> Result<Asked<V>, StoreError> {
        let lease = Lease {
            token,
            lease_ms: millis(shared.settings.lease),
            renew,
        };
        let (client, name) = (&remote.client, remote.name());
        let leased = client.call(|store| store.lease(name, key, &lease)).await?;
        Ok(match leased {
            Leased::Granted { .. } => Asked::Granted(Self {
                remote: Arc::clone(remote),
                key: Arc::clone(key),
                lease,
                tasks: shared.tasks.clone(),
                given_back: false,
            }),
            Leased::Fresh(entry) => Asked::Fresh(entry),
            Leased::Held { left_ms, .. } => Asked::Held {
                left: Duration::from_millis(left_ms.max(1)),
            },
            Leased::Refused { .. } => Asked::Refused,
        })
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
                let (client, name) = (&self.remote.client, self.remote.name());
                let Lease {
                    token, lease_ms, ..
                } = self.lease;
                let extend = client.call(|store| store.extend(name, &self.key, token, lease_ms));
                // Lost, it is not taken again: what is loaded may be out of date already, and its fill is refused.
                drop(extend.await);
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
    }

    /// What to store. `None`: nothing; a tag was invalidated while the value was loaded, or the generations are not known.
    async fn fill<K: CacheKey>(
        &self,
        shared: &Arc<Shared<K, V>>,
        loaded: &Loaded<V>,
        all: Option<Known>,
        took: Duration,
    ) -> Option<Fill> {
        let tags = loaded.all_tags()?;
        let own: Vec<&str> = tags[1..].iter().map(|tag| &**tag).collect();
        let mut known = vec![all?];
        if !own.is_empty() {
            let asked = self.remote.generations(&own, &shared.coherence).await;
            let lag = shared.tombstone();
            let asked = asked.ok()?;
            // Which tags a value has is known after the load only.
            if !asked.iter().all(|it| it.is_older_than(took, lag)) {
                return None;
            }
            known.extend(asked);
        }
        let tags = tags.into_iter().zip(known);
        let tags = tags.map(|(tag, known)| TagGeneration {
            tag,
            generation: known.number,
        });
        shared.fill_with(&self.remote, &self.key, loaded, tags.collect(), took)
    }

    /// Awaits `work`, and renews all leases meanwhile.
    pub(super) async fn all_renewed_while<'a, T>(
        leases: impl Iterator<Item = &'a Self>,
        work: impl Future<Output = T>,
    ) -> T {
        let renewing = join_all(leases.map(|lease| lease.renewed_while(pending::<()>())));
        let mut work = pin!(work);
        let mut renewing = pin!(async {
            renewing.await;
            // There was none.
            pending::<()>().await;
        });
        tokio::select! {
            biased;
            done = &mut work => done,
            () = &mut renewing => unreachable!("it has no end"),
        }
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
            // Unanswered, the lease ends by itself.
            let _ = remote
                .client
                .call_until(until, |it| it.release(remote.name(), &key, token))
                .await;
        });
    }
}
