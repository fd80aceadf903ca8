//! The background loop of a handle.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    handle::{HandleTasks, StillRunning, StoreHandle},
    subscription::{Pushed, Subscription},
};

/// What a handle does in the background. The methods run one at a time; each should be bounded by time budgets, since the
/// others wait meanwhile.
pub(crate) trait Agent: Send + 'static {
    /// What the store pushes; `()` where it pushes nothing.
    type Push: Clone + Send + Sync + 'static;

    /// When [`on_due`](Self::on_due) is to run next.
    fn next_due(&self) -> Instant;

    fn on_due(&mut self) -> impl Future<Output = ()> + Send;

    /// Something changed in this process: see [`Waker::wake`].
    fn on_wake(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }

    fn on_push(&mut self, push: Pushed<Self::Push>) -> impl Future<Output = ()> + Send {
        let _ = push;
        async {}
    }

    /// The last call: the handle is gone, or a shutdown was asked for. Writes what must be written.
    fn on_close(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Wakes an agent; held by whatever has work for it. Clones wake the same agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waker(Arc<Notify>);

impl Waker {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Makes the agent run [`Agent::on_wake`] soon. Several wakes before it runs count as one.
    pub(crate) fn wake(&self) {
        self.0.notify_one();
    }

    /// Waits for a wake. Cancel safe.
    pub(crate) async fn woken(&self) {
        self.0.notified().await;
    }
}

/// Ends the agent when it is dropped.
pub(crate) struct AgentHandle {
    tasks: HandleTasks,
    /// The last clone of a store's handle ends all agents of the store.
    _store: StoreHandle,
}

impl AgentHandle {
    /// The tasks of the handle: for further ones that a shutdown is to wait for.
    pub(crate) fn tasks(&self) -> &HandleTasks {
        &self.tasks
    }

    /// Ends the agent, and waits until it has written what must be written.
    pub(crate) async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.tasks.shutdown(within).await
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.tasks.close();
    }
}

impl fmt::Debug for AgentHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentHandle").finish_non_exhaustive()
    }
}

/// Starts the loop of `agent` on `runtime`. `waker` may have been given out before.
pub(crate) fn spawn<A: Agent>(
    agent: A,
    pushes: Option<Subscription<A::Push>>,
    waker: Waker,
    store: &StoreHandle,
    runtime: &Handle,
) -> AgentHandle {
    let tasks = store.of_handle();
    tasks.spawn(runtime, run(agent, pushes, waker, tasks.clone()));
    AgentHandle {
        tasks,
        _store: store.clone(),
    }
}

pub(super) async fn run<A: Agent>(
    mut agent: A,
    mut pushes: Option<Subscription<A::Push>>,
    waker: Waker,
    tasks: HandleTasks,
) {
    while !tasks.is_closing() {
        // In random order: no source of work can keep another waiting forever.
        tokio::select! {
            () = tasks.closing() => {}
            () = waker.woken() => agent.on_wake().await,
            push = next(&mut pushes) => agent.on_push(push).await,
            () = sleep_until(agent.next_due()) => agent.on_due().await,
        }
    }
    // Pushes have no more effect; the subscription ends before the last writes.
    drop(pushes);
    agent.on_close().await;
}

async fn next<T: Clone>(pushes: &mut Option<Subscription<T>>) -> Pushed<T> {
    match pushes {
        Some(pushes) => pushes.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
