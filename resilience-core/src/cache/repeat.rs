//! Repeats recent changes when the connection to the store was lost.

use std::sync::{Arc, Weak};

use tokio::{runtime::Handle, time::timeout};

use super::{CacheKey, shared::Shared};
use crate::fleet::millis;

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
