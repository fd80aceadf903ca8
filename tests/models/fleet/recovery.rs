//! Whether the fleet still gets to where it should be, once nothing goes wrong any more.

use resilience_core::breaker::fleet::{FleetState, LocalPhase, Policy};

use super::world::{Mistake, TICK, World};

/// Steps of time that suffice from any state: an open time, unsettled leases, and the same time again.
const STEPS: usize = 12;

/// From here on every message arrives, every call succeeds: do all instances that live find the fleet closed?
pub(crate) fn closes(world: &World, policy: &Policy, mistake: Mistake) -> bool {
    let mut world = world.clone();
    world.frozen = false;
    end_gracefully(&mut world, mistake);
    let done = |world: &World| {
        let view = world.view();
        let agreed = |n| {
            let same = world.epoch_of(n) == view.epoch && world.state_of(n) == view.state;
            same && world.passes(n)
        };
        view.state == FleetState::Closed && world.living().into_iter().all(agreed)
    };
    for _ in 0..STEPS {
        if world.living().is_empty() || done(&world) {
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
    end_gracefully(&mut world, mistake);
    for _ in 0..STEPS {
        let state = world.view().state;
        if world.living().is_empty() || state != FleetState::HalfOpen {
            return true;
        }
        step(&mut world, false, policy, mistake);
    }
    world.view().state != FleetState::HalfOpen
}

/// Everybody reports, hears what there is to hear, probes if there is a probe to be had; then time goes on.
fn step(world: &mut World, ok: bool, policy: &Policy, mistake: Mistake) {
    let living = world.living();
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

/// Those that were asked to end have ended.
fn end_gracefully(world: &mut World, mistake: Mistake) {
    for n in world.living() {
        while world.instances[n].closing && world.instances[n].alive {
            if world.instances[n].waiting.is_some() {
                world.serve(n, mistake);
                // Nothing follows from the answer.
                world.instances[n].waiting = None;
            } else {
                world.end_gracefully(n, mistake);
            }
        }
    }
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
