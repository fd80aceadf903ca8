//! What state a breaker was in, and when: written while the storm runs, and the figures that are made of several.

use std::sync::{Arc, Mutex, PoisonError};

use resilience_core::breaker::State;
use tokio::time::Instant;

/// Takes down the states of one breaker. Clones write the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Diary(Arc<Mutex<Timeline>>);

impl Diary {
    /// It is in `state` since `at`.
    pub(crate) fn note(&self, at: Instant, state: State) {
        let mut timeline = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        timeline.0.push((at, state));
    }

    /// What was written so far.
    pub(crate) fn read(&self) -> Timeline {
        let timeline = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        timeline.clone()
    }
}

/// The states of one breaker, oldest first. Before the first of them it was closed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline(Vec<(Instant, State)>);

impl Timeline {
    /// Whether it let calls through as usual at that moment: an open one does not, nor does one that is probing.
    pub(crate) fn is_closed(&self, at: Instant) -> bool {
        let entered = self.0.iter().rev().find(|(since, _)| *since <= at);
        entered.is_none_or(|(_, state)| *state == State::Closed)
    }
}

/// The first moment between `from` and `to` at which every breaker was closed, or every one was not.
pub(crate) fn all_at_once(
    breakers: &[Timeline],
    closed: bool,
    from: Instant,
    to: Instant,
) -> Option<Instant> {
    let changes = breakers
        .iter()
        .flat_map(|one| one.0.iter().map(|(at, _)| *at));
    let mut moments: Vec<_> = changes.filter(|at| (from..to).contains(at)).collect();
    moments.push(from);
    moments.sort_unstable();
    moments
        .into_iter()
        .find(|&at| breakers.iter().all(|one| one.is_closed(at) == closed))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn timeline(start: Instant, states: &[(u64, State)]) -> Timeline {
        Timeline(
            states
                .iter()
                .map(|&(ms, state)| (at(start, ms), state))
                .collect(),
        )
    }

    #[test]
    fn half_open_is_not_closed_and_nothing_noted_is() {
        let start = Instant::now();
        let one = timeline(
            start,
            &[
                (10, State::Open),
                (20, State::HalfOpen),
                (30, State::Closed),
            ],
        );
        let closed = [0, 10, 20, 29, 30, 99].map(|ms| one.is_closed(at(start, ms)));
        assert_eq!(closed, [true, false, false, false, true, true]);
    }

    #[test]
    fn all_are_open_when_the_last_one_is_and_no_other_has_closed_meanwhile() {
        let start = Instant::now();
        let first = [(10, State::Open), (20, State::Closed), (40, State::Open)];
        let breakers = [
            timeline(start, &first),
            timeline(start, &[(25, State::Open), (35, State::HalfOpen)]),
        ];
        let open = |from, to| all_at_once(&breakers, false, at(start, from), at(start, to));
        assert_eq!(open(0, 100), Some(at(start, 40)));
        assert_eq!(open(0, 40), None, "too late");
        assert_eq!(
            open(50, 100),
            Some(at(start, 50)),
            "they were when it began"
        );
    }

    #[test]
    fn all_are_closed_from_the_start_if_none_ever_opened() {
        let start = Instant::now();
        let breakers = [Timeline::default(), timeline(start, &[(10, State::Open)])];
        let closed = |from| all_at_once(&breakers, true, at(start, from), at(start, 90));
        assert_eq!((closed(5), closed(15)), (Some(at(start, 5)), None));
    }
}
