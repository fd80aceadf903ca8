//! One subject: the last answer of the store, and the buckets of the share.

use crate::{
    clock::Moment,
    limit::{
        Quota,
        fleet::{
            costs::{NO_PRICES, Prices},
            plan::{MAX_LIMITS, Plan},
        },
        store::{Standing, StoreDecision},
        token_bucket::{Bucket, Claim, decide, decide_one},
    },
};

pub(super) struct Subject {
    pub(super) plan: Plan,
    /// The last answer of the store, and when it was asked for.
    pub(super) seen: Option<(Moment, Box<[Standing]>)>,
    /// The number of steps that had failed by then: after one more the store may have lost its data.
    pub(super) errors: u64,
    pub(super) alone: Option<Box<Alone>>,
    pub(super) is_settling: bool,
}

/// The buckets of a share. None: it is full.
pub(super) struct Alone {
    buckets: [Option<Bucket>; MAX_LIMITS],
    /// What was admitted, and is not settled.
    pub(super) spent: Prices,
    parts: u64,
}

impl Subject {
    pub(super) fn new(plan: &Plan, seen: Option<(Moment, Box<[Standing]>)>, errors: u64) -> Self {
        Self {
            plan: plan.clone(),
            seen,
            errors,
            alone: None,
            is_settling: false,
        }
    }

    pub(super) fn see(&mut self, limits: &[Standing], now: Moment) {
        match &mut self.seen {
            Some((at, seen)) if seen.len() == limits.len() => {
                *at = now;
                seen.copy_from_slice(limits);
            }
            seen => *seen = Some((now, limits.into())),
        }
    }

    /// Whether calls were admitted without the store, or it may have lost its data since the last answer.
    pub(super) fn is_unsettled(&self, errors: u64) -> bool {
        self.alone.is_some() || self.errors != errors
    }

    /// Whether a share that began now would not begin empty.
    pub(super) fn is_worth_keeping(&self, now: Moment) -> bool {
        let limits = self.plan.as_slice().iter().enumerate();
        let mut left = limits.map(|(index, limit)| self.left(index, &limit.quota, now));
        left.any(|left| left > 0)
    }

    /// What the last answer of the store is worth at `now`.
    fn left(&self, index: usize, quota: &Quota, now: Moment) -> u64 {
        let Some((at, seen)) = &self.seen else {
            return 0;
        };
        let passed = now.since(*at).as_micros();
        let taken = (passed * u128::from(quota.rate())).div_ceil(quota.unit().into());
        let taken = u64::try_from(taken).unwrap_or(u64::MAX);
        seen[index].remaining.saturating_sub(taken)
    }

    /// The share, which begins with its part of what was left at `since`.
    pub(super) fn alone(&mut self, parts: u64, since: Moment) -> &mut Alone {
        if self.alone.is_none() {
            let since = self.seen.as_ref().map_or(since, |(at, _)| since.max(*at));
            let mut alone = Alone {
                buckets: [None; MAX_LIMITS],
                spent: NO_PRICES,
                parts,
            };
            for (index, limit) in self.plan.as_slice().iter().enumerate() {
                let left = self.left(index, &limit.quota, since);
                let bucket = part_of(left, &share(&limit.quota, parts), parts, since);
                alone.buckets[index] = Some(bucket);
            }
            self.alone = Some(Box::new(alone));
        }
        self.alone.as_mut().expect("it was just set")
    }

    /// Whether there is something to settle with the store.
    pub(super) fn is_owing(&self) -> bool {
        let alone = self.alone.as_ref();
        alone.is_some_and(|alone| self.seen.is_none() || alone.spent != NO_PRICES)
    }

    /// What the share is short of, as far as it may have been admitted by this instance or one before it.
    pub(super) fn owes(&self, now: Moment) -> Prices {
        let mut owes = self.missing(now);
        if let (Some(alone), Some(_)) = (&self.alone, &self.seen) {
            for (owes, spent) in owes.iter_mut().zip(alone.spent) {
                *owes = spent.min(*owes);
            }
        }
        owes
    }

    /// What the share is short of being full.
    fn missing(&self, now: Moment) -> Prices {
        let mut missing = NO_PRICES;
        if let Some(alone) = &self.alone {
            for (index, limit) in self.plan.as_slice().iter().enumerate() {
                let quota = share(&limit.quota, alone.parts);
                let look = Claim {
                    bucket: alone.buckets[index],
                    quota: &quota,
                    cost: 0,
                };
                let (_, after) = decide_one(look, micros(now));
                // Rounded up, so that all shares together are charged for the whole.
                let whole = limit.quota.capacity().div_ceil(alone.parts);
                missing[index] = whole.saturating_sub(after.remaining);
            }
        }
        missing
    }
}

impl Alone {
    /// The store was charged for `prices`.
    pub(super) fn settle(&mut self, prices: &Prices) {
        for (spent, settled) in self.spent.iter_mut().zip(prices) {
            *spent = spent.saturating_sub(*settled);
        }
    }

    pub(super) fn decide(
        &mut self,
        plan: &Plan,
        cost: impl Fn(usize) -> i64,
        now: Moment,
    ) -> StoreDecision {
        let limits = plan.as_slice().iter();
        let quotas: Vec<Quota> = limits
            .map(|limit| share(&limit.quota, self.parts))
            .collect();
        let claims: Vec<Claim<'_>> = quotas
            .iter()
            .enumerate()
            .map(|(index, quota)| Claim {
                bucket: self.buckets[index],
                quota,
                cost: cost(index),
            })
            .collect();
        let mut afters = Vec::with_capacity(claims.len());
        let outcome = decide(&claims, micros(now), |after| afters.push(after));
        for (index, after) in afters.iter().enumerate() {
            if after.changed {
                self.buckets[index] = after.bucket;
            }
            if outcome.is_admitted() {
                self.spent[index] = self.spent[index].saturating_add_signed(cost(index));
            }
        }
        StoreDecision::new(outcome, afters.into_iter().map(Standing::from).collect())
    }
}

/// A bucket of one of `parts` parts of a limit that holds `left` tokens.
fn part_of(left: u64, share: &Quota, parts: u64, at: Moment) -> Bucket {
    let rest = u128::from(left % parts) * u128::from(share.unit()) / u128::from(parts);
    let tokens = (left / parts).min(share.capacity());
    Bucket {
        tokens,
        rest: if tokens < share.capacity() {
            // Below a token.
            u64::try_from(rest).unwrap_or(0)
        } else {
            0
        },
        at: micros(at),
        unit: share.unit(),
    }
}

/// The smallest of `parts` parts of a limit, with at least one token.
fn share(quota: &Quota, parts: u64) -> Quota {
    if parts <= 1 {
        return *quota;
    }
    let share = quota.share(parts - 1, parts);
    let share = share.and_then(|share| share.burst(share.capacity().max(1)));
    // Beyond what can be exact, whole tokens have to do.
    let fewer = || {
        let burst = (quota.capacity() / parts).max(1);
        Quota::per((quota.permits() / parts).max(1), quota.period())?.burst(burst)
    };
    share.or_else(|_| fewer()).unwrap_or(*quota)
}

const fn micros(at: Moment) -> u64 {
    at.as_nanos() / 1000
}
