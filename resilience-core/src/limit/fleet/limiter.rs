//! How a call is decided: what is known here first, the store then, the policy last.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    builder::{Mode, Settings, Unreachable},
    costs::{Costs, Prices},
    counts::Counts,
    decision::{Decided, DecidedBy, Decision, NOTHING, Standings},
    denial_cache::DenialCache,
    health::Health,
    plan::Plan,
    queue::Queues,
    token_pool::TokenPools,
};
use crate::{
    clock::Moment,
    error::Pattern,
    limit::{
        Quota,
        store::{Demand, InProcessLimits, LimitStore, Standing, StoreDecision, StoreError},
        token_bucket::LimitOutcome,
    },
    telemetry::{self, Metric, Reading, Source},
};

pub(super) struct Limiter {
    pub(super) settings: Settings,
    pub(super) store: Arc<dyn LimitStore>,
    pub(super) health: Health,
    pub(super) denials: DenialCache,
    pub(super) counts: Counts,
    pub(super) shadow: AtomicBool,
    /// What is leased.
    pub(super) pools: TokenPools,
    /// Calls that wait for tokens.
    pub(super) queues: Queues,
    /// The buckets of this instance alone.
    alone: InProcessLimits,
}

/// Subjects that this instance keeps a share for, while the store cannot be reached.
const SUBJECTS_ALONE: usize = 1 << 16;

/// The largest cost that a store is asked for: more than any bucket holds.
const MOST: u64 = 1 << 53;

