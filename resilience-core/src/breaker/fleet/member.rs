//! This instance's side of the fleet, as the breaker's handles and calls see it.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::AcqRel},
    },
    time::Duration,
};

use tokio::{runtime::Handle, sync::mpsc, time::Instant};

use super::{
    batch::ReportBatcher,
    message::AgentMessage,
    policy::Policy,
    record::{BreakerView, Report},
    rules::{FleetConfig, FleetRules},
    store::BreakerStore,
};
use crate::{
    clock::{Clock, Moment},
    error::Pattern,
    fleet::{
        AgentHandle, StillRunning, StoreClient, StoreError, StoreHandle, Waker, instance_id,
        jittered, join,
    },
};

/// The part of a fleet breaker that calls touch: never on a call that a closed breaker lets through.
pub(in crate::breaker) struct FleetMember {
    pub(super) client: StoreClient<dyn BreakerStore>,
    pub(super) handle: StoreHandle,
    pub(super) policy: Policy,
    pub(super) rules: FleetRules,
    pub(super) heartbeat: Duration,
    /// The name of the record.
    pub(super) name: Arc<str>,
    pub(super) instance: Arc<str>,
    /// The name under which this instance votes: the configured one, if any.
    pub(super) voter: Arc<str>,
    pub(super) clock: Clock,
    pub(super) waker: Waker,
    /// A failure is to be reported soon.
    pub(super) woken: AtomicBool,
    sender: mpsc::UnboundedSender<AgentMessage>,
    agent: OnceLock<AgentHandle>,
    /// Joins the reports of all breakers on one store handle. `None`: the store has no handle.
    batcher: Option<Arc<ReportBatcher>>,
    /// When this instance may ask for a probe again.
    pub(super) ask_again: AtomicU64,
    /// Requests for a probe in progress, of this instance.
    pub(super) asking: AtomicU32,
    /// Calls may be made from outside of it.
    runtime: Handle,
}

impl FleetMember {
    pub(in crate::breaker) fn new(
        config: FleetConfig,
        policy: Policy,
        name: Arc<str>,
        clock: Clock,
    ) -> (Arc<Self>, AgentReceiver) {
        let FleetConfig {
            store,
            rules,
            settings,
            runtime,
        } = config;
        let of_store = store.handle().cloned();
        let batcher = of_store
            .as_ref()
            .filter(|_| settings.budget >= ReportBatcher::LEAST_BUDGET)
            .map(StoreHandle::shared::<ReportBatcher>);
        let handle = of_store.unwrap_or_default();
        if let Some(batcher) = &batcher {
            batcher.enter(&name);
        }
        join(&handle, &runtime, settings.budget, settings.heartbeat);
        // Of a keyed breaker, each key is an instance of its own record, and a key that is dropped comes back as
        // another one.
        let instance = instance_id(settings.name.as_deref());
        let (sender, receiver) = mpsc::unbounded_channel();
        let waker = Waker::new();
        let client = StoreClient::new(store, Pattern::CircuitBreaker, Arc::clone(&name), &settings);
        client.wake_on_return(waker.clone());
        let member = Self {
            client,
            handle,
            policy,
            rules,
            heartbeat: settings.heartbeat,
            name,
            voter: settings.name.unwrap_or_else(|| Arc::clone(&instance)),
            instance,
            clock,
            waker,
            woken: AtomicBool::new(false),
            sender,
            agent: OnceLock::new(),
            batcher,
            ask_again: AtomicU64::new(0),
            asking: AtomicU32::new(0),
            runtime,
        };
        (Arc::new(member), AgentReceiver(receiver))
    }

    pub(super) fn started(&self, agent: AgentHandle) {
        // The first wins, and there is one only.
        let _ = self.agent.set(agent);
    }

    /// A call failed: the fleet should know soon.
    #[cold]
    pub(in crate::breaker) fn wake(&self) {
        if !self.woken.swap(true, AcqRel) {
            self.waker.wake();
        }
    }

