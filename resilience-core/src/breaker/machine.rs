//! The state machine: pure. Time and results go in, permits and transitions come out. No clock, no I/O, no await.
//!
//! One atomic word holds the state ([`PackedState`]). A call that finds it plainly closed has its permit with one load.
//! State that changes rarely (probes, stages, overrides, the series of trips) is behind a short lock, which is never held
//! while code of other modules runs. There are no timers: what is due is done when the machine is next asked
//! ([`Machine::advance`]).

use std::{
    sync::{
        PoisonError,
        atomic::Ordering::{Acquire, Relaxed, Release, SeqCst},
    },
    time::Duration,
};

use crossbeam_utils::CachePadded;

use super::{
    counters::{Count, Counters},
    events::Cause,
    head::{Head, NEVER},
    overrides::OverrideKind,
    packed_state::{AdmittedState, PackedState, Phase},
    refusal::Refusal,
    rules::{Rules, WindowRules},
    state::Control,
    window::{CountWindow, Kind, Noted, Streak, TimeWindow, Window},
};
use crate::{
    clock::Moment,
    sync::{Mutex, MutexGuard, atomic::AtomicU64},
};

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) head: CachePadded<Head>,
    pub(super) rules: Rules,
    pub(super) window: Window,
    pub(super) streak: Option<Streak>,
    pub(super) counters: Counters,
    control: Mutex<Control>,
}

/// The result of a call that counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) failed: bool,
    pub(super) slow: bool,
    /// The pause that the dependency asked for.
    pub(super) retry_after: Option<Duration>,
}

impl Outcome {
    const fn kind(self) -> Kind {
        Kind::new(self.failed, self.slow)
    }
}

/// The effect of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Effect {
    Nothing,
    /// A call that is waiting for a probe could have one.
    ProbeBack,
    /// One of the fleet's probes ended: the fleet judges it.
    FleetProbe,
    /// There is a transition to be taken from [`Machine::next_transition`].
    Transition,
}

impl Machine {
    pub(super) fn new(rules: Rules, seed: Option<u64>, now: Moment) -> Self {
        let window = match rules.window {
            WindowRules::Time(length) => {
                Window::Time(TimeWindow::new(length, rules.stripes, 0, now))
            }
            WindowRules::Count(calls) => Window::Count(Box::new(CountWindow::new(calls, 0))),
        };
        Self {
            head: CachePadded::new(Head::new()),
            window,
            streak: rules.streak.map(|_| Streak::new(0)),
            counters: Counters::new(rules.stripes),
            control: Mutex::new(Control::new(seed, now)),
            rules,
        }
    }

    /// Admits a call if the breaker is plainly closed.
    #[inline]
    pub(super) fn pass(&self) -> Option<AdmittedState> {
        let packed = self.packed();
        packed
            .is_plainly_closed()
            .then(|| AdmittedState::of(packed))
    }

