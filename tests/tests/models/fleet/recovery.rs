//! Whether the fleet still gets to where it should be, once nothing goes wrong any more.

use resilience_core::breaker::fleet::{FleetState, LocalPhase, Policy};

use super::world::{Mistake, TICK, World};

/// Steps of time that suffice from any state: an open time, unsettled leases, and the same time again.
const STEPS: usize = 12;

/// From here on every message arrives, every call succeeds: do all instances that live find the fleet closed?
pub(crate) fn closes(world: &World, policy: &Policy, mistake: Mistake) -> bool {
    let mut world = world.clone();
    world.frozen = false;
    let done = |world: &World| {
        let view = world.view();
        let agreed = |n| {
            let same = world.epoch_of(n) == view.epoch && world.state_of(n) == view.state;
            same && world.passes(n)
        };
        view.state == FleetState::Closed && living(world).all(agreed)
    };
    for _ in 0..STEPS {
        if living(&world).next().is_none() || done(&world) {
            return true;
        }
        step(&mut world, true, policy, mistake);
    }
    done(&world)
}

/// From here on every probe fails: is half-open left, for open?
pub(crate) fn reopens(world: &World, policy: &Policy, mistake: Mistake) -> bool {
    let mut world = world.clone();
    world.frozen = false;
    for _ in 0..STEPS {
        let state = world.view().state;
        if living(&world).next().is_none() || state != FleetState::HalfOpen {
            return true;
        }
        step(&mut world, false, policy, mistake);
    }
    world.view().state != FleetState::HalfOpen
}

fn living(world: &World) -> impl Iterator<Item = usize> {
    let alive: Vec<_> = world.instances.iter().map(|one| one.alive).collect();
    (0..alive.len()).filter(move |n| alive[*n])
}

/// Everybody reports, hears what there is to hear, probes if there is a probe to be had; then time goes on.
fn step(world: &mut World, ok: bool, policy: &Policy, mistake: Mistake) {
    let living: Vec<_> = living(world).collect();
    for n in 0..world.instances.len() {
        world.serve_late(n, mistake);
        world.serve_late_ask(n);
    }
    for &n in &living {
        settle(world, n, policy, mistake);
        world.report(n);
        settle(world, n, policy, mistake);
        if world.local(n) == LocalPhase::Probing {
            world.end_own(n, ok);
        }
        if world.may_ask(n) {
            world.ask(n);
            settle(world, n, policy, mistake);
        }
        while !world.instances[n].held.is_empty() {
            world.end_probe(n, Some(ok));
            settle(world, n, policy, mistake);
        }
    }
    for &n in &living {
        settle(world, n, policy, mistake);
    }
    world.now += TICK;
}

/// Until the instance has nothing under way.
fn settle(world: &mut World, n: usize, policy: &Policy, mistake: Mistake) {
    loop {
        let one = &world.instances[n];
        if one.waiting.is_some() {
            world.serve(n, mistake);
            world.deliver(n, mistake, policy);
        } else if one.push.is_some() {
            world.hear(n, mistake, policy);
        } else if one.asking.is_some() {
            world.serve_ask(n, mistake);
            world.deliver_ask(n, mistake, policy);
        } else {
            return;
        }
    }
}
