//! The protocol of idempotency keys, model-checked: every order of events around one key.
//!
//! [`World`] holds the record that runs in production; here is what may happen next, and what must never be. Each
//! scenario is explored to its end, and says how many states it had. The last test builds mistakes in and sees that
//! each is found.

mod world;

use stateright::{Model, Property};

use crate::explore::{Scenario, explore, holds};

use world::{Budget, Mistake, Request, TICK, World};

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
    LeaveUnknown(usize),
    Serve(usize),
    ServeLate(usize),
    SendAgain(usize),
    Deliver(usize),
    Crash(usize),
    Tick,
    Flush,
    SetBack,
    Replicate,
    FailOver,
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
        if world.budget.failovers > 0 {
            actions.extend([Action::Replicate, Action::FailOver]);
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
            Action::LeaveUnknown(n) => {
                budget.unknowns -= 1;
                next.wish(n, Request::Unknown, true);
            }
            Action::SendAgain(n) => {
                budget.losses -= 1;
                next.send_again(n);
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
            Action::Replicate => next.replicate(),
            Action::FailOver => {
                budget.failovers -= 1;
                next.fail_over();
            }
            Action::TakeEffect(n) => next.take_effect(n),
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

    /// No process dies, no lease ends, nothing is forgotten. Messages are lost, late and repeated all the same.
    fn is_calm(&self) -> bool {
        let budget = &self.start.budget;
        let faults = budget.crashes + budget.flushes + budget.steps_back + budget.failovers;
        budget.ticks + faults == 0
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
}

/// What an instance may do.
fn of_one(world: &World, n: usize, actions: &mut Vec<Action>) {
    let (one, budget) = (&world.instances[n], &world.budget);
    if budget.crashes > 0 && (one.waiting.is_some() || one.holder.is_some()) {
        actions.push(Action::Crash(n));
    }
    if one.waiting.is_some() {
        return;
    }
    if one.holder.is_none() {
        if budget.claims > 0 {
            actions.push(Action::Ask(n));
            if budget.bold > 0 {
                actions.push(Action::AskBoldly(n));
            }
        }
        return;
    }
    if one.took_effect {
        actions.push(Action::Complete(n));
    } else {
        actions.push(Action::TakeEffect(n));
        if budget.releases > 0 {
            actions.push(Action::Release(n));
        }
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

/// Three instances ask, answers are lost, and requests are late or come twice.
fn lost_replies() -> Key {
    Key::new(
        3,
        Budget {
            claims: 3,
            releases: 1,
            losses: 1,
            ..Budget::default()
        },
    )
}

/// Leases end, and two of three go on as zombies.
fn zombies() -> Key {
    Key::new(
        3,
        Budget {
            claims: 3,
            ticks: 2,
            ..Budget::default()
        },
    )
}

/// The same with holders that die, and messages that come twice.
fn crashes() -> Key {
    Key::new(
        2,
        Budget {
            claims: 3,
            losses: 1,
            crashes: 1,
            ticks: 1,
            extends: 1,
            ..Budget::default()
        },
    )
}

/// Outcomes are left unknown, and leases end.
fn doubts() -> Key {
    Key::new(
        2,
        Budget {
            claims: 3,
            unknowns: 1,
            losses: 1,
            ticks: 1,
            ..Budget::default()
        },
    )
}

/// As above, when another process takes over and releases the key.
fn handed_on() -> Key {
    Key::new(
        2,
        Budget {
            claims: 3,
            bold: 1,
            unknowns: 1,
            releases: 2,
            ticks: 1,
            ..Budget::default()
        },
    )
}

/// The record is lost, at any moment.
fn flushes() -> Key {
    Key::new(
        2,
        Budget {
            claims: 2,
            losses: 1,
            flushes: 2,
            ..Budget::default()
        },
    )
}

/// Until the outcome and the record are forgotten in due course.
fn expiries() -> Key {
    Key::new(
        2,
        Budget {
            claims: 2,
            losses: 1,
            ticks: 5,
            ..Budget::default()
        },
    )
}

/// The store's clock is set back, at any moment, also when the record is lost.
fn steps() -> Key {
    Key::new(
        2,
        Budget {
            claims: 3,
            ticks: 2,
            flushes: 1,
            steps_back: 2,
            ..Budget::default()
        },
    )
}

/// A replica takes over, with an older record and a clock that is behind.
fn failovers() -> Key {
    Key::new(
        2,
        Budget {
            claims: 3,
            losses: 1,
            ticks: 1,
            failovers: 1,
            ..Budget::default()
        },
    )
}

#[test]
fn no_lease_is_prolonged_and_fences_go_up_when_the_clock_is_set_back() {
    holds("steps", steps());
}

#[test]
fn fences_only_go_up_over_a_failover_to_a_slower_clock() {
    holds("failovers", failovers());
}

#[test]
fn lost_late_and_repeated_messages_cause_one_effect() {
    holds("lost replies", lost_replies());
}

#[test]
fn zombies_change_nothing_and_no_accepted_outcome_is_lost() {
    holds("zombies", zombies());
    holds("crashes", crashes());
}

#[test]
fn a_doubt_stays_until_somebody_knows() {
    holds("doubts", doubts());
    holds("handed on", handed_on());
}

#[test]
fn fences_only_go_up_over_flushes() {
    holds("flushes", flushes());
}

#[test]
fn nothing_goes_wrong_when_records_expire() {
    holds("expiries", expiries());
}

#[test]
fn the_checker_finds_every_mistake_that_is_built_in() {
    for (mut key, mistake, property) in [
        (
            zombies(),
            Mistake::CompleteUnchecked,
            "one outcome is accepted",
        ),
        (
            lost_replies(),
            Mistake::ReleaseFirst,
            "one effect while leases hold",
        ),
        (
            lost_replies(),
            Mistake::RunWhenBusy,
            "no two effects under one fence",
        ),
        (
            zombies(),
            Mistake::LeaseAsLongAsTheRecord,
            "no key is stuck past its lease",
        ),
        (flushes(), Mistake::ClockBehind, "fences only go up"),
        (steps(), Mistake::ClockBehind, "fences only go up"),
        (failovers(), Mistake::ClockBehind, "fences only go up"),
        (
            doubts(),
            Mistake::UnknownIsRetried,
            "a doubt is not forgotten",
        ),
        (
            handed_on(),
            Mistake::ReleaseForgets,
            "a doubt is not forgotten",
        ),
    ] {
        key.mistake = mistake;
        let broken = explore(&format!("{mistake:?}"), key);
        assert!(broken.contains(&property), "{mistake:?}: found {broken:?}");
    }
}
