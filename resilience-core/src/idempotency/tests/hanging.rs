//! A store that never answers.

use std::{io, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{Effects, Idempotency, LEASE, SECOND, fresh, refused, replayed, shaky::Shaky};
use crate::{
    error::Reason,
    fleet::{FleetOptions, OnOutage},
    idempotency::{Attempt, CheckpointFailed, OnUnrecorded, Recorded, Resolution, Source},
};

const BUDGET: Duration = Duration::from_millis(200);

fn over(store: &Shaky, on_outage: OnOutage) -> Idempotency {
    let fleet = FleetOptions::new().budget(BUDGET).on_outage(on_outage);
    Idempotency::builder("test")
        .store(store.clone())
        .fleet(fleet)
        .wait(4, 3 * LEASE)
        .build()
        .unwrap()
}

fn hanging(on_outage: OnOutage) -> (Shaky, Idempotency) {
    let store = Shaky::default();
    store.hangs(true);
    let handle = over(&store, on_outage);
    (store, handle)
}

#[tokio::test(start_paused = true)]
async fn a_claim_costs_its_tries_and_the_next_ones_nothing() {
    let (store, handle) = hanging(OnOutage::FailClosed);
    let effects = Effects::default();
    let start = Instant::now();
    let first = refused(effects.once(&handle, "k").await);
    assert_eq!(first.0, Reason::StoreUnreachable);
    let took = start.elapsed();
    assert!((3 * BUDGET..4 * BUDGET).contains(&took), "{took:?}");
    for number in 0..100 {
        let start = Instant::now();
        let next = refused(effects.once(&handle, &number.to_string()).await);
        assert_eq!(next.0, Reason::StoreUnreachable);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
    assert_eq!(effects.count(), 0);
    // Asked by one task meanwhile, which notices that it answers.
    store.hangs(false);
    sleep(2 * SECOND).await;
    assert_eq!(fresh(effects.once(&handle, "k").await), 1);
}

#[tokio::test(start_paused = true)]
async fn work_runs_without_it_where_the_policy_says_so() {
    for (on_outage, count) in [(OnOutage::FailOpen, 2), (OnOutage::Local, 1)] {
        let (_store, handle) = hanging(on_outage);
        let effects = Effects::default();
        for _ in 0..2 {
            let ran = timeout(4 * BUDGET, effects.once(&handle, "k")).await;
            assert!(ran.expect("in time").is_ok(), "{on_outage:?}");
        }
        assert_eq!(effects.count(), count, "{on_outage:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_is_rejected_when_it_begins_to_hang() {
    let store = Shaky::default();
    let handle = over(&store, OnOutage::FailClosed);
    let effects = Effects::default();
    let _working = effects.begin(&handle, "k", 2 * LEASE).await;
    let hangs = async {
        sleep(5 * SECOND).await;
        store.hangs(true);
    };
    let start = Instant::now();
    let (waited, ()) = tokio::join!(effects.once(&handle, "k"), hangs);
    assert_eq!(refused(waited).0, Reason::StoreUnreachable);
    assert!(start.elapsed() < 8 * SECOND, "{:?}", start.elapsed());
    assert_eq!(handle.snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_completion_costs_the_caller_its_budget_and_is_repeated_in_the_background() {
    for heals in [true, false] {
        let store = Shaky::default();
        let handle = Idempotency::builder("test").store(store.clone());
        let handle = handle.fleet(FleetOptions::new().budget(BUDGET));
        let handle = handle.on_unrecorded(OnUnrecorded::Answer).ttl(2 * LEASE);
        let handle = handle.build().unwrap();
        let (line, effects) = (store.clone(), Effects::default());
        let happens = effects.clone();
        let run = handle.run("k", move |_| async move {
            line.hangs(true);
            Ok::<_, io::Error>(happens.happen())
        });
        let start = Instant::now();
        let outcome = run.await.unwrap();
        assert_eq!(outcome.source, Source::Fresh(Recorded::Pending));
        assert!(start.elapsed() <= BUDGET, "{:?}", start.elapsed());
        if heals {
            sleep(LEASE / 2).await;
            store.hangs(false);
            sleep(2 * SECOND).await;
            assert_eq!(replayed(effects.once(&handle, "k").await), 1);
        } else {
            sleep(2 * LEASE).await;
        }
        let snapshot = handle.snapshot();
        let (recorded, not_stored) = if heals { (1, 0) } else { (0, 1) };
        assert_eq!(
            (snapshot.recorded, snapshot.not_stored, snapshot.running),
            (recorded, not_stored, 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_is_repeated_until_the_lease_ends_by_our_own_clock() {
    let store = Shaky::default();
    let handle = over(&store, OnOutage::FailClosed);
    let line = store.clone();
    let run = handle.run("k", move |attempt: Attempt| async move {
        let start = Instant::now();
        line.hangs(true);
        let before = line.asked();
        attempt.lost().await;
        line.hangs(false);
        Ok::<_, io::Error>((start.elapsed(), line.asked() - before))
    });
    let (lost_after, asked) = run.await.unwrap().value;
    assert_eq!(lost_after, LEASE);
    assert!((10..200).contains(&asked), "{asked}");
    assert_eq!(handle.snapshot().leases_lost, 1);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_was_lost_for_a_while_keeps_the_lease() {
    let store = Shaky::default();
    let handle = over(&store, OnOutage::FailClosed);
    let line = store.clone();
    let run = handle.run("k", move |attempt: Attempt| async move {
        line.hangs(true);
        sleep(LEASE - 2 * SECOND).await;
        line.hangs(false);
        sleep(LEASE).await;
        Ok::<_, io::Error>(attempt.is_lost())
    });
    assert!(!run.await.unwrap().value);
    assert_eq!(handle.snapshot().leases_lost, 0);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_and_an_operators_step_cost_their_budget() {
    let store = Shaky::default();
    let handle = over(&store, OnOutage::FailClosed);
    let line = store.clone();
    let run = handle.run("k", move |attempt: Attempt| async move {
        line.hangs(true);
        let start = Instant::now();
        let saved = attempt.save_checkpoint("half").await;
        assert!(matches!(saved, Err(CheckpointFailed::Store(error)) if error.ambiguous));
        let took = start.elapsed();
        line.hangs(false);
        Ok::<_, io::Error>(took)
    });
    assert_eq!(run.await.unwrap().value, BUDGET);
    store.hangs(true);
    let start = Instant::now();
    assert!(handle.get("k").await.is_err());
    assert!(handle.resolve("k", 1, Resolution::NotDone).await.is_err());
    assert_eq!(start.elapsed(), 2 * BUDGET);
}
