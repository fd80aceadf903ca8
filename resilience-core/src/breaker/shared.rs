//! What all handles of one breaker share: the machine, the clock that drives it, and who hears of its transitions.

use std::{
    sync::{
        Arc, Mutex, PoisonError, TryLockError,
        atomic::{Ordering::SeqCst, fence},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    builder::Config,
    counters::Count,
    events::{Cause, Event, Hub},
    fleet::{self, FleetMember, HeldProbes, Lease},
    machine::{Effect, Machine, Outcome, Refusal},
    overrides::Override,
    packed_state::AdmittedState,
    settings::Dropped,
    snapshot::{BreakerSnapshot, State},
    totals::{Bequest, BreakerTotals},
    transitions::{Imposed, Transition},
};
use crate::{
    clock::{Clock, Moment},
    error::{Pattern, Rejected},
    stripe::Striped,
    telemetry::{self, BREAKER_ORDER, BREAKER_PROBES, BREAKER_STATE, FLEET_DEGRADED, Reading},
};

pub(super) struct Shared {
    machine: Machine,
    clock: Clock,
    dropped: Dropped,
    slow_after: Option<Duration>,
    name: Arc<str>,
    hub: Arc<Hub>,
    /// Who waits in a gate.
    gate: Arc<Notify>,
    /// Held by the one thread that announces transitions, so that they are heard in order.
    announcing: Mutex<()>,
    /// The lots of a ramp-up, where they must be repeatable.
    lots: Option<Mutex<fastrand::Rng>>,
    family: Option<InFamily>,
    member: Option<Arc<FleetMember>>,
    /// Those of the fleet's probes that this instance holds.
    probes: HeldProbes,
}

/// What the breaker of a key knows of its family.
pub(super) struct InFamily {
    pub(super) name: Arc<str>,
    pub(super) bequest: Bequest,
}

impl Shared {
    /// The shared part of a breaker, in stripes; if a fleet shares it, the task that speaks for it runs.
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

    pub(super) fn impose(&self, verdict: Imposed, cause: Cause) {
        if verdict != Imposed::HalfOpen {
            self.probes.give_all_back();
        }
        self.machine.impose(verdict, cause, self.clock.now());
        self.announce();
    }

    /// The fleet's probes are out of reach.
    pub(super) fn probe_alone(&self) {
        self.machine.probe_alone(self.clock.now());
        self.announce();
    }

    /// A call with one of the fleet's probes; if the fleet has moved on, the probe goes back.
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

    /// The permit of a call that finds the breaker plainly closed.
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

    /// Whether a call made now would be refused, lots aside.
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

    #[inline(always)]
    pub(super) fn record(
        &self,
        permit: AdmittedState,
        outcome: Option<Outcome>,
        now: impl Fn() -> Moment,
    ) {
        match self.machine.record(permit, outcome, now) {
            Effect::Nothing => self.hurry_on(outcome),
            Effect::ProbeBack => self.gate.notify_waiters(),
            Effect::FleetProbe => {
                self.probes.settle(outcome.map(|outcome| !outcome.failed));
                self.pass_on(outcome.and_then(|outcome| outcome.retry_after));
            }
            Effect::Transition => {
                self.announce();
                self.hurry_on(outcome);
            }
        }
    }

    /// The fleet keeps away as well from a dependency that asked for it.
    fn pass_on(&self, asked: Option<Duration>) {
        let honoured = self.machine.rules.open.honoured(asked);
        if let Some((member, time)) = self.member.as_ref().zip(honoured) {
            member.cool_down(self.clock.now() + time);
        }
    }

    /// The fleet hears of a failure soon.
    #[inline]
    fn hurry_on(&self, outcome: Option<Outcome>) {
        if let (Some(member), Some(outcome)) = (&self.member, outcome)
            && (outcome.failed || outcome.slow)
        {
            member.wake();
        }
    }

    /// Counts a rejection and makes the error of it.
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

    pub(super) fn snapshot(&self) -> BreakerSnapshot {
        let view = self.machine.view(self.clock.now());
        self.announce();
        BreakerSnapshot {
            name: Arc::clone(&self.name),
            state: State::of(view.packed),
            generation: view.packed.generation(),
            counts: view.counts,
            open_for: view.open_for,
            trips: view.trips,
            probes: view.probes,
            stage: view.stage,
            active_override: view.active_override,
            totals: self.machine.totals(),
        }
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

    pub(super) fn counted(&self) -> BreakerTotals {
        BreakerTotals {
            calls: self.machine.totals(),
            entered: self.machine.entered(),
        }
    }

    /// Leaves the family what was counted here, if this is the breaker of a key.
    pub(super) fn leave_family(&self) {
        if let Some(family) = &self.family {
            family.bequest.leave(|| self.counted());
        }
    }

    /// Whether the family counts this breaker among those that have left.
    pub(super) fn has_left_family(&self) -> bool {
        let family = self.family.as_ref();
        family.is_some_and(|family| family.bequest.is_left())
    }

    /// One while a shared breaker has no store, zero while it has; a breaker that is not shared has no such value.
    pub(super) fn read_degraded(&self, out: &mut dyn FnMut(Reading)) {
        if let Some(member) = &self.member {
            out(Reading {
                metric: &FLEET_DEGRADED,
                attribute: Pattern::CircuitBreaker.as_str(),
                value: u64::from(member.is_degraded()),
            });
        }
    }

    fn draw(&self) -> u32 {
        match &self.lots {
            None => fastrand::u32(..),
            Some(lots) => lots.lock().unwrap_or_else(PoisonError::into_inner).u32(..),
        }
    }

    /// Tells everybody of the transitions that are to be told, oldest first. Whoever finds another thread at it (or
    /// itself, called from a subscriber) leaves it the rest: that thread looks again before it is done.
    pub(super) fn announce(&self) {
        while self.machine.has_news() {
            // Between "there is news" and "somebody is at it", here and there: one of the two sees the other.
            fence(SeqCst);
            let telling = match self.announcing.try_lock() {
                Ok(telling) => telling,
                // A subscriber that panicked must not silence the breaker.
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            while let Some(transition) = self.machine.next_transition() {
                self.tell(transition);
            }
            drop(telling);
            fence(SeqCst);
        }
    }

    fn tell(&self, transition: Transition) {
        self.gate.notify_waiters();
        self.trace(&transition);
        self.pass_on(transition.asked);
        self.hub.send(|| Event {
            name: Arc::clone(&self.name),
            generation: transition.generation,
            from: transition.from,
            to: transition.to,
            cause: transition.cause,
            counts: transition.counts,
            active_override: transition.active_override,
        });
    }

    fn trace(&self, transition: &Transition) {
        let Transition {
            generation,
            from,
            to,
            cause,
            counts,
            active_override,
            open_for,
            asked: _,
        } = transition;
        let active_override = active_override.as_ref();
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    target: "resilience",
                    pattern = Pattern::CircuitBreaker.as_str(),
                    name = &*self.name,
                    family = self.family.as_ref().map(|family| &*family.name),
                    generation,
                    from = from.as_str(),
                    to = to.as_str(),
                    reason = cause.as_str(),
                    calls = counts.calls,
                    failures = counts.failures,
                    slow = counts.slow,
                    open_for = open_for.map(tracing::field::debug),
                    active_override = active_override.map(|active_override| active_override.kind),
                    order_reason = active_override.map(|active_override| &*active_override.reason),
                    order_by = active_override.and_then(|active_override| active_override.by.as_deref()),
                    "state changed"
                )
            };
        }
        match to {
            State::Open | State::ForcedOpen => event!(warn),
            _ => event!(info),
        }
    }
}

