//! Keeps the name of a handle in its store's list of names.

use std::{sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::store::RecordClient;
use crate::fleet::{HandleTasks, jittered};

/// How often the name is entered, and entered again after a failure.
const EVERY: Duration = Duration::from_secs(3600);
const AGAIN: Duration = Duration::from_secs(60);

/// Ends the task of a handle when the handle is gone.
#[derive(Debug, Default)]
pub(super) struct Announcing(CancellationToken);

impl Drop for Announcing {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Announcing {
    /// Enters `name` now, and then once an hour, until the handle is gone or its store is shut down. Nothing is done without a
    /// list, and for a handle that is built outside of a runtime.
    pub(super) fn start(store: &RecordClient, name: &Arc<str>, tasks: &HandleTasks) -> Self {
        let announcing = Self::default();
        let Ok(runtime) = Handle::try_current() else {
            return announcing;
        };
        let (store, budget) = (Arc::clone(store.store()), store.budget());
        if store.announce(name).is_none() {
            return announcing;
        }
        let (name, gone, all) = (Arc::clone(name), announcing.0.clone(), tasks.clone());
        tasks.spawn(&runtime, async move {
            let announced = async {
                while let Some(step) = store.announce(&name) {
                    let is_entered = matches!(timeout(budget, step).await, Ok(Ok(())));
                    let pause = if is_entered { EVERY } else { AGAIN };
                    tokio::time::sleep(jittered(pause)).await;
                }
            };
            tokio::select! {
                () = announced => {}
                () = gone.cancelled() => {}
                () = all.closing() => {}
            }
        });
        announcing
    }
}
