//! Decisions without the store, and what is settled when it is back.

use std::sync::Arc;

use tokio::{task::JoinSet, time::timeout};

use super::{
    costs::{NO_PRICES, Prices},
    decision::{Decided, DecidedBy, Decision},
    demands::{signed, standings},
    limiter::Limiter,
    plan::Plan,
};
use crate::{
    fleet::{OnOutage, StoreError},
    limit::store::StoreDecision,
};

/// The number of subjects that are settled at a time.
const AT_ONCE: usize = 32;

/// Other instances may take the tokens first; retries with the smaller amount at most this many times.
const QUESTIONS: usize = 3;

impl Limiter {
    /// Step 3: decides by the outage policy.
    #[cold]
    pub(super) fn fallback(&self, subject: &str, plan: Plan, prices: &Prices) -> Decision {
        match self.client.on_outage() {
            OnOutage::FailOpen => self.decision(plan, Decided::Open, DecidedBy::Policy, None),
            OnOutage::FailClosed => self.decision(plan, Decided::Closed, DecidedBy::Policy, None),
            OnOutage::Local => self.decide_by_share(subject, plan, prices),
        }
    }

    fn decide_by_share(&self, subject: &str, plan: Plan, prices: &Prices) -> Decision {
        let stored = self.ask_share(subject, &plan, |index| signed(prices[index]));
        let Some(stored) = stored else {
            // The share is not known.
            return self.decision(plan, Decided::Closed, DecidedBy::Policy, None);
        };
        let (outcome, by) = (Decided::By(stored.outcome), DecidedBy::LocalShare);
        self.decision(plan, outcome, by, Some(standings(&stored.limits)))
    }

    /// Decides by this instance's share; `None` if that is not known.
    fn ask_share(
        &self,
        subject: &str,
        plan: &Plan,
        cost: impl Fn(usize) -> i64,
    ) -> Option<StoreDecision> {
        let (parts, errors) = (self.local_parts()?, self.client.errors());
        let now = self.settings.clock.now();
        Some(self.shares.decide(subject, plan, parts, errors, cost, now))
    }

    /// Settles a reservation with the share that it was made from; `None` if the store has taken over.
    pub(super) fn adjust_share(
        &self,
        subject: &str,
        plan: &Plan,
        cost: impl Fn(usize) -> i64,
    ) -> Option<StoreDecision> {
        let has_share = self.shares.has(subject);
        has_share.then(|| self.ask_share(subject, plan, cost))?
    }

    /// The number of parts of which this instance takes one while it decides alone; `None`: not known.
    pub(super) fn local_parts(&self) -> Option<u64> {
        self.client.parts()
    }

    pub(super) fn keeps_shares(&self) -> bool {
        self.client.on_outage() == OnOutage::Local
    }

    /// Decides about a call while other instances may not have settled yet: it has to pass the share, too.
    pub(super) async fn decide_settling(
        &self,
        subject: &str,
        plan: Plan,
        prices: &Prices,
    ) -> Decision {
        if self.settle_share(subject, true).await.is_err() {
            return self.fallback(subject, plan, prices);
        }
        let decision = self.decide_by_share(subject, plan.clone(), prices);
        if !decision.would_admit() {
            return decision;
        }
        let answer = self.call_store(subject, &plan, |index| signed(prices[index]));
        match answer.await {
            Ok(stored) => {
                self.shares.charged(subject, prices);
                self.of_store(subject, plan, &stored)
            }
            Err(_) => decision,
        }
    }

    /// Whether calls have to pass the share although the store is available again.
    pub(super) fn is_settling(&self) -> bool {
        self.keeps_shares() && self.client.is_settling() && self.local_parts().is_some()
    }

    /// Settles what is to be settled before the store decides about `subject`. With `stays`, the share goes on deciding.
    pub(super) async fn settle_share(&self, subject: &str, stays: bool) -> Result<(), StoreError> {
        if !self.keeps_shares() {
            return Ok(());
        }
        // Another call may be doing it.
        let settled = timeout(self.client.budget(), self.shares.settled(subject));
        settled.await.map_err(|_| StoreError::timed_out())?;
        let (errors, sent) = (self.client.errors(), self.settings.clock.now());
        let Some(settling) = self.shares.settle(subject, errors, stays, sent) else {
            return Ok(());
        };
        let plan = settling.plan();
        let mut stored = self.call_store(subject, plan, |_| 0).await?;
        let mut sent = sent;
        let mut owed = settling.owed(&stored.limits, self.settings.clock.now());
        for _ in 0..QUESTIONS {
            if owed == NO_PRICES {
                break;
            }
            sent = self.settings.clock.now();
            stored = self
                .call_store(subject, plan, |index| signed(owed[index]))
                .await?;
            if stored.outcome.is_admitted() {
                break;
            }
            for (owed, limit) in owed.iter_mut().zip(&stored.limits) {
                *owed = limit.remaining.min(*owed);
            }
        }
        settling.done(&stored.limits, sent, stays);
        Ok(())
    }

    /// Settles all subjects that were decided about alone. Stops while the store is unavailable.
    pub(super) async fn settle_shares(self: &Arc<Self>, stays: bool) {
        let mut under_way = JoinSet::new();
        for subject in self.shares.owing() {
            if !self.client.is_available() {
                break;
            }
            if under_way.len() == AT_ONCE {
                under_way.join_next().await;
            }
            let limiter = Arc::clone(self);
            under_way.spawn_on(
                async move {
                    // What fails is settled by the next call of the subject, or in the next round.
                    let _ = limiter.settle_share(&subject, stays).await;
                },
                &self.settings.runtime,
            );
        }
        while under_way.join_next().await.is_some() {}
    }
}
