//! What an instance knows of its fleet, and the steps that follow: pure, time goes in as milliseconds.

use std::sync::Arc;

use super::{
    local::LocalPhase,
    policy::{Policy, Proposal},
    record::{BUCKETS, BreakerView, Change, Counts, FleetOverride, Report},
};
use crate::breaker::snapshot::State;

/// Ledger of one instance: the newest view that it has adopted, and the calls that it has reported.
///
/// The task that speaks for a breaker keeps one and does what it says; the model checker drives the same one through
/// every order of events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BreakerLedger {
    instance: Arc<str>,
    voter: Arc<str>,
    known: BreakerView,
    /// When it was seen.
    seen: u64,
    sequence: u64,
    pending: Option<Pending>,
    /// The breaker's totals when they were last put into a report.
    reported: Counts,
    /// The length of a bucket in the last report.
    bucket_ms: u64,
}

/// A report that may or may not have been merged: sent again as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    report: Report,
    /// From then on its counts are older than the fleet's window.
    stale: u64,
}

/// What a view from the store means to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ViewAge {
    /// A newer epoch: obey, then [`adopt`](BreakerLedger::adopt).
    Newer,
    /// The epoch that is known already.
    Same,
    /// The store knows less than this instance (it was flushed, or failed over to a server that had not heard): bring
    /// back [what was lost](BreakerLedger::lost). Or an old answer came late, and bringing it back will change nothing.
    Stale,
}

/// State of an instance by itself, for its report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LocalState {
    /// All calls that were judged since the breaker was built.
    pub totals: Counts,
    /// Whether this instance by itself finds the dependency failing.
    pub failing: bool,
    /// The length of one of the fleet's buckets.
    pub bucket_ms: u64,
    /// For how long the report shows that the instance lives.
    pub live_ms: u64,
    /// State of its own breaker, for operators.
    pub state: Option<State>,
}

impl BreakerLedger {
    /// The empty books of an instance that has just started, and the [name](Report::voter) that its vote is under.
    #[must_use]
    pub fn new(instance: Arc<str>, voter: Arc<str>) -> Self {
        Self {
            instance,
            voter,
            known: BreakerView::default(),
            seen: 0,
            sequence: 0,
            pending: None,
            reported: Counts::default(),
            bucket_ms: 0,
        }
    }

    /// The fleet as last adopted.
    #[must_use]
    pub const fn known(&self) -> &BreakerView {
        &self.known
    }

    /// What `view` means.
    #[must_use]
    pub fn view_age(&self, view: &BreakerView) -> ViewAge {
        match view.epoch.cmp(&self.known.epoch) {
            std::cmp::Ordering::Greater => ViewAge::Newer,
            std::cmp::Ordering::Equal => ViewAge::Same,
            std::cmp::Ordering::Less => ViewAge::Stale,
        }
    }

    /// Whether the instance's own breaker has to do what `view` says: at a new verdict, and where it has
    /// left a known one.
    #[must_use]
    pub fn must_obey(&self, view: &BreakerView, local: LocalPhase) -> bool {
        match self.view_age(view) {
            ViewAge::Stale => false,
            ViewAge::Same => local.has_left(view),
            ViewAge::Newer => !local.knows_better(&self.known, view),
        }
    }

    /// Takes `view` for what holds, unless it is older than what is known. At a new epoch, calls that were not
    /// reported by then never are: they are no evidence in the new one. `totals` are the breaker's after it has obeyed.
    pub fn adopt(&mut self, view: &BreakerView, totals: Counts, now: u64) {
        match self.view_age(view) {
            ViewAge::Stale => return,
            ViewAge::Same => {}
            ViewAge::Newer => {
                self.reported = totals;
                self.pending = None;
            }
        }
        self.known.clone_from(view);
        self.seen = now;
    }

    /// What to bring back to a store that is behind. `remaining_ms`: what the state has left by this instance's clock.
    #[must_use]
    pub fn lost(&self, remaining_ms: u64, now: u64) -> BreakerView {
        let passed = now.saturating_sub(self.seen);
        let in_force = |active_override: &FleetOverride| {
            active_override.expires_ms.is_none_or(|left| left > passed)
        };
        let mut lost = BreakerView {
            remaining_ms,
            age_ms: self.known.age_ms + passed,
            ..self.known.clone()
        };
        lost.active_override = lost
            .active_override
            .filter(in_force)
            .map(|active_override| FleetOverride {
                expires_ms: active_override.expires_ms.map(|left| left - passed),
                ..active_override
            });
        lost
    }

    /// The report to send: the one that may have been lost, or a new one.
    pub fn next_report(&mut self, standing: &LocalState, now: u64) -> Report {
        if let Some(pending) = &self.pending {
            if now < pending.stale && pending.report.epoch == self.known.epoch {
                return pending.report.clone();
            }
            self.pending = None;
        }
        let counts = standing.totals.since(self.reported);
        self.reported = standing.totals;
        self.bucket_ms = standing.bucket_ms;
        self.sequence += 1;
        Report {
            instance: Arc::clone(&self.instance),
            voter: Arc::clone(&self.voter),
            sequence: self.sequence,
            epoch: self.known.epoch,
            counts,
            failing: standing.failing,
            bucket_ms: standing.bucket_ms,
            live_ms: standing.live_ms,
            state: standing.state,
        }
    }

    /// Whether every call so far was reported, and the report answered. `totals` are the breaker's now.
    #[must_use]
    pub fn has_reported(&self, totals: Counts) -> bool {
        self.pending.is_none() && totals == self.reported
    }

