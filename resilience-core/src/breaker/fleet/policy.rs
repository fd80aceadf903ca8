//! Proposals of an instance on a view of the fleet: pure.

use std::time::Duration;

use super::{
    local::LocalPhase,
    record::{BreakerView, Counts, FleetState},
};

/// When a fleet opens, how it probes, and how it recovers. Every instance of a breaker should have the same one; the
/// compare-and-set on the epoch keeps the peace where they differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Failure rate of the whole fleet that opens it, in parts per million; none: the rate does not trip.
    pub failure_ppm: Option<u64>,
    /// Rate of slow calls that opens it, in parts per million.
    pub slow_ppm: Option<u64>,
    /// Calls of the whole fleet below which no rate is trusted.
    pub minimum_calls: u64,
    /// Instances that must be failing, at least.
    pub min_instances: u64,
    /// Share of the live instances that must be failing, at least, in parts per million.
    pub quorum_ppm: u64,
    /// Probes of the whole fleet in half-open.
    pub probes: u32,
    /// Failure rate of the probes that opens it again, in parts per million.
    pub probe_failure_ppm: u64,
    /// How long half-open may last after a probe came back.
    pub max_half_open: Duration,
    /// Number of ramp-up stages after half-open; none: closed at once.
    pub stages: u8,
    /// How long a stage lasts.
    pub stage: Duration,
    /// Closed time after which a series of trips ends.
    pub stable_after: Duration,
}

/// A proposal: the state to enter, and why. How long an open state lasts is the caller's to add, by `trips`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The state to enter.
    pub to: FleetState,
    /// Trips in a row, this one included, if it is one.
    pub trips: u32,
    /// Why, in words.
    pub cause: String,
}

const MILLION: u64 = 1_000_000;

impl Policy {
    /// What to propose at this sight, if anything.
    #[must_use]
    pub fn decide(&self, view: &BreakerView) -> Option<Proposal> {
        match view.state {
            FleetState::Closed => self.failing(view).map(|cause| self.trip(view, cause)),
            // Time opens the door to half-open, with the first lease.
            FleetState::Open => None,
            FleetState::HalfOpen => self.judge_probes(view),
            FleetState::RampUp(stage) => self.judge_stage(view, stage),
        }
    }

    /// What to propose where the fleet has no evidence of its own yet, and this instance's own probes
    /// have passed: that it recovers, as if those had been the fleet's. Whether the record's open time
    /// is over does not matter: it was when the instance sent its probes.
    #[must_use]
    pub fn recover(&self, view: &BreakerView, local: LocalPhase) -> Option<Proposal> {
        let waits = matches!(view.state, FleetState::Open | FleetState::HalfOpen);
        (waits && local == LocalPhase::Recovered).then(|| Proposal {
            to: self.after_probes(),
            trips: view.trips,
            cause: "probes of one instance passed while it had no shared state".to_owned(),
        })
    }

    /// What to propose when the dependency itself has asked one instance to be left alone for `asked_ms` more: its
    /// own word needs no quorum. Nothing, if the fleet keeps away for as long already.
    #[must_use]
    pub fn cool_down(&self, view: &BreakerView, asked_ms: u64) -> Option<Proposal> {
        // Less is not worth a change: the answer that told the time left was under way for about as long.
        const SLACK_MS: u64 = 50;
        let cause = "the dependency asked to be left alone".to_owned();
        match view.state {
            FleetState::Open if view.remaining_ms + SLACK_MS >= asked_ms => None,
            // The same trip, for longer.
            FleetState::Open => Some(Proposal {
                to: FleetState::Open,
                trips: view.trips,
                cause,
            }),
            _ => Some(self.trip(view, cause)),
        }
    }

    /// How many instances must be failing for the fleet to open.
    #[must_use]
    pub fn quorum(&self, live: u64) -> u64 {
        let share = (live.saturating_mul(self.quorum_ppm)).div_ceil(MILLION);
        share.max(self.min_instances)
    }

