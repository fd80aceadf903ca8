//! The machine against a model that is slow, plain and obviously right: it keeps every call for ever, adds up from
//! scratch, and judges after every single call.

use std::time::Duration;

use proptest::prelude::*;

use crate::{
    Moment, Reason,
    breaker::{
        CircuitBreaker, HalfOpen, OpenFor, Order, RampUp, State, Window,
        config::{Builder, Config},
        machine::{Machine, Outcome},
        window::Window as Record,
        word::Permit,
    },
};

const START: u64 = 1 << 42;

/// A share as a fraction of whole numbers.
type Share = (u64, u64);

#[derive(Clone, Copy, Debug)]
enum Length {
    Millis(u64),
    Calls(usize),
}

#[derive(Clone, Debug)]
struct Setup {
    length: Length,
    minimum: u64,
    failure: Option<Share>,
    slow: Option<Share>,
    streak: Option<u32>,
    open: (u64, u64),
    reset_after: u64,
    honour: Option<u64>,
    probes: u32,
    probe_rate: Share,
    max_wait: Option<u64>,
    stages: Vec<Share>,
    stage: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Wait(u64),
    Admit {
        dice: u32,
    },
    /// Ends one of the calls that are out.
    End {
        which: usize,
        how: How,
    },
    /// Admits a call and ends it at once: what most calls do.
    Call {
        dice: u32,
        how: How,
    },
    Order {
        kind: u8,
        expires: Option<u64>,
    },
    Clear,
    Reset,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Ignored,
    Counts {
        failed: bool,
        slow: bool,
        asked: Option<u64>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ForceOpen,
    ForceClosed,
    Disabled,
    MetricsOnly,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Closed,
    Open { until: u64 },
    HalfOpen,
    RampUp { stage: usize, until: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Done {
    generation: u64,
    tick: u64,
    failed: bool,
    slow: bool,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    generation: u64,
    sent: u64,
    judged: Option<(bool, bool)>,
}

struct Model<'a> {
    setup: &'a Setup,
    /// Which bucket a moment lies in: the one thing taken from the real window.
    tick: &'a dyn Fn(u64) -> u64,
    now: u64,
    phase: Phase,
    generation: u64,
    order: Option<(Kind, Option<u64>)>,
    calls: Vec<Done>,
    probes: Vec<Probe>,
    trips: u32,
    closed_at: u64,
}

/// What the model remembers of a call that is out.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    generation: u64,
    judged: bool,
    probe: bool,
}

impl Model<'_> {
    fn advance(&mut self) {
        while self.step() {}
    }

    fn step(&mut self) -> bool {
        if let Some((_, Some(until))) = self.order
            && until <= self.now
        {
            self.order = None;
            self.enter(self.phase);
            return true;
        }
        if !matches!(self.order, None | Some((Kind::MetricsOnly, _))) {
            return false;
        }
        match self.phase {
            Phase::Open { until } if until <= self.now => self.enter(Phase::HalfOpen),
            Phase::HalfOpen if self.wait_ends().is_some_and(|end| end <= self.now) => {
                let all = self.live_probes();
                let failed = all
                    .iter()
                    .filter(|p| p.judged.is_none_or(|(failed, _)| failed))
                    .count();
                let slow = all
                    .iter()
                    .filter(|p| p.judged.is_none_or(|(_, slow)| slow))
                    .count();
                if self.bad_probes(failed, slow, all.len()) {
                    self.trip(None);
                } else {
                    self.enter_stage(0);
                }
            }
            Phase::RampUp { stage, until } if until <= self.now => self.enter_stage(stage + 1),
            _ => return false,
        }
        true
    }

    fn live_probes(&self) -> Vec<Probe> {
        self.probes
            .iter()
            .filter(|p| p.generation == self.generation)
            .copied()
            .collect()
    }

    fn wait_ends(&self) -> Option<u64> {
        let first = self.live_probes().iter().map(|p| p.sent).min()?;
        Some(first + self.setup.max_wait?)
    }

    fn bad_probes(&self, failed: usize, slow: usize, of: usize) -> bool {
        at_least(self.setup.probe_rate, failed, of)
            || self.setup.slow.is_some_and(|rate| at_least(rate, slow, of))
    }

    fn enter(&mut self, phase: Phase) {
        if phase == Phase::Closed && self.phase != Phase::Closed {
            self.closed_at = self.now;
        }
        self.phase = phase;
        self.generation += 1;
    }

