//! The steps on a store: in the fleet's, and in the one of this instance alone.

use std::sync::atomic::Ordering::Relaxed;

use tokio::time::Instant;

use super::{
    costs::Costs,
    decision::{Decided, DecidedBy, Decision},
    demands::{demands, signed, standings},
    limiter::Limiter,
    plan::Plan,
};
use crate::{
    fleet::StoreError,
    limit::store::{LimitStore, StoreDecision},
};

impl Limiter {
    /// Takes tokens from the store. Fails at once while the store is unavailable.
    pub(super) async fn call_store(
        &self,
        subject: &str,
        plan: &Plan,
        cost: impl Fn(usize) -> i64,
    ) -> Result<StoreDecision, StoreError> {
        if !self.client.accepts_calls() {
            return Err(StoreError::unavailable());
        }
        let demands = demands(plan, 1, cost);
        let name = &*self.settings.name;
        let answer = self
            .client
            .attempt(|store| store.decide(name, subject, &demands))
            .await;
        self.count_answer(&answer);
        answer
    }

    /// Settles with the store: gives tokens back, or takes what a call that is over has cost beyond its reservation.
    /// Repeated until `until`, also while the store is unavailable, but never after an attempt that may have been
    /// carried out.
    pub(super) async fn settle_store(
        &self,
        subject: &str,
        plan: &Plan,
        until: Instant,
        cost: impl Fn(usize) -> i64,
    ) -> Result<StoreDecision, StoreError> {
        let demands = demands(plan, 1, cost);
        let name = &*self.settings.name;
        let answer = self
            .client
            .call_once_until(until, |store| store.decide(name, subject, &demands))
            .await;
        self.count_answer(&answer);
        answer
    }

    /// Reads the limits of `subject`. Not counted as a decision.
    pub(super) async fn peek(&self, subject: &str) -> Result<Decision, StoreError> {
        let plan = self.plan_of(subject);
        if plan.is_unlimited() {
            return Ok(self.unlimited(plan));
        }
        let stored = self.call_store(subject, &plan, |_| 0).await?;
        Ok(self.stored(plan, &stored))
    }

    /// Puts tokens back. Not counted as a decision.
    pub(super) async fn put_back(
        &self,
        subject: &str,
        costs: Costs<'_>,
    ) -> Result<Decision, StoreError> {
        let plan = self.plan_of(subject);
        if plan.is_unlimited() {
            return Ok(self.unlimited(plan));
        }
        let prices = self.prices(&plan, &costs);
        let until = Instant::now() + self.settings.fleet.budget;
        let stored = self
            .settle_store(subject, &plan, until, |index| -signed(prices[index]))
            .await?;
        self.denials.forget(subject);
        Ok(self.stored(plan, &stored))
    }

    pub(super) fn unlimited(&self, plan: Plan) -> Decision {
        self.decision(plan, Decided::Open, DecidedBy::Unlimited, None)
    }

    pub(super) fn stored(&self, plan: Plan, stored: &StoreDecision) -> Decision {
        let standings = standings(&stored.limits);
        let outcome = Decided::By(stored.outcome);
        self.decision(plan, outcome, DecidedBy::Store, Some(standings))
    }

    /// Counts a step that the store was asked for.
    pub(super) fn count_answer<T>(&self, answer: &Result<T, StoreError>) {
        let counter = match answer {
            Ok(_) => &self.counts.answered,
            Err(_) => &self.counts.unanswered,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) async fn call_local(
        &self,
        subject: &str,
        plan: &Plan,
        parts: u64,
        cost: impl Fn(usize) -> i64,
    ) -> Result<StoreDecision, StoreError> {
        let demands = demands(plan, parts, cost);
        self.alone
            .decide(&self.settings.name, subject, &demands)
            .await
    }
}
