//! The scenarios.

use super::{Budget, Delivery, Mistake};
use crate::explore::{explore, holds, more};

/// Answers are lost, requests late and served twice, events published twice; and no process fails.
fn calm() -> Delivery {
    let budget = Budget {
        publishes: 1,
        copies: 1,
        given_back: more(),
        losses: 2,
        ..Budget::default()
    };
    Delivery::new(2, budget)
}

/// Consumers are killed, or stall past their leases, and settle late.
fn killed() -> Delivery {
    let budget = Budget {
        publishes: 1,
        losses: 1,
        crashes: 1 + more(),
        ticks: 2,
        ..Budget::default()
    };
    Delivery::new(2, budget)
}

/// The same beside a copy of the event.
fn copied() -> Delivery {
    let budget = Budget {
        publishes: 1,
        copies: 1,
        losses: more(),
        crashes: more(),
        ticks: 2,
        ..Budget::default()
    };
    Delivery::new(2, budget)
}

/// Handlers fail and messages are given back, until they are dead and redriven.
fn failing() -> Delivery {
    let budget = Budget {
        publishes: 1,
        failures: 2,
        given_back: 1,
        losses: more(),
        redrives: 1,
        ticks: 1 + more(),
        ..Budget::default()
    };
    Delivery::new(2, budget)
}

/// The broker's clock is set back.
fn set_back() -> Delivery {
    let budget = Budget {
        publishes: 1,
        failures: more(),
        losses: more(),
        crashes: 1,
        ticks: 1,
        steps_back: 1,
        ..Budget::default()
    };
    Delivery::new(2, budget)
}

/// One of two events always fails.
fn poisoned() -> Delivery {
    let budget = Budget {
        publishes: 2,
        crashes: more(),
        ticks: 1,
        ..Budget::default()
    };
    let mut poisoned = Delivery::new(2, budget);
    poisoned.start.poison = Some(0);
    poisoned
}

/// The broker loses the group, whose bookmark and whose effects are kept apart.
fn lost_group() -> Delivery {
    let budget = Budget {
        publishes: 2,
        losses: more(),
        ticks: 1,
        lost_groups: 1,
        ..Budget::default()
    };
    Delivery::new(2, budget)
}

/// The broker loses everything.
fn flushed() -> Delivery {
    let budget = Budget {
        publishes: 2,
        extends: 1,
        losses: more(),
        ticks: 1,
        flushes: 1,
        ..Budget::default()
    };
    Delivery::new(2, budget)
}

#[test]
fn repeated_requests_and_copies_of_events_make_one_effect_while_leases_hold() {
    holds("delivery, calm", calm());
}

#[test]
fn consumers_that_are_killed_or_stall_lose_nothing_and_record_nothing_twice() {
    holds("delivery, killed", killed());
}

#[test]
fn copies_of_an_event_are_recorded_once_beside_consumers_that_stall() {
    holds("delivery, copied", copied());
}

#[test]
fn what_fails_is_counted_and_dead_in_the_end() {
    holds("delivery, failing", failing());
    holds("delivery, poisoned", poisoned());
}

#[test]
fn a_clock_set_back_keeps_no_message_from_its_next_delivery() {
    holds("delivery, set back", set_back());
}

#[test]
fn a_broker_that_forgets_the_group_loses_nothing_and_records_nothing_twice() {
    holds("delivery, lost group", lost_group());
}

#[test]
fn a_broker_that_forgets_everything_takes_no_late_settlement_for_a_new_message() {
    holds("delivery, flushed", flushed());
}

#[test]
fn the_checker_finds_every_mistake_about_delivery() {
    for (mut delivery, mistake, property) in [
        (killed(), Mistake::AckUnchecked, "a zombie changes nothing"),
        (
            calm(),
            Mistake::AckFirst,
            "what is acknowledged has an outcome",
        ),
        (killed(), Mistake::RecordFirst, "a zombie changes nothing"),
        (
            killed(),
            Mistake::RecordFirst,
            "an outcome is recorded with its acknowledgement",
        ),
        (
            failing(),
            Mistake::GiveBackCounts,
            "deliveries are counted right",
        ),
        (calm(), Mistake::RunWhenBusy, "one effect while leases hold"),
        (failing(), Mistake::RetryLoses, "no message is lost"),
        (killed(), Mistake::NoTakeover, "every message settles"),
        (
            failing(),
            Mistake::AckOnError,
            "what is acknowledged has an outcome",
        ),
        (poisoned(), Mistake::RetryForever, "every message settles"),
        (set_back(), Mistake::ClockUnnoticed, "every message settles"),
        (lost_group(), Mistake::RestoreAtEnd, "no message is lost"),
        (
            lost_group(),
            Mistake::EffectsInGroup,
            "an effect is recorded at most once",
        ),
    ] {
        delivery.mistake = mistake;
        let broken = explore(&format!("{mistake:?}"), delivery);
        assert!(broken.contains(&property), "{mistake:?}: found {broken:?}");
    }
}
