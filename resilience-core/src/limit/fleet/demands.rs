//! The demands of a call on a store, and its answer in the order of a plan.

use super::{
    decision::{NOTHING, Standings},
    plan::{MAX_LIMITS, Plan},
};
use crate::limit::{
    Quota,
    store::{Demand, Standing},
};

/// The largest cost that a store is asked for: more than any bucket holds.
const MOST: u64 = 1 << 53;

/// The demands on one of `parts` parts of each limit.
pub(super) fn demands(plan: &Plan, parts: u64, cost: impl Fn(usize) -> i64) -> Vec<Demand<'_>> {
    let limits = plan.as_slice().iter().enumerate();
    limits
        .map(|(index, limit)| Demand {
            limit: &limit.name,
            quota: share(&limit.quota, parts),
            cost: cost(index),
        })
        .collect()
}

pub(super) fn signed(cost: u64) -> i64 {
    i64::try_from(cost.min(MOST)).unwrap_or(i64::MAX)
}

pub(super) fn standings(limits: &[Standing]) -> Standings {
    let mut all = [NOTHING; MAX_LIMITS];
    all.iter_mut()
        .zip(limits)
        .for_each(|(to, from)| *to = *from);
    all
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
