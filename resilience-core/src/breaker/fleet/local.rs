//! The state of one instance's own breaker beside the fleet's verdict: pure.

use super::record::{BreakerView, FleetState};

/// State of an instance's own breaker, as far as it matters beside the fleet's verdict.
///
/// An instance that cannot reach the store goes on by its local window, so its breaker may have moved
/// on by itself when the store is back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LocalPhase {
    /// Closed or ramping up, without probes of its own since the last verdict.
    #[default]
    Passing,
    /// Closed or ramping up since its own probes passed, after the last verdict.
    Recovered,
    /// Open or half-open by the fleet's verdict.
    Following,
    /// Open by its own window or its own probes.
    Open,
    /// Half-open with probes of its own.
    Probing,
    /// An override holds it.
    Overridden,
}

impl LocalPhase {
    /// Whether the breaker has to be brought back under a verdict that the instance has adopted before.
    ///
    /// Probes of its own are not cut short: their result is evidence, and ends this state.
    pub(super) fn has_left(self, view: &BreakerView) -> bool {
        if view.active_override.is_some() {
            return false;
        }
        match view.state {
            FleetState::Open | FleetState::HalfOpen => matches!(self, Self::Passing | Self::Open),
            FleetState::Closed | FleetState::RampUp(_) => self == Self::Following,
        }
    }

    /// Whether a new verdict is older evidence than the breaker's own probes: half-open says only that
    /// the open time is over, as long as it belongs to the trip that the instance has recovered from.
    pub(super) fn knows_better(self, known: &BreakerView, view: &BreakerView) -> bool {
        self == Self::Recovered
            && view.state == FleetState::HalfOpen
            && matches!(known.state, FleetState::Open | FleetState::HalfOpen)
            && known.trips == view.trips
            && known.active_override.is_none()
            && view.active_override.is_none()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const ALL: [LocalPhase; 6] = [
        LocalPhase::Passing,
        LocalPhase::Recovered,
        LocalPhase::Following,
        LocalPhase::Open,
        LocalPhase::Probing,
        LocalPhase::Overridden,
    ];

    fn left(state: FleetState) -> Vec<LocalPhase> {
        let view = BreakerView {
            state,
            ..BreakerView::default()
        };
        ALL.into_iter().filter(|one| one.has_left(&view)).collect()
    }

    #[test]
    fn a_breaker_that_left_the_verdict_without_evidence_is_brought_back() {
        for state in [FleetState::Open, FleetState::HalfOpen] {
            assert_eq!(left(state), [LocalPhase::Passing, LocalPhase::Open]);
        }
        for state in [FleetState::Closed, FleetState::RampUp(1)] {
            assert_eq!(left(state), [LocalPhase::Following]);
        }
    }

    #[test]
    fn own_probes_count_more_than_half_open_of_the_same_trip_and_less_than_a_later_trip() {
        let known = BreakerView {
            epoch: 1,
            state: FleetState::Open,
            trips: 1,
            ..BreakerView::default()
        };
        let news = |state, trips| BreakerView {
            epoch: 2,
            state,
            trips,
            ..BreakerView::default()
        };
        let better = |one: LocalPhase, view: &BreakerView| one.knows_better(&known, view);
        assert!(better(
            LocalPhase::Recovered,
            &news(FleetState::HalfOpen, 1)
        ));
        assert!(!better(
            LocalPhase::Recovered,
            &news(FleetState::HalfOpen, 2)
        ));
        assert!(!better(LocalPhase::Recovered, &news(FleetState::Open, 1)));
        assert!(!better(LocalPhase::Passing, &news(FleetState::HalfOpen, 1)));
    }
}
