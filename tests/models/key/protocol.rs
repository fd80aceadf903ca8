//! Scenarios of the record: what holds whatever a second run of the work does.

use super::{
    Key,
    world::{Budget, Mistake},
};
use crate::explore::{explore, holds, more};

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
            ticks: 1 + more(),
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
