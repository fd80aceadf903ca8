//! What an instance owes the store for a subject that it has decided about alone.

use std::sync::atomic::Ordering::Relaxed;

use super::LocalShares;
use crate::{
    clock::Moment,
    limit::{
        Quota,
        fleet::{
            costs::{NO_PRICES, Prices},
            decision::Standings,
            plan::Plan,
            projection,
        },
        store::Standing,
    },
};

/// A subject that one call settles with the store. Dropped, it is still to be settled.
///
/// The store is charged for what was admitted here, as far as the share is short of it: the rest has come in meanwhile. An
/// instance that never had an answer is charged for all that its share is short of: another process may have used it up in
/// its place.
/// And it is charged for what it can only hold because it has lost its data: more than the last answer and the time since
/// then allow.
pub(in crate::limit::fleet) struct Settling<'a> {
    pub(super) shares: &'a LocalShares,
    pub(super) subject: &'a str,
    pub(super) plan: Plan,
    pub(super) seen: Option<(Moment, Standings)>,
    pub(super) spent: Prices,
    pub(super) owes: Prices,
    pub(super) errors: u64,
}

impl Settling<'_> {
    pub(in crate::limit::fleet) const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The tokens to take from the store, which holds `limits` at `now`.
    pub(in crate::limit::fleet) fn owed(&self, limits: &[Standing], now: Moment) -> Prices {
        let mut owed = NO_PRICES;
        for (index, (limit, stands)) in self.plan.as_slice().iter().zip(limits).enumerate() {
            let gained = self.excess(index, &limit.quota, *stands, now);
            owed[index] = self.owes[index]
                .saturating_add(gained)
                .min(stands.remaining);
        }
        owed
    }

    /// The tokens that the store can only hold because it has lost its data.
    fn excess(&self, index: usize, quota: &Quota, stands: Standing, now: Moment) -> u64 {
        let Some((at, seen)) = &self.seen else {
            return 0;
        };
        let passed = u64::try_from(now.since(*at).as_micros()).unwrap_or(u64::MAX);
        let most = projection::later(quota, seen[index], passed).remaining;
        // The projection is a lower bound.
        let most = most.saturating_add(quota.rate() / quota.unit() + 1);
        stands.remaining.saturating_sub(most)
    }

    /// It is settled: the store has answered with `limits` what it was asked at `now`. With `stays` the share goes on deciding, since other
    /// instances may not have settled yet.
    pub(in crate::limit::fleet) fn done(self, limits: &[Standing], now: Moment, stays: bool) {
        let mut shard = self.shares.shard(self.subject);
        let known = shard.subjects.get_mut(self.subject);
        let Some(known) = known.filter(|known| known.plan.is(&self.plan)) else {
            return;
        };
        known.errors = self.errors;
        known.see(limits, now);
        let Some(alone) = &mut known.alone else {
            return;
        };
        alone.settle(&self.spent);
        if !stays && alone.spent == NO_PRICES {
            known.alone = None;
            self.shares.owing.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        if let Some(known) = self
            .shares
            .shard(self.subject)
            .subjects
            .get_mut(self.subject)
        {
            known.is_settling = false;
        }
        self.shares.settled.notify_waiters();
    }
}
