//! A small version of the figures `outbox_*` of `make torture`.

use std::{path::Path, time::Duration};

use resilience_tests::torture::{OutboxPlan, OutboxReport, outbox};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_survive_relays_and_a_database_that_are_killed_and_take_effect_once() {
    let plan = OutboxPlan {
        events: 600,
        relays: 2,
        calm: Duration::from_millis(200),
        limit: Duration::from_secs(180),
    };
    let came = outbox(Path::new(env!("CARGO_BIN_EXE_torture")), plan).await;
    assert!(came.committed >= plan.events && came.kills > 0, "{came:?}");
    let expected = OutboxReport {
        committed: came.committed,
        kills: came.kills,
        stops: came.stops,
        database_kills: came.database_kills,
        ..OutboxReport::default()
    };
    assert_eq!(came, expected);
}
