//! The protocol of idempotency keys, model-checked: every order of events around one key.
//!
//! [`World`] holds the record that runs in production; here is what may happen next, and what must never be. Each
//! scenario is explored to its end, and says how many states it had. `protocol` has the scenarios of the record, `effects`
//! those of the handle's defaults, by what a second run of the work does, with processes that end gracefully. The last test
//! of each builds mistakes in and sees that each is found.

mod effects;
mod protocol;
mod world;

use resilience_core::idempotency::Effect;
use stateright::{Model, Property};

use crate::explore::Scenario;

use world::{Budget, End, Mistake, Request, Rules, TICK, World};

/// One scenario.
#[derive(Clone, Debug)]
struct Key {
    start: World,
    mistake: Mistake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Ask(usize),
    AskBoldly(usize),
    TakeEffect(usize),
    Complete(usize),
    Extend(usize),
    Release(usize),
    Refuse(usize),
    LeaveUnknown(usize),
    Save(usize),
    Answer(usize),
    HangUp(usize),
    Close(usize),
    Cancel(usize),
    Leave(usize),
    Serve(usize),
    ServeLate(usize),
    SendAgain(usize),
    Deliver(usize),
    Crash(usize),
    Tick,
    Flush,
    SetBack,
    Swing,
    Replicate,
    FailOver,
    Resolve,
}

impl Model for Key {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.start.clone()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for n in 0..world.instances.len() {
            on_the_way(world, n, actions);
            of_one(world, n, actions);
        }
        if world.budget.ticks > 0 {
            actions.push(Action::Tick);
        }
        if world.budget.flushes > 0 {
            actions.push(Action::Flush);
        }
        if world.budget.steps_back > 0 {
            actions.push(Action::SetBack);
        }
        if world.budget.swings > 0 {
            actions.push(Action::Swing);
        }
        if world.budget.failovers > 0 {
            actions.push(Action::FailOver);
            if !world.rules.durable {
                actions.push(Action::Replicate);
            }
        }
        if world.budget.resolves > 0 && world.may_resolve(self.mistake) {
            actions.push(Action::Resolve);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        let (budget, mistake) = (&mut next.budget, self.mistake);
        match action {
            Action::Ask(n) => {
                budget.claims -= 1;
                next.ask(n, false, mistake);
            }
            Action::AskBoldly(n) => {
                budget.claims -= 1;
                budget.bold -= 1;
                next.ask(n, true, mistake);
            }
            Action::Extend(n) => {
                budget.extends -= 1;
                next.wish(n, Request::Extend, false);
            }
            Action::Release(n) => {
                budget.releases -= 1;
                next.wish(n, Request::Release, true);
            }
            // Refused by its fence, it has nothing to decide.
            Action::Refuse(n) => next.wish(n, Request::Release, true),
            Action::LeaveUnknown(n) => {
                budget.unknowns -= 1;
                next.leave_unknown(n);
            }
            Action::Save(n) => {
                budget.saves -= 1;
                next.wish(n, Request::Save, false);
            }
            Action::Answer(n) => {
                budget.answers -= 1;
                next.answer(n, mistake);
            }
            Action::HangUp(n) => {
                budget.hang_ups -= 1;
                next.instances[n].hung_up = true;
            }
            Action::Close(n) => {
                budget.closes -= 1;
                next.close(n, mistake);
            }
            Action::Cancel(n) => {
                budget.cancels -= 1;
                next.cancel(n, mistake);
            }
            Action::SendAgain(n) => {
                budget.losses -= 1;
                next.send_again(n, mistake);
            }
            Action::Crash(n) => {
                budget.crashes -= 1;
                next.crash(n);
            }
            Action::Tick => {
                budget.ticks -= 1;
                next.now += TICK;
            }
            Action::Flush => {
                budget.flushes -= 1;
                next.flush(mistake);
            }
            Action::SetBack => {
                budget.steps_back -= 1;
                next.set_back();
            }
            Action::Swing => {
                budget.swings -= 1;
                next.swing();
            }
            Action::Resolve => {
                budget.resolves -= 1;
                next.resolve();
            }
            Action::Replicate => next.replicate(),
            Action::FailOver => {
                budget.failovers -= 1;
                next.fail_over();
            }
            Action::Leave(n) => next.leave(n),
            Action::TakeEffect(n) => next.take_effect(n, mistake),
            Action::Complete(n) => next.complete(n, mistake),
            Action::Serve(n) => next.serve(n, mistake),
            Action::ServeLate(n) => next.serve_late(n, mistake),
            Action::Deliver(n) => next.deliver(n, mistake),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("fences only go up", |_, world: &World| {
                !world.broken.fence_back
            }),
            Property::always("a fence is one claimant's", |_, world: &World| {
                !world.broken.fence_shared
            }),
            Property::always("no two effects under one fence", |_, world: &World| {
                !world.broken.effect_twice
            }),
            Property::always("a zombie changes nothing", |_, world: &World| {
                !world.broken.zombie_changed
            }),
            Property::always("one outcome is accepted", |_, world: &World| {
                !world.broken.two_outcomes
            }),
            Property::always("what was accepted is replayed", |_, world: &World| {
                world.replays_what_it_accepted()
            }),
            Property::always("no key is stuck past its lease", |_, world: &World| {
                world.is_free_after_a_lease()
            }),
            Property::always("a doubt is not forgotten", |_, world: &World| {
                !world.broken.doubt_forgotten
            }),
        ];
        self.of_effects(&mut properties);
        if self.is_calm() {
            properties.push(Property::always(
                "one effect while leases hold",
                |_, world: &World| world.effects() <= 1,
            ));
        }
        properties
    }
}

