//! Fingerprints of the work, and what JSON makes of its results.

use std::{io, time::Duration};

use super::{Effects, SECOND, builder, fail, fresh, handle, refused, replayed};
use crate::{
    error::{Error, Reason},
    idempotency::{
        Fingerprint, Idempotency, InProcessIdempotency, Key, Recorded, Source, record::Phase,
    },
};

fn print(of: &str) -> Fingerprint {
    Fingerprint::of([of.as_bytes()])
}

/// By the version before, and by this one.
fn old() -> Key {
    Key::new("k").fingerprint(print("old"))
}

fn new() -> Key {
    Key::new("k")
        .fingerprint(print("new"))
        .or_fingerprint(print("old"))
}

fn other() -> Key {
    let key = Key::new("k").fingerprint(print("other"));
    key.or_fingerprint(print("another"))
}

async fn run(handle: &Idempotency, key: Key, effects: &Effects) -> super::Answer {
    let effects = effects.clone();
    handle
        .run(key, move |_| effects.after(Duration::ZERO))
        .await
}

#[tokio::test(start_paused = true)]
async fn a_record_with_the_fingerprint_of_the_version_before_is_found() {
    let effects = Effects::default();
    let store = InProcessIdempotency::new();
    let handle = builder(&store).cache(1 << 20).build().unwrap();
    let uncached = super::handle(&store);
    assert_eq!(fresh(run(&handle, old(), &effects).await), 1);
    // From the local cache, and from the store.
    for handle in [&handle, &uncached] {
        assert_eq!(replayed(run(handle, new(), &effects).await), 1);
        let refusal = refused(run(handle, other(), &effects).await);
        assert_eq!(refusal, (Reason::KeyReused, None));
    }
    assert_eq!(effects.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn work_in_progress_at_the_version_before_is_not_begun_again() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let (one, other) = (handle(&store), builder(&store).wait(1, 10 * SECOND));
    let other = other.build().unwrap();
    let begun = effects.clone();
    let first = tokio::spawn(async move { one.run(old(), move |_| begun.after(5 * SECOND)).await });
    tokio::time::sleep(SECOND).await;
    assert_eq!(replayed(run(&other, new(), &effects).await), 1);
    assert_eq!(fresh(first.await.unwrap()), 1);
    assert_eq!(effects.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_record_has_the_fingerprint_of_this_version() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = handle(&store);
    assert_eq!(fresh(run(&handle, new(), &effects).await), 1);
    let refusal = refused(run(&handle, old(), &effects).await);
    assert_eq!(refusal, (Reason::KeyReused, None));
}

/// A corrected request is other work, and nothing was done for the first one.
#[tokio::test(start_paused = true)]
async fn work_that_was_not_done_leaves_its_key_to_other_work() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = handle(&store);
    assert!(matches!(
        handle.run(old(), fail).await,
        Err(Error::Service(_))
    ));
    assert_eq!(fresh(run(&handle, other(), &effects).await), 1);
    let refusal = refused(run(&handle, old(), &effects).await);
    assert_eq!(refusal, (Reason::KeyReused, None));
    assert_eq!(effects.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_json_would_change_counts_as_done_and_is_not_replayed() {
    let store = InProcessIdempotency::new();
    let handle = handle(&store);
    let nan = handle.run("nan", |_| async { Ok::<_, io::Error>(f64::NAN) });
    let done = nan.await.unwrap();
    assert!(done.value.is_nan());
    assert_eq!(done.source, Source::Fresh(Recorded::WithoutResult));
    let none = handle.run("none", |_| async { Ok::<_, io::Error>(Some(None::<u32>)) });
    let done = none.await.unwrap();
    assert_eq!(done.value, Some(None));
    assert_eq!(done.source, Source::Fresh(Recorded::WithoutResult));
    for key in ["nan", "none"] {
        let again = handle.run(key, |_| async { Ok::<_, io::Error>(1_u32) });
        assert_eq!(refused(again.await).0, Reason::OutcomeNotKept, "{key}");
        let record = handle.get(key).await.unwrap().unwrap();
        assert_eq!(record.phase, Phase::Done);
    }
}
