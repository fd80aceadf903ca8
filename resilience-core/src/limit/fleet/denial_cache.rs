//! Recent denials by the store: a subject that is known to lack tokens costs no round trip until it has gained them.
//!
//! The last answer bounds the content of a bucket, whatever other instances take meanwhile; only tokens that are put
//! back, a new plan, or a store that lost its data can make it hold more. So an entry ends with the wait that came with
//! the denial (or sooner), counts for its plan only, and is dropped when tokens are put back in this process.

use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Relaxed},
    },
    time::Duration,
};

use super::{costs::Prices, decision::Standings, plan::Plan, projection};
use crate::{
    clock::Moment,
    keyed::{Map, map},
};

pub(super) struct DenialCache {
    entries: Map<Box<str>, Entry>,
    most: usize,
    longest: Duration,
    next_sweep: AtomicU64,
}

struct Entry {
    plan: Plan,
    standings: Standings,
    seen: Moment,
    /// A call that lacks tokens is denied until then, however few it lacks.
    not_before: Moment,
    until: Moment,
}

/// A denial from the cache.
pub(super) struct Denial {
    pub(super) binding: usize,
    pub(super) micros: u64,
    pub(super) standings: Standings,
}

/// A full cache looks for entries that have ended once in this time.
const SWEEP: Duration = Duration::from_millis(100);

impl DenialCache {
    /// A cache of up to `most` subjects, each for at most `longest`.
    pub(super) fn new(most: usize, longest: Duration) -> Self {
        Self {
            entries: map(),
            most,
            longest,
            next_sweep: AtomicU64::new(0),
        }
    }

    /// The denial that the store would give, if that is known.
    pub(super) fn look(
        &self,
        subject: &str,
        plan: &Plan,
        prices: &Prices,
        now: Moment,
    ) -> Option<Denial> {
        // Neither a lookup nor a hash while the cache is empty.
        if self.entries.is_empty() {
            return None;
        }
        let entries = self.entries.pin();
        let entry = entries.get(subject)?;
        if now >= entry.until || !entry.plan.is(plan) {
            return None;
        }
        entry.refusal(prices, now)
    }

    /// The state of the limits of a denied subject now, at best.
    pub(super) fn standings(&self, subject: &str, plan: &Plan, now: Moment) -> Option<Standings> {
        let entries = self.entries.pin();
        let entry = entries.get(subject)?;
        (now < entry.until && entry.plan.is(plan)).then(|| entry.standings_at(now))
    }

    /// Notes a denial by the store that is repeated for `wait`. A call that lacks tokens is denied for at least `pause`.
    pub(super) fn note(
        &self,
        subject: &str,
        plan: &Plan,
        standings: &Standings,
        wait: Duration,
        pause: Duration,
        now: Moment,
    ) {
        if self.entries.len() >= self.most {
            self.sweep(now);
            if self.entries.len() >= self.most {
                return;
            }
        }
        let entry = Entry {
            plan: plan.clone(),
            standings: *standings,
            seen: now,
            not_before: now + pause,
            until: now + wait.min(self.longest),
        };
        self.entries.pin().insert(subject.into(), entry);
    }

    /// Drops the entry of a subject whose tokens were put back.
    pub(super) fn forget(&self, subject: &str) {
        self.entries.pin().remove(subject);
    }

    /// Drops entries that have ended; often enough for a full cache, seldom enough for a flood.
    fn sweep(&self, now: Moment) {
        let due = self.next_sweep.load(Relaxed);
        let next = (now + SWEEP).as_nanos();
        let mine = now.as_nanos() >= due
            && (self.next_sweep.compare_exchange(due, next, AcqRel, Relaxed)).is_ok();
        if mine {
            self.entries.pin().retain(|_, entry| entry.until > now);
        }
    }
}

impl Entry {
    fn refusal(&self, prices: &Prices, now: Moment) -> Option<Denial> {
        let passed = u64::try_from(now.since(self.seen).as_micros()).unwrap_or(u64::MAX);
        let pause = u64::try_from(self.not_before.since(now).as_micros()).unwrap_or(u64::MAX);
        let (mut binding, mut micros) = (0, 0);
        for (index, limit) in self.plan.as_slice().iter().enumerate() {
            if prices[index] > limit.quota.capacity() {
                // Impossible, which the store decides.
                return None;
            }
            let wait = projection::wait_for(&limit.quota, self.standings[index], prices[index]);
            let wait = if wait == 0 {
                0
            } else {
                wait.saturating_sub(passed).max(pause)
            };
            if wait > micros {
                (binding, micros) = (index, wait);
            }
        }
        (micros > 0).then(|| Denial {
            binding,
            micros,
            standings: self.standings_at(now),
        })
    }