impl Key {
    fn new(size: usize, budget: Budget) -> Self {
        Self {
            start: World::new(size, budget),
            mistake: Mistake::None,
        }
    }

    /// By what a second run of the work does.
    fn of_effects(&self, properties: &mut Vec<Property<Self>>) {
        let Some(effect) = self.start.rules.effect else {
            return;
        };
        properties.extend([
            Property::always("a checkpoint is handed over", |_, world: &World| {
                !world.broken.checkpoint_lost
            }),
            Property::always("a graceful end leaves no lease", |_, world: &World| {
                !world.broken.left_held
            }),
            Property::always("callers receive one outcome", |_, world: &World| {
                !world.broken.told_another
            }),
            Property::always("every key settles", |key: &Self, world: &World| match world
                .end(key.mistake)
            {
                End::Done => true,
                End::Unknown => world.left_open && world.rules.effect == Some(Effect::AtMostOnce),
                End::Stuck => false,
            }),
        ]);
        if effect != Effect::Idempotent {
            properties.push(Property::always("one effect", |_, world: &World| {
                world.effects() <= 1
            }));
        }
        if effect == Effect::AtMostOnce {
            properties.push(Property::always(
                "what may be done is not granted again",
                |_, world: &World| world.keeps_what_may_be_done(),
            ));
        }
    }

    /// No process dies, no lease ends, no attempt is cancelled, nothing is forgotten. Messages are lost, late and repeated all the same.
    fn is_calm(&self) -> bool {
        let budget = &self.start.budget;
        let faults = budget.crashes + budget.flushes + budget.steps_back + budget.failovers;
        budget.ticks + budget.swings + budget.cancels + faults == 0
    }
}

/// What may become of the messages of one instance.
fn on_the_way(world: &World, n: usize, actions: &mut Vec<Action>) {
    let one = &world.instances[n];
    if let Some((_, answer)) = &one.waiting {
        actions.push(match answer {
            None => Action::Serve(n),
            Some(_) => Action::Deliver(n),
        });
        if world.budget.losses > 0 && (answer.is_some() || one.late.is_none()) {
            actions.push(Action::SendAgain(n));
        }
    }
    if one.late.is_some() {
        actions.push(Action::ServeLate(n));
    }
    match &one.waiting {
        Some((Request::Claim(_), _)) if world.budget.hang_ups > 0 && !one.hung_up => {
            actions.push(Action::HangUp(n));
        }
        Some((Request::Complete(..), _)) if world.budget.answers > 0 && !one.answered => {
            actions.push(Action::Answer(n));
        }
        _ => {}
    }
}

/// What an instance may do.
fn of_one(world: &World, n: usize, actions: &mut Vec<Action>) {
    let (one, budget) = (&world.instances[n], &world.budget);
    if one.gone {
        return;
    }
    if budget.crashes > 0 && (one.waiting.is_some() || one.holder.is_some()) {
        actions.push(Action::Crash(n));
    }
    if budget.closes > 0 && !one.closing {
        actions.push(Action::Close(n));
    }
    match (&one.waiting, &one.holder) {
        (Some(_), _) => {}
        (None, None) if one.closing => actions.push(Action::Leave(n)),
        (None, None) if budget.claims > 0 => {
            actions.push(Action::Ask(n));
            if budget.bold > 0 {
                actions.push(Action::AskBoldly(n));
            }
        }
        (None, None) => {}
        (None, Some(_)) => of_work(world, n, actions),
    }
}

/// What an attempt may do.
fn of_work(world: &World, n: usize, actions: &mut Vec<Action>) {
    let (one, budget) = (&world.instances[n], &world.budget);
    if one.refused {
        return actions.push(Action::Refuse(n));
    }
    if one.took_effect {
        actions.push(Action::Complete(n));
    } else {
        actions.push(Action::TakeEffect(n));
        if budget.releases > 0 {
            actions.push(Action::Release(n));
        }
    }
    if budget.cancels > 0 && one.closing {
        actions.push(Action::Cancel(n));
    }
    if budget.saves > 0 {
        actions.push(Action::Save(n));
    }
    if budget.unknowns > 0 {
        actions.push(Action::LeaveUnknown(n));
    }
    if budget.extends > 0 {
        actions.push(Action::Extend(n));
    }
}

impl Scenario for Key {
    fn has_mistake(&self) -> bool {
        self.mistake != Mistake::None
    }
}
