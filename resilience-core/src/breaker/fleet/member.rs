//! This instance's side of the fleet, as the breaker's handles and calls see it.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use tokio::{runtime::Handle, sync::mpsc, time::Instant};

use super::{
    batch::ReportBatcher,
    policy::Policy,
    record::{BreakerView, LeaseAnswer, Report},
    rules::{FleetConfig, FleetRules},
    store::BreakerStore,
};
use crate::{
    clock::{Clock, Moment},
    error::Pattern,
    fleet::{
        AgentHandle, StillRunning, StoreClient, StoreError, StoreHandle, Waker, instance_id,
        jittered, join, millis,
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
    ask_again: AtomicU64,
    /// Requests for a probe in progress, of this instance.
    asking: AtomicU32,
    /// Calls may be made from outside of it.
    runtime: Handle,
}

/// What calls tell the agent. Bounded by the number of probes.
pub(super) enum AgentMessage {
    /// A probe was granted.
    Granted(ProbeLease),
    /// The call of a probe ended; `None`: it says nothing about the dependency.
    Settled {
        lease: Arc<str>,
        success: Option<bool>,
    },
    /// The answer to a request for a probe.
    Seen(Box<BreakerView>),
    /// The dependency asked for a pause until then.
    CoolDown(Moment),
}

/// A probe of the fleet that this instance was granted.
pub(super) struct ProbeLease {
    pub(super) id: Arc<str>,
    pub(super) epoch: u64,
    /// When the holder counts it as failed.
    pub(super) by: Moment,
    /// When the fleet forgets it.
    pub(super) ends: Moment,
}

/// Pause of this instance after a request for a probe that was denied or failed.
const ASK_AGAIN: Duration = Duration::from_millis(50);

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
        } = config;
        let runtime = Handle::current();
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

    /// Whether this instance may ask the fleet for a probe now; if not, when it may.
    pub(in crate::breaker) fn may_ask(&self, now: Moment) -> Result<(), Moment> {
        let again = Moment::from_nanos(self.ask_again.load(Acquire));
        if now < again {
            return Err(again);
        }
        if self.asking.load(Relaxed) >= self.policy.probes {
            return Err(now + ASK_AGAIN);
        }
        Ok(())
    }

    /// Asks the fleet for a probe. `None`: there is none for this call.
    pub(in crate::breaker) async fn ask(
        self: Arc<Self>,
    ) -> Result<Option<Lease>, StoreUnavailable> {
        if self.is_closing() {
            // Without its agent, a probe could not be settled.
            return Err(StoreUnavailable);
        }
        let _asking = OpenRequest::start(&self);
        let id: Arc<str> = format!("{}-{:016x}", self.instance, fastrand::u64(..)).into();
        let time = self.rules.probe_lease;
        let (probes, lease_ms) = (self.policy.probes, millis(time));
        let started = self.clock.now();
        let question = self
            .client
            .call(|store| store.lease(&self.name, &id, probes, lease_ms));
        let Ok((answer, view)) = question.await else {
            self.pause();
            return Err(StoreUnavailable);
        };
        self.send(AgentMessage::Seen(Box::new(view)));
        let LeaseAnswer::Granted { epoch } = answer else {
            self.pause();
            return Ok(None);
        };
        self.send(AgentMessage::Granted(ProbeLease {
            id: Arc::clone(&id),
            epoch,
            // Before the fleet forgets the probe, its holder reports that it failed.
            by: started + time.mul_f64(0.8),
            ends: started + time,
        }));
        Ok(Some(Lease {
            member: Arc::clone(&self),
            lease: id,
            settled: false,
        }))
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

    fn is_closing(&self) -> bool {
        let agent = self.agent.get();
        agent.is_some_and(|agent| agent.tasks().is_closing())
    }

    fn pause(&self) {
        let again = self.clock.now() + ASK_AGAIN.mul_f64(0.5 + fastrand::f64());
        self.ask_again.store(again.as_nanos(), Release);
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

/// The store gave no answer.
pub(in crate::breaker) struct StoreUnavailable;

/// The receiving end of the messages to the agent.
pub(in crate::breaker) struct AgentReceiver(pub(super) mpsc::UnboundedReceiver<AgentMessage>);

/// Counts a request while it is in progress, however it ends.
struct OpenRequest<'a>(&'a FleetMember);

impl<'a> OpenRequest<'a> {
    fn start(member: &'a FleetMember) -> Self {
        member.asking.fetch_add(1, Relaxed);
        Self(member)
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Relaxed);
    }
}

/// One of the fleet's probes. Given back when it is dropped unsettled.
pub(in crate::breaker) struct Lease {
    member: Arc<FleetMember>,
    lease: Arc<str>,
    settled: bool,
}

impl Lease {
    pub(in crate::breaker) fn time(&self) -> Duration {
        self.member.rules.probe_lease
    }

    pub(in crate::breaker) fn settle(&mut self, success: Option<bool>) {
        if !self.settled {
            self.settled = true;
            let lease = Arc::clone(&self.lease);
            self.member.send(AgentMessage::Settled { lease, success });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.settle(None);
    }
}