    fn failing(&self, view: &BreakerView) -> Option<String> {
        let Counts { failure, slow, .. } = view.window;
        let total = view.window.total();
        let over =
            |part: u64, limit: Option<u64>| limit.is_some_and(|ppm| reaches(part, total, ppm));
        let kind = match () {
            () if total == 0 || total < self.minimum_calls => return None,
            () if view.failing < self.quorum(view.live) => return None,
            () if over(failure, self.failure_ppm) => "failed",
            () if over(slow, self.slow_ppm) => "were slow",
            () => return None,
        };
        let part = if kind == "failed" { failure } else { slow };
        Some(format!(
            "{part} of {total} calls of the fleet {kind}, on {} of {} instances",
            view.failing, view.live
        ))
    }

    fn trip(&self, view: &BreakerView, cause: String) -> Proposal {
        let stable = view.state == FleetState::Closed
            && u128::from(view.age_ms) >= self.stable_after.as_millis();
        let trips = if stable {
            1
        } else {
            view.trips.saturating_add(1)
        };
        Proposal {
            to: FleetState::Open,
            trips,
            cause,
        }
    }

    fn judge_probes(&self, view: &BreakerView) -> Option<Proposal> {
        let (
            budget,
            Counts {
                success, failure, ..
            },
        ) = (u64::from(self.probes), view.probes);
        let judged = success + failure;
        // With every probe still to come a success, or a failure.
        let lost = reaches(failure, budget, self.probe_failure_ppm);
        let safe = !reaches(budget - success.min(budget), budget, self.probe_failure_ppm);
        let late = u128::from(view.age_ms) >= self.max_half_open.as_millis() && judged > 0;
        let failed = lost || (late && !safe && reaches(failure, judged, self.probe_failure_ppm));
        let cause = || format!("{failure} of {judged} probes failed");
        match () {
            () if failed => Some(self.trip(view, cause())),
            () if safe || late || judged >= budget => Some(Proposal {
                to: self.after_probes(),
                trips: view.trips,
                cause: cause(),
            }),
            () => None,
        }
    }

    fn judge_stage(&self, view: &BreakerView, stage: u8) -> Option<Proposal> {
        if let Some(cause) = self.failing(view) {
            return Some(self.trip(view, cause));
        }
        let next = stage + 1;
        let to = if next < self.stages {
            FleetState::RampUp(next)
        } else {
            FleetState::Closed
        };
        let cause = format!("stage {next} of {} held", self.stages);
        (view.remaining_ms == 0).then_some(Proposal {
            to,
            trips: view.trips,
            cause,
        })
    }

    const fn after_probes(&self) -> FleetState {
        if self.stages > 0 {
            FleetState::RampUp(0)
        } else {
            FleetState::Closed
        }
    }
}

