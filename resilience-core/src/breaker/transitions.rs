//! The transitions of the machine. All under its lock.

use std::{
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, Release, SeqCst},
    },
    time::Duration,
};

use super::{
    counters::Counts,
    events::Cause,
    fleet::{FleetState, LocalPhase},
    half_open::ProbeRound,
    head::{NEVER, moment},
    machine::Machine,
    overrides::{ActiveOverride, Override, OverrideKind},
    packed_state::{PackedState, Phase},
    snapshot::State,
    state::{Control, Transition},
};
use crate::clock::Moment;

impl Machine {
    /// Sets an override; one that is in force is replaced.
    pub(super) fn set_override(&self, active_override: Override, now: Moment) {
        self.advance(now);
        let mut control = self.lock();
        let standing = active_override.given_at(now);
        let until = standing.until.map_or(NEVER, Moment::as_nanos);
        self.head.override_until.store(until, Release);
        let phase = match standing.kind() {
            OverrideKind::ForceClosed => Phase::Closed,
            _ => self.packed().phase(),
        };
        control.recovered &= standing.kind() != OverrideKind::ForceClosed;
        control.active_override = Some(standing);
        self.enter(&mut control, phase, Cause::Overridden, now);
    }

    /// Clears the override in force; false if there is none.
    pub(super) fn clear_override(&self, reason: Arc<str>, now: Moment) -> bool {
        self.advance(now);
        let mut control = self.lock();
        let stood = control.active_override.take().is_some();
        if stood {
            let phase = self.packed().phase();
            self.enter(&mut control, phase, Cause::OverrideCleared { reason }, now);
        }
        stood
    }

    // any => Closed
    /// Closes, with an empty window and a new series of trips. An override in force stays in force.
    pub(super) fn reset(&self, reason: Arc<str>, now: Moment) {
        self.advance(now);
        let mut control = self.lock();
        control.trips = 0;
        control.recovered = false;
        self.enter(&mut control, Phase::Closed, Cause::Reset { reason }, now);
    }

    /// Follows the verdict of the fleet, which has `left` of its time.
    pub(super) fn impose(&self, verdict: FleetState, left: Duration, cause: Cause, now: Moment) {
        self.advance(now);
        let mut control = self.lock();
        control.recovered = false;
        match verdict {
            // any => Closed
            FleetState::Closed => self.enter(&mut control, Phase::Closed, cause, now),
            // any => FleetOpen
            FleetState::Open => {
                let until = (now + left).as_nanos();
                self.head.open_until.store(until, Release);
                self.enter(&mut control, Phase::FleetOpen, cause, now);
            }
            // It may be there by its own clock.
            FleetState::HalfOpen if self.packed().phase() == Phase::FleetHalfOpen => {}
            // any => FleetHalfOpen
            FleetState::HalfOpen => self.enter(&mut control, Phase::FleetHalfOpen, cause, now),
            // any => RampUp
            FleetState::RampUp(stage) => {
                self.enter_stage(&mut control, stage.into(), cause, now);
                // Without further verdicts this instance goes on by itself, later than the fleet would.
                let length = self
                    .rules
                    .ramp_up
                    .as_ref()
                    .map_or(left, |ramp_up| ramp_up.stage);
                let until = (now + left + length).as_nanos();
                self.head.stage_until.store(until, Release);
            }
        }
    }

    /// Sends probes of this instance's own: those of the fleet cannot be asked for.
    pub(super) fn probe_alone(&self, now: Moment) {
        self.advance(now);
        let mut control = self.lock();
        let packed = self.packed();
        // An override may let calls pass that are no probes.
        if packed.phase() == Phase::FleetHalfOpen && packed.override_kind() == OverrideKind::None {
            // FleetHalfOpen => HalfOpen
            self.enter(&mut control, Phase::HalfOpen, Cause::FleetLost, now);
        }
    }

    /// The state of this breaker beside the fleet's verdict.
    pub(super) fn local_state(&self, now: Moment) -> LocalPhase {
        self.advance(now);
        let control = self.lock();
        let packed = self.packed();
        match packed.phase() {
            _ if packed.override_kind() != OverrideKind::None => LocalPhase::Overridden,
            Phase::FleetOpen | Phase::FleetHalfOpen => LocalPhase::Following,
            Phase::Open => LocalPhase::Open,
            Phase::HalfOpen => LocalPhase::Probing,
            Phase::Closed | Phase::RampUp if control.recovered => LocalPhase::Recovered,
            Phase::Closed | Phase::RampUp => LocalPhase::Passing,
        }
    }

    /// The time that an open state or a stage has left.
    pub(super) fn time_left(&self, now: Moment) -> Duration {
        let until = match self.packed().phase() {
            Phase::Open | Phase::FleetOpen => moment(&self.head.open_until),
            Phase::RampUp => moment(&self.head.stage_until),
            _ => None,
        };
        until.map_or(Duration::ZERO, |until| until.since(now))
    }

    /// How long to stay open at the `trips`th trip of a series.
    pub(super) fn open_interval(&self, trips: u32) -> Duration {
        let chance = self.lock().random.f64();
        self.rules
            .open
            .interval(trips.saturating_sub(1), chance, None)
    }

    /// The oldest transition that was not announced yet.
    pub(super) fn next_transition(&self) -> Option<Transition> {
        let mut control = self.lock();
        let oldest = control.news.pop_front();
        self.head.news.store(!control.news.is_empty(), SeqCst);
        oldest
    }

    pub(super) fn has_news(&self) -> bool {
        self.head.news.load(Relaxed)
    }

