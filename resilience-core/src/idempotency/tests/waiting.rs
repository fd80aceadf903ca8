//! Callers that come while the work is going on.

use std::time::Duration;

use super::{
    Effects, Idempotency, LEASE, SECOND, builder, fail, fresh, refused, replayed, shaky::Shaky,
};
use crate::{
    deadline::{self, Deadline},
    error::Reason,
    idempotency::InProcessIdempotency,
};

#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_is_told_at_once_and_gets_the_outcome() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let one = builder(&store).build().unwrap();
    let other = builder(&store).wait(10, LEASE).build().unwrap();
    let working = effects.begin(&one, "k", 7 * SECOND).await;
    let start = tokio::time::Instant::now();
    let waiting = effects.once(&other, "k").await;
    assert_eq!((replayed(waiting), start.elapsed()), (1, 7 * SECOND));
    assert_eq!(fresh(working.await.unwrap()), 1);
    let snapshot = other.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.waiting), (1, 0));
}

/// Not by looking again and again.
#[tokio::test(start_paused = true)]
async fn waiting_costs_the_store_little() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = Idempotency::builder("test")
        .store(store.clone())
        .wait(10, LEASE);
    let handle = handle.build().unwrap();
    let _working = effects.begin(&handle, "k", 7 * SECOND).await;
    let before = store.asked();
    assert_eq!(replayed(effects.once(&handle, "k").await), 1);
    let asked = store.asked() - before;
    // Two to begin with, about one a second, one for the outcome; and the holder's completion.
    assert!(asked <= 14, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_lost_costs_a_second_or_so() {
    let (store, effects) = (Shaky::default(), Effects::default());
    store.silent();
    let handle = Idempotency::builder("test").store(store).wait(10, LEASE);
    let handle = handle.build().unwrap();
    let _working = effects.begin(&handle, "k", 7 * SECOND).await;
    let start = tokio::time::Instant::now();
    assert_eq!(replayed(effects.once(&handle, "k").await), 1);
    let waited = start.elapsed();
    assert!((7 * SECOND..9 * SECOND).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_bounded_in_number_and_time() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = builder(&store).wait(2, 5 * SECOND).build().unwrap();
    let _working = effects.begin(&handle, "k", 20 * SECOND).await;
    let start = tokio::time::Instant::now();
    let (one, other, third) = tokio::join!(
        effects.once(&handle, "k"),
        effects.once(&handle, "k"),
        async {
            tokio::time::sleep(SECOND).await;
            let third = effects.once(&handle, "k").await;
            assert_eq!(start.elapsed(), SECOND, "at once");
            third
        }
    );
    let (reason, left) = refused(third);
    assert_eq!((reason, left), (Reason::InFlight, Some(LEASE - SECOND)));
    assert_eq!(start.elapsed(), 5 * SECOND);
    for waited in [one, other] {
        assert_eq!(refused(waited).0, Reason::InFlight);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_beyond_their_deadline() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = builder(&store).wait(2, LEASE).build().unwrap();
    let _working = effects.begin(&handle, "k", 20 * SECOND).await;
    let start = tokio::time::Instant::now();
    let waiting = effects.once(&handle, "k");
    let waited = deadline::scope(Deadline::after(2 * SECOND), waiting).await;
    assert_eq!(refused(waited).0, Reason::InFlight);
    let waited = start.elapsed();
    assert!(
        waited.abs_diff(2 * SECOND) < Duration::from_millis(5),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_its_place() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = builder(&store).wait(1, LEASE).build().unwrap();
    let _working = effects.begin(&handle, "k", 20 * SECOND).await;
    for _ in 0..5 {
        let waiting = effects.once(&handle, "k");
        assert!(tokio::time::timeout(SECOND, waiting).await.is_err());
        assert_eq!(handle.snapshot().waiting, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_is_left_with_the_work_when_it_was_not_done() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = builder(&store).wait(5, 10 * LEASE).build().unwrap();
    let fails = handle.clone();
    let failing = tokio::spawn(async move {
        let work = |attempt| async {
            tokio::time::sleep(SECOND).await;
            fail(attempt).await
        };
        fails.run("k", work).await
    });
    tokio::time::sleep(SECOND / 2).await;
    let waiting = || effects.taking(&handle, "k", SECOND);
    let (one, two, three) = tokio::join!(waiting(), waiting(), waiting());
    assert!(failing.await.unwrap().is_err());
    let values = [one, two, three].map(|answer| answer.unwrap().value);
    assert_eq!((values, effects.count()), ([1, 1, 1], 1));
}
