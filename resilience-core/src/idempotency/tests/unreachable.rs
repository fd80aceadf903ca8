//! A store that gives no answer.

use std::io;

use bytes::Bytes;

use super::{Effects, Idempotency, LEASE, SECOND, fresh, refused, replayed, shaky::Shaky};
use crate::{
    error::Reason,
    fleet::{FleetOptions, OnOutage},
    idempotency::{
        Attempt, CheckpointFailed, Effect, IdempotencyStore, Recorded, Source,
        record::{Claim, Claimed, Holder, Takeover},
    },
};

fn over(store: &Shaky, on_outage: OnOutage) -> Idempotency {
    let builder = Idempotency::builder("test").store(store.clone());
    let fleet = FleetOptions::new().on_outage(on_outage);
    builder.fleet(fleet).without_wait().build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn closed_means_that_nothing_is_done() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = over(&store, OnOutage::FailClosed);
    store.down(true);
    let (reason, wait) = refused(effects.once(&handle, "k").await);
    assert_eq!(reason, Reason::StoreUnreachable);
    assert!(wait.is_some());
    assert_eq!((effects.count(), handle.snapshot().store_errors), (0, 3));
    store.down(false);
    // Noticed by the task that asks the store meanwhile.
    tokio::time::sleep(SECOND).await;
    assert_eq!(fresh(effects.once(&handle, "k").await), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_costs_its_budget_and_no_more() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = over(&store, OnOutage::FailClosed);
    store.hangs(true);
    let start = tokio::time::Instant::now();
    assert_eq!(
        refused(effects.once(&handle, "k").await).0,
        Reason::StoreUnreachable
    );
    assert!(start.elapsed() < 4 * SECOND, "{:?}", start.elapsed());
    // What was granted without our knowing is given back, and blocks no caller for a lease.
    store.hangs(false);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(fresh(effects.once(&handle, "k").await), 1);
}

/// A claim without the claimant's name finds itself in flight when it is repeated.
#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_was_lost_is_the_claimants() {
    for lost in 1..=2 {
        let (store, effects) = (Shaky::default(), Effects::default());
        let handle = over(&store, OnOutage::FailClosed);
        store.lose_replies(lost);
        assert_eq!(fresh(effects.once(&handle, "k").await), 1);
        assert_eq!(replayed(effects.once(&handle, "k").await), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_before_the_store_answers_leaves_no_claim() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = over(&store, OnOutage::FailClosed);
    store.hangs(true);
    let leaving = effects.once(&handle, "k");
    assert!(tokio::time::timeout(SECOND / 10, leaving).await.is_err());
    store.hangs(false);
    tokio::time::sleep(SECOND).await;
    assert_eq!(fresh(effects.once(&handle, "k").await), 1, "not in flight");
}

/// A claim that is given back says that nothing had been, and the next attempt does again what the crashed one did.
#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_before_the_store_answers_takes_no_doubt_with_it() {
    for unknown in [false, true] {
        let store = Shaky::default();
        let builder = Idempotency::builder("test").store(store.clone());
        let handle = builder.effect(Effect::Idempotent).build().unwrap();
        let crashed = Claim {
            owner: "crashed".into(),
            fingerprint: Bytes::new(),
            lease_ms: 1_000,
            retention_ms: 86_400_000,
            takeover: Takeover::Any,
        };
        let claimed = store.inner.claim("test", "/k", &crashed).await.unwrap();
        let Claimed::New(grant) = claimed else {
            panic!("{claimed:?}");
        };
        if unknown {
            let holder = Holder::new(&crashed, &grant);
            store.inner.unknown("test", "/k", &holder).await.unwrap();
        }
        tokio::time::sleep(2 * SECOND).await;
        store.hangs(true);
        let leaving = Effects::default();
        let leaving = leaving.once(&handle, "k");
        assert!(tokio::time::timeout(SECOND / 10, leaving).await.is_err());
        store.hangs(false);
        tokio::time::sleep(2 * LEASE).await;
        let look = handle.run("k", |attempt: Attempt| async move {
            Ok::<_, io::Error>((attempt.number(), format!("{:?}", attempt.previous())))
        });
        let expected = if unknown { "Unknown" } else { "Ended" };
        assert_eq!(look.await.unwrap().value, (3, expected.to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn open_means_that_the_work_is_done_and_recorded_if_the_store_comes_back() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = over(&store, OnOutage::FailOpen);
    store.down(true);
    let happens = effects.clone();
    let run = handle.run("k", move |attempt: Attempt| async move {
        let saved = attempt.save_checkpoint("x").await;
        assert!(matches!(saved, Err(CheckpointFailed::Unguarded)));
        assert_eq!((attempt.fence(), attempt.is_lost()), (0, false));
        Ok::<_, io::Error>(happens.happen())
    });
    assert_eq!(
        run.await.unwrap().source,
        Source::Fresh(Recorded::Unguarded)
    );
    store.down(false);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(replayed(effects.once(&handle, "k").await), 1);
    assert_eq!(handle.snapshot().unguarded, 1);
}

#[tokio::test(start_paused = true)]
async fn local_means_that_this_instance_does_nothing_twice() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let one = over(&store, OnOutage::Local);
    store.down(true);
    let working = effects.begin(&one, "k", 5 * SECOND).await;
    assert_eq!(refused(effects.once(&one, "k").await).0, Reason::InFlight);
    // The store is back, and knows nothing of it.
    store.down(false);
    assert_eq!(refused(effects.once(&one, "k").await).0, Reason::InFlight);
    assert_eq!(fresh(working.await.unwrap()), 1);
    assert_eq!(replayed(effects.once(&one, "k").await), 1);
    tokio::time::sleep(SECOND).await;
    let other = over(&store, OnOutage::FailClosed);
    assert_eq!(
        replayed(effects.once(&other, "k").await),
        1,
        "it was passed on"
    );
    assert_eq!(fresh(effects.once(&one, "other").await), 2);
}
