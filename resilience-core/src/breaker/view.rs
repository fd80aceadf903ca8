//! Views of the machine: its state at one moment, and its totals.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use super::{
    counters::{Count, Counts},
    head::moment,
    machine::Machine,
    overrides::OverrideInfo,
    packed_state::PackedState,
    snapshot::{Probes, Stage, State, Totals},
    window::{Kind, Window},
};
use crate::{clock::Moment, error::Reason};

/// The machine at one moment.
#[derive(Clone, Debug)]
pub(super) struct MachineView {
    pub(super) packed: PackedState,
    pub(super) counts: Counts,
    pub(super) open_for: Option<Duration>,
    pub(super) trips: u32,
    pub(super) probes: Option<Probes>,
    pub(super) stage: Option<Stage>,
    pub(super) active_override: Option<OverrideInfo>,
}

impl Machine {
    pub(super) fn view(&self, now: Moment) -> MachineView {
        self.advance(now);
        let control = self.lock();
        let packed = self.packed();
        let state = State::of(packed);
        let until = match state {
            State::Open => moment(&self.head.open_until),
            State::ForcedOpen => moment(&self.head.override_until),
            _ => None,
        };
        MachineView {
            packed,
            counts: self.counts(&control, packed, now),
            open_for: until.map(|until| until.since(now)),
            trips: control.trips,
            probes: (state == State::HalfOpen).then(|| Probes {
                limit: self.rules.half_open.probes,
                out: control.probe_round.out,
                judged: control.probe_round.judged,
            }),
            stage: (state == State::RampingUp).then(|| Stage {
                index: control.stage,
                share: self.head.share.load(Relaxed) as f64 / (1u64 << 32) as f64,
                left: moment(&self.head.stage_until).map_or(Duration::ZERO, |end| end.since(now)),
            }),
            active_override: control
                .active_override
                .as_ref()
                .map(|standing| standing.info(now)),
        }
    }

    /// How often each state was entered.
    pub(super) fn entered(&self) -> [u64; State::ALL.len()] {
        self.lock().entered
    }

    pub(super) fn totals(&self) -> Totals {
        let counters = |what| self.counters.get(what);
        let judged = |kind| {
            let elsewhere = match (&self.window, kind) {
                (window, Kind::Success) => window.successes(),
                (Window::Time(window), _) => window.total(kind),
                (Window::Count(_), _) => 0,
            };
            counters(Count::Judged(kind)) + elsewhere
        };
        Totals {
            successes: judged(Kind::Success),
            failures: judged(Kind::Failure),
            slow_successes: judged(Kind::SlowSuccess),
            slow_failures: judged(Kind::SlowFailure),
            ignored: counters(Count::Ignored),
            stale: counters(Count::Stale),
            rejected_open: counters(Count::Rejected(Reason::Open)),
            rejected_no_probe: counters(Count::Rejected(Reason::NoProbeLeft)),
            rejected_ramping_up: counters(Count::Rejected(Reason::RampingUp)),
            rejected_forced_open: counters(Count::Rejected(Reason::ForcedOpen)),
            would_reject: counters(Count::WouldReject),
            trips: self.lock().tripped,
        }
    }

    /// Whether nothing but statistics would be lost with this breaker.
    pub(super) fn is_idle(&self) -> bool {
        self.packed().is_plainly_closed()
    }
}
