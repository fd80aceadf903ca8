//! What operators see of a cache: its name, and what each instance says about itself.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout},
};

use super::{CacheKey, shared::Shared};
use crate::fleet::jittered;

/// How often an instance reports, and for how long a report counts.
const EVERY: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_secs(60);
/// How often the name is entered in the store's list.
const ANNOUNCED: Duration = Duration::from_secs(3600);

/// Reports until the handle is gone, or its store is shut down. Nothing is done for a store that keeps neither names nor reports.
pub(super) fn start<K: CacheKey, V: Send + Sync + 'static>(shared: &Arc<Shared<K, V>>) {
    let (Some(remote), Ok(runtime)) = (&shared.remote, Handle::try_current()) else {
        return;
    };
    let (store, name) = (remote.client.store(), remote.name());
    let keeps_reports = store.report(name, &remote.instance, "", TTL).is_some();
    if !keeps_reports && store.announce(name).is_none() {
        return;
    }
    let (reporting, tasks) = (run(Arc::downgrade(shared)), shared.tasks.clone());
    shared.tasks.spawn(&runtime, async move {
        tokio::select! {
            () = reporting => {}
            () = tasks.closing() => {}
        }
    });
}

async fn run<K: CacheKey, V: Send + Sync + 'static>(handle: Weak<Shared<K, V>>) {
    let mut announced: Option<Instant> = None;
    loop {
        let Some(shared) = handle.upgrade() else {
            return;
        };
        let Some(remote) = shared.remote.clone() else {
            return;
        };
        let snapshot = serde_json::to_string(&shared.snapshot()).unwrap_or_default();
        // The handle may go meanwhile.
        drop(shared);
        let (store, name, budget) = (remote.client.store(), remote.name(), remote.client.budget());
        if announced.is_none_or(|last| last.elapsed() >= ANNOUNCED)
            && let Some(step) = store.announce(name)
            && let Ok(Ok(())) = timeout(budget, step).await
        {
            announced = Some(Instant::now());
        }
        if let Some(step) = store.report(name, &remote.instance, &snapshot, TTL) {
            // The next one is due in seconds.
            let _ = timeout(budget, step).await;
        }
        drop(remote);
        sleep(jittered(EVERY)).await;
    }
}