    fn enter_stage(&mut self, stage: usize) {
        if stage < self.setup.stages.len() {
            let until = self.now + self.setup.stage;
            self.enter(Phase::RampUp { stage, until });
        } else {
            self.enter(Phase::Closed);
        }
    }

    fn trip(&mut self, asked: Option<u64>) {
        if self.phase == Phase::Closed && self.now - self.closed_at >= self.setup.reset_after {
            self.trips = 0;
        }
        let (first, cap) = self.setup.open;
        let mut interval = first;
        for _ in 0..self.trips {
            interval = (interval * 2).min(cap);
        }
        if let (Some(max), Some(asked)) = (self.setup.honour, asked) {
            interval = interval.max(asked.min(max));
        }
        self.trips += 1;
        self.enter(Phase::Open {
            until: self.now + interval,
        });
    }

    fn admit(&mut self, dice: u32) -> Result<Ticket, Reason> {
        self.advance();
        let ticket = |judged, probe| Ticket {
            generation: self.generation,
            judged,
            probe,
        };
        let decision = match (self.order.map(|(kind, _)| kind), self.phase) {
            (Some(Kind::ForceOpen), _) => return Err(Reason::ForcedOpen),
            (Some(Kind::Disabled), _) => return Ok(ticket(false, false)),
            (Some(Kind::ForceClosed), _) | (_, Phase::Closed) => Ok(ticket(true, false)),
            (_, Phase::Open { .. }) => Err(Reason::Open),
            (_, Phase::RampUp { stage, .. }) => {
                let (part, whole) = self.setup.stages[stage];
                let admitted = u128::from(dice) * u128::from(whole) < u128::from(part) << 32;
                if admitted {
                    Ok(ticket(true, false))
                } else {
                    Err(Reason::RampingUp)
                }
            }
            (_, Phase::HalfOpen) => {
                let free = self.live_probes().len() < self.setup.probes as usize;
                if free {
                    Ok(ticket(true, true))
                } else {
                    Err(Reason::NoProbeLeft)
                }
            }
        };
        match decision {
            Ok(ticket) => {
                if ticket.probe {
                    let (generation, sent) = (self.generation, self.now);
                    self.probes.push(Probe {
                        generation,
                        sent,
                        judged: None,
                    });
                }
                Ok(ticket)
            }
            Err(_) if matches!(self.order, Some((Kind::MetricsOnly, _))) => {
                Ok(ticket(false, false))
            }
            refused => refused,
        }
    }

    fn end(&mut self, ticket: Ticket, how: How) {
        if !ticket.judged || ticket.generation != self.generation {
            return;
        }
        if ticket.probe {
            // The wait for probes may be over, and nobody have looked.
            self.advance();
            if ticket.generation == self.generation {
                self.end_probe(how);
            }
            return;
        }
        let How::Counts {
            failed,
            slow,
            asked,
        } = how
        else {
            return;
        };
        let tick = (self.tick)(self.now);
        self.calls.push(Done {
            generation: self.generation,
            tick,
            failed,
            slow,
        });
        if self
            .order
            .is_some_and(|(kind, _)| kind == Kind::ForceClosed)
        {
            return;
        }
        if self.must_trip() {
            self.trip(asked);
        }
    }

    fn end_probe(&mut self, how: How) {
        let generation = self.generation;
        let mine = |p: &Probe| p.generation == generation && p.judged.is_none();
        let at = self
            .probes
            .iter()
            .position(mine)
            .expect("a probe that is out");
        let How::Counts {
            failed,
            slow,
            asked,
        } = how
        else {
            self.probes.remove(at);
            return;
        };
        self.probes[at].judged = Some((failed, slow));
        let judged: Vec<_> = self.live_probes().iter().filter_map(|p| p.judged).collect();
        let unknown = self.setup.probes as usize - judged.len();
        let failed = judged.iter().filter(|(failed, _)| *failed).count();
        let slow = judged.iter().filter(|(_, slow)| *slow).count();
        let all = self.setup.probes as usize;
        if self.bad_probes(failed, slow, all) {
            self.trip(asked);
        } else if !self.bad_probes(failed + unknown, slow + unknown, all) {
            self.enter_stage(0);
        }
    }

