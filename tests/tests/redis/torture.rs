//! The torture of work that must be done once, in short. `make torture` is the long one.

use std::{path::Path, time::Duration};

use resilience_tests::torture::{
    Former, Mixed, PLACES, Plan, Report, Rollout, Subject, failover, run, upgrade,
};

async fn short(subject: Subject) -> Report {
    let plan = Plan {
        subject,
        workers: 4,
        keys: 60,
        operations: 2_000,
        calm: Duration::from_millis(150),
        seed: fastrand::u64(..),
        limit: Duration::from_secs(180),
    };
    let report = run(&plan, Path::new(env!("CARGO_BIN_EXE_torture"))).await;
    println!("{plan:?}\n{report:?}");
    let books = &report.books;
    assert_eq!((books.told, books.keys), (plan.operations, plan.keys));
    assert_eq!(
        (books.double, books.lost, books.contradictory, books.stuck),
        (0, 0, 0, 0)
    );
    assert!(
        report.faults.kills + report.faults.stops + report.faults.cuts > 0,
        "nothing was endured"
    );
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn work_in_the_inbox_is_done_once_however_its_processes_are_treated() {
    let report = short(Subject::Inbox).await;
    assert_eq!(report.books.effects, report.books.keys);
}

/// Whether the fence and the doubt are put to use is up to chance in a run as short as this.
#[tokio::test(flavor = "multi_thread")]
async fn work_recorded_in_redis_is_done_once_under_the_fence_however_its_processes_are_treated() {
    let report = short(Subject::Redis).await;
    assert_eq!(report.books.effects, report.books.keys);
}

/// What is lost without waiting is a figure, and not a promise that could be broken here.
#[tokio::test(flavor = "multi_thread")]
async fn completions_that_waited_for_the_replica_survive_a_failover_and_no_fence_goes_back() {
    for durable in [true, false] {
        let loss = failover(durable).await;
        println!("durable: {durable}, {loss:?}");
        assert!(loss.accepted > 0 && loss.fences_back == 0, "{loss:?}");
        assert!(!durable || loss.lost == 0, "{loss:?}");
    }
}

/// Processes of this version in place of each other. `torture only upgrade` builds the commit before.
async fn rolled_out(shares: bool) -> Mixed {
    let program = Path::new(env!("CARGO_BIN_EXE_torture"));
    let former = Former {
        commit: "this one".to_owned(),
        program: program.to_owned(),
    };
    let rollout = Rollout {
        apart: Duration::from_millis(200),
        shares,
    };
    let fleet = upgrade(program, &former, rollout)
        .await
        .expect("it runs")
        .fleet;
    println!("{fleet:?}");
    assert!(fleet.keys > 20 && fleet.hung == 0, "{fleet:?}");
    fleet
}

/// In events about what one of two versions does not understand. Others tell of a busy machine: a lease or a connection lost.
const MISUNDERSTOOD: [&str; 5] = [
    "unexpected answer",
    "cannot be read",
    "no record",
    "makes no sense",
    "format",
];

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_are_replaced_one_by_one_share_what_they_did_before() {
    let fleet = rolled_out(true).await;
    assert_eq!((fleet.twice, fleet.foreign, fleet.unknown), (0, 0, 0));
    assert!(fleet.admitted <= fleet.allowed, "{fleet:?}");
    let misunderstood = |event: &String| MISUNDERSTOOD.iter().any(|words| event.contains(words));
    let any_misunderstood = fleet.warnings.keys().any(misunderstood);
    assert!(fleet.disagreed == 0 && !any_misunderstood, "{fleet:?}");
    assert!(fleet.peak <= PLACES, "{fleet:?}");
}

/// That the fleet above would be found out.
#[tokio::test(flavor = "multi_thread")]
async fn processes_that_share_nothing_exceed_every_bound() {
    let fleet = rolled_out(false).await;
    assert!(fleet.twice > 0 && fleet.foreign > 0, "{fleet:?}");
    assert!(fleet.admitted > fleet.allowed, "{fleet:?}");
    assert!(fleet.peak > PLACES, "{fleet:?}");
}
