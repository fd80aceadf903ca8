//! The torture of work that must be done once, in short. `make torture` is the long one.

use std::{path::Path, time::Duration};

use resilience_tests::torture::{Plan, Report, Subject, run};

async fn short(subject: Subject) -> Report {
    let plan = Plan {
        subject,
        workers: 4,
        keys: 100,
        operations: 4_000,
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
