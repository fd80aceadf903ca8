//! The orderly end of a handle, and of all handles of a store.

use std::io;

use tokio::time::{Instant, sleep};

use super::{Effects, Idempotency, LEASE, SECOND, builder, shaky::Shaky};
use crate::{
    fleet::StoreHandle,
    idempotency::{InProcessIdempotency, Recorded, Source, record::Phase},
};

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_attempts_and_their_completions() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = builder(&store).build().unwrap();
    assert_eq!(handle.shutdown(SECOND).await, Ok(()), "nothing runs");
    let caller = effects.begin(&handle, "k", 5 * SECOND).await;
    // A caller that hangs up does not end the attempt.
    caller.abort();
    let start = Instant::now();
    let still_running = handle.shutdown(SECOND).await.unwrap_err();
    assert_eq!((still_running.tasks, start.elapsed()), (1, SECOND));
    assert_eq!(handle.shutdown(LEASE).await, Ok(()));
    assert_eq!(start.elapsed(), 5 * SECOND);
    let view = handle.get("k").await.unwrap().unwrap();
    assert_eq!((view.phase, effects.count()), (Phase::Done, 1));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_a_completion_that_the_store_does_not_answer_but_not_forever() {
    let store = Shaky::default();
    let handle = Idempotency::builder("test").store(store.clone());
    let handle = handle.build().unwrap();
    let line = store.clone();
    let run = handle.run("k", move |_| async move {
        line.hangs(true);
        Ok::<_, io::Error>(7)
    });
    assert_eq!(run.await.unwrap().source, Source::Fresh(Recorded::Pending));
    let start = Instant::now();
    assert!(handle.shutdown(SECOND).await.is_err());
    assert_eq!(start.elapsed(), SECOND);
    store.hangs(false);
    handle.shutdown(5 * SECOND).await.unwrap();
    assert_eq!(handle.snapshot().recorded, 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_of_the_store_waits_for_all_of_its_handles() {
    let (store, effects) = (Shaky::default(), Effects::default());
    let handle = |name| {
        let builder = Idempotency::builder(name).store(store.clone());
        builder.build().unwrap()
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
}
