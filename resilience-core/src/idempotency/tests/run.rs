//! Work, and its outcome.

use std::{io, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;

use super::{Effects, LEASE, SECOND, builder, fail, fresh, handle, refused, repeating, replayed};
use crate::{
    deadline::{self, Deadline},
    error::{Error, Reason},
    idempotency::{
        Attempt, CheckpointFailed, CodecError, Disposition, Fingerprint, InProcessIdempotency,
        Json, Key, Outcomes, Recorded, Resolution, Source,
        record::{Phase, Previous},
    },
};

#[tokio::test(start_paused = true)]
async fn work_is_done_once_and_its_outcome_is_replayed_with_its_age() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let (one, other) = (handle(&store), handle(&store));
    assert_eq!(fresh(effects.once(&one, "k").await), 1);
    tokio::time::advance(7 * SECOND).await;
    for handle in [&one, &other] {
        let again = effects.once(handle, "k").await.unwrap();
        assert_eq!(again.replayed(), Some(7 * SECOND));
        assert_eq!(again.into_inner(), 1);
    }
    assert_eq!(effects.count(), 1);
    tokio::time::advance(24 * 3600 * SECOND).await;
    assert_eq!(fresh(effects.once(&one, "k").await), 2, "its time is over");
}

#[tokio::test(start_paused = true)]
async fn a_key_is_for_one_work_in_one_scope() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = handle(&store);
    let run = async |key: Key| {
        let effects = effects.clone();
        handle
            .run(key, move |_| effects.after(Duration::ZERO))
            .await
    };
    let print = |of: &'static str| Fingerprint::of([of.as_bytes()]);
    assert_eq!(fresh(run(Key::new("k").fingerprint(print("a"))).await), 1);
    let other = run(Key::new("k").fingerprint(print("b"))).await;
    assert_eq!(refused(other), (Reason::KeyReused, None));
    let tenant = || Key::new("k").scope("tenant").fingerprint(print("b"));
    assert_eq!(fresh(run(tenant()).await), 2, "another scope");
    assert_eq!(replayed(run(tenant()).await), 2);
    assert_eq!(handle.snapshot().mismatched, 1);
}

/// A future that is dropped with its caller leaves work half done and a key that is locked.
#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_does_not_stop_the_work() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = handle(&store);
    let caller = effects.begin(&handle, "k", 5 * SECOND).await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    assert_eq!(
        refused(effects.once(&handle, "k").await).0,
        Reason::InFlight
    );
    tokio::time::sleep(6 * SECOND).await;
    assert_eq!(replayed(effects.once(&handle, "k").await), 1);
}

#[tokio::test(start_paused = true)]
async fn the_work_does_not_see_the_callers_deadline() {
    let store = InProcessIdempotency::new();
    let handle = handle(&store);
    let run = handle.run("k", |_| async {
        Ok::<_, io::Error>(deadline::current().is_none())
    });
    let scoped = deadline::scope(Deadline::after(SECOND), run).await;
    assert!(scoped.unwrap().value);
}

#[tokio::test(start_paused = true)]
async fn the_work_knows_its_attempt_wherever_it_is() {
    let store = InProcessIdempotency::new();
    let handle = handle(&store);
    assert!(Attempt::current().is_none());
    let run = handle.run("k", |attempt| async move {
        let current = Attempt::current().expect("inside of one");
        Ok::<_, io::Error>((current.fence(), attempt.fence(), attempt.number()))
    });
    let (current, fence, number) = run.await.unwrap().value;
    assert!(current == fence && fence > 0 && number == 1);
}

#[test]
fn the_work_runs_in_the_callers_span() {
    let subscriber = tracing_subscriber::fmt().with_test_writer().finish();
    tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let id = || tracing::Span::current().id().map(|id| id.into_u64());
        let span = tracing::error_span!("request");
        let seen = {
            use tracing::Instrument;
            let handle = handle(&InProcessIdempotency::new());
            let run = async move {
                let run = handle.run("k", move |_| async move { Ok::<_, io::Error>(id()) });
                run.await.unwrap().value
            };
            runtime.block_on(run.instrument(span.clone()))
        };
        assert!(seen.is_some());
        assert_eq!(seen, span.id().map(|id| id.into_u64()));
    });
}

