//! The state that all handles of one breaker share: the machine, the clock that drives it, and the receivers of its
//! transitions.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    builder::Config,
    counters::Count,
    events::{Cause, Hub},
    fleet::{self, FleetMember, FleetState, HeldProbes, Lease},
    machine::{Effect, Machine, Outcome},
    overrides::Override,
    packed_state::AdmittedState,
    refusal::Refusal,
    settings::Dropped,
    snapshot::State,
    totals::Bequest,
};
use crate::{
    clock::{Clock, Moment},
    error::{Pattern, Rejected},
    stripe::Striped,
    telemetry,
};

pub(super) struct Shared {
    pub(super) machine: Machine,
    clock: Clock,
    dropped: Dropped,
    slow_after: Option<Duration>,
    pub(super) name: Arc<str>,
    pub(super) hub: Arc<Hub>,
    /// Wakes callers that wait in a gate.
    pub(super) gate: Arc<Notify>,
    /// Held by the one thread that announces transitions, so that they are heard in order.
    pub(super) announcing: Mutex<()>,
    /// The random choices of a ramp-up, if they must be repeatable.
    lots: Option<Mutex<fastrand::Rng>>,
    pub(super) family: Option<InFamily>,
    member: Option<Arc<FleetMember>>,
    /// The fleet's probes that this instance holds.
    probes: HeldProbes,
}

/// The family of the breaker of a key.
pub(super) struct InFamily {
    pub(super) name: Arc<str>,
    pub(super) bequest: Bequest,
}

impl Shared {
    /// The shared part of a breaker, in stripes, with its background task if it has a store.
    pub(super) fn start(config: Config, hub: Arc<Hub>, family: Option<InFamily>) -> Striped<Self> {
        let name = match &family {
            Some(family) => format!("{}/{}", family.name, config.name).into(),
            None => Arc::clone(&config.name),
        };
        let fleet = config.fleet.clone();
        let (member, receiver) = fleet
            .map(|fleet| fleet::enter(fleet, &config.rules, name, config.clock))
            .unzip();
        let stripes = config.rules.stripes;
        let striped = Striped::with_stripes(Self::new(config, hub, family, member), stripes);
        if let Some(receiver) = receiver {
            fleet::spawn_agent(striped.shared(), receiver);
        }
        striped
    }

    fn new(
        config: Config,
        hub: Arc<Hub>,
        family: Option<InFamily>,
        member: Option<Arc<FleetMember>>,
    ) -> Self {
        Self {
            machine: Machine::new(config.rules, config.seed, config.clock.now()),
            clock: config.clock,
            dropped: config.dropped,
            slow_after: config.slow_after,
            name: config.name,
            hub,
            gate: Arc::new(Notify::new()),
            announcing: Mutex::new(()),
            lots: config.seed.map(fastrand::Rng::with_seed).map(Mutex::new),
            family,
            member,
            probes: HeldProbes::default(),
        }
    }

    pub(super) const fn member(&self) -> Option<&Arc<FleetMember>> {
        self.member.as_ref()
    }

    pub(super) const fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(super) fn impose(&self, verdict: FleetState, left: Duration, cause: Cause) {
        if verdict != FleetState::HalfOpen {
            self.probes.give_all_back();
        }
        self.machine.impose(verdict, left, cause, self.clock.now());
        self.announce();
    }

    /// The fleet's probes cannot be asked for.
    pub(super) fn probe_alone(&self) {
        self.machine.probe_alone(self.clock.now());
        self.announce();
    }

    /// Admits a call with one of the fleet's probes; if the fleet is no longer half-open, gives the probe back.
    pub(super) fn admit_leased(&self, lease: Lease) -> Option<AdmittedState> {
        let permit = self.machine.admit_leased(self.clock.now());
        self.announce();
        if permit.is_some() {
            self.probes.send(lease);
        }
        permit
    }