    /// Ends the agent: the breaker is gone.
    pub(in crate::breaker) fn close(&self) {
        if let Some(agent) = self.agent.get() {
            agent.tasks().close();
        }
    }

    /// Ends the agent, and waits until it has left the fleet.
    pub(in crate::breaker) async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        match self.agent.get() {
            Some(agent) => agent.shutdown(within).await,
            None => Ok(()),
        }
    }

    /// The dependency asked for a pause until then: the whole fleet should heed it.
    #[cold]
    pub(in crate::breaker) fn cool_down(&self, until: Moment) {
        self.send(AgentMessage::CoolDown(until));
    }

    /// Sends a report: with those of other breakers that are due at the same tick, or at once if it is urgent.
    pub(super) async fn report(
        &self,
        report: &Report,
        urgent: bool,
    ) -> Result<BreakerView, StoreError> {
        let client = &self.client;
        match self.batcher.as_ref().filter(|_| !urgent) {
            None => client.call(|store| store.report(&self.name, report)).await,
            Some(batcher) => client.call(|_| self.batched(batcher, report)).await,
        }
    }

    /// Sends the last report, whether or not the store is available.
    pub(super) async fn leave(&self, report: &Report) -> Result<BreakerView, StoreError> {
        let client = &self.client;
        match &self.batcher {
            None => {
                client
                    .attempt(|store| store.report(&self.name, report))
                    .await
            }
            Some(batcher) => client.attempt(|_| self.batched(batcher, report)).await,
        }
    }

    fn batched<'a>(
        &self,
        batcher: &Arc<ReportBatcher>,
        report: &Report,
    ) -> crate::fleet::StoreFuture<'a, BreakerView> {
        let (store, budget) = (self.client.store(), self.client.budget());
        batcher.report(store, budget, &self.runtime, &self.name, report)
    }

    /// When a report is due that follows the last one after about `interval`.
    pub(super) fn next_tick(&self, interval: Duration) -> Instant {
        match &self.batcher {
            Some(batcher) => batcher.next_tick(interval),
            // Instances that started together must not go on together.
            None => Instant::now() + jittered(interval),
        }
    }

    /// The view with no more live instances than the membership of the store allows: an instance that died may be in the
    /// record for longer.
    pub(super) fn counted(&self, mut view: BreakerView) -> BreakerView {
        if let Some(live) = self.handle.live_instances() {
            let each = self
                .batcher
                .as_ref()
                .map_or(1, |all| all.of_name(&self.name));
            view.live = view.live.min(live.saturating_mul(each));
        }
        view
    }

    /// Reads the state of the fleet.
    pub(in crate::breaker) async fn view(&self) -> Result<BreakerView, StoreError> {
        let answer = self.client.attempt(|store| store.view(&self.name));
        answer.await.map(|view| self.counted(view))
    }

    /// Runs `task`, which a shutdown waits for.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(agent) = self.agent.get() {
            agent.tasks().spawn(&self.runtime, task);
        }
    }

    pub(in crate::breaker) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(in crate::breaker) fn is_degraded(&self) -> bool {
        !self.client.is_available()
    }

    pub(super) fn is_closing(&self) -> bool {
        let agent = self.agent.get();
        agent.is_some_and(|agent| agent.tasks().is_closing())
    }

    pub(super) fn send(&self, message: AgentMessage) {
        // Fails only when the agent has ended.
        let _ = self.sender.send(message);
        self.waker.wake();
    }
}

impl Drop for FleetMember {
    fn drop(&mut self) {
        if let Some(batcher) = &self.batcher {
            batcher.leave(&self.name);
        }
    }
}

impl fmt::Debug for FleetMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetMember")
            .field("name", &self.name)
            .field("instance", &self.instance)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// The receiving end of the messages to the agent.
pub(in crate::breaker) struct AgentReceiver(pub(super) mpsc::UnboundedReceiver<AgentMessage>);