impl Limiter {
    pub(super) fn new(settings: Settings, store: Arc<dyn LimitStore>) -> Self {
        let (subjects, longest) = settings.memory;
        Self {
            store,
            health: Health::new(),
            denials: DenialCache::new(subjects, longest),
            counts: Counts::new(&settings.plan),
            shadow: AtomicBool::new(settings.shadow),
            pools: TokenPools::new(),
            queues: Queues::default(),
            alone: InProcessLimits::with_max_subjects(SUBJECTS_ALONE),
            settings,
        }
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

    /// The whole of a decision, counted.
    pub(super) async fn ask(self: &Arc<Self>, subject: &str, costs: Costs<'_>) -> Decision {
        let plan = self.plan_of(subject);
        let prices = self.prices(&plan, &costs);
        let decision = self.decide(subject, plan, &prices).await;
        self.finish(decision)
    }

    /// The same, not counted yet.
    pub(super) async fn decide(
        self: &Arc<Self>,
        subject: &str,
        plan: Plan,
        prices: &Prices,
    ) -> Decision {
        match self.try_local(subject, &plan, prices) {
            Some(decision) => decision,
            None => self.query(subject, plan, prices).await,
        }
    }

    /// What can be said without waiting for anybody.
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

    async fn query(self: &Arc<Self>, subject: &str, plan: Plan, prices: &Prices) -> Decision {
        if let Mode::Local = self.settings.mode {
            return self.alone(subject, plan, prices, 1, DecidedBy::Local).await;
        }
        if self.health.is_degraded() {
            return self.fallback(subject, plan, prices).await;
        }
        match &self.settings.mode {
            Mode::Leased(rules) if can_be_leased(&plan, prices) => {
                self.lease(rules, subject, plan, prices).await
            }
            _ => self.query_store(subject, plan, prices).await,
        }
    }

    /// A round trip for this call.
    pub(super) async fn query_store(&self, subject: &str, plan: Plan, prices: &Prices) -> Decision {
        match self.take_from_store(subject, &plan, prices).await {
            Ok(stored) => self.of_store(subject, plan, &stored),
            Err(_) => self.fallback(subject, plan, prices).await,
        }
    }

    /// The refusal that is known already.
    pub(super) fn denied_locally(
        &self,
        subject: &str,
        plan: &Plan,
        prices: &Prices,
        now: Moment,
    ) -> Option<Decision> {
        let refusal = self.denials.look(subject, plan, prices, now)?;
        let outcome = Decided::By(LimitOutcome::Wait {
            binding: refusal.binding,
            micros: refusal.micros,
        });
        let standings = Some(refusal.standings);
        Some(self.decision(plan.clone(), outcome, DecidedBy::Memory, standings))
    }

    /// A question to the store: within the budget, and heard by the one who keeps an eye on it.
    pub(super) async fn take_from_store(
        &self,
        subject: &str,
        plan: &Plan,
        prices: &Prices,
    ) -> Result<StoreDecision, StoreError> {
        self.call_store(subject, plan, |index| signed(prices[index]))
            .await
    }

    /// The same with whatever costs, negative ones too.
    pub(super) async fn call_store(
        &self,
        subject: &str,
        plan: &Plan,
        cost: impl Fn(usize) -> i64,
    ) -> Result<StoreDecision, StoreError> {
        let demands: Vec<Demand<'_>> = plan
            .as_slice()
            .iter()
            .enumerate()
            .map(|(index, limit)| Demand {
                limit: &limit.name,
                quota: limit.quota,
                cost: cost(index),
            })
            .collect();
        let answer = self.store.decide(&self.settings.name, subject, &demands);
        let answer = within(self.settings.budget, answer).await;
        self.heard(answer.as_ref().err());
        answer
    }

    /// Asks for the costs with another sign: a look at the limits, or tokens put back. Not counted.
    pub(super) async fn put_back(
        &self,
        subject: &str,
        costs: Costs<'_>,
    ) -> Result<Decision, StoreError> {
        let plan = self.plan_of(subject);
        if plan.is_unlimited() {
            return Ok(self.decision(plan, Decided::Open, DecidedBy::Unlimited, None));
        }
        let prices = self.prices(&plan, &costs);
        let stored = self
            .call_store(subject, &plan, |index| -signed(prices[index]))
            .await?;
        if prices.iter().any(|price| *price > 0) {
            self.denials.forget(subject);
        }
        let standings = standings(&stored.limits);
        Ok(self.decision(
            plan,
            Decided::By(stored.outcome),
            DecidedBy::Store,
            Some(standings),
        ))
    }

    /// What the store said, or did not say.
    pub(super) fn heard(&self, failure: Option<&StoreError>) {
        match failure {
            None => {
                self.counts.answered.fetch_add(1, Relaxed);
                self.health.answered(&self.settings.name);
            }
            Some(failure) => {
                self.counts.unanswered.fetch_add(1, Relaxed);
                let policy = self.settings.unreachable.as_str();
                self.health.failed(&self.settings.name, failure, policy);
            }
        }
    }

    fn of_store(&self, subject: &str, plan: Plan, stored: &StoreDecision) -> Decision {
        let standings = standings(&stored.limits);
        if let LimitOutcome::Wait { micros, .. } = stored.outcome {
            let wait = Duration::from_micros(micros);
            let now = self.settings.clock.now();
            self.denials
                .note(subject, &plan, &standings, wait, Duration::ZERO, now);
        }
        self.decision(
            plan,
            Decided::By(stored.outcome),
            DecidedBy::Store,
            Some(standings),
        )
    }

    #[cold]
    pub(super) async fn fallback(&self, subject: &str, plan: Plan, prices: &Prices) -> Decision {
        match self.settings.unreachable {
            Unreachable::Open => self.decision(plan, Decided::Open, DecidedBy::Policy, None),
            Unreachable::Closed => self.decision(plan, Decided::Closed, DecidedBy::Policy, None),
            Unreachable::LocalShare => {
                let by = DecidedBy::LocalShare;
                self.alone(subject, plan, prices, self.health.live(), by)
                    .await
            }
        }
    }

    /// This instance alone, on one of so many parts of every limit.
    async fn alone(
        &self,
        subject: &str,
        plan: Plan,
        prices: &Prices,
        parts: u64,
        by: DecidedBy,
    ) -> Decision {
        let cost = |index: usize| signed(prices[index]);
        // It fails over demands that no plan can make, and is never away.
        match self.call_local(subject, &plan, parts, cost).await {
            Ok(stored) => {
                let standings = standings(&stored.limits);
                self.decision(plan, Decided::By(stored.outcome), by, Some(standings))
            }
            Err(_) => self.decision(plan, Decided::Closed, by, None),
        }
    }

    pub(super) async fn call_local(
        &self,
        subject: &str,
        plan: &Plan,
        parts: u64,
        cost: impl Fn(usize) -> i64,
    ) -> Result<StoreDecision, StoreError> {
        let demands: Vec<Demand<'_>> = plan
            .as_slice()
            .iter()
            .enumerate()
            .map(|(index, limit)| Demand {
                limit: &limit.name,
                quota: share(&limit.quota, parts),
                cost: cost(index),
            })
            .collect();
        self.alone
            .decide(&self.settings.name, subject, &demands)
            .await
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

    /// Counts a ruling, and lets it pass in shadow mode.
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

/// Neither what costs nothing nor what can never be had: that is for the store to say.
fn can_be_leased(plan: &Plan, prices: &Prices) -> bool {
    let mut limits = plan.as_slice().iter().zip(prices);
    prices[..plan.as_slice().len()]
        .iter()
        .any(|price| *price > 0)
        && limits.all(|(limit, price)| *price <= limit.quota.capacity())
}

/// No longer than that.
pub(super) async fn within<T>(
    budget: Duration,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = |_| Err(StoreError::new("no answer within the budget", true));
    tokio::time::timeout(budget, answer)
        .await
        .unwrap_or_else(late)
}

pub(super) fn signed(cost: u64) -> i64 {
    i64::try_from(cost.min(MOST)).unwrap_or(i64::MAX)
}

pub(super) fn standings(limits: &[Standing]) -> Standings {
    let mut all = [NOTHING; super::plan::MAX_LIMITS];
    all.iter_mut()
        .zip(limits)
        .for_each(|(to, from)| *to = *from);
    all
}

/// The smallest of so many parts of a limit, but one token at least.
fn share(quota: &Quota, parts: u64) -> Quota {
    let parts = parts.max(1);
    let share = quota.share(parts - 1, parts);
    let share = share.and_then(|share| share.burst(share.capacity().max(1)));
    // Beyond what can be exact, whole tokens have to do.
    let fewer = || {
        let burst = (quota.capacity() / parts).max(1);
        Quota::per((quota.permits() / parts).max(1), quota.period())?.burst(burst)
    };
    share.or_else(|_| fewer()).unwrap_or(*quota)
}

impl Source for Limiter {
    fn pattern(&self) -> Pattern {
        Pattern::RateLimit
    }

    fn name(&self) -> &str {
        &self.settings.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.counts.read(out);
        out(Reading {
            metric: &telemetry::LIMIT_WAITING,
            attribute: "",
            value: self.queues.waiting() as u64,
        });
        out(Reading {
            metric: &telemetry::FLEET_DEGRADED,
            attribute: Pattern::RateLimit.as_str(),
            value: self.health.is_degraded().into(),
        });
    }

    fn read_named(&self, out: &mut dyn FnMut(&'static Metric, &str, u64)) {
        self.counts.read_named(out);
        let mut leased = vec![0; self.counts.lines()];
        for pool in self.pools.pin().values() {
            for (index, limit) in pool.plan.as_slice().iter().enumerate() {
                leased[self.counts.line(&limit.name)] += pool.level(index);
            }
        }
        for (line, tokens) in leased.into_iter().enumerate() {
            out(&telemetry::LIMIT_LEASED, self.counts.name_of(line), tokens);
        }
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}
