//! Background tasks, and their orderly end.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The background tasks of all handles that use one store.
///
/// A store keeps one and returns it from its trait's `tasks` method; clones of the store share it. Handles register
/// their tasks with it, so that one [`shutdown`](Self::shutdown) ends them all in order: leases, places and tokens go
/// back, what was acknowledged is written. `Redis` of `resilience-redis` has one for all stores made from it.
#[derive(Clone, Default)]
pub struct StoreTasks {
    closing: CancellationToken,
    running: TaskTracker,
    shared: Arc<Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>>,
}

impl StoreTasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks all tasks to end, and waits until what they must write is written, for at most `within`.
    ///
    /// Handles that are built on the store afterwards run no tasks. Cancel safe: the tasks end all the same.
    ///
    /// # Errors
    /// [`StillRunning`] when some had not ended by then. They go on in the background.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.closing.cancel();
        ended(&self.running, within).await
    }

    /// The tasks of one handle.
    pub(crate) fn of_handle(&self) -> HandleTasks {
        HandleTasks {
            closing: self.closing.child_token(),
            running: TaskTracker::new(),
            of_store: self.running.clone(),
        }
    }

    /// What all handles of one pattern on this store share, made when the first asks for it.
    pub(crate) fn shared<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = shared
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Arc::new(T::default()));
        Arc::clone(entry)
            .downcast()
            .unwrap_or_else(|_| unreachable!("kept under its own type"))
    }
}

impl fmt::Debug for StoreTasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreTasks")
            .field("running", &self.running.len())
            .field("closing", &self.closing.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// The background tasks of one handle, registered with those of its store.
#[derive(Clone, Debug)]
pub(crate) struct HandleTasks {
    closing: CancellationToken,
    running: TaskTracker,
    of_store: TaskTracker,
}

impl HandleTasks {
    /// Runs `task`, which a shutdown waits for. It should end soon after [`closing`](Self::closing) completes.
    pub(crate) fn spawn(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.running.track_future(task);
        drop(runtime.spawn(self.of_store.track_future(task)));
    }

    /// Asks the tasks to end.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Completes when the tasks are asked to end.
    pub(crate) async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Asks the tasks to end, and waits for them, for at most `within`.
    pub(crate) async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.close();
        ended(&self.running, within).await
    }
}

async fn ended(running: &TaskTracker, within: Duration) -> Result<(), StillRunning> {
    running.close();
    match timeout(within, running.wait()).await {
        Ok(()) => Ok(()),
        Err(_) => Err(StillRunning {
            tasks: running.len(),
        }),
    }
}

/// A shutdown that did not end in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StillRunning {
    /// How many tasks still run.
    pub tasks: usize,
}

impl fmt::Display for StillRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} background tasks still run", self.tasks)
    }
}

impl std::error::Error for StillRunning {}
