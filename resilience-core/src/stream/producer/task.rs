//! What a producer does in the background: trims its stream, and looks how far the consumers are.

use std::{
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use super::Shared;
use crate::{
    error::Pattern,
    fleet::{self, Agent, StoreHandle, Waker, jittered},
    stream::{announce, broker::StreamBroker, steps::GroupState},
};

pub(super) const BACKLOG_INTERVAL: Duration = Duration::from_secs(1);
const TRIM_INTERVAL: Duration = Duration::from_secs(5);

pub(super) fn start(shared: &Arc<Shared>, runtime: &Handle) {
    let store = shared.client.store().handle();
    let store = store.cloned().unwrap_or_else(StoreHandle::new);
    let now = Instant::now();
    let task = Task {
        shared: Arc::downgrade(shared),
        trim: now,
        backlog: shared.settings.max_backlog.is_some().then_some(now),
        announce: now,
    };
    let agent = fleet::spawn(task, None, Waker::new(), &store, runtime);
    // The handle is new: there is no other.
    let _ = shared.agent.set(agent);
}

struct Task {
    shared: Weak<Shared>,
    trim: Instant,
    backlog: Option<Instant>,
    announce: Instant,
}

impl Agent for Task {
    type Push = ();

    fn next_due(&self) -> Instant {
        let next = self.trim.min(self.announce);
        self.backlog.map_or(next, |it| it.min(next))
    }

    async fn on_due(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let now = Instant::now();
        if now >= self.trim {
            self.trim = now + jittered(TRIM_INTERVAL);
            trim(&shared).await;
        }
        if self.backlog.is_some_and(|at| now >= at) {
            self.backlog = Some(now + jittered(BACKLOG_INTERVAL));
            look(&shared).await;
        }
        if now >= self.announce {
            self.announce = now + jittered(announce::INTERVAL);
            announce::announce(&shared.client, &shared.stream).await;
        }
    }
}

/// What fails is done at the next turn.
async fn trim(shared: &Shared) {
    let retention = &shared.settings.retention;
    let step = |broker| StreamBroker::trim(broker, &shared.stream, retention);
    let Ok(trimmed) = shared.client.call(step).await else {
        return;
    };
    shared.totals.trimmed.fetch_add(trimmed.removed, Relaxed);
    if trimmed.undelivered > 0 {
        tracing::warn!(
            target: "resilience",
            pattern = Pattern::Stream.as_str(),
            name = &*shared.stream,
            messages = trimmed.undelivered,
            "messages trimmed before they were delivered"
        );
    }
}

async fn look(shared: &Shared) {
    let step = |broker| StreamBroker::state(broker, &shared.stream);
    // Without an answer the last one stands.
    if let Ok(state) = shared.client.call(step).await {
        let groups = state.map(|it| it.groups).unwrap_or_default();
        let backlog = |it: &GroupState| it.lag + it.held + it.waiting;
        let most = groups.iter().map(backlog).max().unwrap_or(0);
        shared.backlog.store(most, Relaxed);
    }
}
