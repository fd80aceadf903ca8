//! How a call is decided: what is known here first, the store then, the policy last.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    config::{Mode, Settings, Unreachable},
    costs::{Costs, Prices},
    counts::Counts,
    health::Health,
    line::Lines,
    memory::Memory,
    plan::Plan,
    pool::Pools,
    ruling::{Decided, DecidedBy, NOTHING, Ruling, Standings},
};
use crate::{
    clock::Moment,
    error::Pattern,
    limit::{
        Quota,
        machine::Outcome,
        store::{Decision, Demand, InProcessLimits, LimitStore, Standing, StoreFailure},
    },
    telemetry::{self, Metric, Reading, Source},
};

pub(super) struct Core {
    pub(super) settings: Settings,
    pub(super) store: Arc<dyn LimitStore>,
    pub(super) health: Health,
    pub(super) memory: Memory,
    pub(super) counts: Counts,
    pub(super) shadow: AtomicBool,
    /// What is leased.
    pub(super) pools: Pools,
    /// Calls that wait for tokens.
    pub(super) lines: Lines,
    /// The buckets of this instance alone.
    alone: InProcessLimits,
}

/// Subjects that this instance keeps a share for, while the store cannot be reached.
const SUBJECTS_ALONE: usize = 1 << 16;

/// The largest cost that a store is asked for: more than any bucket holds.
const MOST: u64 = 1 << 53;

