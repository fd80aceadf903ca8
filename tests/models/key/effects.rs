//! Scenarios of the handle's defaults: what happens to work that may have been done, by what a second run of it does; and
//! processes that end gracefully, next to those that are killed.

use resilience_core::idempotency::Effect;

use super::{
    Key, Rules,
    world::{Budget, Mistake},
};
use crate::explore::{explore, holds, more};

fn of(effect: Effect, budget: Budget) -> Key {
    let mut key = Key::new(2, budget);
    key.start.rules.effect = Some(effect);
    key
}

/// Processes are killed, messages are lost, leases end, and callers may be told an outcome before it is recorded
/// (`OnUnrecorded::Answer`).
fn killed(effect: Effect) -> Key {
    let budget = Budget {
        claims: 2 + more(),
        losses: 1,
        crashes: 1,
        ticks: 1,
        answers: 1,
        ..Budget::default()
    };
    of(effect, budget)
}

/// An operator resolves what is unknown, also while a message of a dead process is on its way.
fn resolved() -> Key {
    let budget = Budget {
        claims: 3,
        losses: more(),
        crashes: 1,
        ticks: 1,
        unknowns: 1,
        resolves: 1,
        ..Budget::default()
    };
    of(Effect::AtMostOnce, budget)
}

/// Processes are asked to end: their work ends, or is cancelled with the checkpoint that it has saved.
fn deploys(effect: Effect) -> Key {
    let budget = Budget {
        claims: 2 + more(),
        saves: 1,
        ticks: 1,
        closes: 2,
        cancels: 1,
        hang_ups: 1,
        ..Budget::default()
    };
    of(effect, budget)
}

/// The same beside processes that are killed, and messages that are lost.
fn deploys_and_kills(effect: Effect) -> Key {
    let budget = Budget {
        claims: 2 + more(),
        losses: 1,
        crashes: 1,
        ticks: more(),
        closes: 1,
        cancels: 1,
        ..Budget::default()
    };
    of(effect, budget)
}

/// The store's clock goes forward, beyond the end of every lease, and back.
fn to_and_fro(effect: Effect) -> Key {
    let budget = Budget {
        claims: 2 + more(),
        extends: 1,
        crashes: 1,
        swings: 2 + more(),
        ..Budget::default()
    };
    of(effect, budget)
}

/// A replica takes over that has every step that was answered, and a clock that is behind.
fn failed_over(effect: Effect) -> Key {
    let budget = Budget {
        claims: 2 + more(),
        losses: 1,
        crashes: 1,
        ticks: 1,
        failovers: 1,
        ..Budget::default()
    };
    let mut key = of(effect, budget);
    key.start.rules = Rules {
        durable: true,
        ..key.start.rules
    };
    key
}

const ALL: [Effect; 3] = [Effect::AtMostOnce, Effect::Fenced, Effect::Idempotent];

#[test]
fn work_takes_effect_as_its_setting_says_when_processes_are_killed() {
    for effect in ALL {
        holds(&format!("killed, {effect:?}"), killed(effect));
    }
}

#[test]
fn an_unknown_outcome_is_resolved_once_and_the_work_is_done_at_most_once() {
    holds("resolved", resolved());
}

#[test]
fn processes_that_end_gracefully_leave_no_lease_and_hand_over_what_they_cancel() {
    for effect in ALL {
        holds(&format!("deploys, {effect:?}"), deploys(effect));
    }
}

#[test]
fn graceful_ends_and_kills_beside_each_other_cause_no_further_effect() {
    for effect in [Effect::AtMostOnce, Effect::Fenced] {
        let name = format!("deploys and kills, {effect:?}");
        holds(&name, deploys_and_kills(effect));
    }
}

#[test]
fn a_clock_that_goes_to_and_fro_causes_no_further_effect() {
    for effect in [Effect::AtMostOnce, Effect::Fenced] {
        holds(&format!("to and fro, {effect:?}"), to_and_fro(effect));
    }
}

#[test]
fn a_durable_failover_to_a_slower_clock_causes_no_further_effect() {
    for effect in [Effect::AtMostOnce, Effect::Fenced] {
        holds(&format!("failed over, {effect:?}"), failed_over(effect));
    }
}

#[test]
fn the_checker_finds_every_mistake_about_effects() {
    let mut lost_updates = failed_over(Effect::AtMostOnce);
    lost_updates.start.rules.durable = false;
    let mut in_time = deploys(Effect::Idempotent);
    in_time.start.budget.ticks = 0;
    for (mut key, mistake, property) in [
        (
            killed(Effect::AtMostOnce),
            Mistake::TakeOverEnded,
            "one effect",
        ),
        (
            to_and_fro(Effect::AtMostOnce),
            Mistake::TakeOverEnded,
            "one effect",
        ),
        (killed(Effect::Fenced), Mistake::FenceIgnored, "one effect"),
        (
            to_and_fro(Effect::Fenced),
            Mistake::FenceIgnored,
            "one effect",
        ),
        (
            killed(Effect::AtMostOnce),
            Mistake::CompleteOnce,
            "every key settles",
        ),
        (
            killed(Effect::Idempotent),
            Mistake::AnswerUnmarked,
            "callers receive one outcome",
        ),
        (
            killed(Effect::Idempotent),
            Mistake::AnswerRefused,
            "callers receive one outcome",
        ),
        (
            resolved(),
            Mistake::ResolveUnseen,
            "what may be done is not granted again",
        ),
        (
            deploys(Effect::AtMostOnce),
            Mistake::CancelReleases,
            "what may be done is not granted again",
        ),
        (
            in_time,
            Mistake::CancelDeletes,
            "a checkpoint is handed over",
        ),
        (
            deploys(Effect::Idempotent),
            Mistake::CloseKills,
            "a graceful end leaves no lease",
        ),
        (
            deploys(Effect::AtMostOnce),
            Mistake::LeaseAsLongAsTheRecord,
            "no key is stuck past its lease",
        ),
        (lost_updates, Mistake::NotDurable, "every key settles"),
    ] {
        key.mistake = mistake;
        let broken = explore(&format!("{mistake:?}"), key);
        assert!(broken.contains(&property), "{mistake:?}: found {broken:?}");
    }
}
