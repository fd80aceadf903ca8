//! The steps of a decision: [`try_local`](Limiter::try_local), [`query_store`](Limiter::query_store),
//! [`fallback`](Limiter::fallback), [`finish`](Limiter::finish).

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    costs::{Costs, Prices},
    counts::Counts,
    decision::{Decided, DecidedBy, Decision, Standings},
    demands::{signed, standings},
    denial_cache::DenialCache,
    local_share::LocalShares,
    plan::Plan,
    queue::Queues,
    settings::{Mode, Settings},
    snapshot::FleetRateLimitSnapshot,
    token_pool::TokenPools,
};
use crate::{
    clock::Moment,
    error::Pattern,
    fleet::{HandleTasks, StoreClient, StoreHandle, join},
    keyed::map,
    limit::{
        store::{Demand, InProcessLimits, LimitStore, StoreDecision},
        token_bucket::LimitOutcome,
    },
    telemetry,
};

pub(super) struct Limiter {
    pub(super) settings: Settings,
    pub(super) client: StoreClient<dyn LimitStore>,
    /// Whether the store handle's own heartbeat says which instances are live.
    pub(super) is_member: bool,
    handle: StoreHandle,
    /// The background tasks of the handle; set when it starts.
    tasks: OnceLock<HandleTasks>,
    pub(super) denials: DenialCache,
    pub(super) counts: Counts,
    pub(super) shadow: AtomicBool,
    /// The leased tokens.
    pub(super) pools: TokenPools,
    /// Calls that wait for tokens.
    pub(super) queues: Queues,
    /// The buckets of this instance alone: of [`Mode::Local`].
    pub(super) alone: InProcessLimits,
    /// Those of its share while the store is unavailable.
    pub(super) shares: LocalShares,
}

/// The number of subjects that this instance keeps by itself.
const SUBJECTS_ALONE: usize = 1 << 16;

impl Limiter {
    pub(super) fn snapshot(&self) -> FleetRateLimitSnapshot {
        let mut snapshot = FleetRateLimitSnapshot {
            waiting: self.queues.waiting(),
            live_instances: self.live_instances(),
            local_parts: self.local_parts(),
            degraded: !self.client.is_available(),
            shadow: self.shadow.load(Relaxed),
            ..FleetRateLimitSnapshot::default()
        };
        self.counts.snapshot(&mut snapshot);
        snapshot
    }

    /// To be called within the runtime of the settings.
    pub(super) fn new(settings: Settings, store: Arc<dyn LimitStore>, handle: StoreHandle) -> Self {
        let (subjects, longest) = settings.denials;
        let fleet = &settings.fleet;
        Self {
            client: StoreClient::new(store, Pattern::RateLimit, Arc::clone(&settings.name), fleet),
            is_member: settings.mode != Mode::Local
                && join(&handle, &settings.runtime, fleet.budget, fleet.heartbeat),
            handle,
            tasks: OnceLock::new(),
            denials: DenialCache::new(subjects, longest),
            counts: Counts::new(&settings.plan),
            shadow: AtomicBool::new(settings.shadow),
            pools: map(),
            queues: Queues::default(),
            alone: InProcessLimits::with_max_subjects(SUBJECTS_ALONE),
            shares: LocalShares::new(),
            settings,
        }
    }

    /// Registers the tasks of the handle. The first call wins.
    pub(super) fn run_in(&self, tasks: &HandleTasks) {
        // Losing to an earlier call is what the first line says.
        let _ = self.tasks.set(tasks.clone());
    }

