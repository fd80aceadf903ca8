//! What the answers of several sentinels add up to: pure.
//!
//! A failover needs the votes of a majority of the sentinels, and raises the configuration epoch. So the newest epoch names
//! the master, whichever sentinel says it: the leader of a failover knows it first. A master is confirmed by a majority that
//! answers, and by none of them saying otherwise; each answer counts for a lease. A process that is cut off from the majority
//! together with the former master finds the lease at its end, and leaves.
//!
//! This is no consensus: between the end of the connection to the majority and the end of the lease, a master that was
//! replaced may still be written to.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::url::Address;

/// What a sentinel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) master: Address,
    /// The configuration epoch; rises with every failover.
    pub(super) epoch: u64,
    /// Whether another server is about to be promoted in place of `master`.
    pub(super) failing_over: bool,
}

/// The last answers of the sentinels of a group.
#[derive(Debug)]
pub(super) struct Quorum {
    lease: Duration,
    /// When each was asked, and what it answered.
    views: Vec<Option<(Instant, View)>>,
    /// Why a sentinel did not answer, last of all.
    failure: String,
}

impl Quorum {
    pub(super) fn new(sentinels: usize, lease: Duration) -> Self {
        Self {
            lease,
            views: vec![None; sentinels],
            failure: "not asked yet".into(),
        }
    }

    /// Sentinel number `of`, asked at `at`, answered.
    pub(super) fn answered(&mut self, of: usize, at: Instant, view: View) {
        self.views[of] = Some((at, view));
    }

    /// A sentinel did not answer, or does not know the service. What it said before counts to the end of the lease.
    pub(super) fn failed(&mut self, why: String) {
        self.failure = why;
    }

    /// The master that may be written to at `now`, or why there is none.
    pub(super) fn master(&self, now: Instant) -> Result<&Address, String> {
        let views: Vec<&View> = self.counting(now).map(|(_, view)| view).collect();
        let all = self.views.len();
        if views.len() <= all / 2 {
            let why = &self.failure;
            return Err(format!(
                "{} of {all} sentinels answer, which is no majority: {why}",
                views.len()
            ));
        }
        let master = newest(&views).ok_or("no sentinels")?;
        let promoting = views
            .iter()
            .any(|view| view.failing_over && view.master == *master);
        if promoting {
            return Err("a failover is in progress".into());
        }
        Ok(master)
    }

    /// When the first of the answers that count at `now` ceases to.
    pub(super) fn changes_at(&self, now: Instant) -> Option<Instant> {
        self.counting(now).map(|(at, _)| at + self.lease).min()
    }

    fn counting(&self, now: Instant) -> impl Iterator<Item = (Instant, &View)> {
        let given = self.views.iter().flatten();
        given
            .filter(move |(at, _)| *at + self.lease > now)
            .map(|(at, view)| (*at, view))
    }
}

