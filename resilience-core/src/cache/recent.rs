//! Changes of the last seconds, which are repeated when the connection to the store was lost: a store that replicates after it
//! has answered may have lost them in a failover, and its successor would serve the value from before.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};

use super::{CacheKey, pending::Changed, shared::Shared};
use crate::{
    fleet::millis,
    sync::{Mutex, lock},
};

/// How long a change is remembered: longer than it takes to notice that a master is gone.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Changes that are remembered.
const MOST: usize = 1_024;

/// The latest changes, oldest first.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<(Instant, Changed)>>);

impl Recent {
    pub(super) fn note(&self, changed: Changed) {
        let mut recent = lock(&self.0);
        if recent.len() == MOST {
            recent.pop_front();
        }
        recent.push_back((Instant::now(), changed));
    }

    fn take(&self) -> Vec<Changed> {
        let mut recent = lock(&self.0);
        let is_recent = |at: &Instant| at.elapsed() < REMEMBERED;
        let taken = recent.drain(..).filter(|(at, _)| is_recent(at));
        taken.map(|(_, changed)| changed).collect()
    }
}

/// Repeats recent changes whenever the store reports changes again, until the handle is dropped or its store is shut down.
pub(super) fn start<K: CacheKey, V: Send + Sync + 'static>(shared: &Arc<Shared<K, V>>) {
    let Ok(runtime) = Handle::try_current() else {
        return;
    };
    let (again, handle) = (shared.coherence.again(), Arc::downgrade(shared));
    let tasks = shared.tasks.clone();
    shared.tasks.spawn(&runtime, async move {
        loop {
            tokio::select! {
                () = again.notified() => {}
                () = tasks.closing() => return,
            }
            if repeat(&handle).await.is_none() {
                return;
            }
        }
    });
}

/// `None`: the handle was dropped.
async fn repeat<K: CacheKey, V: Send + Sync + 'static>(handle: &Weak<Shared<K, V>>) -> Option<()> {
    let shared = handle.upgrade()?;
    let remote = shared.remote.clone()?;
    let tombstone_ms = millis(shared.tombstone());
    let (store, budget) = (&**remote.client.store(), remote.client.budget());
    for changed in shared.recent.take() {
        let step = remote.invalidate(store, &changed, tombstone_ms);
        // Lost again, it is repeated with the next return.
        if !matches!(timeout(budget, step).await, Ok(Ok(()))) {
            shared.recent.note(changed);
        }
    }
    Some(())
}
