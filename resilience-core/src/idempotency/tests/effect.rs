//! What happens to work that may have been done, by what a second run would do.

use std::{io, panic::AssertUnwindSafe};

use futures_util::FutureExt;
use tokio::time::sleep;

use super::{Effect, Effects, LEASE, SECOND, builder, fresh, refused};
use crate::{
    error::Reason,
    idempotency::{
        Attempt, Idempotency, IdempotencyStore, InProcessIdempotency, Key, Resolution,
        record::{Claim, Claimed, Previous, Takeover},
    },
};

/// A process claims `key` and dies.
async fn dies(store: &InProcessIdempotency, key: &str) -> u64 {
    let claim = Claim {
        owner: format!("of {key}").into(),
        fingerprint: Default::default(),
        lease_ms: 30_000,
        retention_ms: 86_400_000,
        takeover: Takeover::Never,
    };
    match store.claim("test", &Key::new(key).stored(), &claim).await {
        Ok(Claimed::New(grant)) => grant.fence,
        other => panic!("not granted: {other:?}"),
    }
}

async fn panics(handle: &Idempotency, key: &str) {
    let work = |_: Attempt| async { std::panic::panic_any("as the test asks for") };
    let run = handle.run::<u32, io::Error, _, _>(key, work);
    assert!(AssertUnwindSafe(run).catch_unwind().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn by_default_work_that_may_have_been_done_is_never_done_again_by_the_passing_of_time() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let handle = builder(&store).build().unwrap();
    let fence = dies(&store, "died").await;
    panics(&handle, "panicked").await;
    sleep(SECOND).await;
    let claimed = effects.once(&handle, "died").await;
    assert_eq!(refused(claimed).0, Reason::InFlight);
    for _ in 0..3 {
        sleep(200 * LEASE).await;
        for key in ["died", "panicked"] {
            let blocked = effects.once(&handle, key).await;
            assert_eq!(refused(blocked), (Reason::OutcomeUnknown, None), "{key}");
        }
    }
    assert_eq!(effects.count(), 0);
    let resolved = handle.resolve("died", fence, Resolution::NotDone).await;
    assert!(resolved.unwrap());
    assert_eq!(fresh(effects.once(&handle, "died").await), 1);
}

#[tokio::test(start_paused = true)]
async fn work_that_may_be_repeated_is_done_again_and_knows_it() {
    for effect in [Effect::Idempotent, Effect::Fenced] {
        let store = InProcessIdempotency::new();
        let handle = builder(&store).effect(effect).build().unwrap();
        let fence = dies(&store, "died").await;
        panics(&handle, "panicked").await;
        sleep(LEASE).await;
        for (key, previous) in [("died", Previous::Ended), ("panicked", Previous::Unknown)] {
            let run = handle.run(key, move |attempt| async move {
                assert_eq!((attempt.previous(), attempt.number()), (previous, 2));
                Ok::<_, io::Error>(attempt.fence())
            });
            assert!(run.await.unwrap().value > fence, "{key}");
        }
    }
}

/// The lease ends while the process lives: cut off from the store, or stopped.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_outlives_its_lease_settles_what_was_unknown() {
    let (store, effects) = (InProcessIdempotency::new(), Effects::default());
    let ceiling = builder(&store).max_lease_time(LEASE).retention(20 * LEASE);
    let handle = ceiling.cancel_at_max_lease_time(false).build().unwrap();
    let working = effects.begin(&handle, "k", 5 * LEASE).await;
    sleep(3 * LEASE).await;
    let blocked = effects.once(&handle, "k").await;
    assert_eq!(refused(blocked).0, Reason::OutcomeUnknown);
    assert_eq!(fresh(working.await.unwrap()), 1);
    assert!(
        effects
            .once(&handle, "k")
            .await
            .unwrap()
            .replayed()
            .is_some()
    );
}