    fn standings_at(&self, now: Moment) -> Standings {
        let passed = u64::try_from(now.since(self.seen).as_micros()).unwrap_or(u64::MAX);
        let mut standings = self.standings;
        for (limit, standing) in self.plan.as_slice().iter().zip(&mut standings) {
            *standing = projection::later(&limit.quota, *standing, passed);
        }
        standings
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::limit::{Quota, fleet::decision::NOTHING, store::Standing};

    fn plan(permits: u64) -> Plan {
        let quota = Quota::per(permits, Duration::from_secs(1)).unwrap();
        Plan::new().limit("a", quota).unwrap()
    }

    fn stands(remaining: u64, full_in: u64) -> Standings {
        let mut standings = [NOTHING; 8];
        standings[0] = Standing { remaining, full_in };
        standings
    }

    fn prices(price: u64) -> Prices {
        [price; 8]
    }

    fn at(micros: u64) -> Moment {
        Moment::from_nanos(micros * 1000)
    }

    /// Ten a second, three left: five have to wait for 200 ms, three do not.
    #[test]
    fn what_is_known_to_be_missing_is_refused_for_as_long_as_it_is_missing_and_no_longer() {
        let (memory, plan) = (DenialCache::new(10, Duration::from_secs(60)), plan(10));
        let wait = Duration::from_millis(200);
        memory.note("t", &plan, &stands(3, 700_000), wait, Duration::ZERO, at(0));
        let look = |price, now| memory.look("t", &plan, &prices(price), at(now));
        assert_eq!(look(5, 0).unwrap().micros, 200_000);
        assert_eq!(look(4, 0).unwrap().micros, 100_000);
        assert!(look(3, 0).is_none() && look(4, 100_000).is_none());
        assert_eq!(look(5, 199_999).unwrap().micros, 1);
        assert!(look(5, 200_000).is_none());
        // More than was asked is refused too, but only for as long as the wait that was told.
        assert_eq!(look(9, 100_000).unwrap().micros, 500_000);
        assert!(look(9, 200_000).is_none());
        assert_eq!(look(5, 150_000).unwrap().standings[0].remaining, 4);
        assert!(look(11, 0).is_none(), "for the store to say");
    }

    #[test]
    fn what_lacks_tokens_is_refused_for_a_pause_at_least() {
        let (memory, plan) = (DenialCache::new(10, Duration::from_secs(60)), plan(1_000));
        let pause = Duration::from_millis(10);
        memory.note("t", &plan, &stands(2, 998_000), pause, pause, at(0));
        let look = |price, now| memory.look("t", &plan, &prices(price), at(now));
        assert_eq!(look(3, 0).unwrap().micros, 10_000);
        assert_eq!(look(3, 9_000).unwrap().micros, 1_000);
        assert!(look(2, 0).is_none() && look(3, 10_000).is_none());
    }

    #[test]
    fn another_subject_another_plan_and_what_was_put_back_are_not_refused() {
        let memory = DenialCache::new(10, Duration::from_secs(60));
        let note = || {
            memory.note(
                "t",
                &plan(10),
                &stands(0, 1_000_000),
                Duration::from_millis(100),
                Duration::ZERO,
                at(0),
            )
        };
        note();
        assert!(memory.look("t", &plan(10), &prices(1), at(1)).is_some());
        assert!(memory.look("u", &plan(10), &prices(1), at(1)).is_none());
        assert!(memory.look("t", &plan(11), &prices(1), at(1)).is_none());
        memory.forget("t");
        assert!(memory.look("t", &plan(10), &prices(1), at(1)).is_none());
    }

    #[test]
    fn it_is_bounded_in_number_and_in_time() {
        let (memory, plan) = (DenialCache::new(10, Duration::from_secs(5)), plan(10));
        let day = Duration::from_secs(86_400);
        for subject in 0..100 {
            memory.note(
                &subject.to_string(),
                &plan,
                &stands(0, 1_000_000),
                day,
                Duration::ZERO,
                at(0),
            );
        }
        assert_eq!(memory.entries.len(), 10);
        let known = memory.entries.pin().keys().next().unwrap().clone();
        assert!(
            memory
                .look(&known, &plan, &prices(9), at(4_999_999))
                .is_none(),
            "gained by then"
        );
        assert!(
            memory
                .look(&known, &plan, &prices(9), at(800_000))
                .is_some()
        );
        memory.note(
            "new",
            &plan,
            &stands(0, 1_000_000),
            day,
            Duration::ZERO,
            at(5_000_000),
        );
        assert!(
            memory
                .look("new", &plan, &prices(9), at(5_000_001))
                .is_some()
        );
        assert_eq!(memory.entries.len(), 1);
    }
}
