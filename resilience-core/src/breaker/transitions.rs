//! What changes rarely, and the transitions that change it. All under the machine's lock.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, Release, SeqCst},
    },
    time::Duration,
};

use super::{
    counters::Count,
    events::{Cause, Counts},
    fleet::LocalPhase,
    half_open::ProbeRound,
    machine::{Machine, NEVER, moment},
    overrides::{ActiveOverride, Override, OverrideInfo, OverrideKind},
    packed_state::{PackedState, Phase},
    snapshot::{Probes, Stage, State, Totals},
    window::{Kind, Window},
};
use crate::{clock::Moment, error::Reason};

#[derive(Debug)]
pub(super) struct Control {
    pub(super) probe_round: ProbeRound,
    stage: usize,
    /// Trips in the present series.
    trips: u32,
    /// Since when the breaker has been closed, if it is.
    closed_at: Moment,
    active_override: Option<ActiveOverride>,
    /// Probes of its own have passed, and nothing has said otherwise since.
    recovered: bool,
    random: fastrand::Rng,
    news: VecDeque<Transition>,
    /// By state, how often it was entered.
    entered: [u64; State::ALL.len()],
    tripped: u64,
}

/// Where the fleet stands, for this machine to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Imposed {
    Closed,
    Open(Duration),
    HalfOpen,
    /// A stage of the ramp-up, and the time it has left.
    Stage(usize, Duration),
}

/// One change of state.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Transition {
    pub(super) generation: u64,
    pub(super) from: State,
    pub(super) to: State,
    pub(super) cause: Cause,
    pub(super) counts: Counts,
    pub(super) active_override: Option<OverrideInfo>,
    /// How long calls are now rejected, if it opened.
    pub(super) open_for: Option<Duration>,
    /// How long the dependency asked to be left alone, if that is heeded and made it open.
    pub(super) asked: Option<Duration>,
}

impl Control {
    pub(super) fn new(seed: Option<u64>, now: Moment) -> Self {
        Self {
            probe_round: ProbeRound::default(),
            stage: 0,
            trips: 0,
            closed_at: now,
            active_override: None,
            recovered: false,
            random: seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
            news: VecDeque::new(),
            entered: [0; State::ALL.len()],
            tripped: 0,
        }
    }
}

impl Machine {
    /// Applies an order; one that stands is replaced.
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

    /// Ends the order in force; false if there is none.
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

    /// Closed, with an empty window and a new series of trips. An order in force stays in force.
    pub(super) fn reset(&self, reason: Arc<str>, now: Moment) {
        self.advance(now);
        let mut control = self.lock();
        control.trips = 0;
        control.recovered = false;
        self.enter(&mut control, Phase::Closed, Cause::Reset { reason }, now);
    }

    /// Brings the machine to where the fleet stands.
    pub(super) fn impose(&self, verdict: Imposed, cause: Cause, now: Moment) {
        self.advance(now);
        let mut control = self.lock();
        control.recovered = false;
        match verdict {
            Imposed::Closed => self.enter(&mut control, Phase::Closed, cause, now),
            Imposed::Open(left) => {
                let until = (now + left).as_nanos();
                self.head.open_until.store(until, Release);
                self.enter(&mut control, Phase::FleetOpen, cause, now);
            }
            // It may have found out by its own clock.
            Imposed::HalfOpen if self.packed().phase() == Phase::FleetHalfOpen => {}
            Imposed::HalfOpen => self.enter(&mut control, Phase::FleetHalfOpen, cause, now),
            Imposed::Stage(stage, left) => {
                self.enter_stage(&mut control, stage, cause, now);
                // If the fleet says nothing more, this instance goes on by itself, later than the fleet would.
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

    /// The fleet's probes are out of reach: this instance sends its own.
    pub(super) fn probe_alone(&self, now: Moment) {
        self.advance(now);
        let mut control = self.lock();
        if self.packed().phase() == Phase::FleetHalfOpen {
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

    /// The oldest transition that nobody has taken yet.
    pub(super) fn next_transition(&self) -> Option<Transition> {
        let mut control = self.lock();
        let oldest = control.news.pop_front();
        self.head.news.store(!control.news.is_empty(), SeqCst);
        oldest
    }

    pub(super) fn has_news(&self) -> bool {
        self.head.news.load(Relaxed)
    }

    /// One step that is due by `now`, if there is one.
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
            self.enter(control, phase, Cause::OrderExpired, now);
            return true;
        }
        if !matches!(
            active_override,
            OverrideKind::None | OverrideKind::MetricsOnly
        ) {
            return false;
        }
        match phase {
            Phase::Open if past(moment(&self.head.open_until)) => {
                self.enter(control, Phase::HalfOpen, Cause::IntervalOver, now);
            }
            Phase::FleetOpen if past(moment(&self.head.open_until)) => {
                self.enter(control, Phase::FleetHalfOpen, Cause::IntervalOver, now);
            }
            Phase::HalfOpen if past(control.probe_round.ends(&self.rules.half_open)) => {
                if control.probe_round.last_verdict(&self.rules.half_open) {
                    self.pass_trial(control, now);
                } else {
                    self.trip(control, Cause::ProbesFailed, None, now);
                }
            }
            Phase::RampUp if past(moment(&self.head.stage_until)) => {
                let next = control.stage + 1;
                self.enter_stage(control, next, Cause::StagePassed, now);
            }
            _ => return false,
        }
        true
    }

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

    /// The probes came back well.
    pub(super) fn pass_trial(&self, control: &mut Control, now: Moment) {
        self.enter_stage(control, 0, Cause::ProbesPassed, now);
        control.recovered = true;
    }

    /// The ramp-up's stage of this number, or closed if it has no such stage.
    fn enter_stage(&self, control: &mut Control, stage: usize, cause: Cause, now: Moment) {
        let ramp_up = self.rules.ramp_up.as_ref();
        let found = ramp_up.and_then(|ramp_up| Some((*ramp_up.shares.get(stage)?, ramp_up.stage)));
        let Some((share, length)) = found else {
            return self.enter(control, Phase::Closed, cause, now);
        };
        control.stage = stage;
        self.head.share.store(share, Relaxed);
        self.head
            .stage_until
            .store((now + length).as_nanos(), Release);
        self.enter(control, Phase::RampUp, cause, now);
    }

    /// A new generation. The windows are brought there before the word is: no permit of the new generation can find
    /// them in the old one, and no result of the old one can land in the new.
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

    fn counts(&self, control: &Control, packed: PackedState, now: Moment) -> Counts {
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

/// A consistent look at the machine.
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

    /// By state, how often it was entered.
    pub(super) fn entered(&self) -> [u64; State::ALL.len()] {
        self.lock().entered
    }

    pub(super) fn totals(&self) -> Totals {
        let counters = |what| self.counters.get(what);
        let judged = |kind| {
            let elsewhere = match &self.window {
                Window::Time(window) => window.total(kind),
                Window::Count(_) => 0,
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