/// A mark that is left before the work, and stays when it fails, loses the work.
#[tokio::test(start_paused = true)]
async fn work_that_fails_gives_the_key_back_with_what_it_has_left() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = handle(&store);
    let first = handle.run("k", |attempt| async move {
        attempt.save_checkpoint_as(&"charged").await.unwrap();
        Err::<u32, _>(attempt)
    });
    let Err(Error::Service(first)) = first.await else {
        panic!("an error of the work");
    };
    assert_eq!((first.number(), first.checkpoint()), (1, None));
    let second = effects.clone();
    let second = handle.run("k", move |attempt| async move {
        second.happen();
        let left: Option<String> = attempt.checkpoint_as().map_err(io::Error::other)?;
        let numbers = (attempt.number(), attempt.fence());
        Ok::<_, io::Error>((left, numbers, attempt.child_key("charge")))
    });
    let (left, (number, fence), child) = second.await.unwrap().value;
    assert_eq!((left.as_deref(), number), (Some("charged"), 2));
    assert!(fence > first.fence());
    assert_eq!(child, first.child_key("charge"), "in every attempt");
    assert_ne!(child, first.child_key("refund"));
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.released, snapshot.recorded), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn errors_are_what_the_outcomes_say_they_are() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = handle(&store);
    let by = |disposition| Json::new().on_error(move |_: &io::Error| disposition);
    for (key, disposition, recorded, then) in [
        ("1", Disposition::Release, Recorded::Released, None),
        (
            "2",
            Disposition::Unknown,
            Recorded::Unknown,
            Some(Reason::OutcomeUnknown),
        ),
        (
            "3",
            Disposition::Record,
            Recorded::WithoutResult,
            Some(Reason::OutcomeNotKept),
        ),
        (
            "4",
            Disposition::RecordFor(SECOND),
            Recorded::WithoutResult,
            Some(Reason::OutcomeNotKept),
        ),
    ] {
        let failed = handle.run_with(key, by(disposition), fail).await.unwrap();
        assert!(failed.value.is_err());
        assert_eq!(failed.source, Source::Fresh(recorded));
        let next = effects.once(&handle, key).await;
        match then {
            None => assert!(fresh(next) > 0),
            Some(reason) => assert_eq!(refused(next), (reason, None)),
        }
    }
    tokio::time::advance(SECOND).await;
    fresh(effects.once(&handle, "4").await);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_passed_on_and_leaves_the_outcome_unknown_until_it_is_resolved() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = handle(&store);
    let panics = |_: Attempt| async { std::panic::panic_any(7_u8) };
    let run = handle.run::<u32, io::Error, _, _>("k", panics);
    let panic = AssertUnwindSafe(run).catch_unwind().await.unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&7_u8));
    let blocked = effects.once(&handle, "k").await;
    assert_eq!(refused(blocked), (Reason::OutcomeUnknown, None));

    let view = handle.get("k").await.unwrap().unwrap();
    assert_eq!((view.phase, view.attempt), (Phase::Unknown, 1));
    let done = Resolution::Done(Bytes::from_static(b"9"));
    assert!(
        !handle
            .resolve("k", view.fence + 1, done.clone())
            .await
            .unwrap()
    );
    assert!(handle.resolve("k", view.fence, done).await.unwrap());
    assert_eq!(replayed(effects.once(&handle, "k").await), 9);

    let repeating = repeating(&store);
    let run = repeating.run::<u32, io::Error, _, _>("l", panics);
    assert!(AssertUnwindSafe(run).catch_unwind().await.is_err());
    assert_eq!(fresh(effects.once(&repeating, "l").await), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_without_an_audience_is_an_outcome_too() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = handle(&store);
    let panics = handle.clone();
    let caller = tokio::spawn(async move {
        let work = |_: Attempt| async {
            tokio::time::sleep(SECOND).await;
            std::panic::panic_any(7_u8)
        };
        panics.run::<u32, io::Error, _, _>("k", work).await
    });
    while handle.snapshot().granted == 0 {
        tokio::task::yield_now().await;
    }
    caller.abort();
    tokio::time::sleep(2 * SECOND).await;
    let blocked = effects.once(&handle, "k").await;
    assert_eq!(refused(blocked).0, Reason::OutcomeUnknown);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_is_too_large_counts_as_done_and_is_not_replayed() {
    let store = InProcessIdempotency::new();
    let handle = builder(&store).max_outcome(10).build().unwrap();
    let run = async |key: &str, length: usize| {
        let text = "x".repeat(length);
        handle
            .run(key, |_| async { Ok::<_, io::Error>(text) })
            .await
    };
    let fits = run("a", 8).await.unwrap();
    assert_eq!(fits.source, Source::Fresh(Recorded::Stored));
    let large = run("b", 9).await.unwrap();
    assert_eq!(
        (large.value.len(), large.source),
        (9, Source::Fresh(Recorded::WithoutResult))
    );
    let again = run("b", 1).await.unwrap_err();
    assert_eq!(again.rejected().unwrap().reason(), Reason::OutcomeNotKept);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_not_done_again() {
    let store = InProcessIdempotency::new();
    let handle = handle(&store);
    let number = handle.run("k", |_| async { Ok::<_, io::Error>(7) });
    assert!(number.await.is_ok());
    let text = handle.run("k", |_| async { Ok::<_, io::Error>(String::new()) });
    let rejected = text.await.unwrap_err();
    assert_eq!(
        rejected.rejected().unwrap().reason(),
        Reason::OutcomeUnreadable
    );
}

/// What a codec of the user's does.
#[derive(Clone)]
struct Broken;

impl Outcomes<u32> for Broken {
    fn decide(&self, _: &u32) -> Disposition {
        Disposition::Record
    }

    fn encode(&self, _: &u32) -> Result<Bytes, CodecError> {
        panic!("as the test asks for")
    }

    fn decode(&self, _: Bytes) -> Result<u32, CodecError> {
        Err(CodecError::new("never"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_codec_that_panics_is_work_that_panics() {
    let store = InProcessIdempotency::new();
    let handle = handle(&store);
    let run = handle.run_with("k", Broken, |_| async { 7 });
    assert!(AssertUnwindSafe(run).catch_unwind().await.is_err());
    let view = handle.get("k").await.unwrap().unwrap();
    assert_eq!(view.phase, Phase::Unknown);
}

#[tokio::test(start_paused = true)]
async fn checkpoints_are_bounded() {
    let store = InProcessIdempotency::new();
    let handle = builder(&store).max_checkpoint(3).build().unwrap();
    let run = handle.run("k", |attempt| async move {
        let large = attempt.save_checkpoint("1234").await;
        assert!(matches!(
            large,
            Err(CheckpointFailed::TooLarge { bytes: 4, most: 3 })
        ));
        attempt.save_checkpoint("123").await
    });
    assert!(run.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_cached_outcome_needs_no_answer_of_the_store_and_expires_with_it() {
    let (store, effects) = (super::shaky::Shaky::default(), Effects::default());
    let build = || {
        let builder = super::Idempotency::builder("test").store(store.clone());
        builder.cache(1 << 20).ttl(10 * SECOND).build().unwrap()
    };
    let (one, other) = (build(), build());
    assert_eq!(fresh(effects.once(&one, "k").await), 1);
    tokio::time::advance(4 * SECOND).await;
    assert_eq!(
        replayed(effects.once(&other, "k").await),
        1,
        "from the store"
    );
    let asked = store.asked();
    for handle in [&one, &other] {
        tokio::time::advance(SECOND).await;
        let again = effects.once(handle, "k").await;
        assert!(again.as_ref().unwrap().replayed().unwrap() >= 5 * SECOND);
        assert_eq!(replayed(again), 1);
        let key = Key::new("k").fingerprint(Fingerprint::of([b"other".as_slice()]));
        let work = |_: Attempt| async { Ok::<u32, io::Error>(9) };
        assert_eq!(refused(handle.run(key, work).await).0, Reason::KeyReused);
    }
    assert_eq!((store.asked(), one.snapshot().replayed_here), (asked, 1));
    tokio::time::advance(4 * SECOND).await;
    assert_eq!(fresh(effects.once(&other, "k").await), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_at_many_keys_takes_effect_once_for_each() {
    let store = InProcessIdempotency::new();
    let handle = builder(&store).wait(1_000, LEASE).build().unwrap();
    let effects: Arc<[Effects]> = (0..20).map(|_| Effects::default()).collect();
    let tasks: Vec<_> = (0..200)
        .map(|number| {
            let (handle, effects) = (handle.clone(), Arc::clone(&effects));
            tokio::spawn(async move {
                let key = number % 20;
                effects[key].once(&handle, &key.to_string()).await
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap().value, 1);
    }
    assert!(effects.iter().all(|effects| effects.count() == 1));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_after_a_release_knows_it_was_one() {
    let store = InProcessIdempotency::new();
    let handle = handle(&store);
    for expected in [Previous::None, Previous::Released, Previous::Released] {
        let run = handle.run(
            "k",
            |attempt| async move { Err::<u32, _>(attempt.previous()) },
        );
        match run.await {
            Err(Error::Service(previous)) => assert_eq!(previous, expected),
            other => panic!("{other:?}"),
        }
    }
}
