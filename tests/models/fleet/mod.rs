//! The shared breaker's protocol, model-checked: every order of events in small fleets.
//!
//! [`World`] holds the record, policy and ledger that run in production; here is what may happen next, what must never
//! be, and what must always be possible still. Each scenario is explored to its end, and says how many states it had.
//! The last test of `scenarios` builds mistakes in and sees that each is found.

mod recovery;
mod scenarios;
mod world;

use resilience_core::breaker::fleet::{FleetState, LocalPhase, Policy};
use stateright::{Model, Property};

use crate::explore::Scenario;

use world::{Mistake, Request, TICK, World, policy};

/// One scenario.
#[derive(Clone, Debug)]
struct Fleet {
    start: World,
    policy: Policy,
    mistake: Mistake,
    /// Only the first instance's calls fail.
    lone: bool,
    /// Also ask of every state whether the fleet gets out of it.
    recovers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Call(usize, bool),
    Report(usize),
    Ask(usize),
    EndProbe(usize, Option<bool>),
    Serve(usize),
    ServeTwice(usize),
    ServeLate(usize),
    ServeAsk(usize),
    Deliver(usize),
    DeliverAsk(usize),
    Hear(usize),
    GiveUp(usize),
    Refuse(usize),
    LoseAsk(usize),
    ServeLateAsk(usize),
    EndOwn(usize, bool),
    ResetOne(usize),
    Freeze,
    Thaw,
    Crash(usize),
    Close(usize),
    EndGracefully(usize),
    Start(usize),
    Flush,
    Replicate,
    FailOver,
    SetBack,
    SetForward,
    Tick,
}

impl Model for Fleet {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.start.clone()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for n in 0..world.instances.len() {
            self.on_the_way(world, n, actions);
            let one = &world.instances[n];
            if !one.alive && world.budget.starts > 0 {
                actions.push(Action::Start(n));
            }
            if one.closing && one.is_free() {
                actions.push(Action::EndGracefully(n));
            }
            if one.alive && !one.closing {
                self.of_one(world, n, actions);
            }
        }
        if world.budget.flushes > 0 {
            actions.push(Action::Flush);
        }
        if world.budget.ticks > 0 {
            actions.push(Action::Tick);
        }
        if world.budget.steps_back > 0 && !world.is_set_back() {
            actions.push(Action::SetBack);
        }
        if world.budget.steps_forward > 0 && world.is_set_back() {
            actions.push(Action::SetForward);
        }
        if world.budget.failovers > 0 {
            actions.extend([Action::Replicate, Action::FailOver]);
        }
        if world.frozen {
            actions.push(Action::Thaw);
        } else if world.budget.freezes > 0 {
            actions.push(Action::Freeze);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        let budget = &mut next.budget;
        match action {
            Action::Call(..) => budget.calls -= 1,
            Action::Report(_) => budget.reports -= 1,
            Action::Ask(_) => budget.asks -= 1,
            Action::ServeTwice(_) => budget.repeats -= 1,
            // A store that is frozen answers nothing.
            Action::GiveUp(_) | Action::LoseAsk(_) if next.frozen => {}
            Action::GiveUp(_) | Action::Refuse(_) | Action::LoseAsk(_) => budget.losses -= 1,
            Action::EndOwn(..) => budget.own_probes -= 1,
            Action::ResetOne(_) => budget.resets -= 1,
            Action::Freeze => budget.freezes -= 1,
            Action::Crash(_) => budget.crashes -= 1,
            Action::Close(_) => budget.closes -= 1,
            Action::Start(_) => budget.starts -= 1,
            Action::FailOver => budget.failovers -= 1,
            Action::Flush => budget.flushes -= 1,
            Action::Tick => budget.ticks -= 1,
            Action::SetBack => budget.steps_back -= 1,
            Action::SetForward => budget.steps_forward -= 1,
            _ => {}
        }
        let mistake = self.mistake;
        match action {
            Action::Call(n, ok) => next.call(n, ok),
            Action::Report(n) => next.report(n),
            Action::Ask(n) => next.ask(n),
            Action::EndProbe(n, success) => next.end_probe(n, success),
            Action::Serve(n) => next.serve(n, mistake),
            Action::ServeTwice(n) => {
                let one = &mut next.instances[n];
                one.late = one.waiting.as_ref().map(|waiting| waiting.request.clone());
                next.serve(n, mistake);
            }
            Action::ServeLate(n) => next.serve_late(n, mistake),
            Action::ServeAsk(n) => next.serve_ask(n, mistake),
            Action::Deliver(n) => next.deliver(n, mistake, &self.policy),
            Action::DeliverAsk(n) => next.deliver_ask(n, mistake, &self.policy),
            Action::Hear(n) => next.hear(n, mistake, &self.policy),
            Action::GiveUp(n) => next.give_up(n, true),
            Action::Refuse(n) => next.give_up(n, false),
            Action::LoseAsk(n) => next.lose_ask(n),
            Action::ServeLateAsk(n) => next.serve_late_ask(n),
            Action::EndOwn(n, ok) => next.end_own(n, ok),
            Action::ResetOne(n) => next.reset_one(n),
            Action::Freeze => next.frozen = true,
            Action::Thaw => next.frozen = false,
            Action::Crash(n) => next.crash(n),
            Action::Close(n) => next.close(n),
            Action::EndGracefully(n) => next.end_gracefully(n, mistake),
            Action::Start(n) => next.start(n),
            Action::Replicate => next.replicate(),
            Action::FailOver => next.fail_over(),
            Action::Flush => next.flush(),
            Action::Tick => next.now += TICK,
            Action::SetBack => next.set_back(),
            Action::SetForward => next.set_forward(),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("one winner per epoch", |_, world: &World| {
                !world.broken.two_winners
            }),
            Property::always("no epoch goes back", |_, world: &World| {
                !world.broken.epoch_back
            }),
            Property::always("probes within the budget", |_, world: &World| {
                !world.broken.probes_over_budget
            }),
            Property::always("each call counts once", |_, world: &World| {
                !world.broken.counted_twice
            }),
        ];
        let budget = &self.start.budget;
        // A replica that takes over may not know of the last epochs, and gives the next ones by a clock that is behind.
        if budget.failovers == 0 {
            properties.extend([
                Property::always("an epoch stands for one verdict", |_, world: &World| {
                    !world.broken.one_epoch_two_verdicts
                }),
                Property::always("new epochs only go up", |_, world: &World| {
                    !world.broken.epoch_reused
                }),
            ]);
        }
        if budget.closes > 0 && budget.losses + budget.failovers + budget.crashes == 0 {
            properties.extend([
                Property::always("a graceful end leaves no probe", |_, world: &World| {
                    !world.broken.left_probes
                }),
                Property::always("a graceful end leaves no vote", |_, world: &World| {
                    !world.broken.left_live
                }),
            ]);
        }
        if self.lone {
            properties.push(Property::always(
                "a lone bad instance never opens the fleet",
                |_, world: &World| world.view().state == FleetState::Closed,
            ));
        }
        if self.recovers {
            properties.push(Property::always(
                "the fleet closes once all is well",
                |fleet: &Self, world: &World| recovery::closes(world, &fleet.policy, fleet.mistake),
            ));
            properties.push(Property::always(
                "failing probes end half-open",
                |fleet: &Self, world: &World| {
                    recovery::reopens(world, &fleet.policy, fleet.mistake)
                },
            ));
        }
        properties
    }
}

