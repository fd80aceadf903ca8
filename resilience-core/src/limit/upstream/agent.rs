//! The background loop: writes what upstream servers advertised to the store, and reads what other instances wrote.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Core, entry::Upstream};
use crate::{
    error::InvalidConfig,
    fleet::{Agent, StoreClient, StoreError, millis},
    limit::{
        Quota,
        store::{Demand, LimitStore, StoreDecision},
    },
};

pub(super) struct UpstreamAgent {
    core: Arc<Core>,
    client: StoreClient<dyn LimitStore>,
    refresh: Duration,
    /// When the store was last read.
    last: Option<Instant>,
    due: Option<Instant>,
}

/// Nothing is due.
const NEVER: Duration = Duration::from_secs(86_400);

/// For how long an ending agent repeats its last writes.
const LAST_WRITES: Duration = Duration::from_secs(1);

impl UpstreamAgent {
    pub(super) const fn new(
        core: Arc<Core>,
        client: StoreClient<dyn LimitStore>,
        refresh: Duration,
    ) -> Self {
        Self {
            core,
            client,
            refresh,
            last: None,
            due: None,
        }
    }

    /// Writes what this instance was told. What the store does not take is kept, and written later, until the wait is
    /// over. Whether all was written.
    async fn write(&self, until: Instant) -> bool {
        let mut failed = false;
        for (key, upstream, ()) in
            self.upstreams(|upstream| upstream.take_unwritten().then_some(()))
        {
            let Some(wait) = upstream.closed_for(self.core.now()) else {
                continue;
            };
            if failed || self.close(&key, wait, until).await.is_err() {
                // The others would wait for nothing too.
                failed = true;
                upstream.mark_unwritten();
            }
        }
        !failed
    }

    /// Can be repeated: the first write counts.
    async fn close(&self, key: &str, wait: Duration, until: Instant) -> Result<(), StoreError> {
        let demands = demands(millis(wait).max(1), self.core.longest)?;
        let name = &*self.core.name;
        self.client
            .call_until(until, |store| store.decide(name, key, &demands))
            .await
            .map(drop)
    }

    /// Reads about the servers that were called since the last time.
    async fn read(&self) {
        for (key, upstream, ()) in self.upstreams(|upstream| upstream.take_used().then_some(())) {
            let Ok(decision) = self.closed(&key).await else {
                // The others would wait for nothing too; they are read after their next call.
                return;
            };
            let standing = decision.limits.first();
            if let Some(standing) = standing.filter(|standing| standing.full_in > 0) {
                let wait = Duration::from_micros(standing.full_in).min(self.core.longest);
                upstream.close(self.core.now() + wait);
            }
        }
    }

    async fn closed(&self, key: &str) -> Result<StoreDecision, StoreError> {
        let (name, demands) = (&*self.core.name, [until(0, self.core.longest)?]);
        self.client
            .call(|store| store.decide(name, key, &demands))
            .await
    }

    fn upstreams<T>(
        &self,
        pick: impl Fn(&Upstream) -> Option<T>,
    ) -> Vec<(String, Arc<Upstream>, T)> {
        let mut picked = Vec::new();
        self.core.upstreams.for_each(|key, upstream| {
            // The overflow entry has no name of its own in the store.
            if let Some((key, picked_of)) = key.zip(pick(upstream)) {
                picked.push((key.clone(), Arc::clone(upstream), picked_of));
            }
        });
        picked
    }
}

impl Agent for UpstreamAgent {
    type Push = ();

    fn next_due(&self) -> Instant {
        self.due.unwrap_or_else(|| Instant::now() + NEVER)
    }

    async fn on_due(&mut self) {
        // Before the questions: a call meanwhile wakes the agent again.
        (self.due, self.last) = (None, Some(Instant::now()));
        let written = self.write(Instant::now()).await;
        self.read().await;
        if !written {
            self.due = Some(Instant::now() + self.refresh);
        }
    }

    /// A server has advertised something, one was called for the first time since it was read about, or the store is
    /// available again.
    async fn on_wake(&mut self) {
        self.write(Instant::now()).await;
        // The first call reads at once: this instance may have come late.
        let next = self
            .last
            .map_or_else(Instant::now, |last| last + self.refresh);
        self.due.get_or_insert(next);
    }

    async fn on_close(&mut self) {
        self.write(Instant::now() + LAST_WRITES).await;
    }
}

/// A bucket of one token per millisecond; twice as large as the longest wait, so that one about to end leaves room for
/// another.
fn until(millis: u64, longest: Duration) -> Result<Demand<'static>, StoreError> {
    let most = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX / 4);
    let quota = Quota::per(1000, Duration::from_secs(1)).and_then(|quota| quota.burst(2 * most));
    Ok(Demand {
        limit: "until",
        quota: quota.map_err(|error| invalid(&error))?,
        cost: i64::try_from(millis).unwrap_or(i64::MAX),
    })
}

/// The first instance to write empties the bucket `told`; no other writes until it is full again.
fn demands(millis: u64, longest: Duration) -> Result<[Demand<'static>; 2], StoreError> {
    let quota = Quota::per(1, Duration::from_millis(millis));
    let told = Demand {
        limit: "told",
        quota: quota.map_err(|error| invalid(&error))?,
        cost: 1,
    };
    Ok([told, until(millis, longest)?])
}

fn invalid(error: &InvalidConfig) -> StoreError {
    StoreError::new(error.to_string(), false)
}