    fn window(&self) -> Vec<Done> {
        let tick = (self.tick)(self.now);
        let mine = self
            .calls
            .iter()
            .filter(|call| call.generation == self.generation);
        match self.setup.length {
            Length::Millis(_) => mine.filter(|call| call.tick + 10 > tick).copied().collect(),
            Length::Calls(n) => {
                let all: Vec<_> = mine.copied().collect();
                all[all.len().saturating_sub(n)..].to_vec()
            }
        }
    }

    fn counts(&self) -> (usize, usize, usize) {
        if self.phase == Phase::HalfOpen {
            let judged: Vec<_> = self.live_probes().iter().filter_map(|p| p.judged).collect();
            let failed = judged.iter().filter(|(failed, _)| *failed).count();
            return (
                judged.len(),
                failed,
                judged.iter().filter(|(_, slow)| *slow).count(),
            );
        }
        let window = self.window();
        let failed = window.iter().filter(|call| call.failed).count();
        (
            window.len(),
            failed,
            window.iter().filter(|call| call.slow).count(),
        )
    }

    fn must_trip(&self) -> bool {
        let mine = self
            .calls
            .iter()
            .rev()
            .take_while(|call| call.generation == self.generation);
        let row = mine.take_while(|call| call.failed).count();
        if self.setup.streak.is_some_and(|most| row >= most as usize) {
            return true;
        }
        let (calls, failed, slow) = self.counts();
        calls as u64 >= self.setup.minimum
            && (self
                .setup
                .failure
                .is_some_and(|rate| at_least(rate, failed, calls))
                || self
                    .setup
                    .slow
                    .is_some_and(|rate| at_least(rate, slow, calls)))
    }

    fn state(&self) -> State {
        match (self.order.map(|(kind, _)| kind), self.phase) {
            (Some(Kind::ForceOpen), _) => State::ForcedOpen,
            (Some(Kind::ForceClosed), _) => State::ForcedClosed,
            (Some(Kind::Disabled), _) => State::Disabled,
            (_, Phase::Closed) => State::Closed,
            (_, Phase::Open { .. }) => State::Open,
            (_, Phase::HalfOpen) => State::HalfOpen,
            (_, Phase::RampUp { .. }) => State::RampingUp,
        }
    }

    fn order(&mut self, kind: Kind, expires: Option<u64>) {
        self.advance();
        self.order = Some((kind, expires.map(|time| self.now + time)));
        let phase = if kind == Kind::ForceClosed {
            Phase::Closed
        } else {
            self.phase
        };
        self.enter(phase);
    }
}

fn at_least((part, whole): Share, some: usize, all: usize) -> bool {
    all > 0 && some as u64 * whole >= all as u64 * part
}

impl Setup {
    fn config(&self) -> Config {
        let share = |(part, whole): Share| part as f64 / whole as f64;
        let millis = Duration::from_millis;
        let open = OpenFor::exponential(millis(self.open.0), millis(self.open.1))
            .jitter(0.0)
            .reset_after(millis(self.reset_after));
        let half_open = HalfOpen::probes(self.probes).failure_rate(share(self.probe_rate));
        let mut builder: Builder = CircuitBreaker::builder("model")
            .window(match self.length {
                Length::Millis(length) => Window::time(millis(length)),
                Length::Calls(calls) => Window::count(calls),
            })
            .minimum_calls(self.minimum as u32)
            .no_failure_rate()
            .open_for(match self.honour {
                Some(max) => open.honour_retry_after(millis(max)),
                None => open,
            })
            .half_open(match self.max_wait {
                Some(wait) => half_open.max_wait(millis(wait)),
                None => half_open.no_max_wait(),
            });
        if let Some(rate) = self.failure {
            builder = builder.failure_rate(share(rate));
        }
        if let Some(rate) = self.slow {
            builder = builder.slow_calls(millis(1), share(rate));
        }
        if let Some(most) = self.streak {
            builder = builder.consecutive_failures(most);
        }
        if !self.stages.is_empty() {
            let shares = self.stages.iter().copied().map(share);
            builder = builder.ramp_up(RampUp::stages(shares, millis(self.stage)));
        }
        builder.check().unwrap()
    }
}

fn at(now: u64) -> Moment {
    Moment::from_nanos(START) + Duration::from_millis(now)
}

fn order(kind: u8) -> (Kind, Order) {
    match kind {
        0 => (Kind::ForceOpen, Order::force_open("test")),
        1 => (Kind::ForceClosed, Order::force_closed("test")),
        2 => (Kind::Disabled, Order::disable("test")),
        _ => (Kind::MetricsOnly, Order::metrics_only("test")),
    }
}