impl Core {
    pub(super) fn new(settings: Settings, store: Arc<dyn LimitStore>) -> Self {
        let (subjects, longest) = settings.memory;
        Self {
            store,
            health: Health::new(),
            memory: Memory::new(subjects, longest),
            counts: Counts::new(&settings.plan),
            shadow: AtomicBool::new(settings.shadow),
            pools: Pools::new(),
            lines: Lines::default(),
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
    pub(super) async fn ask(self: &Arc<Self>, subject: &str, costs: Costs<'_>) -> Ruling {
        let plan = self.plan_of(subject);
        let prices = self.prices(&plan, &costs);
        let ruling = self.decision(subject, plan, &prices).await;
        self.conclude(ruling)
    }

    /// The same, not counted yet.
    pub(super) async fn decision(
        self: &Arc<Self>,
        subject: &str,
        plan: Plan,
        prices: &Prices,
    ) -> Ruling {
        match self.at_once(subject, &plan, prices) {
            Some(ruling) => ruling,
            None => self.judge(subject, plan, prices).await,
        }
    }

    /// What can be said without waiting for anybody.
    #[inline]
    pub(super) fn at_once(
        self: &Arc<Self>,
        subject: &str,
        plan: &Plan,
        prices: &Prices,
    ) -> Option<Ruling> {
        if plan.is_unlimited() {
            let by = DecidedBy::Unlimited;
            return Some(self.ruling(plan.clone(), Decided::Open, by, None));
        }
        if let Mode::Leased(rules) = &self.settings.mode
            && let Some(paid) = self.spend(rules, subject, plan, prices)
        {
            return Some(paid);
        }
        let now = self.settings.clock.now();
        self.remembered(subject, plan, prices, now)
    }

    async fn judge(self: &Arc<Self>, subject: &str, plan: Plan, prices: &Prices) -> Ruling {
        if let Mode::Local = self.settings.mode {
            return self.alone(subject, plan, prices, 1, DecidedBy::Local).await;
        }
        if self.health.is_degraded() {
            return self.without_store(subject, plan, prices).await;
        }
        match &self.settings.mode {
            Mode::Leased(rules) if can_be_leased(&plan, prices) => {
                self.lease(rules, subject, plan, prices).await
            }
            _ => self.exact(subject, plan, prices).await,
        }
    }

    /// A round trip for this call.
    pub(super) async fn exact(&self, subject: &str, plan: Plan, prices: &Prices) -> Ruling {
        match self.decide(subject, &plan, prices).await {
            Ok(decision) => self.of_store(subject, plan, &decision),
            Err(_) => self.without_store(subject, plan, prices).await,
        }
    }

    /// The refusal that is known already.
    pub(super) fn remembered(
        &self,
        subject: &str,
        plan: &Plan,
        prices: &Prices,
        now: Moment,
    ) -> Option<Ruling> {
        let refusal = self.memory.look(subject, plan, prices, now)?;
        let outcome = Decided::By(Outcome::Wait {
            binding: refusal.binding,
            micros: refusal.micros,
        });
        let standings = Some(refusal.standings);
        Some(self.ruling(plan.clone(), outcome, DecidedBy::Memory, standings))
    }

    /// A question to the store: within the budget, and heard by the one who keeps an eye on it.
    pub(super) async fn decide(
        &self,
        subject: &str,
        plan: &Plan,
        prices: &Prices,
    ) -> Result<Decision, StoreFailure> {
        self.exchange(subject, plan, |index| signed(prices[index]))
            .await
    }

    /// The same with whatever costs, negative ones too.
    pub(super) async fn exchange(
        &self,
        subject: &str,
        plan: &Plan,
        cost: impl Fn(usize) -> i64,
    ) -> Result<Decision, StoreFailure> {
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
    ) -> Result<Ruling, StoreFailure> {
        let plan = self.plan_of(subject);
        if plan.is_unlimited() {
            return Ok(self.ruling(plan, Decided::Open, DecidedBy::Unlimited, None));
        }
        let prices = self.prices(&plan, &costs);
        let decision = self
            .exchange(subject, &plan, |index| -signed(prices[index]))
            .await?;
        if prices.iter().any(|price| *price > 0) {
            self.memory.forget(subject);
        }
        let standings = standings(&decision.limits);
        Ok(self.ruling(
            plan,
            Decided::By(decision.outcome),
            DecidedBy::Store,
            Some(standings),
        ))
    }

    /// What the store said, or did not say.
    pub(super) fn heard(&self, failure: Option<&StoreFailure>) {
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

    fn of_store(&self, subject: &str, plan: Plan, decision: &Decision) -> Ruling {
        let standings = standings(&decision.limits);
        if let Outcome::Wait { micros, .. } = decision.outcome {
            let wait = Duration::from_micros(micros);
            let now = self.settings.clock.now();
            self.memory
                .note(subject, &plan, &standings, wait, Duration::ZERO, now);
        }
        self.ruling(
            plan,
            Decided::By(decision.outcome),
            DecidedBy::Store,
            Some(standings),
        )
    }

    #[cold]
    pub(super) async fn without_store(&self, subject: &str, plan: Plan, prices: &Prices) -> Ruling {
        match self.settings.unreachable {
            Unreachable::Open => self.ruling(plan, Decided::Open, DecidedBy::Policy, None),
            Unreachable::Closed => self.ruling(plan, Decided::Closed, DecidedBy::Policy, None),
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
    ) -> Ruling {
        let cost = |index: usize| signed(prices[index]);
        // It fails over demands that no plan can make, and is never away.
        match self.exchange_alone(subject, &plan, parts, cost).await {
            Ok(decision) => {
                let standings = standings(&decision.limits);
                self.ruling(plan, Decided::By(decision.outcome), by, Some(standings))
            }
            Err(_) => self.ruling(plan, Decided::Closed, by, None),
        }
    }

    pub(super) async fn exchange_alone(
        &self,
        subject: &str,
        plan: &Plan,
        parts: u64,
        cost: impl Fn(usize) -> i64,
    ) -> Result<Decision, StoreFailure> {
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

    pub(super) fn ruling(
        &self,
        plan: Plan,
        outcome: Decided,
        by: DecidedBy,
        standings: Option<Standings>,
    ) -> Ruling {
        Ruling {
            name: Arc::clone(&self.settings.name),
            plan,
            outcome,
            by,
            shadowed: false,
            standings,
        }
    }

    /// Counts a ruling, and lets it pass in shadow mode.
    pub(super) fn conclude(&self, mut ruling: Ruling) -> Ruling {
        if ruling.would_admit() {
            self.counts.admitted(ruling.by);
            self.count_near(&ruling);
            return ruling;
        }
        ruling.shadowed = self.shadow.load(Relaxed);
        self.counts.refused(&ruling);
        tracing::debug!(
            target: "resilience",
            pattern = Pattern::RateLimit.as_str(),
            name = &*self.settings.name,
            reason = ruling.reason().map(|reason| reason.as_str()),
            limit = ruling.binding().map(|limit| limit.name),
            by = ruling.by.as_str(),
            retry_after = ?ruling.retry_after(),
            message = if ruling.shadowed { "would be rejected" } else { "rejected" }
        );
        ruling
    }

    fn count_near(&self, ruling: &Ruling) {
        for limit in ruling.limits() {
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
    answer: impl Future<Output = Result<T, StoreFailure>>,
) -> Result<T, StoreFailure> {
    let late = |_| Err(StoreFailure::new("no answer within the budget", true));
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

impl Source for Core {
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
            value: self.lines.waiting() as u64,
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

impl Drop for Core {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}
