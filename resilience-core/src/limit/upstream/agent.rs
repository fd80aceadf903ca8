//! The task that tells the store what peers have said, and hears what others were told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use super::{Core, entry::Upstream};
use crate::{
    error::{InvalidConfig, Pattern},
    limit::{
        Quota,
        store::{Demand, LimitStore, StoreDecision, StoreError},
    },
};

/// Rung when there is something to tell or to ask, and when the last handle is gone.
#[derive(Debug, Default)]
pub(super) struct Bell {
    bell: Notify,
    closing: AtomicBool,
}

impl Bell {
    pub(super) fn ring(&self) {
        self.bell.notify_one();
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Relaxed);
        self.bell.notify_one();
    }
}

/// How long the store may take over one answer.
const BUDGET: Duration = Duration::from_millis(250);

pub(super) async fn run(core: Arc<Core>, store: Arc<dyn LimitStore>, refresh: Duration) {
    let Some(bell) = &core.bell else { return };
    let mut agent = Agent {
        core: &core,
        store: &*store,
        lost: false,
    };
    // The first call asks at once: this instance may have come late.
    let mut last = None;
    let mut due = None;
    loop {
        let at = due.unwrap_or_else(Instant::now);
        tokio::select! {
            () = bell.bell.notified() => {
                agent.tell().await;
                if bell.closing.load(Relaxed) {
                    return;
                }
                due = due.or_else(|| Some(last.map_or_else(Instant::now, |last| last + refresh)));
            }
            () = sleep_until(at), if due.is_some() => {
                // Before the questions: a call meanwhile rings anew.
                (due, last) = (None, Some(Instant::now()));
                agent.ask().await;
            }
        }
    }
}

struct Agent<'a> {
    core: &'a Core,
    store: &'a dyn LimitStore,
    lost: bool,
}

impl Agent<'_> {
    /// Tells what this instance was told. What the store does not hear is not said again: it would be late.
    async fn tell(&mut self) {
        for (key, _, millis) in self.upstreams(Upstream::take_told) {
            let told = match demands(millis, self.core.longest) {
                Ok(demands) => self.decide(&key, &demands).await.map(|_| ()),
                Err(wrong) => Err(wrong),
            };
            self.heard(told);
        }
    }

    /// Asks about the peers that somebody wanted to call since the last time.
    async fn ask(&mut self) {
        let used = |upstream: &Upstream| upstream.take_used().then_some(());
        for (key, upstream, ()) in self.upstreams(used) {
            let answer = match until(0, self.core.longest) {
                Ok(until) => self.decide(&key, &[until]).await,
                Err(wrong) => Err(wrong),
            };
            let wait = answer
                .as_ref()
                .ok()
                .and_then(|decision| decision.limits.first());
            if let Some(wait) = wait.filter(|standing| standing.full_in > 0) {
                let wait = Duration::from_micros(wait.full_in).min(self.core.longest);
                upstream.close(self.core.now() + wait);
            }
            let failed = answer.is_err();
            self.heard(answer.map(|_| ()));
            if failed {
                // The others would wait for nothing too; they ask with their next call.
                return;
            }
        }
    }

    fn upstreams<T>(
        &self,
        pick: impl Fn(&Upstream) -> Option<T>,
    ) -> Vec<(String, Arc<Upstream>, T)> {
        let mut picked = Vec::new();
        self.core.upstreams.for_each(|key, upstream| {
            // What shares one entry has no name of its own in the store.
            if let Some((key, picked_of)) = key.zip(pick(upstream)) {
                picked.push((key.clone(), Arc::clone(upstream), picked_of));
            }
        });
        picked
    }

    async fn decide(&self, key: &str, demands: &[Demand<'_>]) -> Result<StoreDecision, StoreError> {
        let answer = self.store.decide(&self.core.name, key, demands);
        match timeout(BUDGET, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::new("no answer in time", true)),
        }
    }

    fn heard(&mut self, answer: Result<(), StoreError>) {
        let was_lost = std::mem::replace(&mut self.lost, answer.is_err());
        let (pattern, name) = (Pattern::RateLimit.as_str(), &*self.core.name);
        match answer {
            Err(failure) if !was_lost => {
                let reason = failure.reason;
                tracing::warn!(
                    target: "resilience", pattern, name, reason,
                    "what peers say is not shared: going on with what this instance hears"
                );
            }
            Ok(()) if was_lost => {
                tracing::info!(target: "resilience", pattern, name, "shared state is back");
            }
            _ => {}
        }
    }
}

/// A millisecond each; as many again as can be asked for at most, so that one that is about to end is no hindrance.
fn until(millis: u64, longest: Duration) -> Result<Demand<'static>, StoreError> {
    let most = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX / 4);
    let quota = Quota::per(1000, Duration::from_secs(1)).and_then(|quota| quota.burst(2 * most));
    Ok(Demand {
        limit: "until",
        quota: quota.map_err(|error| wrong(&error))?,
        cost: i64::try_from(millis).unwrap_or(i64::MAX),
    })
}

/// The first to tell empties the bucket; for as long as that lasts, nobody else does.
fn demands(millis: u64, longest: Duration) -> Result<[Demand<'static>; 2], StoreError> {
    let told = Demand {
        limit: "told",
        quota: Quota::per(1, Duration::from_millis(millis)).map_err(|error| wrong(&error))?,
        cost: 1,
    };
    Ok([told, until(millis, longest)?])
}

fn wrong(error: &InvalidConfig) -> StoreError {
    StoreError::new(error.to_string(), false)
}
