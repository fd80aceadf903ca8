//! The machine against a model that is slow, plain and obviously right: it keeps every call forever, adds up from
//! scratch, and judges after every single call.

use std::time::Duration;

use proptest::prelude::*;

use crate::{
    Moment, Reason,
    breaker::{
        CircuitBreaker, HalfOpen, OpenFor, Override, RampUp, State, Window,
        builder::{CircuitBreakerBuilder, Config},
        machine::{Machine, Outcome},
        packed_state::AdmittedState,
        window::Window as Record,
    },
};

const START: u64 = 1 << 42;

mod plain;

use self::plain::*;
use crate::test_counts::cases;

impl Setup {
    fn config(&self) -> Config {
        let share = |(part, whole): Share| part as f64 / whole as f64;
        let millis = Duration::from_millis;
        let open = OpenFor::exponential(millis(self.open.0), millis(self.open.1))
            .jitter(0.0)
            .reset_after(millis(self.reset_after));
        let half_open = HalfOpen::probes(self.probes).failure_rate(share(self.probe_rate));
        let mut builder: CircuitBreakerBuilder = CircuitBreaker::builder("model")
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

fn override_of(kind: u8) -> (Kind, Override) {
    match kind {
        0 => (Kind::ForceOpen, Override::force_open("test")),
        1 => (Kind::ForceClosed, Override::force_closed("test")),
        2 => (Kind::Disabled, Override::disable("test")),
        _ => (Kind::MetricsOnly, Override::metrics_only("test")),
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
        active_override: None,
        calls: Vec::new(),
        probes: Vec::new(),
        probing_since: None,
        trips: 0,
        closed_at: 0,
    };
    let mut out: Vec<(Ticket, AdmittedState)> = Vec::new();
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
            Step::Override { kind, expires } => {
                let (kind, mut active_override) = override_of(kind);
                if let Some(time) = expires {
                    active_override = active_override.expires_after(Duration::from_millis(time));
                }
                model.set_override(kind, expires);
                machine.set_override(active_override, now);
            }
            Step::Clear => {
                model.advance();
                let stood = model.active_override.take().is_some();
                if stood {
                    model.enter(model.phase);
                }
                prop_assert_eq!(machine.clear_override("test".into(), now), stood);
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
) -> Result<Option<(Ticket, AdmittedState)>, TestCaseError> {
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

fn end(machine: &Machine, model: &mut Model<'_>, ticket: Ticket, permit: AdmittedState, how: How) {
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
    let packed = machine.packed();
    prop_assert_eq!(State::of(packed), model.state());
    prop_assert_eq!(packed.generation(), model.generation);
    let mut last = None;
    while let Some(transition) = machine.next_transition() {
        last = Some(transition.generation);
    }
    prop_assert!(last.is_none_or(|generation| generation == model.generation));
    if model.generation.is_multiple_of(3) {
        let view = machine.view(at(model.now));
        model.advance();
        let (calls, failures, slow) = model.counts();
        prop_assert_eq!(State::of(view.packed), model.state());
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
            .prop_map(|(kind, expires)| Step::Override { kind, expires }),
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
    #![proptest_config(cases(1_600))]
    #[test]
    fn the_machine_does_what_the_plain_model_does(setup in setup(), steps in steps()) {
        run(&setup, &steps)?;
    }
}
