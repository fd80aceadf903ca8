//! The demands of a call on a store, and its answer in the order of a plan.

use super::{
    decision::{NOTHING, Standings},
    plan::{MAX_LIMITS, Plan},
};
use crate::limit::store::{Demand, Standing};

/// The largest cost that a store is asked for: more than any bucket holds.
const MOST: u64 = 1 << 53;

/// The demands on each limit.
pub(super) fn demands(plan: &Plan, cost: impl Fn(usize) -> i64) -> Vec<Demand<'_>> {
    let limits = plan.as_slice().iter().enumerate();
    limits
        .map(|(index, limit)| Demand {
            limit: &limit.name,
            quota: limit.quota,
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
