//! One process' use of one store: background tasks, their orderly end, and the heartbeat.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};
#[cfg(feature = "idempotency")]
use tokio_util::task::task_tracker::TaskTrackerToken;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::membership::{MemberStore, Membership};

/// One process' use of one store: its background tasks, and its heartbeat.
///
/// A store keeps one and returns it from its trait's `handle` method; clones of the store share it. All handles built on
/// the store (breakers, limits, ..) register their tasks with it, so that one [`shutdown`](Self::shutdown) ends them
/// all in order: leases, places and tokens go back, what was acknowledged is written. One heartbeat for all of them tells
/// the store that this instance is live. `Redis` of `resilience-redis` has one for all stores made from it. Two store
/// handles in one process are two instances.
#[derive(Clone)]
pub struct StoreHandle(Arc<Inner>);

struct Inner {
    closing: CancellationToken,
    /// The time of a shutdown is nearly over.
    overdue: CancellationToken,
    running: TaskTracker,
    membership: Option<Arc<Membership>>,
    shared: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

impl Drop for Inner {
    /// The heartbeat ends with the last clone.
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl StoreHandle {
    /// A handle without a heartbeat: live instances are counted by each pattern's own records.
    #[must_use]
    pub fn new() -> Self {
        Self::over(None)
    }

    /// A handle whose heartbeat goes to `members`.
    #[must_use]
    pub fn with_members(members: Arc<dyn MemberStore>) -> Self {
        Self::over(Some(Arc::new(Membership::new(members))))
    }

    fn over(membership: Option<Arc<Membership>>) -> Self {
        Self(Arc::new(Inner {
            closing: CancellationToken::new(),
            overdue: CancellationToken::new(),
            running: TaskTracker::new(),
            membership,
            shared: Mutex::default(),
        }))
    }

    /// Live instances of this store, this one included, as of the last answered heartbeat. `None`: not known.
    #[must_use]
    pub fn live_instances(&self) -> Option<u64> {
        self.0.membership.as_ref()?.live()
    }

    /// Whether the store counts this instance as live: the last heartbeat was answered.
    pub(crate) fn is_member(&self) -> bool {
        let membership = self.0.membership.as_ref();
        membership.is_some_and(|membership| membership.is_answered())
    }

    pub(super) fn membership(&self) -> Option<&Arc<Membership>> {
        self.0.membership.as_ref()
    }

    /// Asks all tasks to end, and waits until what they must write is written, for at most `within`.
    ///
    /// | part of `within` | what happens |
    /// |---|---|
    /// | at once | no new work begins: idempotency rejects calls with [`ShuttingDown`](crate::Reason::ShuttingDown) |
    /// | all but the last tenth, and at most the last 2 s | work in progress ends, also that of callers that are gone; completions are written; leases, places and tokens go back |
    /// | the rest | work that still runs is cancelled, and its record says so |
    ///
    /// Await it beside the graceful shutdown of the server, before the runtime ends. Handles that are built on the store
    /// afterwards run no tasks. Cancel safe: no new work begins all the same.
    ///
    /// # Errors
    /// [`StillRunning`] when some had not ended by then. They go on in the background.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.0.closing.cancel();
        ended(&self.0.running, &self.0.overdue, within).await
    }

    /// The tasks of one handle.
    pub(crate) fn of_handle(&self) -> HandleTasks {
        HandleTasks {
            closing: self.0.closing.child_token(),
            overdue: self.0.overdue.child_token(),
            running: TaskTracker::new(),
            of_store: self.0.running.clone(),
        }
    }

    /// What all handles of one pattern on this store share, made when the first asks for it.
    pub(crate) fn shared<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let mut shared = self.0.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = shared
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Arc::new(T::default()));
        Arc::clone(entry)
            .downcast()
            .unwrap_or_else(|_| unreachable!("kept under its own type"))
    }
}

impl Default for StoreHandle {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for StoreHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreHandle")
            .field("running", &self.0.running.len())
            .field("closing", &self.0.closing.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// The background tasks of one handle, registered with those of its store.
#[derive(Clone, Debug)]
pub(crate) struct HandleTasks {
    closing: CancellationToken,
    overdue: CancellationToken,
    running: TaskTracker,
    of_store: TaskTracker,
}

/// Counts as a task of a handle for as long as it lives.
#[cfg(feature = "idempotency")]
#[derive(Debug)]
pub(crate) struct InProgress(#[expect(dead_code, reason = "held")] [TaskTrackerToken; 2]);

impl HandleTasks {
    /// Runs `task`, which a shutdown waits for. It should end soon after [`closing`](Self::closing) completes.
    pub(crate) fn spawn(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_boxed(runtime, Box::pin(task));
    }

    /// One type of task: the runtime's code for a task is compiled once, not for each task of each handle of each application.
    fn spawn_boxed(&self, runtime: &Handle, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
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

    /// Begins work that a shutdown waits for; `None` once the tasks are asked to end.
    #[cfg(feature = "idempotency")]
    pub(crate) fn enter(&self) -> Option<InProgress> {
        // Counted before the look, so that a shutdown that is not seen here sees the count.
        let counted = InProgress([self.running.token(), self.of_store.token()]);
        (!self.is_closing()).then_some(counted)
    }

    /// Completes when the time of a shutdown is nearly over: what cannot end by itself at once is to be cancelled.
    #[cfg(any(feature = "idempotency", feature = "stream"))]
    pub(crate) async fn overdue(&self) {
        self.overdue.cancelled().await;
    }

    #[cfg(feature = "idempotency")]
    pub(crate) fn is_overdue(&self) -> bool {
        self.overdue.is_cancelled()
    }

    /// Asks the tasks to end, and waits for them, for at most `within`; see [`StoreHandle::shutdown`].
    pub(crate) async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.close();
        ended(&self.running, &self.overdue, within).await
    }
}

async fn ended(
    running: &TaskTracker,
    overdue: &CancellationToken,
    within: Duration,
) -> Result<(), StillRunning> {
    running.close();
    let last = within - (within / 10).min(LONGEST_END);
    let now = Instant::now();
    let [last, end] = [last, within].map(|time| now.checked_add(time).unwrap_or(now + FOREVER));
    if timeout_at(last, running.wait()).await.is_ok() {
        return Ok(());
    }
    overdue.cancel();
    let ended = timeout_at(end, running.wait()).await;
    ended.map_err(|_| StillRunning::new(running.len()))
}

/// Maximum part of a shutdown's time that is kept to give back what has not ended by itself.
const LONGEST_END: Duration = Duration::from_secs(2);
/// 30 years.
const FOREVER: Duration = Duration::from_secs(86_400 * 365 * 30);

/// A shutdown that did not end in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StillRunning {
    /// Number of tasks that still run.
    pub tasks: usize,
}

impl StillRunning {
    /// For a store that has tasks of its own.
    #[must_use]
    pub const fn new(tasks: usize) -> Self {
        Self { tasks }
    }
}

impl fmt::Display for StillRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} background tasks still run", self.tasks)
    }
}

impl std::error::Error for StillRunning {}