fn run(setup: &Setup, steps: &[Step]) -> Result<u64, TestCaseError> {
    let machine = Machine::new(setup.config().rules, Some(7), at(0));
    let tick = |now| match &machine.window {
        Record::Time(window) => window.tick(at(now)),
        Record::Count(_) => 0,
    };
    let mut model = Model {
        setup,
        tick: &tick,
        now: 0,
        phase: Phase::Closed,
        generation: 0,
        order: None,
        calls: Vec::new(),
        probes: Vec::new(),
        trips: 0,
        closed_at: 0,
    };
    let mut out: Vec<(Ticket, Permit)> = Vec::new();
    for step in steps {
        let now = at(model.now);
        match *step {
            Step::Wait(time) => model.now += time,
            Step::Admit { dice } => out.extend(admit(&machine, &mut model, dice)?),
            Step::Call { dice, how } => {
                if let Some((ticket, permit)) = admit(&machine, &mut model, dice)? {
                    end(&machine, &mut model, ticket, permit, how);
                }
            }
            Step::End { which, how } if !out.is_empty() => {
                let (ticket, permit) = out.swap_remove(which % out.len());
                end(&machine, &mut model, ticket, permit, how);
            }
            Step::End { .. } => {}
            Step::Order { kind, expires } => {
                let (kind, mut order) = order(kind);
                if let Some(time) = expires {
                    order = order.expires_after(Duration::from_millis(time));
                }
                model.order(kind, expires);
                machine.order(order, now);
            }
            Step::Clear => {
                model.advance();
                let stood = model.order.take().is_some();
                if stood {
                    model.enter(model.phase);
                }
                prop_assert_eq!(machine.clear_order("test".into(), now), stood);
            }
            Step::Reset => {
                model.advance();
                model.trips = 0;
                model.enter(Phase::Closed);
                machine.reset("test".into(), now);
            }
        }
        compare(&machine, &mut model)?;
    }
    Ok(model.generation)
}

fn admit(
    machine: &Machine,
    model: &mut Model<'_>,
    dice: u32,
) -> Result<Option<(Ticket, Permit)>, TestCaseError> {
    let now = at(model.now);
    let theirs = match machine.pass() {
        Some(permit) => Ok(permit),
        None => {
            prop_assert_eq!(machine.check(now).is_ok() || model.phase_rejects(), true);
            machine.admit(now, || dice)
        }
    };
    match (model.admit(dice), theirs) {
        (Ok(ticket), Ok(permit)) => {
            prop_assert_eq!(ticket.judged, permit.is_judged());
            Ok(Some((ticket, permit)))
        }
        (Err(reason), Err(refusal)) => {
            prop_assert_eq!(reason, refusal.reason);
            Ok(None)
        }
        (ours, theirs) => Err(TestCaseError::fail(format!(
            "model {ours:?}, machine {theirs:?}"
        ))),
    }
}

impl Model<'_> {
    /// Whether there is a reason to refuse a call now, lots aside.
    fn phase_rejects(&mut self) -> bool {
        self.advance();
        match (self.order.map(|(kind, _)| kind), self.phase) {
            (Some(Kind::ForceOpen), _) => true,
            (None, Phase::Open { .. }) => true,
            (None, Phase::HalfOpen) => self.live_probes().len() >= self.setup.probes as usize,
            _ => false,
        }
    }
}

fn end(machine: &Machine, model: &mut Model<'_>, ticket: Ticket, permit: Permit, how: How) {
    let now = at(model.now);
    let outcome = match how {
        How::Ignored => None,
        How::Counts {
            failed,
            slow,
            asked,
        } => Some(Outcome {
            failed,
            slow,
            retry_after: asked.map(Duration::from_millis),
        }),
    };
    model.end(ticket, how);
    // What is announced is for the handle; the state is compared in any case.
    let _ = machine.record(permit, outcome, || now);
}

