//! The protocol of a cache over a store, model-checked: every order of events around one key.
//!
//! [`World`] holds the record that runs in production; here is what may happen next, and what must never be. Each scenario
//! of `scenarios` is explored to its end, and says how many states it had. The last test builds mistakes in, and sees that
//! each is found.

mod scenarios;
mod world;

use stateright::{Model, Property};

use crate::explore::Scenario;

use world::{Budget, Mistake, ReadStep, Request, Rules, TICK, World, WriteStep};

/// One scenario.
#[derive(Clone, Debug)]
struct Cache {
    start: World,
    mistake: Mistake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Read(usize),
    Refresh(usize),
    Wake(usize),
    Load(usize),
    FailLoad(usize),
    Extend(usize),
    ServeReader(usize),
    DeliverToReader(usize),
    LoseForReader(usize),
    Change(usize),
    Write(usize),
    Put(usize),
    Save(usize),
    FailSave(usize),
    ServeWriter(usize),
    DeliverToWriter(usize),
    LoseForWriter(usize),
    GiveUpWrite(usize),
    ServeLate(Request),
    Push(usize),
    Disconnect(usize),
    Reconnect(usize),
    Crash(usize),
    Tick,
    Replicate,
    Flush,
    SetBack,
}

impl Model for Cache {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.start.clone()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for n in 0..world.processes.len() {
            of_reader(world, n, actions);
            of_writer(world, n, self.mistake, actions);
            of_process(world, n, actions);
        }
        actions.extend(world.late.iter().copied().map(Action::ServeLate));
        if world.budget.ticks > 0 && world.may_tick() {
            actions.push(Action::Tick);
        }
        if world.replica != world.truth && world.rules.lags {
            actions.push(Action::Replicate);
        }
        if world.budget.flushes > 0 {
            actions.push(Action::Flush);
        }
        if world.budget.steps_back > 0 {
            actions.push(Action::SetBack);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        spend(&mut next.budget, action);
        let mistake = self.mistake;
        match action {
            Action::Read(n) => next.read(n, false, mistake),
            Action::Refresh(n) => next.read(n, true, mistake),
            Action::Wake(n) => next.wake(n, mistake),
            Action::Load(n) => next.load_for(n),
            Action::FailLoad(n) => next.fail_load(n),
            Action::Extend(n) => next.extend(n),
            Action::ServeReader(n) => next.serve_reader(n, mistake),
            Action::DeliverToReader(n) => next.deliver_to_reader(n, mistake),
            Action::LoseForReader(n) => next.lose_for_reader(n, mistake),
            Action::Change(n) => next.change(n),
            Action::Write(n) => next.write(n),
            Action::Put(n) => next.put(n),
            Action::Save(n) => next.save(n),
            Action::FailSave(n) => next.fail_save(n),
            Action::ServeWriter(n) => next.serve_writer(n, mistake),
            Action::DeliverToWriter(n) => next.deliver_to_writer(n),
            Action::LoseForWriter(n) => next.lose_for_writer(n, false, mistake),
            Action::GiveUpWrite(n) => next.lose_for_writer(n, true, mistake),
            Action::ServeLate(request) => drop(next.serve_late(request, mistake)),
            Action::Push(n) => next.push(n),
            Action::Disconnect(n) => next.disconnect(n),
            Action::Reconnect(n) => next.reconnect(n, mistake),
            Action::Crash(n) => next.crash(n),
            Action::Tick => next.time += TICK,
            Action::Replicate => next.replica = next.truth,
            Action::Flush => next.flush(),
            Action::SetBack => next.set_back(),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "nothing older than an invalidation is stored",
                |_, world: &World| world.is_current(),
            ),
            Property::always(
                "a fill from before an invalidation is refused",
                |_, world: &World| !world.broken.void_fill,
            ),
            Property::always("one lease at a time", |_, world: &World| {
                world.live_leases() <= 1
            }),
            Property::always(
                "no process uses what it knows to be changed",
                |_, world: &World| world.is_coherent(),
            ),
            Property::always(
                "every caller comes to an end",
                |it: &Self, world: &World| world.settles(it.mistake),
            ),
        ]
    }
}

