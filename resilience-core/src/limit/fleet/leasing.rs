//! Calls that are paid for out of leases: from the pool, or from a lease that one call fetches for all that wait.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    costs::{NO_PRICES, Prices},
    decision::{Decided, DecidedBy, Decision, Standings},
    demands::signed,
    lease_size::LeaseRules,
    limiter::Limiter,
    plan::{MAX_LIMITS, Plan},
    refill::{Asked, Asking},
    token_pool::TokenPool,
};
use crate::{
    fleet::StoreError,
    limit::{store::StoreDecision, token_bucket::LimitOutcome},
};

/// For how long tokens are offered to a store that does not answer. Meanwhile they come in there at the rate of the limit.
const GIVE_BACK: Duration = Duration::from_secs(1);

/// The number of pools that are emptied at a time.
const AT_ONCE: usize = 32;

/// The number of pools that can be retired under a call before it makes its own round trip.
const TRIES: usize = 4;

impl Limiter {
    /// Pays out of the pool, if it can without waiting. The hot path: a lookup, one reading of the clock, one
    /// compare-and-swap per limit.
    #[inline]
    pub(super) fn spend(
        self: &Arc<Self>,
        rules: &LeaseRules,
        subject: &str,
        plan: &Plan,
        prices: &Prices,
    ) -> Option<Decision> {
        let pools = self.pools.pin();
        let pool = pools.get(subject)?;
        let now = self.settings.clock.now();
        if pool.is_over(now) || !pool.plan.is(plan) || !pool.take(prices) {
            return None;
        }
        if pool.is_low() && !pool.is_quiet(now) {
            self.prefetch(rules, subject, pool);
        }
        Some(self.paid(pool))
    }

    fn paid(&self, pool: &TokenPool) -> Decision {
        let standings = pool.standings();
        let outcome = LimitOutcome::Admitted {
            binding: scarcest(&pool.plan, &standings),
        };
        let plan = pool.plan.clone();
        self.decision(
            plan,
            Decided::By(outcome),
            DecidedBy::Lease,
            Some(standings),
        )
    }

    /// Fetches more tokens before the pool is empty, unless that is in progress.
    #[cold]
    fn prefetch(self: &Arc<Self>, rules: &LeaseRules, subject: &str, pool: &Arc<TokenPool>) {
        if !self.client.is_available() || self.is_closing() {
            return;
        }
        if let Some(turn) = pool.turn_at_once() {
            let asking = Asking {
                core: Arc::clone(self),
                rules: *rules,
                subject: subject.into(),
                pool: Arc::clone(pool),
                need: NO_PRICES,
            };
            self.spawn(async move { drop(asking.refill(turn).await) });
        }
    }

    /// Decides about a call that the pool could not pay for. It waits at most one budget, though others may come first.
    pub(super) async fn lease(
        self: &Arc<Self>,
        rules: &LeaseRules,
        subject: &str,
        plan: Plan,
        prices: &Prices,
    ) -> Decision {
        let leasing = self.in_turn(rules, subject, plan.clone(), prices);
        match timeout(self.settings.fleet.budget, leasing).await {
            Ok(decision) => decision,
            Err(_) => self.fallback(subject, plan, prices),
        }
    }

    /// Waits for the turn of this call; one of those that wait asks the store for all.
    async fn in_turn(
        self: &Arc<Self>,
        rules: &LeaseRules,
        subject: &str,
        plan: Plan,
        prices: &Prices,
    ) -> Decision {
        for _ in 0..TRIES {
            let Some(pool) = self.pool_of(rules, subject, &plan) else {
                break;
            };
            let _wanted = pool.want(prices);
            let turn = pool.turn().await;
            if pool.is_retired() {
                continue;
            }
            if !pool.plan.is(&plan) {
                self.retire(subject, &pool);
                continue;
            }
            let now = self.settings.clock.now();
            if !pool.is_over(now) && pool.take(prices) {
                return self.paid(&pool);
            }
            if let Some(refused) = self.denied_locally(subject, &plan, prices, now) {
                return refused;
            }
            if !self.client.is_available() {
                return self.fallback(subject, plan, prices);
            }
            let asking = Asking {
                core: Arc::clone(self),
                rules: *rules,
                subject: subject.into(),
                pool: Arc::clone(&pool),
                need: *prices,
            };
            // In a task of its own: if this call is dropped, the tokens stay in the pool.
            let asked = self.settings.runtime.spawn(asking.refill(turn)).await;
            return match asked.unwrap_or(Asked::NoAnswer) {
                Asked::HeldTokens(paid) => {
                    paid.spend();
                    self.paid(&pool)
                }
                Asked::Refused(outcome, standings) => self.decision(
                    plan,
                    Decided::By(outcome),
                    DecidedBy::Store,
                    Some(standings),
                ),
                Asked::NoAnswer => self.fallback(subject, plan, prices),
            };
        }
        self.decide_exact(subject, plan, prices).await
    }

