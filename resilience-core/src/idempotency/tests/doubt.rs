//! Attempts with an unknown end, and the hook that may find it out.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use super::{Effects, Idempotency, SECOND, builder, fresh, refused, repeating};
use crate::{
    error::{Error, Reason},
    idempotency::{
        Attempt, Disposition, InDoubt, InProcessIdempotency, Json, Reconciled, Source,
        record::{Phase, Previous},
    },
};

/// Leaves an unknown outcome under `key`.
async fn leave_unknown(handle: &Idempotency, key: &str) {
    let unknown = Json::new().on_error(|_: &io::Error| Disposition::Unknown);
    let failed = handle.run_with(key, unknown, super::fail).await.unwrap();
    assert!(failed.value.is_err());
}

fn asking(
    store: &InProcessIdempotency,
    answer: fn(InDoubt) -> Reconciled,
) -> (Idempotency, Arc<AtomicU32>) {
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let hook = move |doubt: InDoubt| {
        count.fetch_add(1, SeqCst);
        async move {
            tokio::time::sleep(SECOND).await;
            answer(doubt)
        }
    };
    let handle = builder(store).reconcile(hook).build().unwrap();
    (handle, asked)
}

#[tokio::test(start_paused = true)]
async fn the_hook_is_asked_only_in_doubt() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let (handle, asked) = asking(&store, |_| Reconciled::NotDone);
    fresh(effects.once(&handle, "new").await);
    assert!(handle.run("released", super::fail).await.is_err());
    fresh(effects.once(&handle, "released").await);
    assert_eq!(asked.load(SeqCst), 0);
    leave_unknown(&handle, "unknown").await;
    fresh(effects.once(&handle, "unknown").await);
    assert_eq!(asked.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_hook_finds_done_is_not_done_again() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let (handle, asked) = asking(&store, |doubt| {
        assert_eq!((doubt.previous, doubt.attempt), (Previous::Unknown, 2));
        Reconciled::done(&77_u32).unwrap()
    });
    leave_unknown(&handle, "k").await;
    let found = effects.once(&handle, "k").await.unwrap();
    assert_eq!((found.value, found.source), (77, Source::Reconciled));
    let again = effects.once(&handle, "k").await.unwrap();
    assert!(matches!(again.source, Source::Replayed { .. }) && again.value == 77);
    assert_eq!((effects.count(), asked.load(SeqCst)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_does_not_know_or_panics_leaves_it_unknown() {
    let answers: [fn(InDoubt) -> Reconciled; 2] = [
        |_| Reconciled::Unknown,
        |_| std::panic::panic_any("as asked for"),
    ];
    for answer in answers {
        let (store, effects) = (InProcessIdempotency::new(), Effects::default());
        let (handle, asked) = asking(&store, answer);
        leave_unknown(&handle, "k").await;
        for number in 1..=2 {
            let blocked = effects.once(&handle, "k").await;
            assert_eq!(refused(blocked).0, Reason::OutcomeUnknown);
            assert_eq!(asked.load(SeqCst), number);
        }
        let view = handle.get("k").await.unwrap().unwrap();
        assert_eq!((view.phase, effects.count()), (Phase::Unknown, 0));
    }
}

/// Work that fails after it took over has said nothing of the attempt before it, unless the hook has.
#[tokio::test(start_paused = true)]
async fn work_that_fails_in_doubt_hands_the_doubt_on_unless_the_hook_has_looked() {
    let store = InProcessIdempotency::new();
    let bold = repeating(&store);
    let (careful, effects) = (builder(&store).build().unwrap(), Effects::default());
    leave_unknown(&bold, "k").await;
    for _ in 0..2 {
        let seen = |attempt: Attempt| async move { Err::<u32, _>(attempt.previous()) };
        let failed = bold.run("k", seen).await.unwrap_err();
        assert!(matches!(failed, Error::Service(Previous::Unknown)));
        let blocked = effects.once(&careful, "k").await;
        assert_eq!(refused(blocked).0, Reason::OutcomeUnknown);
    }
    let (looking, asked) = asking(&store, |_| Reconciled::NotDone);
    for _ in 0..2 {
        assert!(looking.run("k", super::fail).await.is_err());
        assert_eq!(asked.load(SeqCst), 1);
    }
    assert_eq!(fresh(effects.once(&careful, "k").await), 1);
}

#[tokio::test(start_paused = true)]
async fn one_asks_while_the_others_are_refused() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let (handle, asked) = asking(&store, |_| Reconciled::NotDone);
    leave_unknown(&handle, "k").await;
    let (one, other) = tokio::join!(effects.once(&handle, "k"), effects.once(&handle, "k"));
    assert_eq!(refused(other).0, Reason::InFlight);
    assert_eq!((fresh(one), asked.load(SeqCst)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn unknown_work_is_retried_by_who_wants_to() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let careful = builder(&store).build().unwrap();
    leave_unknown(&careful, "k").await;
    assert_eq!(
        refused(effects.once(&careful, "k").await).0,
        Reason::OutcomeUnknown
    );
    let bold = repeating(&store);
    assert_eq!(fresh(effects.once(&bold, "k").await), 1);
}
