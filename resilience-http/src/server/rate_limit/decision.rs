//! The rate limits that requests can be held to, and their decisions.

use std::{future::Future, pin::Pin, time::Duration};

use resilience_core::{
    Rejected,
    limit::{
        KeyedRateLimit, Quota, RateLimit,
        fleet::{Costs, Decision, FleetRateLimit, LimitStatus},
    },
};

/// Rate limit that requests can be held to: [`FleetRateLimit`], [`KeyedRateLimit`] with string
/// keys, or [`RateLimit`]. Sealed.
pub trait RequestLimit: sealed::Decide + Clone + Send + Sync + 'static {
    /// Cost of a request.
    type Price: From<u64> + Send + 'static;
}

pub(super) mod sealed {
    use super::Deciding;

    #[expect(unnameable_types, reason = "sealed")]
    pub trait Decide {
        #[expect(private_interfaces, reason = "sealed")]
        fn decide(&self, subject: String, price: <Self as super::RequestLimit>::Price) -> Deciding
        where
            Self: super::RequestLimit;
    }
}

/// A decision, or the future of one.
pub(super) enum Deciding {
    Now(RequestDecision),
    Later(Pin<Box<dyn Future<Output = RequestDecision> + Send>>),
}

/// A decision, and the state of the limits after it.
pub(super) struct RequestDecision {
    pub(super) rejected: Option<Rejected>,
    /// Name of the limit that rejected the request.
    pub(super) binding: Option<String>,
    pub(super) limits: Vec<LimitState>,
}

/// State of one limit, as the headers show it.
pub(super) struct LimitState {
    pub(super) name: String,
    pub(super) quota: Quota,
    pub(super) remaining: u64,
    pub(super) next_in: Option<Duration>,
}

impl LimitState {
    fn new(name: &str, quota: Quota, remaining: u64, full_in: Duration) -> Self {
        Self {
            name: name.to_owned(),
            quota,
            remaining,
            next_in: next_in(&quota, remaining, full_in),
        }
    }
}

/// Time until the bucket holds one token more than now. `None` if it is full.
fn next_in(quota: &Quota, remaining: u64, full_in: Duration) -> Option<Duration> {
    let others = quota.capacity().checked_sub(remaining)?.checked_sub(1)?;
    let of_others = u128::from(others) * u128::from(quota.unit()) / u128::from(quota.rate());
    let next = full_in.as_micros().saturating_sub(of_others).max(1);
    Some(Duration::from_micros(
        u64::try_from(next).unwrap_or(u64::MAX),
    ))
}

impl RequestLimit for FleetRateLimit {
    type Price = Costs<'static>;
}

impl sealed::Decide for FleetRateLimit {
    #[expect(private_interfaces, reason = "sealed")]
    fn decide(&self, subject: String, price: Costs<'static>) -> Deciding {
        let limit = self.clone();
        Deciding::Later(Box::pin(async move {
            decided(&limit.ask(&subject, price).await)
        }))
    }
}

fn decided(decision: &Decision) -> RequestDecision {
    let state = |limit: LimitStatus<'_>| {
        LimitState::new(limit.name, limit.quota, limit.remaining, limit.full_in)
    };
    let rejected = decision.rejected();
    let binding = rejected.as_ref().and_then(|_| decision.binding());
    RequestDecision {
        binding: binding.map(|limit| limit.name.to_owned()),
        rejected,
        limits: decision.limits().map(state).collect(),
    }
}

impl RequestLimit for RateLimit {
    type Price = u64;
}

impl sealed::Decide for RateLimit {
    #[expect(private_interfaces, reason = "sealed")]
    fn decide(&self, _: String, price: u64) -> Deciding {
        Deciding::Now(local(self, price))
    }
}

impl RequestLimit for KeyedRateLimit<String> {
    type Price = u64;
}

impl sealed::Decide for KeyedRateLimit<String> {
    #[expect(private_interfaces, reason = "sealed")]
    fn decide(&self, subject: String, price: u64) -> Deciding {
        Deciding::Now(local(&self.get(&subject), price))
    }
}

fn local(limit: &RateLimit, cost: u64) -> RequestDecision {
    let rejected = limit.try_acquire(cost).err();
    let now = limit.snapshot();
    RequestDecision {
        binding: rejected.as_ref().map(|_| limit.name().to_owned()),
        rejected,
        limits: vec![LimitState::new(
            limit.name(),
            limit.quota(),
            now.remaining,
            now.full_in,
        )],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use resilience_core::limit::token_bucket::{Claim, decide_one};

    use super::*;

    #[test]
    fn a_full_limit_has_no_next_token() {
        let quota = Quota::per(10, Duration::from_secs(1)).unwrap();
        assert_eq!(next_in(&quota, 10, Duration::ZERO), None);
        assert_eq!(next_in(&quota, 11, Duration::ZERO), None);
        let tenth = Duration::from_millis(100);
        assert_eq!(next_in(&quota, 9, tenth), Some(tenth));
        let last = next_in(&quota, 0, Duration::from_millis(950));
        assert_eq!(last, Some(tenth / 2));
    }

    proptest! {
        /// No more than the state shows until then, and one more then: to the microsecond, or one
        /// microsecond late.
        #[test]
        fn the_next_token_comes_when_it_is_told(
            permits in 1u64..5_000,
            period in 1u64..10_000_000,
            burst in 1u64..5_000,
            taken in 1u64..5_000,
            pause in 0u64..1_000_000,
        ) {
            let quota = Quota::per(permits, Duration::from_micros(period)).unwrap();
            let quota = quota.burst(burst).unwrap();
            let look = |bucket, cost, now| {
                decide_one(Claim { bucket, quota: &quota, cost }, now).1
            };
            let cost = i64::try_from(taken.min(burst)).unwrap();
            let then = look(None, cost, 0).bucket;
            let now = look(then, 0, pause);
            let full_in = Duration::from_micros(now.full_in);
            match next_in(&quota, now.remaining, full_in) {
                None => prop_assert_eq!(now.remaining, burst),
                Some(next) => {
                    let next = u64::try_from(next.as_micros()).unwrap();
                    prop_assert!(look(then, 0, pause + next).remaining > now.remaining);
                    let before = (pause + next).saturating_sub(2).max(pause);
                    prop_assert_eq!(look(then, 0, before).remaining, now.remaining);
                }
            }
        }
    }
}