    /// The pool of a subject, whatever its plan; `None` if there is no room for one more.
    fn pool_of(&self, rules: &LeaseRules, subject: &str, plan: &Plan) -> Option<Arc<TokenPool>> {
        let pools = self.pools.pin();
        if let Some(pool) = pools.get(subject) {
            return Some(Arc::clone(pool));
        }
        if pools.len() >= rules.subjects {
            return None;
        }
        let made = || Arc::new(TokenPool::new(plan.clone()));
        Some(Arc::clone(pools.get_or_insert_with(subject.into(), made)))
    }

    /// Takes a pool out of use, for the holder of its turn; its tokens go back.
    fn retire(self: &Arc<Self>, subject: &str, pool: &Arc<TokenPool>) {
        pool.retire();
        let same = |_: &_, other: &Arc<TokenPool>| Arc::ptr_eq(other, pool);
        let _ = self.pools.pin().remove_if(subject, same);
        let tokens = pool.drain();
        if tokens != NO_PRICES {
            let (limiter, pool, subject) = (Arc::clone(self), Arc::clone(pool), subject.to_owned());
            self.spawn(async move {
                let until = Instant::now() + GIVE_BACK;
                // What does not arrive is lost, and comes in again at the rate of the limit.
                let _ = limiter
                    .give_back(&subject, &pool.plan, &tokens, until)
                    .await;
            });
        }
    }

    pub(super) async fn give_back(
        &self,
        subject: &str,
        plan: &Plan,
        tokens: &Prices,
        until: Instant,
    ) -> Result<StoreDecision, StoreError> {
        let answer = self
            .settle_store(subject, plan, until, |index| -signed(tokens[index]))
            .await;
        self.denials.forget(subject);
        answer
    }

    /// Settles with the pool, if it can pay the difference or take it back.
    pub(super) fn settle_here(
        &self,
        subject: &str,
        plan: &Plan,
        differences: &[i64; MAX_LIMITS],
    ) -> bool {
        let pools = self.pools.pin();
        let Some(pool) = pools.get(subject) else {
            return false;
        };
        let now = self.settings.clock.now();
        if pool.is_retired() || pool.is_over(now) || !pool.plan.is(plan) {
            return false;
        }
        let amounts = differences.map(i64::unsigned_abs);
        if differences.iter().all(|difference| *difference <= 0) {
            pool.put(&amounts);
            return true;
        }
        differences.iter().all(|difference| *difference >= 0) && pool.take(&amounts)
    }

    /// Gives back leases that have ended, or all, and drops unused pools. Stops while the store is unavailable; leases
    /// that have ended go back when it is available again.
    pub(super) async fn sweep(self: &Arc<Self>, all: bool) -> Result<(), StoreError> {
        let (now, until) = (self.settings.clock.now(), Instant::now() + GIVE_BACK);
        let over: Vec<_> = (self.pools.pin().iter())
            .filter(|(_, pool)| all || pool.is_over(now))
            .map(|(subject, pool)| (subject.clone(), Arc::clone(pool)))
            .collect();
        let (mut under_way, mut last) = (JoinSet::new(), Ok(()));
        for (subject, pool) in over {
            let wait_until = if all { until } else { Instant::now() };
            if !self.client.available_by(wait_until).await {
                last = Err(StoreError::unavailable());
                break;
            }
            if under_way.len() == AT_ONCE
                && let Some(Ok(Err(failure))) = under_way.join_next().await
            {
                last = Err(failure);
            }
            let core = Arc::clone(self);
            under_way.spawn_on(
                async move { core.empty(&subject, &pool, all, until).await },
                &self.settings.runtime,
            );
        }
        while let Some(emptied) = under_way.join_next().await {
            if let Ok(Err(failure)) = emptied {
                last = Err(failure);
            }
        }
        last
    }

    /// Gives the tokens of a pool back, or drops an empty one. Skipped while a lease is in progress, unless it `has_to_be`.
    async fn empty(
        self: &Arc<Self>,
        subject: &str,
        pool: &Arc<TokenPool>,
        has_to_be: bool,
        until: Instant,
    ) -> Result<(), StoreError> {
        let turn = if has_to_be {
            Some(pool.turn().await)
        } else {
            pool.turn_at_once()
        };
        let Some(_turn) = turn else {
            return Ok(());
        };
        let tokens = pool.drain();
        if tokens == NO_PRICES {
            self.retire(subject, pool);
            return Ok(());
        }
        self.give_back(subject, &pool.plan, &tokens, until)
            .await
            .map(drop)
    }
}

/// The limit with the smallest part left.
fn scarcest(plan: &Plan, standings: &Standings) -> usize {
    if plan.as_slice().len() == 1 {
        return 0;
    }
    let share = |index: &usize| {
        let capacity = plan.as_slice()[*index].quota.capacity();
        u128::from(standings[*index].remaining) * (1 << 32) / u128::from(capacity)
    };
    (0..plan.as_slice().len()).min_by_key(share).unwrap_or(0)
}
