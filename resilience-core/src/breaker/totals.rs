//! The numbers that a breaker has counted, and what a family keeps of the numbers of breakers that
//! have left it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::snapshot::{State, Totals};
use crate::{
    error::Reason,
    telemetry::{
        BREAKER_CALLS, BREAKER_REJECTIONS, BREAKER_SHADOW_REJECTIONS, BREAKER_TRANSITIONS, Reading,
    },
};

/// The totals of one breaker, or the sum over several.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BreakerTotals {
    pub(super) calls: Totals,
    /// How often each state was entered.
    pub(super) entered: [u64; State::ALL.len()],
}

impl BreakerTotals {
    pub(super) fn add(&mut self, more: &Self) {
        self.combine(more, u64::wrapping_add);
    }

    /// Takes away what was added before.
    pub(super) fn subtract(&mut self, less: &Self) {
        self.combine(less, u64::wrapping_sub);
    }

    fn combine(&mut self, other: &Self, with: fn(u64, u64) -> u64) {
        self.calls.combine(&other.calls, with);
        for (mine, theirs) in self.entered.iter_mut().zip(other.entered) {
            *mine = with(*mine, theirs);
        }
    }

    pub(super) fn read(&self, out: &mut dyn FnMut(Reading)) {
        let totals = &self.calls;
        let calls = [
            ("success", totals.successes),
            ("failure", totals.failures),
            ("slow_success", totals.slow_successes),
            ("slow_failure", totals.slow_failures),
            ("ignored", totals.ignored),
            ("stale", totals.stale),
        ];
        let rejected = [
            (Reason::Open, totals.rejected_open),
            (Reason::NoProbeLeft, totals.rejected_no_probe),
            (Reason::RampingUp, totals.rejected_ramping_up),
            (Reason::ForcedOpen, totals.rejected_forced_open),
        ];
        let mut tell = |metric, attribute, value| {
            out(Reading {
                metric,
                attribute,
                value,
            });
        };
        for (outcome, value) in calls {
            tell(&BREAKER_CALLS, outcome, value);
        }
        for (reason, value) in rejected {
            tell(&BREAKER_REJECTIONS, reason.as_str(), value);
        }
        tell(&BREAKER_SHADOW_REJECTIONS, "", totals.would_reject);
        for state in State::ALL {
            let value = self.entered[state as usize];
            tell(&BREAKER_TRANSITIONS, state.as_str(), value);
        }
    }
}

/// The sum of what breakers that have left a family had counted.
#[derive(Debug, Default)]
pub(super) struct Departed(Mutex<BreakerTotals>);

impl Departed {
    /// While this is held no breaker leaves: each is counted either here or as a member.
    pub(super) fn lock(&self) -> MutexGuard<'_, BreakerTotals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where one breaker leaves its numbers when it leaves its family: what a metric has counted must
/// not go down.
#[derive(Debug)]
pub(super) struct Bequest {
    to: Arc<Departed>,
    /// What was left there when the breaker ceased to be a member.
    left: OnceLock<BreakerTotals>,
}

impl Bequest {
    pub(super) const fn new(to: Arc<Departed>) -> Self {
        Self {
            to,
            left: OnceLock::new(),
        }
    }

    /// Whether the numbers were left already, so that the breaker is no longer to be counted as a
    /// member.
    pub(super) fn is_left(&self) -> bool {
        self.left.get().is_some()
    }

    /// Leaves what was counted. Called when the breaker ceases to be a member, and again when the
    /// last call through it is over: the second time only the difference is added.
    pub(super) fn leave(&self, count: impl FnOnce() -> BreakerTotals) {
        let mut departed = self.to.lock();
        let before = self.left.get().copied().unwrap_or_default();
        let all = count();
        departed.add(&all);
        departed.subtract(&before);
        // The second time is the last: there is nothing to remember.
        let _ = self.left.set(all);
    }
}