impl Cache {
    fn new(processes: usize, rules: Rules, budget: Budget) -> Self {
        Self {
            start: World::new(processes, rules, budget),
            mistake: Mistake::None,
        }
    }
}

/// Takes from the budget what an action costs.
fn spend(budget: &mut Budget, action: Action) {
    let cost = match action {
        Action::Read(_) => &mut budget.reads,
        Action::Refresh(_) => {
            budget.reads -= 1;
            &mut budget.refreshes
        }
        Action::FailLoad(_) | Action::FailSave(_) => &mut budget.failures,
        Action::Extend(_) => &mut budget.extensions,
        Action::Change(_) => &mut budget.changes,
        Action::Write(_) => &mut budget.writes,
        Action::Put(_) => &mut budget.puts,
        Action::LoseForReader(_) | Action::LoseForWriter(_) | Action::GiveUpWrite(_) => {
            &mut budget.losses
        }
        Action::Disconnect(_) => &mut budget.disconnects,
        Action::Crash(_) => &mut budget.crashes,
        Action::Tick => &mut budget.ticks,
        Action::Flush => &mut budget.flushes,
        Action::SetBack => &mut budget.steps_back,
        _ => return,
    };
    *cost -= 1;
}

/// What a caller that reads may do.
fn of_reader(world: &World, n: usize, actions: &mut Vec<Action>) {
    let budget = &world.budget;
    let Some(reader) = &world.processes[n].reader else {
        if budget.reads > 0 {
            actions.push(Action::Read(n));
        }
        if budget.reads.min(budget.refreshes) > 0 {
            actions.push(Action::Refresh(n));
        }
        return;
    };
    if let Some((_, reply)) = &reader.wire {
        actions.push(match reply {
            None => Action::ServeReader(n),
            Some(_) => Action::DeliverToReader(n),
        });
        if budget.losses > 0 {
            actions.push(Action::LoseForReader(n));
        }
        return;
    }
    match reader.step {
        ReadStep::Wait(_) if world.may_wake(n) => actions.push(Action::Wake(n)),
        ReadStep::Load | ReadStep::LoadAlone(_) => {
            actions.push(Action::Load(n));
            if budget.failures > 0 {
                actions.push(Action::FailLoad(n));
            }
            if budget.extensions > 0 && reader.step == ReadStep::Load {
                actions.push(Action::Extend(n));
            }
        }
        _ => {}
    }
}

/// What a caller that changes the truth may do.
fn of_writer(world: &World, n: usize, mistake: Mistake, actions: &mut Vec<Action>) {
    let budget = &world.budget;
    let Some(writer) = &world.processes[n].writer else {
        if budget.changes > 0 && world.may_change(mistake) {
            actions.push(Action::Change(n));
        }
        if budget.writes > 0 && world.may_change(mistake) {
            actions.push(Action::Write(n));
        }
        if budget.puts > 0 && world.may_put() {
            actions.push(Action::Put(n));
        }
        return;
    };
    if let Some((_, reply)) = &writer.wire {
        actions.push(match reply {
            None => Action::ServeWriter(n),
            Some(_) => Action::DeliverToWriter(n),
        });
        if budget.losses > 0 {
            actions.push(Action::LoseForWriter(n));
            if writer.step == WriteStep::End {
                actions.push(Action::GiveUpWrite(n));
            }
        }
        return;
    }
    if matches!(writer.step, WriteStep::Save(_)) {
        actions.push(Action::Save(n));
        if budget.failures > 0 {
            actions.push(Action::FailSave(n));
        }
    }
}

/// What may happen to a process.
fn of_process(world: &World, n: usize, actions: &mut Vec<Action>) {
    let (process, budget) = (&world.processes[n], &world.budget);
    if !process.mail.is_empty() {
        actions.push(Action::Push(n));
    }
    if !process.told {
        actions.push(Action::Reconnect(n));
    } else if budget.disconnects > 0 {
        actions.push(Action::Disconnect(n));
    }
    if budget.crashes > 0 && (process.reader.is_some() || process.writer.is_some()) {
        actions.push(Action::Crash(n));
    }
}

impl Scenario for Cache {
    fn has_mistake(&self) -> bool {
        self.mistake != Mistake::None
    }
}