fn compare(machine: &Machine, model: &mut Model<'_>) -> Result<(), TestCaseError> {
    // Not on a look of its own: what is due stays undone until a call comes, in both.
    let word = machine.word();
    prop_assert_eq!(State::of(word), model.state());
    prop_assert_eq!(word.generation(), model.generation);
    let mut last = None;
    while let Some(transition) = machine.next_transition() {
        last = Some(transition.generation);
    }
    prop_assert!(last.is_none_or(|generation| generation == model.generation));
    if model.generation.is_multiple_of(3) {
        let view = machine.view(at(model.now));
        model.advance();
        let (calls, failures, slow) = model.counts();
        prop_assert_eq!(State::of(view.word), model.state());
        prop_assert_eq!(view.counts.calls, calls as u64);
        prop_assert_eq!(view.counts.failures, failures as u64);
        prop_assert_eq!(view.counts.slow, slow as u64);
        prop_assert_eq!(view.trips, model.trips);
        if let (State::Open, Phase::Open { until }) = (model.state(), model.phase) {
            prop_assert_eq!(
                view.open_for,
                Some(Duration::from_millis(until - model.now))
            );
        }
        if let Some(probes) = view.probes {
            let live = model.live_probes();
            let judged = live.iter().filter(|p| p.judged.is_some()).count();
            prop_assert_eq!(probes.judged as usize, judged);
            prop_assert_eq!(probes.out as usize, live.len() - judged);
            prop_assert!(probes.out + probes.judged <= probes.limit);
        }
    }
    Ok(())
}

fn share() -> impl Strategy<Value = Share> {
    prop_oneof![
        Just((1, 2)),
        Just((1, 10)),
        Just((3, 10)),
        Just((4, 5)),
        Just((1, 1)),
        Just((2, 3)),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let length = prop_oneof![
        (1u64..40).prop_map(|n| Length::Millis(n * 100)),
        (1usize..30).prop_map(Length::Calls),
    ];
    let trip = (
        length,
        1u64..15,
        prop::option::weighted(0.8, share()),
        prop::option::weighted(0.4, share()),
        prop::option::weighted(0.3, 1u32..6),
    );
    let open = (1u64..500, 1u64..8, 0u64..5000, prop::option::of(1u64..3000));
    let half_open = (1u32..6, share(), prop::option::weighted(0.8, 1u64..2000));
    let ramp_up = (prop::collection::vec(share(), 0..3), 1u64..1000);
    (trip, open, half_open, ramp_up).prop_map(|(trip, open, half_open, ramp_up)| {
        let (length, minimum, failure, slow, streak) = trip;
        let minimum = match length {
            Length::Calls(calls) => minimum.min(calls as u64),
            Length::Millis(_) => minimum,
        };
        let watched = failure.is_some() || slow.is_some() || streak.is_some();
        Setup {
            length,
            minimum,
            failure: failure.or_else(|| (!watched).then_some((1, 2))),
            slow,
            streak,
            open: (open.0, open.0 * open.1),
            reset_after: open.2,
            honour: open.3,
            probes: half_open.0,
            probe_rate: half_open.1,
            max_wait: half_open.2,
            stages: ramp_up.0,
            stage: ramp_up.1,
        }
    })
}

fn how(failing: u32) -> impl Strategy<Value = How> {
    let asked = prop::option::weighted(0.1, 0u64..5000);
    (0u32..100, 0u32..100, asked).prop_map(move |(dice, slow, asked)| match dice {
        0..6 => How::Ignored,
        _ => How::Counts {
            failed: dice < 6 + failing,
            slow: slow < 25,
            asked,
        },
    })
}

/// Health changes from stretch to stretch, so that all states are reached and left again.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stretch = prop_oneof![Just(5u32), Just(45), Just(90)].prop_flat_map(|failing| {
        let step = prop_oneof![
            4 => (0u64..60).prop_map(Step::Wait),
            1 => (0u64..1500).prop_map(Step::Wait),
            14 => (any::<u32>(), how(failing)).prop_map(|(dice, how)| Step::Call { dice, how }),
            5 => any::<u32>().prop_map(|dice| Step::Admit { dice }),
            5 => (any::<usize>(), how(failing)).prop_map(|(which, how)| Step::End { which, how }),
        ];
        prop::collection::vec(step, 1..60)
    });
    let rare = prop_oneof![
        (0u8..4, prop::option::of(0u64..2000))
            .prop_map(|(kind, expires)| Step::Order { kind, expires }),
        Just(Step::Clear),
        Just(Step::Clear),
        Just(Step::Reset),
        Just(Step::Wait(20_000)),
        Just(Step::Wait(0)),
        Just(Step::Wait(0)),
        Just(Step::Wait(0)),
    ];
    let part = (stretch, rare).prop_map(|(mut steps, last)| {
        steps.push(last);
        steps
    });
    prop::collection::vec(part, 1..10).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_machine_does_what_the_plain_model_does(setup in setup(), steps in steps()) {
        run(&setup, &steps)?;
    }
}
