//! Outcomes that the store does not take when the work is done.

use std::{io, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Effects, Idempotency, IdempotencyBuilder, LEASE, SECOND, fresh, refused, replayed, shaky::Shaky,
};
use crate::{
    deadline::{self, Deadline},
    error::{Error, Reason},
    idempotency::{
        Disposition, InProcessIdempotency, Json, OnUnrecorded, Recorded, Source, record::Phase,
    },
};

const MS: Duration = Duration::from_millis(1);

fn over(store: &Shaky) -> IdempotencyBuilder {
    Idempotency::builder("test").store(store.clone())
}

/// Work at whose end the store is away.
async fn cut_off(handle: &Idempotency, store: &Shaky, effects: &Effects) -> super::Answer {
    let (store, effects) = (store.clone(), effects.clone());
    let work = move |_| async move {
        store.down(true);
        Ok(effects.happen())
    };
    handle.run("k", work).await
}

#[tokio::test(start_paused = true)]
async fn a_caller_gets_its_outcome_when_it_is_recorded() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = over(&store).build().unwrap();
    let back = store.clone();
    tokio::spawn(async move {
        sleep(5 * SECOND).await;
        back.down(false);
    });
    let start = Instant::now();
    assert_eq!(fresh(cut_off(&handle, &store, &effects).await), 1);
    assert!((5 * SECOND..7 * SECOND).contains(&start.elapsed()));
    assert_eq!(replayed(effects.once(&handle, "k").await), 1);
}

#[tokio::test(start_paused = true)]
async fn no_outcome_is_returned_without_a_record() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = over(&store).build().unwrap();
    let start = Instant::now();
    let held = cut_off(&handle, &store, &effects).await;
    assert_eq!(refused(held), (Reason::Unrecorded, None));
    assert_eq!(start.elapsed(), 10 * SECOND);
    store.down(false);
    sleep(2 * SECOND).await;
    assert_eq!(replayed(effects.once(&handle, "k").await), 1);
    assert_eq!((effects.count(), handle.snapshot().not_stored), (1, 0));
}

/// A store that hangs is no reason to answer late.
#[tokio::test(start_paused = true)]
async fn an_outcome_is_held_no_longer_than_the_callers_deadline() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = over(&store).build().unwrap();
    let (hangs, happens) = (store.clone(), effects.clone());
    let run = handle.run("k", move |_| async move {
        hangs.hangs(true);
        Ok::<_, io::Error>(happens.happen())
    });
    let start = Instant::now();
    let held = deadline::scope(Deadline::after(300 * MS), run).await;
    assert_eq!(refused(held).0, Reason::Unrecorded);
    assert!(start.elapsed().abs_diff(300 * MS) < 5 * MS);
}

/// The record counts unless another claim was granted, and by default none is.
#[tokio::test(start_paused = true)]
async fn a_completion_is_tried_beyond_its_lease_for_as_long_as_the_record_would_be_kept() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = over(&store).ttl(20 * LEASE).build().unwrap();
    assert!(cut_off(&handle, &store, &effects).await.is_err());
    sleep(10 * LEASE).await;
    store.down(false);
    sleep(2 * SECOND).await;
    assert_eq!(replayed(effects.once(&handle, "k").await), 1);
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.recorded, snapshot.not_stored), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_is_given_up_and_counted() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = over(&store).ttl(3 * LEASE).build().unwrap();
    assert!(cut_off(&handle, &store, &effects).await.is_err());
    assert_eq!(handle.snapshot().running, 1);
    sleep(3 * LEASE).await;
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.not_stored, snapshot.running), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_outcome_without_a_record_is_returned_to_those_that_ask_for_it() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = over(&store).on_unrecorded(OnUnrecorded::Answer);
    let handle = handle.build().unwrap();
    let start = Instant::now();
    let outcome = cut_off(&handle, &store, &effects).await.unwrap();
    assert_eq!(outcome.source, Source::Fresh(Recorded::Pending));
    assert!(start.elapsed() <= SECOND, "the budget of one step");
    store.down(false);
    sleep(2 * SECOND).await;
    assert_eq!(replayed(effects.once(&handle, "k").await), 1);
}

#[tokio::test(start_paused = true)]
async fn a_completion_whose_answer_was_lost_is_recorded_once() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = over(&store).build().unwrap();
    let (lose, happens) = (store.clone(), effects.clone());
    let run = handle.run("k", move |_| async move {
        lose.lose_replies(1);
        Ok::<_, io::Error>(happens.happen())
    });
    assert_eq!(fresh(run.await), 1);
    assert_eq!(handle.snapshot().recorded, 1);
    assert_eq!(replayed(effects.once(&handle, "k").await), 1);
}

/// There is nothing that the record could contradict.
#[tokio::test(start_paused = true)]
async fn a_failure_is_returned_without_its_record() {
    let store = Shaky::default();
    let handle = over(&store).build().unwrap();
    let down = store.clone();
    let fails = |_| async move {
        down.down(true);
        Err::<u32, _>(io::Error::other("nothing was done"))
    };
    let start = Instant::now();
    let failed = handle.run("k", fails).await;
    assert!(matches!(failed, Err(Error::Service(_))));
    assert!(start.elapsed() <= SECOND);
    let unknown = Json::new().on_error(|_: &io::Error| Disposition::Unknown);
    store.down(false);
    sleep(2 * SECOND).await;
    let down = store.clone();
    let fails = |_| async move {
        down.down(true);
        Err::<u32, _>(io::Error::other("something was done"))
    };
    let failed = handle.run_with("u", unknown, fails).await.unwrap();
    assert_eq!(failed.source, Source::Fresh(Recorded::Pending));
}

/// A server that is cut off from its store goes on for longer than its lease, while others serve the key.
#[tokio::test(start_paused = true)]
async fn two_instances_never_return_two_outcomes() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let line = Shaky::over(&store);
    let (near, other) = (over(&line).build().unwrap(), super::handle(&store));
    let held = cut_off(&near, &line, &effects);
    let elsewhere = async {
        sleep(LEASE + SECOND).await;
        effects.once(&other, "k").await
    };
    let (held, elsewhere) = tokio::join!(held, elsewhere);
    assert_eq!(refused(held).0, Reason::Unrecorded);
    assert_eq!(refused(elsewhere).0, Reason::OutcomeUnknown);
    line.down(false);
    sleep(2 * SECOND).await;
    assert_eq!(replayed(effects.once(&other, "k").await), 1);
    let view = other.get("k").await.unwrap().unwrap();
    assert_eq!((view.phase, effects.count()), (Phase::Done, 1));
}