impl telemetry::Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::CircuitBreaker
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        let mut levels = Levels::default();
        levels.add(&self.snapshot());
        levels.read(out);
        self.read_degraded(out);
        self.counted().read(out);
    }

    fn read_last(&self, out: &mut dyn FnMut(Reading)) {
        self.counted().read(out);
    }
}

/// Breakers by state and by order, and their probes in progress.
#[derive(Default)]
pub(super) struct Levels {
    states: [u64; State::ALL.len()],
    orders: [u64; ORDERS.len()],
    probes: u64,
}

const ORDERS: [&str; 4] = ["force_open", "force_closed", "disable", "metrics_only"];

impl Levels {
    pub(super) fn add(&mut self, breaker: &BreakerSnapshot) {
        self.states[breaker.state as usize] += 1;
        let active_override = breaker
            .active_override
            .as_ref()
            .map(|active_override| active_override.kind);
        if let Some(active_override) = ORDERS
            .iter()
            .position(|kind| Some(*kind) == active_override)
        {
            self.orders[active_override] += 1;
        }
        self.probes += breaker.probes.map_or(0, |probes| probes.out.into());
    }

    pub(super) fn read(&self, out: &mut dyn FnMut(Reading)) {
        let states = State::ALL.iter().map(|state| state.as_str());
        let states = states.zip(self.states);
        let states = states.map(|(state, count)| (&BREAKER_STATE, state, count));
        let orders = ORDERS.iter().zip(self.orders);
        let orders =
            orders.map(|(active_override, count)| (&BREAKER_ORDER, *active_override, count));
        let probes = [(&BREAKER_PROBES, "", self.probes)];
        for (metric, attribute, value) in states.chain(orders).chain(probes) {
            out(Reading {
                metric,
                attribute,
                value,
            });
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
