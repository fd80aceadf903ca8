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
    clock::Moment,
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
        let demands = demands(plan, cost);
        let name = &*self.settings.name;
        let (errors, sent) = (self.client.errors(), self.settings.clock.now());
        let answer = self
            .client
            .attempt(|store| store.decide(name, subject, &demands))
            .await;
        self.count_answer(&answer);
        self.note_answer(subject, plan, &answer, errors, sent);
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
        let demands = demands(plan, &cost);
        let name = &*self.settings.name;
        let (errors, sent) = (self.client.errors(), self.settings.clock.now());
        let answer = self
            .client
            .call_once_until(until, |store| store.decide(name, subject, &demands))
            .await;
        self.count_answer(&answer);
        if answer.is_ok() && self.keeps_shares() {
            self.shares.put_back(subject, plan, cost);
        }
        self.note_answer(subject, plan, &answer, errors, sent);
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

    /// Notes what the store has left, for a share of it.
    fn note_answer(
        &self,
        subject: &str,
        plan: &Plan,
        answer: &Result<StoreDecision, StoreError>,
        errors: u64,
        sent: Moment,
    ) {
        if let Ok(stored) = answer
            && self.keeps_shares()
        {
            self.shares
                .note(subject, plan, &stored.limits, errors, sent);
        }
    }

    /// Counts a step that the store was asked for.
    pub(super) fn count_answer<T>(&self, answer: &Result<T, StoreError>) {
        if answer.is_ok() {
            self.shares.heard();
        }
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
        cost: impl Fn(usize) -> i64,
    ) -> Result<StoreDecision, StoreError> {
        let demands = demands(plan, cost);
        self.alone
            .decide(&self.settings.name, subject, &demands)
            .await
    }
}
