//! A round trip for a lease, on behalf of all calls of a subject that wait.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    costs::{NO_PRICES, Prices},
    decision::Standings,
    demands::{signed, standings},
    lease_size::{LeaseContext, LeaseRules, micros},
    limiter::Limiter,
    projection,
    token_pool::{Book, HeldTokens, TokenPool, Turn},
};
use crate::{
    clock::Moment,
    fleet::StoreError,
    limit::{store::StoreDecision, token_bucket::LimitOutcome},
};

/// The result of a lease.
pub(super) enum Asked {
    /// The call that asked is paid for.
    HeldTokens(HeldTokens),
    /// The store has too few tokens for this call.
    Refused(LimitOutcome, Standings),
    /// No answer.
    NoAnswer,
}

/// Other instances may take the tokens first; retries with the smaller amount at most this many times.
const QUESTIONS: u32 = 3;

/// A lease in progress, for all calls that wait.
pub(super) struct Asking {
    pub(super) core: Arc<Limiter>,
    pub(super) rules: LeaseRules,
    pub(super) subject: Box<str>,
    pub(super) pool: Arc<TokenPool>,
    /// The cost of the call that asks; zero for a prefetch.
    pub(super) need: Prices,
}

impl Asking {
    pub(super) async fn refill(self, _turn: Turn) -> Asked {
        let start = self.core.settings.clock.now();
        if self.pool.is_over(start) {
            self.clear().await;
        }
        // One limit may be dry, and another not.
        let own = HeldTokens::new(Arc::clone(&self.pool), self.pool.take_some(&self.need));
        let missing: Prices = std::array::from_fn(|index| self.need[index] - own.of(index));
        let mut asked = self.amounts(&missing, start);
        for tries in 1.. {
            let Ok(stored) = self.call_store(&asked).await else {
                return Asked::NoAnswer;
            };
            if stored.outcome.is_admitted() {
                own.spend();
                return self.granted(&asked, &missing, &stored, start);
            }
            // There are fewer, and maybe enough all the same.
            match fewer(&asked, &missing, &stored) {
                Some(fewer) if tries < QUESTIONS => asked = fewer,
                _ => {
                    drop(own);
                    return self.refused(&stored);
                }
            }
        }
        Asked::NoAnswer
    }

    async fn call_store(&self, asked: &Prices) -> Result<StoreDecision, StoreError> {
        let plan = &self.pool.plan;
        self.core
            .call_store(&self.subject, plan, |index| signed(asked[index]))
            .await
    }

    /// Gives a lease that has ended back, before the next.
    async fn clear(&self) {
        let tokens = self.pool.drain();
        if tokens != NO_PRICES {
            let _ = self
                .core
                .give_back(&self.subject, &self.pool.plan, &tokens, Instant::now())
                .await;
        }
    }

    /// The tokens to ask for, at least those that are missing.
    fn amounts(&self, missing: &Prices, now: Moment) -> Prices {
        let mut asked = *missing;
        let mut book = self.pool.book();
        let Book { demands, seen } = &mut *book;
        let ago = seen.map_or(u64::MAX, |(seen, _)| micros(now.since(seen)));
        for (index, limit) in self.pool.plan.as_slice().iter().enumerate() {
            let scene = LeaseContext {
                level: self.pool.level(index),
                wanted: self.pool.wanted(index).max(missing[index]),
                since: ago,
                standing: seen.map(|(_, standings)| (standings[index], ago)),
                live: self.core.live_instances(),
            };
            let amount = demands[index].ask(&scene, &limit.quota, &self.rules);
            asked[index] = amount.max(missing[index]);
        }
        asked
    }

    fn granted(
        &self,
        amounts: &Prices,
        missing: &Prices,
        stored: &StoreDecision,
        start: Moment,
    ) -> Asked {
        let pool = &self.pool;
        let standings = standings(&stored.limits);
        pool.note(&standings);
        let mut book = pool.book();
        book.seen = Some((self.core.settings.clock.now(), standings));
        // Counted from before the round trip.
        pool.expire_at(start + self.rules.time);
        let (mut rationed, mut scarce) = (None, standings);
        for (index, limit) in pool.plan.as_slice().iter().enumerate() {
            let demand = &mut book.demands[index];
            demand.level = pool.level(index) + amounts[index];
            pool.set_low(index, demand.low());
            if demand.level < demand.size {
                rationed = rationed.max(Some(self.rules.pause(&limit.quota)));
                if standings[index].remaining < self.rules.gain(&limit.quota) {
                    scarce[index].remaining = 0;
                }
            }
        }
        drop(book);
        if let Some(pause) = rationed {
            self.ration(Duration::from_micros(pause), &standings, &scarce);
        }
        let rest: Prices = std::array::from_fn(|index| amounts[index] - missing[index]);
        pool.put(&rest);
        Asked::HeldTokens(HeldTokens::new(Arc::clone(pool), self.need))
    }

    /// Pauses prefetches after a lease that was smaller than wanted. If next to nothing is left, calls are denied
    /// meanwhile too, or each of them would make a round trip for what has come in since the one before.
    fn ration(&self, pause: Duration, standings: &Standings, scarce: &Standings) {
        let now = self.core.settings.clock.now();
        self.pool.quiet_until(now + pause);
        if scarce != standings {
            let (memory, plan) = (&self.core.denials, &self.pool.plan);
            memory.note(&self.subject, plan, scarce, pause, pause, now);
        }
    }

    fn refused(&self, stored: &StoreDecision) -> Asked {
        let now = self.core.settings.clock.now();
        let there = standings(&stored.limits);
        self.pool.note(&there);
        self.pool.book().seen = Some((now, there));
        let limits = self.pool.plan.as_slice();
        let pause = limits
            .iter()
            .map(|limit| self.rules.pause(&limit.quota))
            .min();
        let pause = Duration::from_micros(pause.unwrap_or(0));
        self.pool.quiet_until(now + pause);
        // Including the tokens in the pool.
        let standings = self.pool.standings();
        if matches!(stored.outcome, LimitOutcome::Impossible { .. }) || self.need == NO_PRICES {
            return Asked::Refused(stored.outcome, standings);
        }
        let (mut binding, mut wait) = (0, 0);
        for (index, limit) in limits.iter().enumerate() {
            let one = projection::wait_for(&limit.quota, standings[index], self.need[index]);
            if one > wait {
                (binding, wait) = (index, one);
            }
        }
        let wait = Duration::from_micros(wait).max(pause);
        let (memory, plan) = (&self.core.denials, &self.pool.plan);
        memory.note(&self.subject, plan, &standings, wait, pause, now);
        let micros = micros(wait);
        Asked::Refused(LimitOutcome::Wait { binding, micros }, standings)
    }
}

/// The tokens that are there, if they are enough for the call that asks and more than none.
fn fewer(asked: &Prices, missing: &Prices, stored: &StoreDecision) -> Option<Prices> {
    let mut fewer = *asked;
    for (index, standing) in stored.limits.iter().enumerate() {
        fewer[index] = asked[index].min(standing.remaining);
        if fewer[index] < missing[index] {
            return None;
        }
    }
    (fewer != *asked && fewer != NO_PRICES).then_some(fewer)
}
