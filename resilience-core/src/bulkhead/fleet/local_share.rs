//! This instance's share of the permits while it decides without the store: pure.

use std::time::Duration;

use crate::clock::Moment;

/// What this instance may hold during an outage.
///
/// For one lease from the first step that failed, the leases of other instances may still be held. So the instance may
/// hold what it held then, and its part of what the last view had left: all instances together stay within the limit.
/// Afterwards it may hold its part of the limit.
#[derive(Debug, Default)]
pub(super) struct LocalShare {
    /// Permits that the whole fleet held in the last view.
    held: u64,
    outage: Option<Outage>,
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Moment,
    may_hold: u64,
}

impl LocalShare {
    /// Notes a view of the store.
    pub(super) const fn saw(&mut self, held: u64) {
        self.held = held;
    }

    /// The store decides again.
    pub(super) const fn end(&mut self) {
        self.outage = None;
    }

    /// The permits that the calls of this instance may hold, as one of `parts`; they hold `own` now.
    pub(super) fn may_hold(
        &mut self,
        limit: u64,
        parts: u64,
        own: u64,
        lease: Duration,
        now: Moment,
    ) -> u64 {
        let left = limit.saturating_sub(self.held.max(own));
        let outage = *self.outage.get_or_insert(Outage {
            since: now,
            may_hold: own + left / parts,
        });
        if now.since(outage.since) < lease {
            outage.may_hold.min(limit)
        } else {
            limit / parts
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    /// One holds ten of sixteen, three others two each: a quarter each on top would be 22.
    #[test]
    fn shares_are_parts_of_what_is_left_until_the_leases_have_ended() {
        let mut shares = [10, 2, 2, 2].map(|own| {
            let mut share = LocalShare::default();
            share.saw(16);
            (share, own)
        });
        let all = |shares: &mut [(LocalShare, u64); 4], now| {
            let mut of = shares.iter_mut();
            let held: u64 = of
                .by_ref()
                .map(|(share, own)| share.may_hold(16, 4, *own, LEASE, at(now)))
                .sum();
            held
        };
        assert_eq!(all(&mut shares, 1), 16);
        assert_eq!(all(&mut shares, 10), 16, "also when calls have ended");
        let (first, _) = &mut shares[0];
        assert_eq!(
            first.may_hold(16, 4, 0, LEASE, at(11)),
            4,
            "its part, a lease later"
        );
        first.end();
        assert_eq!(first.may_hold(16, 4, 1, LEASE, at(12)), 1, "another outage");
    }

    #[test]
    fn what_is_left_is_divided() {
        let mut share = LocalShare::default();
        share.saw(4);
        assert_eq!(share.may_hold(16, 4, 1, LEASE, at(1)), 1 + 3);
    }
}