    /// Takes one step that is due by `now`, if there is one.
    pub(super) fn take_due_step(&self, control: &mut Control, now: Moment) -> bool {
        let past = |until: Option<Moment>| until.is_some_and(|until| until <= now);
        let (active_override, phase) = (self.packed().override_kind(), self.packed().phase());
        if past(
            control
                .active_override
                .as_ref()
                .and_then(|standing| standing.until),
        ) {
            control.active_override = None;
            self.enter(control, phase, Cause::OverrideExpired, now);
            return true;
        }
        if !matches!(
            active_override,
            OverrideKind::None | OverrideKind::MetricsOnly
        ) {
            return false;
        }
        match phase {
            // Open => HalfOpen
            Phase::Open if past(moment(&self.head.open_until)) => {
                self.enter(control, Phase::HalfOpen, Cause::IntervalOver, now);
            }
            // FleetOpen => FleetHalfOpen
            Phase::FleetOpen if past(moment(&self.head.open_until)) => {
                self.enter(control, Phase::FleetHalfOpen, Cause::IntervalOver, now);
            }
            // HalfOpen => RampUp, Closed or Open
            Phase::HalfOpen if past(control.probe_round.ends(&self.rules.half_open)) => {
                if control.probe_round.last_verdict(&self.rules.half_open) {
                    self.pass_probes(control, now);
                } else {
                    self.trip(control, Cause::ProbesFailed, None, now);
                }
            }
            // RampUp => RampUp or Closed
            Phase::RampUp if past(moment(&self.head.stage_until)) => {
                let next = control.stage + 1;
                self.enter_stage(control, next, Cause::StagePassed, now);
            }
            _ => return false,
        }
        true
    }

    // Closed, HalfOpen or RampUp => Open
    /// Opens, for longer than the last time if this trip belongs to the same series.
    pub(super) fn trip(
        &self,
        control: &mut Control,
        cause: Cause,
        asked: Option<Duration>,
        now: Moment,
    ) {
        let open = &self.rules.open;
        if self.packed().phase() == Phase::Closed
            && now.since(control.closed_at) >= open.reset_after
        {
            control.trips = 0;
        }
        let interval = open.interval(control.trips, control.random.f64(), asked);
        control.trips = control.trips.saturating_add(1);
        control.tripped += 1;
        control.recovered = false;
        let until = (now + interval).as_nanos();
        self.head.open_until.store(until, Release);
        self.enter(control, Phase::Open, cause, now);
        if let Some(news) = control.news.back_mut() {
            news.asked = open.honoured(asked);
        }
    }

    // HalfOpen => RampUp or Closed
    /// Ends half-open after enough probes have succeeded.
    pub(super) fn pass_probes(&self, control: &mut Control, now: Moment) {
        self.enter_stage(control, 0, Cause::ProbesPassed, now);
        control.recovered = true;
    }

    /// Enters the stage of this number, or closes if the ramp-up has no such stage.
    fn enter_stage(&self, control: &mut Control, stage: usize, cause: Cause, now: Moment) {
        let ramp_up = self.rules.ramp_up.as_ref();
        let found = ramp_up.and_then(|ramp_up| Some((*ramp_up.shares.get(stage)?, ramp_up.stage)));
        let Some((share, length)) = found else {
            // HalfOpen or RampUp => Closed
            return self.enter(control, Phase::Closed, cause, now);
        };
        control.stage = stage;
        self.head.share.store(share, Relaxed);
        self.head
            .stage_until
            .store((now + length).as_nanos(), Release);
        self.enter(control, Phase::RampUp, cause, now);
    }

    /// Begins a new generation. The windows enter it before the packed state does: no permit of the new generation can
    /// find them in the old one, and no result of the old one can be counted in the new.
    fn enter(&self, control: &mut Control, phase: Phase, cause: Cause, now: Moment) {
        let old = self.packed();
        let kind = control
            .active_override
            .as_ref()
            .map_or(OverrideKind::None, ActiveOverride::kind);
        let new = PackedState::new(old.generation() + 1, kind, phase);
        let (from, to) = (State::of(old), State::of(new));
        let counts = self.counts(control, old, now);
        let open_for = (to == State::Open)
            .then(|| moment(&self.head.open_until))
            .flatten();
        control.news.push_back(Transition {
            generation: new.generation(),
            from,
            to,
            cause,
            counts,
            active_override: control
                .active_override
                .as_ref()
                .map(|standing| standing.info(now)),
            open_for: open_for.map(|until| until.since(now)),
            asked: None,
        });
        self.head.news.store(true, SeqCst);
        if from != to {
            control.entered[to as usize] += 1;
        }
        if phase == Phase::Closed && old.phase() != Phase::Closed {
            control.closed_at = now;
        }
        control.probe_round = ProbeRound::default();
        self.head.wait_until.store(NEVER, Release);
        self.head.awaiting_minimum.store(false, SeqCst);
        self.window.reset(new.generation(), now);
        if let Some(streak) = &self.streak {
            streak.reset(new.generation());
        }
        self.head.packed.store(new.bits(), Release);
    }

    pub(super) fn counts(&self, control: &Control, packed: PackedState, now: Moment) -> Counts {
        if packed.phase() == Phase::HalfOpen {
            return Counts {
                calls: control.probe_round.judged.into(),
                failures: control.probe_round.failed.into(),
                slow: control.probe_round.slow.into(),
                consecutive_failures: 0,
            };
        }
        let sums = self.sums(packed, now);
        let streak = self.streak.as_ref();
        Counts {
            calls: sums.calls,
            failures: sums.failures,
            slow: sums.slow,
            consecutive_failures: streak.map_or(0, |streak| streak.get(packed.generation())),
        }
    }
}