    /// Decides on one call in any state. `dice` gives 32 random bits.
    pub(super) fn admit(
        &self,
        now: Moment,
        dice: impl Fn() -> u32,
    ) -> Result<AdmittedState, Refusal> {
        loop {
            let packed = self.advance(now);
            let decision = match (packed.override_kind(), packed.phase()) {
                (OverrideKind::Disabled, _) => return Ok(AdmittedState::UNJUDGED),
                (OverrideKind::ForceOpen, _) => Err(Refusal::forced_open(&self.head, now)),
                (OverrideKind::ForceClosed, _) | (_, Phase::Closed) => Ok(()),
                (_, Phase::Open | Phase::FleetOpen) => Err(Refusal::open(&self.head, now)),
                (_, Phase::FleetHalfOpen) => Err(Refusal::needs_lease(&self.rules.open)),
                (_, Phase::RampUp) if u64::from(dice()) < self.head.share.load(Relaxed) => Ok(()),
                (_, Phase::RampUp) => Err(Refusal::ramping_up(&self.head, now)),
                (_, Phase::HalfOpen) => match self.send_probe(packed, now) {
                    Some(decision) => decision,
                    None => continue,
                },
            };
            match decision {
                Ok(()) => return Ok(AdmittedState::of(packed)),
                // The moments in the refusal may belong to a later state.
                Err(_) if self.packed() != packed => {}
                Err(_) if packed.override_kind() == OverrideKind::MetricsOnly => {
                    self.counters.add(Count::WouldReject);
                    return Ok(AdmittedState::UNJUDGED);
                }
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// Whether a call made now would be refused, apart from the random choices of a ramp-up. Changes nothing.
    pub(super) fn check(&self, now: Moment) -> Result<(), Refusal> {
        loop {
            let packed = self.advance(now);
            let refusal = match (packed.override_kind(), packed.phase()) {
                (OverrideKind::ForceOpen, _) => Refusal::forced_open(&self.head, now),
                (OverrideKind::None, Phase::Open | Phase::FleetOpen) => {
                    Refusal::open(&self.head, now)
                }
                (OverrideKind::None, Phase::FleetHalfOpen) => {
                    Refusal::needs_lease(&self.rules.open)
                }
                (OverrideKind::None, Phase::HalfOpen) => {
                    let control = self.lock();
                    if control.probe_round.has_probe_left(&self.rules.half_open) {
                        return Ok(());
                    }
                    drop(control);
                    Refusal::no_probe_left(&self.head, &self.rules.open, now)
                }
                _ => return Ok(()),
            };
            if self.packed() == packed {
                return Err(refusal);
            }
        }
    }

    /// Takes a quick success, in the state in which nearly all end: closed, with nothing else to be done. `None`: not
    /// taken, and [`record`](Self::record) has to. `now` is called in a time window only.
    #[inline(always)]
    pub(super) fn record_success(
        &self,
        permit: AdmittedState,
        now: impl Fn() -> Moment,
    ) -> Option<Effect> {
        let packed = permit.packed();
        let generation = packed.generation();
        let plain = packed.is_plainly_closed() && self.packed() == packed;
        let in_row = |streak: &Streak| streak.get(generation) != 0;
        if !plain || self.streak.as_ref().is_some_and(in_row) {
            return None;
        }
        if !self.window.record_success(generation, &now) {
            return None;
        }
        if self.head.awaiting_minimum.load(SeqCst) {
            return Some(self.judge(packed, 0, None, now()));
        }
        Some(Effect::Nothing)
    }

    /// Takes the result of a call; `None` says nothing about the dependency. `now` is called at most once, and not
    /// at all for a plain success in a count window.
    #[inline(always)]
    pub(super) fn record(
        &self,
        permit: AdmittedState,
        outcome: Option<Outcome>,
        now: impl Fn() -> Moment,
    ) -> Effect {
        let packed = permit.packed();
        if self.packed() != packed {
            if permit.is_judged() {
                self.counters.add(Count::Stale);
            }
            return Effect::Nothing;
        }
        if packed.phase() == Phase::HalfOpen {
            return self.take_probe_back(packed, outcome, now());
        }
        if packed.phase() == Phase::FleetHalfOpen {
            let count = outcome.map_or(Count::Ignored, |outcome| Count::Judged(outcome.kind()));
            self.counters.add(count);
            return Effect::FleetProbe;
        }
        let Some(outcome) = outcome else {
            self.counters.add(Count::Ignored);
            return Effect::Nothing;
        };
        let mut read = None;
        let kind = outcome.kind();
        let noted = self
            .window
            .record(packed.generation(), kind, || *read.insert(now()));
        if noted == Noted::Stale {
            self.counters.add(Count::Stale);
            return Effect::Nothing;
        }
        if matches!(self.window, Window::Count(_)) && kind != Kind::Success {
            self.counters.add(Count::Judged(kind));
        }
        let streak = self.streak.as_ref();
        let row = streak.map_or(0, |streak| {
            streak.record(packed.generation(), outcome.failed)
        });
        // A quick success in a window that did not slide can only lower the rates.
        let look = kind != Kind::Success
            || noted == Noted::AfterSliding
            || self.head.awaiting_minimum.load(SeqCst);
        if !look {
            return Effect::Nothing;
        }
        self.judge(packed, row, outcome.retry_after, read.unwrap_or_else(now))
    }

    /// Takes all steps that are due by `now`: the end of an override, of the open interval, of the wait for probes, of a
    /// stage.
    pub(super) fn advance(&self, now: Moment) -> PackedState {
        loop {
            let packed = self.packed();
            if !self.looks_due(packed, now) {
                return packed;
            }
            let mut control = self.lock();
            if self.packed() == packed && !self.take_due_step(&mut control, now) {
                return packed;
            }
        }
    }

    #[inline]
    pub(super) fn packed(&self) -> PackedState {
        PackedState::from_bits(self.head.packed.load(Acquire))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looks_due(&self, packed: PackedState, now: Moment) -> bool {
        let head = &self.head;
        let past = |until: &AtomicU64| until.load(Acquire) <= now.as_nanos();
        if packed.override_kind() != OverrideKind::None && past(&head.override_until) {
            return true;
        }
        // The other overrides hold the machine as it is.
        let runs = matches!(
            packed.override_kind(),
            OverrideKind::None | OverrideKind::MetricsOnly
        );
        runs && match packed.phase() {
            Phase::Closed | Phase::FleetHalfOpen => false,
            Phase::Open | Phase::FleetOpen => past(&head.open_until),
            Phase::HalfOpen => past(&head.wait_until),
            Phase::RampUp => past(&head.stage_until),
        }
    }

    /// `None`: the state changed on the way.
    fn send_probe(&self, packed: PackedState, now: Moment) -> Option<Result<(), Refusal>> {
        let mut control = self.lock();
        if self.packed() != packed {
            return None;
        }
        let sent = control.probe_round.send(&self.rules.half_open, now);
        self.note_wait(&control);
        drop(control);
        Some(if sent {
            Ok(())
        } else {
            Err(Refusal::no_probe_left(&self.head, &self.rules.open, now))
        })
    }

    fn take_probe_back(
        &self,
        packed: PackedState,
        outcome: Option<Outcome>,
        now: Moment,
    ) -> Effect {
        let mut control = self.lock();
        // The time may be over without anyone having asked since: then this probe has failed.
        if self.packed() == packed && self.take_due_step(&mut control, now) {
            self.counters.add(Count::Stale);
            return Effect::Transition;
        }
        if self.packed() != packed {
            self.counters.add(Count::Stale);
            return Effect::Nothing;
        }
        let Some(outcome) = outcome else {
            control.probe_round.give_back();
            self.note_wait(&control);
            self.counters.add(Count::Ignored);
            return Effect::ProbeBack;
        };
        self.counters.add(Count::Judged(outcome.kind()));
        control.probe_round.judge(outcome.failed, outcome.slow);
        match control.probe_round.verdict(&self.rules.half_open) {
            Some(true) => self.pass_probes(&mut control, now),
            Some(false) => self.trip(&mut control, Cause::ProbesFailed, outcome.retry_after, now),
            None => return Effect::Nothing,
        }
        Effect::Transition
    }

    /// Admits a call with one of the fleet's probes; `None` if the fleet is no longer half-open.
    pub(super) fn admit_leased(&self, now: Moment) -> Option<AdmittedState> {
        let packed = self.advance(now);
        let probing =
            packed.override_kind() == OverrideKind::None && packed.phase() == Phase::FleetHalfOpen;
        probing.then(|| AdmittedState::of(packed))
    }

    /// Publishes the end of the wait for probes. Under the lock.
    fn note_wait(&self, control: &Control) {
        let ends = control.probe_round.ends(&self.rules.half_open);
        let ends = ends.map_or(NEVER, Moment::as_nanos);
        self.head.wait_until.store(ends, Release);
    }
}
