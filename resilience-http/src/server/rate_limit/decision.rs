//! The limits that requests can be held to.

use std::{future::Future, pin::Pin, time::Duration};

use resilience_core::{
    Rejected,
    limit::{
        KeyedRateLimit, Quota, RateLimit,
        fleet::{Costs, Decision, FleetRateLimit, LimitStatus},
    },
};

/// A limit that requests can be held to: [`FleetRateLimit`], [`KeyedRateLimit`] by strings, [`RateLimit`].
pub trait RequestLimit: sealed::Decide + Clone + Send + Sync + 'static {
    /// What a request can cost.
    type Price: From<u64> + Send + 'static;
}

pub(super) mod sealed {
    use super::Ruled;

    #[expect(unnameable_types, reason = "sealed")]
    pub trait Decide {
        #[expect(private_interfaces, reason = "sealed")]
        fn decide(&self, subject: String, price: <Self as super::RequestLimit>::Price) -> Ruled
        where
            Self: super::RequestLimit;
    }
}

/// A decision, or one that is under way.
pub(super) enum Ruled {
    Now(RequestDecision),
    Later(Pin<Box<dyn Future<Output = RequestDecision> + Send>>),
}

/// What was decided, and how the limits stand.
pub(super) struct RequestDecision {
    pub(super) rejected: Option<Rejected>,
    /// The limit that refused.
    pub(super) binding: Option<String>,
    pub(super) limits: Vec<Told>,
}

/// How one limit stands, as clients are told.
pub(super) struct Told {
    pub(super) name: String,
    pub(super) quota: Quota,
    pub(super) remaining: u64,
    pub(super) next_in: Option<Duration>,
}

impl Told {
    fn new(name: &str, quota: Quota, remaining: u64, full_in: Duration) -> Self {
        Self {
            name: name.to_owned(),
            quota,
            remaining,
            next_in: next_in(&quota, remaining, full_in),
        }
    }
}

/// The time until there is one more token than now: for so long, no more than these can be used. `None` if it is full.
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
    fn decide(&self, subject: String, price: Costs<'static>) -> Ruled {
        let limit = self.clone();
        Ruled::Later(Box::pin(async move {
            decision(&limit.ask(&subject, price).await)
        }))
    }
}

fn decision(ruling: &Decision) -> RequestDecision {
    let told =
        |limit: LimitStatus<'_>| Told::new(limit.name, limit.quota, limit.remaining, limit.full_in);
    let rejected = ruling.rejected();
    let binding = rejected.as_ref().and_then(|_| ruling.binding());
    RequestDecision {
        binding: binding.map(|limit| limit.name.to_owned()),
        rejected,
        limits: ruling.limits().map(told).collect(),
    }
}

impl RequestLimit for RateLimit {
    type Price = u64;
}

impl sealed::Decide for RateLimit {
    #[expect(private_interfaces, reason = "sealed")]
    fn decide(&self, _: String, price: u64) -> Ruled {
        Ruled::Now(local(self, price))
    }
}

impl RequestLimit for KeyedRateLimit<String> {
    type Price = u64;
}

impl sealed::Decide for KeyedRateLimit<String> {
    #[expect(private_interfaces, reason = "sealed")]
    fn decide(&self, subject: String, price: u64) -> Ruled {
        Ruled::Now(local(&self.get(&subject), price))
    }
}

fn local(limit: &RateLimit, cost: u64) -> RequestDecision {
    let rejected = limit.try_acquire(cost).err();
    let now = limit.snapshot();
    RequestDecision {
        binding: rejected.as_ref().map(|_| limit.name().to_owned()),
        rejected,
        limits: vec![Told::new(
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
        /// Until then there is no more than what was told, and then there is: to the microsecond, or one late.
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