    pub(super) const fn probes(&self) -> &HeldProbes {
        &self.probes
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub(super) fn is_plainly_closed(&self) -> bool {
        self.machine.pass().is_some()
    }

    pub(super) const fn clock(&self) -> Clock {
        self.clock
    }

    pub(super) const fn dropped(&self) -> Dropped {
        self.dropped
    }

    pub(super) const fn slow_after(&self) -> Option<Duration> {
        self.slow_after
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(super) const fn gate(&self) -> &Arc<Notify> {
        &self.gate
    }

    /// Admits a call if the breaker is plainly closed.
    #[inline]
    pub(super) fn pass(&self) -> Option<AdmittedState> {
        self.machine.pass()
    }

    pub(super) fn admit(&self) -> Result<AdmittedState, Refusal> {
        match self.machine.pass() {
            Some(permit) => Ok(permit),
            None => self.admit_in_any_state(),
        }
    }

    #[cold]
    fn admit_in_any_state(&self) -> Result<AdmittedState, Refusal> {
        let decision = self.machine.admit(self.clock.now(), || self.draw());
        self.announce();
        decision
    }

    /// Whether a call made now would be refused, apart from the random choices of a ramp-up.
    #[inline]
    pub(super) fn check(&self) -> Result<(), Refusal> {
        if self.machine.pass().is_some() {
            return Ok(());
        }
        let now = self.clock.now();
        let answer = self.machine.check(now);
        self.announce();
        match (answer, &self.member) {
            (Err(refusal), Some(member)) if refusal.needs_lease => match member.may_ask(now) {
                Ok(()) => Ok(()),
                Err(again) => Err(Refusal {
                    until: Some(again),
                    ..refusal
                }),
            },
            (answer, _) => answer,
        }
    }

    /// As [`record`](Self::record), for a quick success.
    #[inline(always)]
    pub(super) fn record_success(&self, permit: AdmittedState, now: impl Fn() -> Moment) {
        match self.machine.record_success(permit, &now) {
            Some(Effect::Nothing) => {}
            effect => self.record_success_anyhow(permit, effect, now()),
        }
    }

    #[cold]
    #[inline(never)]
    fn record_success_anyhow(&self, permit: AdmittedState, effect: Option<Effect>, now: Moment) {
        let success = Some(Outcome::default());
        match effect {
            Some(effect) => self.conclude(effect, success),
            None => self.record(permit, success, || now),
        }
    }

    pub(super) fn record(
        &self,
        permit: AdmittedState,
        outcome: Option<Outcome>,
        now: impl Fn() -> Moment,
    ) {
        self.conclude(self.machine.record(permit, outcome, now), outcome);
    }

    fn conclude(&self, effect: Effect, outcome: Option<Outcome>) {
        match effect {
            Effect::Nothing => self.wake_agent(outcome),
            Effect::ProbeBack => self.gate.notify_waiters(),
            Effect::FleetProbe => {
                self.probes.settle(outcome.map(|outcome| !outcome.failed));
                self.propagate_cool_down(outcome.and_then(|outcome| outcome.retry_after));
            }
            Effect::Transition => {
                self.announce();
                self.wake_agent(outcome);
            }
        }
    }

    /// The whole fleet heeds a pause that the dependency asked for.
    pub(super) fn propagate_cool_down(&self, asked: Option<Duration>) {
        let honoured = self.machine.rules.open.honoured(asked);
        if let Some((member, time)) = self.member.as_ref().zip(honoured) {
            member.cool_down(self.clock.now() + time);
        }
    }

    /// Has a failure reported soon.
    #[inline]
    fn wake_agent(&self, outcome: Option<Outcome>) {
        if let (Some(member), Some(outcome)) = (&self.member, outcome)
            && (outcome.failed || outcome.slow)
        {
            member.wake();
        }
    }

    /// Counts a rejection and returns its error.
    #[cold]
    pub(super) fn reject(&self, refusal: Refusal) -> Rejected {
        let Refusal {
            reason,
            retry_after,
            ..
        } = refusal;
        self.machine.counters.add(Count::Rejected(reason));
        tracing::debug!(
            target: "resilience",
            pattern = Pattern::CircuitBreaker.as_str(),
            name = &*self.name,
            reason = reason.as_str(),
            ?retry_after,
            "rejected"
        );
        let rejected = Rejected::new(Pattern::CircuitBreaker, reason, Arc::clone(&self.name));
        match retry_after {
            Some(wait) => rejected.with_retry_after(wait),
            None => rejected,
        }
    }

    pub(super) fn state(&self) -> State {
        let packed = self.machine.advance(self.clock.now());
        self.announce();
        State::of(packed)
    }

    pub(super) fn set_override(&self, active_override: Override) {
        self.machine.set_override(active_override, self.clock.now());
        self.announce();
    }

    pub(super) fn clear_override(&self, reason: Arc<str>) -> bool {
        let stood = self.machine.clear_override(reason, self.clock.now());
        self.announce();
        stood
    }

    pub(super) fn reset(&self, reason: Arc<str>) {
        self.machine.reset(reason, self.clock.now());
        self.announce();
    }

    pub(super) fn is_idle(&self) -> bool {
        self.machine.is_idle()
    }

    fn draw(&self) -> u32 {
        match &self.lots {
            None => fastrand::u32(..),
            Some(lots) => lots.lock().unwrap_or_else(PoisonError::into_inner).u32(..),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.family.is_some() {
            self.leave_family();
        } else {
            telemetry::retire(self);
        }
        if let Some(member) = &self.member {
            member.close();
        }
    }
}