/// Whether `part` of `whole` is at least `ppm` millionths.
fn reaches(part: u64, whole: u64, ppm: u64) -> bool {
    u128::from(part) * u128::from(MILLION) >= u128::from(whole) * u128::from(ppm)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            failure_ppm: Some(500_000),
            slow_ppm: None,
            minimum_calls: 20,
            min_instances: 2,
            quorum_ppm: 100_000,
            probes: 4,
            probe_failure_ppm: 500_000,
            max_half_open: Duration::from_secs(30),
            stages: 0,
            stage: Duration::from_secs(5),
            stable_after: Duration::from_secs(60),
        }
    }

    fn closed(success: u64, failure: u64, failing: u64, live: u64) -> BreakerView {
        BreakerView {
            window: Counts {
                success,
                failure,
                slow: 0,
            },
            failing,
            live,
            ..BreakerView::default()
        }
    }

    #[test]
    fn a_lone_failing_instance_opens_nobody_else() {
        assert_eq!(policy().decide(&closed(0, 1_000_000, 1, 50)), None);
        assert_eq!(policy().decide(&closed(0, 1_000_000, 1, 1)), None);
    }

    #[test]
    fn a_quorum_with_the_rate_and_the_calls_opens_the_fleet() {
        let opened = policy().decide(&closed(10, 10, 5, 50)).expect("opens");
        assert_eq!((opened.to, opened.trips), (FleetState::Open, 1));
        assert_eq!(
            policy().decide(&closed(11, 9, 5, 50)),
            None,
            "below the rate"
        );
        assert_eq!(
            policy().decide(&closed(9, 10, 5, 50)),
            None,
            "below the minimum of calls"
        );
        assert_eq!(
            policy().decide(&closed(10, 10, 4, 50)),
            None,
            "below the quorum"
        );
    }

    #[test]
    fn the_dependencys_own_word_needs_no_quorum() {
        let cool_down = |view: &BreakerView, ms| {
            policy()
                .cool_down(view, ms)
                .map(|proposal| (proposal.to, proposal.trips))
        };
        assert_eq!(
            cool_down(&closed(1_000, 1, 1, 50), 30_000),
            Some((FleetState::Open, 1))
        );
        let open = BreakerView {
            state: FleetState::Open,
            remaining_ms: 10_000,
            trips: 2,
            ..BreakerView::default()
        };
        assert_eq!(cool_down(&open, 10_000), None, "it keeps away already");
        assert_eq!(cool_down(&open, 9_000), None);
        assert_eq!(
            cool_down(&open, 30_000),
            Some((FleetState::Open, 2)),
            "for longer, but it is the same trip"
        );
        let half_open = BreakerView {
            state: FleetState::HalfOpen,
            ..open
        };
        assert_eq!(cool_down(&half_open, 1_000), Some((FleetState::Open, 3)));
    }

    #[test]
    fn half_open_is_left_as_soon_as_the_rest_cannot_change_it() {
        let probed = |success, failure| BreakerView {
            state: FleetState::HalfOpen,
            trips: 2,
            probes: Counts {
                success,
                failure,
                slow: 0,
            },
            ..BreakerView::default()
        };
        let to = |view| {
            policy()
                .decide(&view)
                .map(|proposal| (proposal.to, proposal.trips))
        };
        assert_eq!(to(probed(0, 0)), None);
        assert_eq!(to(probed(2, 1)), None);
        assert_eq!(to(probed(3, 0)), Some((FleetState::Closed, 2)));
        assert_eq!(to(probed(0, 2)), Some((FleetState::Open, 3)));
    }

    #[test]
    fn half_open_does_not_wait_for_ever_once_a_probe_came_back() {
        let late = |success, failure| BreakerView {
            state: FleetState::HalfOpen,
            age_ms: 30_000,
            probes: Counts {
                success,
                failure,
                slow: 0,
            },
            ..BreakerView::default()
        };
        let to = |view| policy().decide(&view).map(|proposal| proposal.to);
        assert_eq!(to(late(0, 0)), None, "no calls: nothing to judge");
        assert_eq!(to(late(1, 0)), Some(FleetState::Closed));
        assert_eq!(to(late(0, 1)), Some(FleetState::Open));
    }

    #[test]
    fn ramp_up_goes_stage_by_stage_and_falls_back_on_failure() {
        let policy = Policy {
            stages: 2,
            ..policy()
        };
        let stage = |n, left| BreakerView {
            state: FleetState::RampUp(n),
            remaining_ms: left,
            ..BreakerView::default()
        };
        let to = |view| policy.decide(&view).map(|proposal| proposal.to);
        assert_eq!(to(stage(0, 10)), None);
        assert_eq!(to(stage(0, 0)), Some(FleetState::RampUp(1)));
        assert_eq!(to(stage(1, 0)), Some(FleetState::Closed));
        let failing = BreakerView {
            window: Counts {
                success: 0,
                failure: 20,
                slow: 0,
            },
            failing: 2,
            live: 3,
            ..stage(1, 10)
        };
        assert_eq!(to(failing), Some(FleetState::Open));
    }
}
