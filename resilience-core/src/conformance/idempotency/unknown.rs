//! Attempts that do not say how they ended.

use crate::idempotency::{
    IdempotencyStore,
    record::{
        Claim, Claimed, Holder, Loss, Phase, Previous, StoreResolution, Takeover, WriteOutcome,
    },
};

use super::{
    NAME, brief, claim, claim_of, complete, done, granted, hold, hold_by, lease_is_over, phase,
    release, replayed,
};

pub(super) async fn an_unknown_outcome_blocks_until_resolved(store: &dyn IdempotencyStore) {
    for (key, resolution) in [
        ("unknown-1", StoreResolution::Done(done(b"7"))),
        ("unknown-2", StoreResolution::Release),
    ] {
        let holder = hold(store, key, "a").await;
        for _ in 0..2 {
            assert_eq!(
                store.unknown(NAME, key, &holder).await,
                Ok(WriteOutcome::Kept)
            );
        }
        for owner in ["a", "b"] {
            let Claimed::Unknown { fence, attempt, .. } = claim(store, key, &claim_of(owner)).await
            else {
                panic!("not unknown");
            };
            assert_eq!((fence, attempt), (holder.fence, 1));
        }
        assert_eq!(phase(store, key).await, Some(Phase::Unknown));
        let resolve = async |fence| {
            let resolved = store.resolve(NAME, key, fence, &resolution).await;
            resolved.expect("an answer")
        };
        let other = resolve(holder.fence + 1).await;
        assert_eq!(other, WriteOutcome::Lost(Loss::Taken));
        assert_eq!(resolve(holder.fence).await, WriteOutcome::Kept);
        assert_eq!(resolve(holder.fence).await, WriteOutcome::Lost(Loss::Over));
        let next = claim(store, key, &claim_of("b")).await;
        match resolution {
            StoreResolution::Release => assert_eq!(granted(next).attempt, 2),
            _ => assert_eq!(replayed(next), "7"),
        }
    }
    let nothing = store
        .resolve(NAME, "never", 1, &StoreResolution::Release)
        .await;
    assert_eq!(nothing, Ok(WriteOutcome::Lost(Loss::Gone)));
    // The holder that did not know may find out later.
    let holder = hold(store, "unknown-3", "a").await;
    let unknown = store.unknown(NAME, "unknown-3", &holder).await;
    assert_eq!(unknown, Ok(WriteOutcome::Kept));
    let known = complete(store, "unknown-3", &holder, b"7").await;
    assert_eq!(known, WriteOutcome::Kept);
}

pub(super) async fn an_unknown_outcome_is_taken_over_by_who_wants_to(store: &dyn IdempotencyStore) {
    let key = "doubt";
    let holder = hold(store, key, "a").await;
    let unknown = store.unknown(NAME, key, &holder).await;
    assert_eq!(unknown, Ok(WriteOutcome::Kept));
    let bold = |owner| Claim {
        takeover: Takeover::Any,
        ..brief(owner)
    };
    let (_, grant) = hold_by(store, key, &bold("b")).await;
    assert_eq!((grant.attempt, grant.previous), (2, Previous::Unknown));
    lease_is_over(store, key).await;
    let blocked = claim(store, key, &claim_of("c")).await;
    assert!(
        matches!(blocked, Claimed::Unknown { attempt: 2, .. }),
        "the doubt outlives a crash: {blocked:?}"
    );
    let (holder, grant) = hold_by(store, key, &bold("d")).await;
    assert_eq!((grant.attempt, grant.previous), (3, Previous::Unknown));
    for _ in 0..2 {
        assert_eq!(release(store, key, &holder).await, WriteOutcome::Kept);
    }
    assert_eq!(phase(store, key).await, Some(Phase::Unknown));
    let blocked = claim(store, key, &claim_of("e")).await;
    assert!(
        matches!(blocked, Claimed::Unknown { attempt: 3, .. }),
        "the doubt outlives a release: {blocked:?}"
    );
    let (holder, grant) = hold_by(store, key, &bold("f")).await;
    assert_eq!((grant.attempt, grant.previous), (4, Previous::Unknown));
    // Until it is resolved.
    assert_eq!(
        release(store, key, &sure(&holder)).await,
        WriteOutcome::Kept
    );
    let (_, grant) = hold_by(store, key, &claim_of("g")).await;
    assert_eq!((grant.attempt, grant.previous), (5, Previous::Released));
}