    /// Runs `task` in the background, so that a shutdown waits for it.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match self.tasks.get() {
            Some(tasks) => tasks.spawn(&self.settings.runtime, task),
            None => drop(self.settings.runtime.spawn(task)),
        }
    }

    /// Whether the handle was shut down or dropped: it leases no more tokens.
    pub(super) fn is_closing(&self) -> bool {
        self.tasks.get().is_some_and(HandleTasks::is_closing)
    }

    /// The live members of the store, if it has a membership.
    pub(super) fn members(&self) -> Option<u64> {
        self.handle.live_instances()
    }

    /// The number of instances that use the limit, this one included, as of the last answers of the store.
    pub(super) fn live_instances(&self) -> u64 {
        let enrolled = self.client.live_instances();
        match self.handle.live_instances() {
            // The enrolment of an instance that died lasts for long; its membership does not.
            Some(members) if self.is_member => enrolled.min(members),
            _ => enrolled,
        }
    }

    /// Whether the membership counts this instance, so that its number of live ones is not an old one.
    pub(super) fn is_counted(&self) -> bool {
        self.handle.is_member()
    }

    /// Counts the instances between which the limits would be divided.
    pub(super) fn count_live(&self) {
        let interval = self.settings.fleet.heartbeat;
        self.client.count_live(self.live_instances(), interval);
    }

    pub(super) fn plan_of(&self, subject: &str) -> Plan {
        let own = || self.settings.plan.clone();
        let plans = self.settings.plans.as_ref();
        plans
            .and_then(|plans| plans.of(subject))
            .unwrap_or_else(own)
    }

    pub(super) fn prices(&self, plan: &Plan, costs: &Costs<'_>) -> Prices {
        costs.by(plan, &self.settings.plan)
    }

    /// Makes a decision and counts it.
    pub(super) async fn ask(self: &Arc<Self>, subject: &str, costs: Costs<'_>) -> Decision {
        let plan = self.plan_of(subject);
        let prices = self.prices(&plan, &costs);
        // Not by `decide`: its future would be made and polled on every call that passes, 4 % of the
        // instructions of a leased one.
        let decision = match self.try_local(subject, &plan, &prices) {
            Some(decision) => decision,
            None => self.query_store(subject, plan, &prices).await,
        };
        self.finish(decision)
    }

    /// Makes a decision. It is not counted: see [`finish`](Self::finish).
    pub(super) async fn decide(
        self: &Arc<Self>,
        subject: &str,
        plan: Plan,
        prices: &Prices,
    ) -> Decision {
        match self.try_local(subject, &plan, prices) {
            Some(decision) => decision,
            None => self.query_store(subject, plan, prices).await,
        }
    }

    /// Step 1: decides without waiting, if that is possible.
    #[inline]
    pub(super) fn try_local(
        self: &Arc<Self>,
        subject: &str,
        plan: &Plan,
        prices: &Prices,
    ) -> Option<Decision> {
        if plan.is_unlimited() {
            let by = DecidedBy::Unlimited;
            return Some(self.decision(plan.clone(), Decided::Open, by, None));
        }
        if let Mode::Leased(rules) = &self.settings.mode
            && let Some(paid) = self.spend(rules, subject, plan, prices)
        {
            return Some(paid);
        }
        let now = self.settings.clock.now();
        self.denied_locally(subject, plan, prices, now)
    }

    /// Step 2: decides by the store, out of a new lease or in a round trip of its own.
    async fn query_store(self: &Arc<Self>, subject: &str, plan: Plan, prices: &Prices) -> Decision {
        if let Mode::Local = self.settings.mode {
            return self.alone(subject, plan, prices).await;
        }
        if !self.client.accepts_calls() {
            return self.fallback(subject, plan, prices);
        }
        if self.is_settling() {
            return self.decide_settling(subject, plan, prices).await;
        }
        if self.settle_share(subject, false).await.is_err() {
            return self.fallback(subject, plan, prices);
        }
        match &self.settings.mode {
            Mode::Leased(rules) if can_be_leased(&plan, prices) && !self.is_closing() => {
                self.lease(rules, subject, plan, prices).await
            }
            _ => self.decide_exact(subject, plan, prices).await,
        }
    }

    /// Decides in a round trip for this call alone.
    pub(super) async fn decide_exact(
        &self,
        subject: &str,
        plan: Plan,
        prices: &Prices,
    ) -> Decision {
        let answer = self.call_store(subject, &plan, |index| signed(prices[index]));
        match answer.await {
            Ok(stored) => self.of_store(subject, plan, &stored),
            Err(_) => self.fallback(subject, plan, prices),
        }
    }

    /// The denial in the cache, if there is one.
    pub(super) fn denied_locally(
        &self,
        subject: &str,
        plan: &Plan,
        prices: &Prices,
        now: Moment,
    ) -> Option<Decision> {
        let refusal = self.denials.look(subject, plan, prices, now)?;
        let limit = &plan.as_slice()[refusal.binding];
        let demand = Demand {
            limit: &limit.name,
            quota: limit.quota,
            cost: signed(prices[refusal.binding]),
        };
        let name = &self.settings.name;
        self.client.store().note_denied(name, subject, &demand);
        let outcome = Decided::By(LimitOutcome::Wait {
            binding: refusal.binding,
            micros: refusal.micros,
        });
        let standings = Some(refusal.standings);
        Some(self.decision(plan.clone(), outcome, DecidedBy::Memory, standings))
    }

    pub(super) fn of_store(&self, subject: &str, plan: Plan, stored: &StoreDecision) -> Decision {
        if let LimitOutcome::Wait { micros, .. } = stored.outcome {
            let standings = standings(&stored.limits);
            let wait = Duration::from_micros(micros);
            let now = self.settings.clock.now();
            self.denials
                .note(subject, &plan, &standings, wait, Duration::ZERO, now);
        }
        self.stored(plan, stored)
    }

    /// Decides in this instance, by the whole limit.
    async fn alone(&self, subject: &str, plan: Plan, prices: &Prices) -> Decision {
        let (cost, by) = (|index: usize| signed(prices[index]), DecidedBy::Local);
        // It fails only for demands that no plan can make.
        match self.call_local(subject, &plan, cost).await {
            Ok(stored) => {
                let standings = standings(&stored.limits);
                self.decision(plan, Decided::By(stored.outcome), by, Some(standings))
            }
            Err(_) => self.decision(plan, Decided::Closed, by, None),
        }
    }

    pub(super) fn decision(
        &self,
        plan: Plan,
        outcome: Decided,
        by: DecidedBy,
        standings: Option<Standings>,
    ) -> Decision {
        Decision {
            name: Arc::clone(&self.settings.name),
            plan,
            outcome,
            by,
            shadowed: false,
            standings,
        }
    }

    /// Step 4: counts the decision, and admits the call in shadow mode.
    pub(super) fn finish(&self, mut decision: Decision) -> Decision {
        if decision.would_admit() {
            self.counts.admitted(decision.by);
            self.count_near(&decision);
            return decision;
        }
        decision.shadowed = self.shadow.load(Relaxed);
        self.counts.refused(&decision);
        tracing::debug!(
            target: "resilience",
            pattern = Pattern::RateLimit.as_str(),
            name = &*self.settings.name,
            reason = decision.reason().map(|reason| reason.as_str()),
            limit = decision.binding().map(|limit| limit.name),
            by = decision.by.as_str(),
            retry_after = ?decision.retry_after(),
            message = if decision.shadowed { "would be rejected" } else { "rejected" }
        );
        decision
    }

    fn count_near(&self, decision: &Decision) {
        for limit in decision.limits() {
            let left = u128::from(limit.remaining) * 1_000_000;
            let near =
                u128::from(limit.quota.capacity()) * u128::from(self.settings.left_when_near);
            if left < near {
                self.counts.near(limit.name);
            }
        }
    }
}

/// The store decides about calls that cost nothing and about those that cost more than a bucket holds.
fn can_be_leased(plan: &Plan, prices: &Prices) -> bool {
    let mut limits = plan.as_slice().iter().zip(prices);
    prices[..plan.as_slice().len()]
        .iter()
        .any(|price| *price > 0)
        && limits.all(|(limit, price)| *price <= limit.quota.capacity())
}

impl Drop for Limiter {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}
