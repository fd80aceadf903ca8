//! The judgement of a machine: whether the calls so far exceed a rule.

use std::{
    sync::atomic::Ordering::{Relaxed, SeqCst},
    time::Duration,
};

use super::{
    events::Cause,
    machine::{Effect, Machine},
    overrides::OverrideKind,
    packed_state::{PackedState, Phase},
    window::Sums,
};
use crate::{clock::Moment, sync::atomic::fence};

impl Machine {
    /// Trips if the calls so far exceed a rule.
    #[cold]
    pub(super) fn judge(
        &self,
        packed: PackedState,
        row: u32,
        asked: Option<Duration>,
        now: Moment,
    ) -> Effect {
        if packed.override_kind() == OverrideKind::ForceClosed {
            return Effect::Nothing;
        }
        let Some(cause) = self.fault(packed, row, now) else {
            return Effect::Nothing;
        };
        let mut control = self.lock();
        if self.packed() != packed {
            return Effect::Nothing;
        }
        self.trip(&mut control, cause, asked, now);
        Effect::Transition
    }

    fn fault(&self, packed: PackedState, row: u32, now: Moment) -> Option<Cause> {
        if self.rules.streak.is_some_and(|most| row >= most) {
            return Some(Cause::ConsecutiveFailures);
        }
        if self.rules.failure.is_none() && self.rules.slow.is_none() {
            return None;
        }
        // Of two threads that each count a call and then read the sums, one must see both.
        fence(SeqCst);
        let minimum = self.minimum(packed.phase());
        let look = || {
            let sums = self.window.sums(packed.generation(), now);
            (self.rules.exceeded(sums), sums.calls < minimum)
        };
        let (cause, early) = look();
        let awaiting = cause.is_some() && early;
        if self.head.awaiting_minimum.load(Relaxed) != awaiting {
            self.head.awaiting_minimum.store(awaiting, SeqCst);
            if awaiting {
                // A call that ended before it could see the flag must be seen here.
                fence(SeqCst);
                let (cause, early) = look();
                return cause.filter(|_| !early);
            }
        }
        cause.filter(|_| !early)
    }

    /// Whether the rates of the window are too high, whatever the number of calls.
    pub(super) fn finds_failing(&self, now: Moment) -> bool {
        self.rules.exceeded(self.sums(self.packed(), now)).is_some()
    }

    fn minimum(&self, phase: Phase) -> u64 {
        match (&self.rules.ramp_up, phase) {
            (Some(ramp_up), Phase::RampUp) => ramp_up.minimum,
            _ => self.rules.minimum,
        }
    }

    pub(super) fn sums(&self, packed: PackedState, now: Moment) -> Sums {
        self.window.sums(packed.generation(), now)
    }
}