/// An attempt that takes over from a crash and releases the key has not resolved what the crashed one did.
pub(super) async fn a_release_after_a_crash_says_nothing_of_the_crash(
    store: &dyn IdempotencyStore,
) {
    let key = "handed-on";
    hold_by(store, key, &brief("a")).await;
    lease_is_over(store, key).await;
    for (owner, attempt) in [("b", 2), ("c", 3)] {
        let (holder, grant) = hold_by(store, key, &claim_of(owner)).await;
        assert_eq!(
            (grant.attempt, grant.previous),
            (attempt, Previous::Ended),
            "{owner}"
        );
        for _ in 0..2 {
            assert_eq!(release(store, key, &holder).await, WriteOutcome::Kept);
        }
        assert_eq!(phase(store, key).await, Some(Phase::Released));
    }
    let careful = Claim {
        takeover: Takeover::Never,
        ..claim_of("d")
    };
    let Claimed::Unknown { fence, .. } = claim(store, key, &careful).await else {
        panic!("the crash is forgotten");
    };
    let resolve = async || {
        let resolved = store
            .resolve(NAME, key, fence, &StoreResolution::Release)
            .await;
        resolved.expect("an answer")
    };
    assert_eq!(resolve().await, WriteOutcome::Kept);
    assert_eq!(resolve().await, WriteOutcome::Lost(Loss::Over));
    let (_, grant) = hold_by(store, key, &careful).await;
    assert_eq!((grant.attempt, grant.previous), (4, Previous::Released));

    let key = "found-out";
    hold_by(store, key, &brief("a")).await;
    lease_is_over(store, key).await;
    let (holder, _) = hold_by(store, key, &claim_of("b")).await;
    assert_eq!(
        release(store, key, &sure(&holder)).await,
        WriteOutcome::Kept
    );
    let (_, grant) = hold_by(store, key, &claim_of("c")).await;
    assert_eq!((grant.attempt, grant.previous), (3, Previous::Released));
}

/// The same holder, who has found out that the attempt before had done nothing.
fn sure(holder: &Holder) -> Holder {
    Holder {
        previous: Previous::Released,
        ..holder.clone()
    }
}

pub(super) async fn a_crash_blocks_who_does_not_take_over(store: &dyn IdempotencyStore) {
    let key = "careful";
    let (holder, _) = hold_by(store, key, &brief("a")).await;
    lease_is_over(store, key).await;
    let careful = Claim {
        takeover: Takeover::Never,
        ..claim_of("b")
    };
    let blocked = claim(store, key, &careful).await;
    assert!(
        matches!(blocked, Claimed::Unknown { attempt: 1, fence, .. } if fence == holder.fence),
        "{blocked:?}"
    );
    let resolution = StoreResolution::Done(done(b"7"));
    let resolved = store.resolve(NAME, key, holder.fence, &resolution).await;
    assert_eq!(resolved, Ok(WriteOutcome::Kept));
    assert_eq!(replayed(claim(store, key, &careful).await), "7");
}

pub(super) async fn a_live_claim_is_not_resolved(store: &dyn IdempotencyStore) {
    let key = "live";
    let holder = hold(store, key, "a").await;
    let resolution = StoreResolution::Release;
    let resolved = store.resolve(NAME, key, holder.fence, &resolution).await;
    assert_eq!(resolved, Ok(WriteOutcome::Lost(Loss::Taken)));
    assert_eq!(
        complete(store, key, &holder, b"7").await,
        WriteOutcome::Kept
    );
}
