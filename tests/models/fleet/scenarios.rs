//! Scenarios of a fleet.

use super::{
    Fleet,
    world::{Budget, Mistake, World, policy},
};
use crate::explore::{explore, holds, more};

/// Two instances, failing calls, reports lost, late and twice.
fn reports() -> Fleet {
    Fleet::new(World::new(
        2,
        Budget {
            calls: 2,
            reports: 3,
            losses: 1,
            repeats: 1,
            ..Budget::default()
        },
    ))
}

/// Two instances ask for probes that succeed, fail, are given back, or come back too late.
fn probes() -> Fleet {
    Fleet::new(World::opened(
        2,
        Budget {
            asks: 3,
            ticks: 1,
            ..Budget::default()
        },
    ))
}

/// The same with holders that die and answers that never come.
fn lost_probes() -> Fleet {
    Fleet::new(World::opened(
        2,
        Budget {
            asks: 2,
            ticks: 1,
            losses: 1,
            crashes: 1,
            ..Budget::default()
        },
    ))
}

/// The record is lost while the fleet is open or half-open.
fn flush() -> Fleet {
    Fleet::new(World::opened(
        2,
        Budget {
            asks: 1,
            reports: 2,
            flushes: 1,
            ..Budget::default()
        },
    ))
}

/// The store freezes while the fleet is open, and instances recover, or not, by themselves.
fn frozen(crashes: u8, resets: u8) -> Fleet {
    let mut fleet = Fleet::new(World::opened(
        2,
        Budget {
            asks: 2,
            freezes: 1,
            own_probes: 2,
            crashes,
            resets,
            ..Budget::default()
        },
    ));
    fleet.policy = policy(1);
    fleet.recovers = true;
    fleet
}

/// The store's clock is set back while the fleet is open or half-open, or the server that takes over is behind; and, where it
/// goes to and fro, forward again to where it was.
fn steps(crashes: u8, steps_back: u8, steps_forward: u8) -> Fleet {
    let mut fleet = probes();
    fleet.start.budget = Budget {
        asks: 1,
        ticks: 1,
        crashes,
        steps_back,
        steps_forward,
        ..Budget::default()
    };
    fleet.policy = policy(1);
    fleet.recovers = true;
    fleet
}

/// Instances are asked to end while the fleet is open or half-open, and others start in their place.
fn deploys(asks: u8, reports: u8) -> Fleet {
    let mut fleet = Fleet::new(World::opened(
        2,
        Budget {
            asks,
            reports,
            closes: 1 + reports,
            starts: 1,
            ticks: more(),
            ..Budget::default()
        },
    ));
    fleet.policy = policy(1);
    fleet.recovers = true;
    fleet
}

/// The same beside instances that are killed, and messages that are lost.
fn deploys_and_kills() -> Fleet {
    let mut fleet = deploys(0, 0);
    fleet.start.budget = Budget {
        asks: 1 + more(),
        losses: 1,
        crashes: 1,
        closes: 1,
        starts: 1,
        ticks: 1,
        ..Budget::default()
    };
    fleet
}

/// A replica takes over, with a record that may be older and a clock that is behind.
fn failover(crashes: u8) -> Fleet {
    let mut fleet = deploys(0, 0);
    fleet.start.budget = Budget {
        asks: 1 + more(),
        reports: (1 + more()).saturating_sub(crashes),
        crashes,
        failovers: 1,
        ..Budget::default()
    };
    fleet
}

#[test]
fn instances_that_end_gracefully_leave_no_probe_and_no_vote_and_the_fleet_recovers() {
    holds("deploys, probes", deploys(2, 0));
    holds("deploys, votes", deploys(1 + more(), 1));
    holds("deploys and kills", deploys_and_kills());
}

#[test]
fn record_and_instances_agree_again_after_a_failover_to_an_older_record_and_a_slower_clock() {
    holds("failover", failover(0));
    holds("failover, one dies", failover(1));
}

#[test]
fn reports_lost_late_or_repeated_count_once_and_one_change_wins() {
    holds("reports", reports());
}

#[test]
fn probes_stay_within_the_budget_whatever_is_lost() {
    holds("probes", probes());
    holds("lost probes", lost_probes());
}

#[test]
fn epochs_only_go_up_over_a_flush() {
    holds("flush", flush());
}

#[test]
fn the_fleet_gets_out_of_every_state() {
    let mut fleet = probes();
    fleet.start.budget = Budget {
        asks: 2,
        flushes: 1,
        crashes: 1,
        ..Budget::default()
    };
    fleet.policy = policy(1);
    fleet.recovers = true;
    holds("recovery", fleet);
}

#[test]
fn the_fleet_gets_out_of_every_state_when_the_stores_clock_is_set() {
    holds("set back", steps(1, 1, 0));
    holds("to and fro", steps(0, 2, 1));
}

#[test]
fn record_and_instances_agree_again_after_the_store_was_frozen() {
    holds("frozen, one dies", frozen(1, 0));
    holds("frozen, one is reset", frozen(0, 1));
}

#[test]
fn a_lone_bad_instance_never_opens_a_fleet_of_three() {
    let mut fleet = Fleet::new(World::new(
        3,
        Budget {
            calls: 2,
            reports: 3,
            flushes: 1,
            ..Budget::default()
        },
    ));
    fleet.lone = true;
    holds("lone", fleet);
}

#[test]
fn the_checker_finds_every_mistake_that_is_built_in() {
    let found = |mut fleet: Fleet, mistake| {
        fleet.mistake = mistake;
        if mistake == Mistake::QuorumOfOne {
            fleet.policy.min_instances = 1;
        }
        explore(&format!("{mistake:?}"), fleet)
    };
    let mut lone = reports();
    lone.lone = true;
    let mut busy = reports();
    busy.start.budget = Budget {
        calls: 3,
        reports: 3,
        ..Budget::default()
    };
    let mut recovery = flush();
    recovery.recovers = true;
    for (fleet, mistake, property) in [
        (
            reports(),
            Mistake::ChangeWithoutLooking,
            "one winner per epoch",
        ),
        (flush(), Mistake::RestoreOverNewer, "no epoch goes back"),
        (
            recovery,
            Mistake::RestoreWithoutEnd,
            "the fleet closes once all is well",
        ),
        (
            reports(),
            Mistake::ReportWithoutSequence,
            "each call counts once",
        ),
        (busy, Mistake::ReportOfAnyEpoch, "each call counts once"),
        (
            probes(),
            Mistake::LeaseWithoutBudget,
            "probes within the budget",
        ),
        (
            lone,
            Mistake::QuorumOfOne,
            "a lone bad instance never opens the fleet",
        ),
        (flush(), Mistake::AdoptWhatIsOlder, "no epoch goes back"),
        (failover(0), Mistake::AdoptWhatIsOlder, "no epoch goes back"),
        (
            frozen(0, 0),
            Mistake::KeepToItself,
            "the fleet closes once all is well",
        ),
        (
            deploys(1, 0),
            Mistake::LeaveWithProbes,
            "a graceful end leaves no probe",
        ),
        (
            deploys(0, 1),
            Mistake::LeaveUnsaid,
            "a graceful end leaves no vote",
        ),
    ] {
        let broken = found(fleet, mistake);
        assert!(broken.contains(&property), "{mistake:?}: found {broken:?}");
    }
}
