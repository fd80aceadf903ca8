//! A decision that is waited for, in the queue of its subject.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{
    costs::{Costs, Prices},
    decision::{Decided, DecidedBy, Decision},
    limiter::Limiter,
    plan::{MAX_LIMITS, Plan},
    projection,
};
use crate::{clock::Moment, deadline::before_deadline, limit::token_bucket::LimitOutcome};

impl Limiter {
    /// Whether a denied call may wait.
    pub(super) fn lets_wait(&self) -> bool {
        self.settings.queue.is_some() && !self.shadow.load(Relaxed)
    }

    /// Decides about a call, waiting for its tokens if there is a queue. Counted.
    pub(super) async fn acquire(self: &Arc<Self>, subject: &str, costs: Costs<'_>) -> Decision {
        let plan = self.plan_of(subject);
        let prices = self.prices(&plan, &costs);
        let decision = match self.settings.queue {
            Some(queue) if self.lets_wait() && prices != [0; MAX_LIMITS] => {
                let end = before_deadline(queue.max_wait);
                let max_wait = end.saturating_duration_since(Instant::now());
                self.wait_in_queue(subject, plan, &prices, queue.length, max_wait)
                    .await
            }
            _ => self.decide(subject, plan, &prices).await,
        };
        self.finish(decision)
    }

    async fn wait_in_queue(
        self: &Arc<Self>,
        subject: &str,
        plan: Plan,
        prices: &Prices,
        longest: usize,
        max_wait: Duration,
    ) -> Decision {
        let now = || self.settings.clock.now();
        let end = now() + max_wait;
        let (calls, ahead) = if self.queues.waiting() == 0 {
            (0, [0; MAX_LIMITS])
        } else {
            self.queues.ahead(subject)
        };
        let mut last = if calls == 0 {
            self.decide(subject, plan.clone(), prices).await
        } else {
            self.behind(subject, &plan, prices, &ahead)
        };
        match wait_of(&last) {
            Some(wait) if wait <= end.since(now()) && calls < longest => {}
            _ => return last,
        }
        let slot = self.queues.join(subject, prices);
        let _turn = match slot.turns.try_acquire() {
            Ok(turn) => turn,
            Err(_) => {
                let Ok(Ok(turn)) = timeout(end.since(now()), slot.turns.acquire()).await else {
                    return last;
                };
                last = self.decide(subject, plan.clone(), prices).await;
                turn
            }
        };
        // The first in the queue sleeps until the store should have the tokens, and asks again.
        loop {
            let Some(wait) = wait_of(&last) else {
                return last;
            };
            if wait > end.since(now()) {
                return last;
            }
            sleep(wait).await;
            last = self.decide(subject, plan.clone(), prices).await;
        }
    }

    /// A denial for a call that would wait behind others: with the wait for all of them, as far as that is known.
    fn behind(
        &self,
        subject: &str,
        plan: &Plan,
        prices: &Prices,
        ahead: &[u128; MAX_LIMITS],
    ) -> Decision {
        let now: Moment = self.settings.clock.now();
        let standings = self.denials.standings(subject, plan, now);
        let (mut binding, mut micros) = (0, 1);
        for (index, limit) in plan.as_slice().iter().enumerate() {
            if prices[index] > limit.quota.capacity() {
                let impossible = Decided::By(LimitOutcome::Impossible { binding: index });
                return self.decision(plan.clone(), impossible, DecidedBy::Memory, standings);
            }
            let Some(standing) = standings.map(|all| all[index]) else {
                continue;
            };
            let all = ahead[index] + u128::from(prices[index]);
            let wait = projection::wait_for_all(&limit.quota, standing, all);
            if wait > micros {
                (binding, micros) = (index, wait);
            }
        }
        let outcome = Decided::By(LimitOutcome::Wait { binding, micros });
        self.decision(plan.clone(), outcome, DecidedBy::Memory, standings)
    }
}

/// The wait of a denial; `None` for another decision, or where waiting does not help.
fn wait_of(decision: &Decision) -> Option<Duration> {
    match decision.outcome {
        Decided::By(LimitOutcome::Wait { micros, .. }) => Some(Duration::from_micros(micros)),
        _ => None,
    }
}
