//! The protocol of delivery with leases, model-checked: every order of events around one stream with one group.
//!
//! [`World`] holds the records that run in production, those of messages and those of effects; here is what may happen next, and
//! what must never be. Each scenario of `scenarios` is explored to its end, and says how many states it had. The last test
//! builds mistakes in, and sees that each is found.

mod scenarios;
mod world;

use stateright::{Model, Property};

use crate::explore::Scenario;

use world::{Budget, Mistake, TICK, World};

/// One scenario.
#[derive(Clone, Debug)]
struct Delivery {
    start: World,
    mistake: Mistake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Publish,
    PublishAgain,
    Read(usize),
    Claim(usize),
    Begin(usize),
    Handle(usize),
    Settle(usize),
    Fail(usize),
    GiveBack(usize),
    Extend(usize),
    GiveUp(usize),
    Serve(usize),
    ServeLate(usize),
    Deliver(usize),
    SendAgain(usize),
    Crash(usize),
    Redrive,
    Tick,
    SetBack,
    LoseGroup,
    Flush,
}

impl Model for Delivery {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.start.clone()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for n in 0..world.consumers.len() {
            on_the_way(world, n, actions);
            of_one(world, n, actions);
        }
        let budget = &world.budget;
        for (times, action) in [
            (budget.publishes, Action::Publish),
            (budget.copies, Action::PublishAgain),
            (budget.redrives, Action::Redrive),
            (budget.ticks, Action::Tick),
            (budget.steps_back, Action::SetBack),
            (budget.lost_groups, Action::LoseGroup),
            (budget.flushes, Action::Flush),
        ] {
            if times > 0 {
                actions.push(action);
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        let (budget, mistake) = (&mut next.budget, self.mistake);
        match action {
            Action::Publish => {
                budget.publishes -= 1;
                next.publish();
            }
            Action::PublishAgain => {
                budget.copies -= 1;
                next.publish_again()?;
            }
            Action::Redrive => {
                budget.redrives -= 1;
                next.redrive()?;
            }
            Action::Tick => {
                budget.ticks -= 1;
                next.now += TICK;
            }
            Action::SetBack => {
                budget.steps_back -= 1;
                next.set_back();
            }
            Action::LoseGroup => {
                budget.lost_groups -= 1;
                next.lose_group(mistake);
            }
            Action::Flush => {
                budget.flushes -= 1;
                next.flush();
            }
            Action::Crash(n) => {
                budget.crashes -= 1;
                next.crash(n);
            }
            Action::Fail(n) => {
                budget.failures -= 1;
                next.fail(n);
            }
            Action::GiveBack(n) => {
                budget.given_back -= 1;
                next.give_back(n);
            }
            Action::Extend(n) => {
                budget.extends -= 1;
                next.extend(n);
            }
            Action::GiveUp(n) => {
                budget.losses -= 1;
                next.give_up(n);
            }
            Action::SendAgain(n) => {
                budget.losses -= 1;
                next.send_again(n);
            }
            Action::Read(n) => next.read(n),
            Action::Claim(n) => next.claim(n),
            Action::Begin(n) => next.begin(n),
            Action::Handle(n) => next.handle(n),
            Action::Settle(n) => next.settle(n),
            Action::Serve(n) => next.serve(n, mistake),
            Action::ServeLate(n) => next.serve_late(n, mistake),
            Action::Deliver(n) => next.deliver(n, mistake),
        }
        // A step that changes nothing leads nowhere.
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("an effect is recorded at most once", |_, world: &World| {
                !world.broken.recorded_twice
            }),
            Property::always("no message is lost", |_, world: &World| {
                world.keeps_every_message()
            }),
            Property::always("what is acknowledged has an outcome", |_, world: &World| {
                !world.broken.acknowledged_without_outcome
            }),
            Property::always(
                "an outcome is recorded with its acknowledgement",
                |_, world: &World| !world.broken.recorded_apart,
            ),
            Property::always("a zombie changes nothing", |_, world: &World| {
                !world.broken.zombie_changed
            }),
            Property::always("a late settlement is refused", |_, world: &World| {
                !world.broken.zombie_not_told
            }),
            Property::always("deliveries are counted right", |_, world: &World| {
                world.counts_right()
            }),
            Property::always("fences only go up", |_, world: &World| {
                !world.broken.fence_back
            }),
            Property::always(
                "a lease lasts no longer than a lease",
                |_, world: &World| world.is_due_after_a_lease(),
            ),
            Property::always("every message settles", |it: &Self, world: &World| {
                world.settles(it.mistake)
            }),
        ];
        if self.is_calm() {
            properties.push(Property::always(
                "one effect while leases hold",
                |_, world: &World| world.most_effects() <= 1,
            ));
        }
        properties
    }
}

impl Delivery {
    fn new(consumers: usize, budget: Budget) -> Self {
        Self {
            start: World::new(consumers, budget),
            mistake: Mistake::None,
        }
    }

    /// No process dies, no lease ends, no handler fails after its effect, nothing is forgotten. Answers are lost, requests late, and
    /// events published twice all the same.
    fn is_calm(&self) -> bool {
        let budget = &self.start.budget;
        let faults = budget.crashes + budget.flushes + budget.lost_groups + budget.steps_back;
        budget.ticks + faults == 0
    }
}

/// What may become of the requests of one consumer.
fn on_the_way(world: &World, n: usize, actions: &mut Vec<Action>) {
    let one = &world.consumers[n];
    if let Some((_, answer)) = &one.waiting {
        actions.push(match answer {
            None => Action::Serve(n),
            Some(_) => Action::Deliver(n),
        });
        if world.budget.losses > 0 && (answer.is_some() || one.late.is_none()) {
            actions.push(match world.is_repeated(n) {
                true => Action::SendAgain(n),
                false => Action::GiveUp(n),
            });
        }
    }
    if one.late.is_some() {
        actions.push(Action::ServeLate(n));
    }
}

/// What a consumer may do.
fn of_one(world: &World, n: usize, actions: &mut Vec<Action>) {
    let (one, budget) = (&world.consumers[n], &world.budget);
    if budget.crashes > 0 && (one.waiting.is_some() || one.hand.is_some()) {
        actions.push(Action::Crash(n));
    }
    if one.waiting.is_some() {
        return;
    }
    let Some(hand) = &one.hand else {
        if world.has_new() {
            actions.push(Action::Read(n));
        }
        if world.has_due() {
            actions.push(Action::Claim(n));
        }
        return;
    };
    actions.push(match (hand.end, hand.fence) {
        (Some(_), _) => Action::Settle(n),
        (None, None) => Action::Begin(n),
        (None, Some(_)) => Action::Handle(n),
    });
    if hand.end.is_none() {
        if budget.failures > 0 && hand.fence.is_some() {
            actions.push(Action::Fail(n));
        }
        if budget.given_back > 0 {
            actions.push(Action::GiveBack(n));
        }
    }
    if budget.extends > 0 {
        actions.push(Action::Extend(n));
    }
}

impl Scenario for Delivery {
    fn has_mistake(&self) -> bool {
        self.mistake != Mistake::None
    }
}