impl Fleet {
    fn new(start: World) -> Self {
        Self {
            start,
            policy: policy(0),
            mistake: Mistake::None,
            lone: false,
            recovers: false,
        }
    }

    /// What may become of the messages of one instance, alive or not.
    fn on_the_way(&self, world: &World, n: usize, actions: &mut Vec<Action>) {
        let one = &world.instances[n];
        let losses = world.budget.losses > 0 || world.frozen;
        let works = !world.frozen;
        if let Some(waiting) = &one.waiting {
            if waiting.answer.is_none() && works {
                actions.push(Action::Serve(n));
                if world.budget.repeats > 0 && one.late.is_none() {
                    actions.push(Action::ServeTwice(n));
                }
                // Refused or lost makes a difference to a report only.
                if losses && matches!(waiting.request, Request::Report(_)) {
                    actions.push(Action::Refuse(n));
                }
            } else if waiting.answer.is_some() {
                actions.push(Action::Deliver(n));
            }
            if losses && (waiting.answer.is_some() || one.late.is_none()) {
                actions.push(Action::GiveUp(n));
            }
        }
        if one.late.is_some() && works {
            actions.push(Action::ServeLate(n));
        }
        if one.late_ask.is_some() && works {
            actions.push(Action::ServeLateAsk(n));
        }
        match &one.asking {
            Some((_, None)) if works => actions.push(Action::ServeAsk(n)),
            Some((_, Some(_))) if one.is_free() => actions.push(Action::DeliverAsk(n)),
            _ => {}
        }
        let may_lose = one.late_ask.is_none() || works;
        if losses && may_lose && one.alive && one.asking.is_some() {
            actions.push(Action::LoseAsk(n));
        }
    }

    /// What an instance may do.
    fn of_one(&self, world: &World, n: usize, actions: &mut Vec<Action>) {
        let (one, budget) = (&world.instances[n], &world.budget);
        if budget.calls > 0 && world.may_call(n) {
            let bad = !self.lone || n == 0;
            actions.push(Action::Call(n, !bad));
            if !self.lone {
                actions.push(Action::Call(n, true));
            }
        }
        if one.is_free() {
            if one.push.is_some() {
                actions.push(Action::Hear(n));
            }
            if budget.reports > 0 {
                actions.push(Action::Report(n));
            }
            if !one.held.is_empty() {
                actions.extend(
                    [Some(true), Some(false), None].map(|success| Action::EndProbe(n, success)),
                );
            }
        }
        if budget.asks > 0 && world.may_ask(n) {
            actions.push(Action::Ask(n));
        }
        if budget.own_probes > 0 && world.local(n) == LocalPhase::Probing {
            actions.extend([true, false].map(|ok| Action::EndOwn(n, ok)));
        }
        if budget.resets > 0 && !world.passes(n) {
            actions.push(Action::ResetOne(n));
        }
        if budget.crashes > 0 {
            actions.push(Action::Crash(n));
        }
        if budget.closes > 0 && one.is_free() {
            actions.push(Action::Close(n));
        }
    }
}

impl Scenario for Fleet {
    fn has_mistake(&self) -> bool {
        self.mistake != Mistake::None
    }
}
