//! The orderly end of a handle, and of all handles of a store.

use std::io;

use tokio::time::{Instant, sleep};

use super::{
    Effect, Effects, Idempotency, LEASE, SECOND, builder, fresh, refused, repeating, shaky::Shaky,
};
use crate::{
    error::Reason,
    fleet::StoreHandle,
    idempotency::{
        Attempt, InProcessIdempotency,
        record::{Phase, Previous},
    },
};

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_attempts_and_their_completions() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = builder(&store).build().unwrap();
    let caller = effects.begin(&handle, "k", 5 * SECOND).await;
    // A caller that hangs up does not end the attempt.
    caller.abort();
    let start = Instant::now();
    assert_eq!(handle.shutdown(LEASE).await, Ok(()));
    assert_eq!(start.elapsed(), 5 * SECOND);
    let view = handle.get("k").await.unwrap().unwrap();
    assert_eq!((view.phase, effects.count()), (Phase::Done, 1));
    assert_eq!(handle.shutdown(SECOND).await, Ok(()), "nothing runs");
}

#[tokio::test(start_paused = true)]
async fn no_work_begins_after_a_shutdown_and_another_instance_does_it() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let (one, other) = (builder(&store).build().unwrap(), super::handle(&store));
    let waiting = builder(&store).wait(10, LEASE).build().unwrap();
    let _working = effects.begin(&other, "k", 20 * SECOND).await;
    let waits = tokio::spawn({
        let (effects, waiting) = (effects.clone(), waiting.clone());
        async move { effects.once(&waiting, "k").await }
    });
    sleep(SECOND).await;
    let start = Instant::now();
    for handle in [&one, &waiting] {
        assert_eq!(handle.shutdown(LEASE).await, Ok(()));
        let late = effects.once(handle, "late").await;
        assert_eq!(refused(late), (Reason::ShuttingDown, Some(SECOND)));
    }
    // Those that wait for another instance are sent there.
    assert_eq!(refused(waits.await.unwrap()).0, Reason::ShuttingDown);
    assert_eq!(start.elapsed(), std::time::Duration::ZERO);
    assert_eq!(fresh(effects.once(&other, "late").await), 1);
}

/// A claim on its way when the shutdown begins.
#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_claims_on_their_way() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = Idempotency::builder("test").store(store.clone());
    let handle = handle.build().unwrap();
    store.hangs(true);
    let claims = tokio::spawn({
        let (effects, handle) = (effects.clone(), handle.clone());
        async move { effects.once(&handle, "k").await }
    });
    sleep(SECOND / 2).await;
    store.hangs(false);
    handle.shutdown(LEASE).await.unwrap();
    // Granted or not, it has come to an end.
    let ended = claims.await.unwrap();
    assert_eq!(u32::from(ended.is_ok()), effects.count());
    let view = handle.get("k").await.unwrap().unwrap();
    assert_ne!(view.phase, Phase::Running);
}

#[tokio::test(start_paused = true)]
async fn work_that_takes_longer_than_a_shutdown_goes_on_elsewhere_from_its_checkpoint() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let (one, other) = (repeating(&store), repeating(&store));
    let slow = effects.clone();
    let working = tokio::spawn({
        let one = one.clone();
        async move {
            let work = move |attempt: Attempt| async move {
                attempt.save_checkpoint("half").await.unwrap();
                slow.after(20 * LEASE).await
            };
            one.run("k", work).await
        }
    });
    sleep(SECOND).await;
    let start = Instant::now();
    assert_eq!(one.shutdown(10 * SECOND).await, Ok(()));
    assert_eq!(
        start.elapsed(),
        9 * SECOND,
        "a tenth is left for the record"
    );
    let broken_off = refused(working.await.unwrap());
    assert_eq!(broken_off, (Reason::ShuttingDown, Some(SECOND)));
    let run = other.run("k", |attempt: Attempt| async move {
        assert_eq!(attempt.checkpoint().unwrap(), "half");
        Ok::<_, io::Error>(attempt.previous() == Previous::Unknown)
    });
    assert!(run.await.unwrap().value);
    assert_eq!(effects.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn work_that_must_not_be_repeated_is_unknown_when_a_shutdown_has_cut_it_off() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let (one, other) = (super::handle(&store), super::handle(&store));
    let working = effects.begin(&one, "k", 20 * LEASE).await;
    assert_eq!(one.shutdown(10 * SECOND).await, Ok(()));
    for told in [working.await.unwrap(), effects.once(&other, "k").await] {
        assert_eq!(refused(told).0, Reason::OutcomeUnknown);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_a_completion_that_the_store_does_not_answer_but_not_forever() {
    let store = Shaky::default();
    let handle = Idempotency::builder("test").store(store.clone());
    let handle = handle.build().unwrap();
    let line = store.clone();
    let working = tokio::spawn({
        let handle = handle.clone();
        async move {
            let work = move |_| async move {
                line.hangs(true);
                Ok::<_, io::Error>(7)
            };
            handle.run("k", work).await
        }
    });
    sleep(SECOND / 10).await;
    let start = Instant::now();
    let still_running = handle.shutdown(SECOND).await.unwrap_err();
    assert_eq!((still_running.tasks, start.elapsed()), (1, SECOND));
    let held = working.await.unwrap().unwrap_err();
    assert_eq!(held.rejected().unwrap().reason(), Reason::Unrecorded);
    store.hangs(false);
    handle.shutdown(5 * SECOND).await.unwrap();
    assert_eq!(handle.snapshot().recorded, 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_of_the_store_waits_for_all_of_its_handles() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = |name| {
        let builder = Idempotency::builder(name).store(store.clone());
        builder.effect(Effect::Idempotent).build().unwrap()
    };
    let (one, other) = (handle("one"), handle("other"));
    let first = effects.begin(&one, "k", 2 * SECOND).await;
    let second = effects.begin(&other, "k", 5 * SECOND).await;
    let start = Instant::now();
    let of_store: &StoreHandle = &store.handle;
    of_store.shutdown(LEASE).await.unwrap();
    assert_eq!(start.elapsed(), 5 * SECOND);
    sleep(SECOND).await;
    assert!(first.is_finished() && second.is_finished());
    let late = effects.once(&one, "late").await;
    assert_eq!(refused(late).0, Reason::ShuttingDown);
    let later = builder(&store.inner).build().unwrap();
    assert_eq!(fresh(effects.once(&later, "late").await), 3);
}