    /// The report of an instance that leaves, with the calls that were not reported yet. `None`: it never reported. A
    /// report in doubt is given up. Without `standing` the breaker is gone, and its last calls with it.
    pub fn last_report(&mut self, standing: Option<&LocalState>) -> Option<Report> {
        if self.sequence == 0 {
            return None;
        }
        self.pending = None;
        let gone = LocalState {
            totals: self.reported,
            bucket_ms: self.bucket_ms,
            ..LocalState::default()
        };
        Some(self.next_report(standing.unwrap_or(&gone), 0))
    }

    /// The report was answered.
    pub fn reported(&mut self) {
        self.pending = None;
    }

    /// The report was not answered. If it may have been merged, it is kept for another try; if not, its calls are
    /// simply part of the next.
    pub fn not_reported(&mut self, report: Report, ambiguous: bool, now: u64) {
        if self.pending.is_some() {
            // It may have been merged the first time: only the same words again are safe.
        } else if ambiguous {
            let stale = now + report.bucket_ms * BUCKETS;
            self.pending = Some(Pending { report, stale });
        } else {
            self.reported = self.reported.since(report.counts);
        }
    }

    /// What to propose because the dependency itself asks to be left alone for `asked_ms` more: nothing, if it does
    /// not, or if the fleet keeps away for as long already.
    #[must_use]
    pub fn cool_down(
        &self,
        policy: &Policy,
        view: &BreakerView,
        asked_ms: u64,
        lasting_ms: impl FnOnce(&Proposal) -> u64,
    ) -> Option<Change> {
        if view.active_override.is_some() || asked_ms == 0 {
            return None;
        }
        let proposal = policy.cool_down(view, asked_ms)?;
        Some(self.change(view, proposal, lasting_ms))
    }

    /// What to propose at this sight, if anything. `local` is the state of the instance's own breaker;
    /// `lasting_ms` tells how long the proposed state is to last.
    #[must_use]
    pub fn propose(
        &self,
        policy: &Policy,
        view: &BreakerView,
        local: LocalPhase,
        lasting_ms: impl FnOnce(&Proposal) -> u64,
    ) -> Option<Change> {
        if view.active_override.is_some() {
            return None;
        }
        let proposal = policy
            .decide(view)
            .or_else(|| policy.recover(view, local))?;
        Some(self.change(view, proposal, lasting_ms))
    }

    fn change(
        &self,
        view: &BreakerView,
        proposal: Proposal,
        lasting_ms: impl FnOnce(&Proposal) -> u64,
    ) -> Change {
        Change {
            expected: view.epoch,
            to: proposal.to,
            lasting_ms: lasting_ms(&proposal),
            trips: proposal.trips,
            by: self.instance.to_string(),
            cause: proposal.cause,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::breaker::fleet::OverrideKind;

    fn ordered(expires_ms: Option<u64>) -> BreakerLedger {
        let mut ledger = BreakerLedger::new("a".into(), "a".into());
        let active_override = FleetOverride {
            kind: OverrideKind::ForceOpen,
            reason: "drill".into(),
            by: "ops".into(),
            expires_ms,
        };
        let view = BreakerView {
            epoch: 7,
            age_ms: 5,
            active_override: Some(active_override),
            ..BreakerView::default()
        };
        ledger.adopt(&view, Counts::default(), 1_000);
        ledger
    }

    fn left(ledger: &BreakerLedger, now: u64) -> Option<Option<u64>> {
        ledger
            .lost(0, now)
            .active_override
            .map(|active_override| active_override.expires_ms)
    }

    #[test]
    fn an_order_is_brought_back_for_the_time_that_it_has_left_and_not_once_it_is_over() {
        let ledger = ordered(Some(500));
        assert_eq!(left(&ledger, 1_200), Some(Some(300)));
        assert_eq!(left(&ledger, 1_500), None);
        assert_eq!(left(&ordered(None), 1_500), Some(None));
        assert_eq!(ledger.lost(0, 1_200).age_ms, 205);
    }

    #[test]
    fn calls_that_were_not_merged_are_part_of_the_next_report_and_others_are_sent_in_the_same_words()
     {
        let mut ledger = BreakerLedger::new("a".into(), "a".into());
        let made = |success| LocalState {
            totals: Counts {
                success,
                ..Counts::default()
            },
            bucket_ms: 10,
            ..LocalState::default()
        };
        let first = ledger.next_report(&made(3), 0);
        ledger.not_reported(first, false, 0);
        let second = ledger.next_report(&made(5), 0);
        assert_eq!(second.counts.success, 5, "not merged: counted again");
        ledger.not_reported(second.clone(), true, 0);
        assert_eq!(ledger.next_report(&made(9), 99), second, "the same words");
        ledger.reported();
        assert_eq!(ledger.next_report(&made(9), 99).counts.success, 4);
    }

    #[test]
    fn a_report_in_doubt_is_given_up_once_it_is_older_than_the_window_or_the_epoch() {
        let standing = LocalState {
            bucket_ms: 10,
            ..LocalState::default()
        };
        let mut ledger = BreakerLedger::new("a".into(), "a".into());
        let first = ledger.next_report(&standing, 0);
        ledger.not_reported(first.clone(), true, 0);
        assert_eq!(ledger.next_report(&standing, 99).sequence, first.sequence);
        assert!(ledger.next_report(&standing, 100).sequence > first.sequence);
        let third = ledger.next_report(&standing, 100);
        ledger.not_reported(third.clone(), true, 100);
        let news = BreakerView {
            epoch: 5,
            ..BreakerView::default()
        };
        ledger.adopt(&news, Counts::default(), 101);
        assert!(ledger.next_report(&standing, 102).sequence > third.sequence);
    }
}