/// The master of the newest epoch; if sentinels spell it differently, as most of them do.
fn newest<'a>(views: &[&'a View]) -> Option<&'a Address> {
    let epoch = views.iter().map(|view| view.epoch).max()?;
    let mut votes = BTreeMap::new();
    for view in views.iter().filter(|view| view.epoch == epoch) {
        *votes.entry(&view.master).or_insert(0) += 1;
    }
    let most = votes.into_iter().max_by_key(|(_, votes)| *votes);
    most.map(|(master, _)| master)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);
    const SECOND: Duration = Duration::from_secs(1);

    fn view(master: &str, epoch: u64) -> View {
        View {
            master: (master.into(), 6379),
            epoch,
            failing_over: false,
        }
    }

    fn promoting(master: &str, epoch: u64) -> View {
        View {
            failing_over: true,
            ..view(master, epoch)
        }
    }

    /// Three sentinels that answered at `at`.
    fn quorum(at: Instant, views: [View; 3]) -> Quorum {
        let mut quorum = Quorum::new(3, LEASE);
        for (of, view) in views.into_iter().enumerate() {
            quorum.answered(of, at, view);
        }
        quorum
    }

    fn master(quorum: &Quorum, now: Instant) -> Result<&str, String> {
        quorum.master(now).map(|(host, _)| host.as_str())
    }

    #[test]
    fn a_master_is_used_for_a_lease_after_a_majority_named_it_and_no_longer() {
        let start = Instant::now();
        let mut quorum = Quorum::new(3, LEASE);
        assert!(master(&quorum, start).is_err());
        quorum.answered(0, start, view("one", 1));
        assert!(
            master(&quorum, start).is_err(),
            "one of three is no majority"
        );
        quorum.answered(2, start + SECOND, view("one", 1));
        quorum.failed("no answer".into());
        assert_eq!(quorum.changes_at(start + SECOND), Some(start + LEASE));
        assert_eq!(master(&quorum, start + LEASE - SECOND), Ok("one"));
        let doubt = master(&quorum, start + LEASE).expect_err("the first answer is too old");
        assert_eq!(
            doubt,
            "1 of 3 sentinels answer, which is no majority: no answer"
        );
        quorum.answered(0, start + LEASE, view("one", 1));
        assert_eq!(master(&quorum, start + LEASE), Ok("one"));
    }

    #[test]
    fn the_newest_epoch_names_the_master_whichever_sentinel_says_it_and_however_late_the_others_are()
     {
        let now = Instant::now();
        let news = quorum(now, [view("one", 1), view("one", 1), view("two", 2)]);
        assert_eq!(master(&news, now), Ok("two"));
        // A sentinel that was away names an earlier master.
        let stale = quorum(now, [view("two", 2), view("two", 2), view("one", 1)]);
        assert_eq!(master(&stale, now), Ok("two"));
    }

    #[test]
    fn nothing_is_written_between_the_start_of_a_failover_and_the_promotion() {
        let now = Instant::now();
        let begun = quorum(now, [view("one", 1), promoting("one", 1), view("one", 1)]);
        assert_eq!(master(&begun, now), Err("a failover is in progress".into()));
        // The leader names the new master before it reconfigures the other replicas.
        let promoted = quorum(now, [view("one", 1), view("two", 2), view("one", 1)]);
        assert_eq!(master(&promoted, now), Ok("two"));
        // What a late sentinel says of an earlier failover does not matter.
        let late = quorum(now, [view("two", 2), promoting("one", 1), view("two", 2)]);
        assert_eq!(master(&late, now), Ok("two"));
    }

    #[test]
    fn a_leader_that_falls_silent_does_not_stop_writes_beyond_the_lease() {
        let start = Instant::now();
        let mut quorum = quorum(start, [view("one", 1), promoting("one", 1), view("one", 1)]);
        for of in [0, 2] {
            quorum.answered(of, start + SECOND, view("one", 1));
        }
        assert!(master(&quorum, start + SECOND).is_err());
        assert_eq!(quorum.changes_at(start + SECOND), Some(start + LEASE));
        assert_eq!(master(&quorum, start + LEASE), Ok("one"));
    }

    #[test]
    fn sentinels_that_spell_the_master_differently_do_not_make_it_change() {
        let now = Instant::now();
        for views in [["a", "a", "b"], ["b", "a", "a"], ["a", "b", "a"]] {
            let quorum = quorum(now, views.map(|host| view(host, 7)));
            assert_eq!(master(&quorum, now), Ok("a"));
        }
        let pair = |views: [&str; 2]| {
            let mut quorum = Quorum::new(2, LEASE);
            for (of, host) in views.into_iter().enumerate() {
                quorum.answered(of, now, view(host, 7));
            }
            quorum.master(now).cloned()
        };
        assert_eq!(pair(["a", "b"]), pair(["b", "a"]));
    }

    #[test]
    fn the_only_sentinel_of_a_url_is_a_majority() {
        let now = Instant::now();
        let mut quorum = Quorum::new(1, LEASE);
        quorum.answered(0, now, view("one", 0));
        assert_eq!(master(&quorum, now), Ok("one"));
    }
}
