//! Claims, and what their holders may do.

use crate::idempotency::{
    IdempotencyStore,
    record::{Claim, Claimed, Completion, Holder, Loss, Phase, Previous, WriteOutcome},
};
use bytes::Bytes;

use super::{
    HOUR, NAME, SOON, brief, claim, claim_of, complete, done, extend, granted, hold, hold_by,
    lease_is_over, phase, release, replayed, save,
};
use crate::conformance::eventually;

pub(super) async fn a_claim_is_granted_once_and_repeated_to_its_owner(
    store: &dyn IdempotencyStore,
) {
    let key = "once";
    assert_eq!(phase(store, key).await, None);
    let first = granted(claim(store, key, &claim_of("a")).await);
    assert_eq!((first.attempt, first.previous), (1, Previous::None));
    assert_eq!(first.checkpoint, None);
    assert!(first.fence > 0);
    for _ in 0..3 {
        let Claimed::Busy { remaining_ms } = claim(store, key, &claim_of("b")).await else {
            panic!("granted twice");
        };
        assert!(
            (HOUR - 60_000..=HOUR).contains(&remaining_ms),
            "{remaining_ms}"
        );
        let again = claim(store, key, &claim_of("a")).await;
        assert_eq!(again, Claimed::Mine(first.clone()));
    }
}

pub(super) async fn an_outcome_is_replayed_byte_for_byte(store: &dyn IdempotencyStore) {
    for (key, outcome) in [
        ("replay-1", &b""[..]),
        ("replay-2", b"\x00\r\n\xff\xfe $-1 \x80"),
    ] {
        let holder = hold(store, key, "a").await;
        assert_eq!(
            complete(store, key, &holder, outcome).await,
            WriteOutcome::Kept
        );
        for owner in ["a", "b"] {
            let Claimed::Done {
                outcome: again,
                age_ms,
                fence,
            } = claim(store, key, &claim_of(owner)).await
            else {
                panic!("not replayed");
            };
            assert_eq!((&*again, fence), (outcome, holder.fence));
            assert!(age_ms < 60_000, "{age_ms}");
        }
        let view = store.get(NAME, key).await.expect("an answer").unwrap();
        assert_eq!(view.outcome_bytes, outcome.len() as u64);
        assert_eq!((view.phase, view.remaining_ms), (Phase::Done, 0));
    }
}

pub(super) async fn an_outcome_is_forgotten_when_its_time_is_over(store: &dyn IdempotencyStore) {
    let key = "ttl";
    let holder = hold(store, key, "a").await;
    let brief = Completion {
        ttl_ms: 30,
        ..done(b"7")
    };
    let completed = store.complete(NAME, key, &holder, &brief).await;
    assert_eq!(completed, Ok(WriteOutcome::Kept));
    eventually("the outcome is forgotten", SOON, || async {
        phase(store, key).await.is_none()
    })
    .await;
    let next = granted(claim(store, key, &claim_of("b")).await);
    assert!(next.fence > holder.fence);
    assert_eq!((next.attempt, next.previous), (1, Previous::None));
}

pub(super) async fn other_work_under_the_key_is_a_mismatch_in_every_phase(
    store: &dyn IdempotencyStore,
) {
    let key = "mismatch";
    let mismatches = async || {
        for fingerprint in [&b""[..], b"\x00work", b"\x00work\xff\x00"] {
            let other = Claim {
                fingerprint: Bytes::from_static(fingerprint),
                ..claim_of("b")
            };
            assert_eq!(claim(store, key, &other).await, Claimed::Mismatch);
        }
    };
    let holder = hold(store, key, "a").await;
    mismatches().await;
    let unknown = store.unknown(NAME, key, &holder).await;
    assert_eq!(unknown, Ok(WriteOutcome::Kept));
    mismatches().await;
    assert_eq!(release(store, key, &holder).await, WriteOutcome::Kept);
    let holder = hold(store, key, "c").await;
    assert_eq!(
        save(store, key, &holder, b"half", HOUR).await,
        WriteOutcome::Kept
    );
    assert_eq!(release(store, key, &holder).await, WriteOutcome::Kept);
    // Something is left.
    mismatches().await;
    let holder = hold(store, key, "d").await;
    complete(store, key, &holder, b"7").await;
    mismatches().await;
    assert_eq!(replayed(claim(store, key, &claim_of("e")).await), "7");
}

pub(super) async fn a_key_that_was_given_back_is_free_for_other_work(store: &dyn IdempotencyStore) {
    let key = "free";
    let mut last = hold(store, key, "a").await;
    for (owner, fingerprint) in [("b", &b"other"[..]), ("c", b""), ("d", b"\x00work\xff")] {
        assert_eq!(release(store, key, &last).await, WriteOutcome::Kept);
        let other = Claim {
            fingerprint: Bytes::from_static(fingerprint),
            ..claim_of(owner)
        };
        let (holder, grant) = hold_by(store, key, &other).await;
        assert!(holder.fence > last.fence);
        assert_eq!(
            (grant.previous, grant.checkpoint),
            (Previous::Released, None)
        );
        let late = complete(store, key, &last, b"late").await;
        assert_eq!(late, WriteOutcome::Lost(Loss::Taken));
        last = holder;
    }
    let other = Claim {
        fingerprint: Bytes::from_static(b"other"),
        ..claim_of("e")
    };
    assert_eq!(claim(store, key, &other).await, Claimed::Mismatch);
    complete(store, key, &last, b"7").await;
    assert_eq!(replayed(claim(store, key, &claim_of("f")).await), "7");
}

pub(super) async fn a_lease_that_ends_is_taken_over_with_the_checkpoint(
    store: &dyn IdempotencyStore,
) {
    let key = "takeover";
    let (first, _) = hold_by(store, key, &brief("a")).await;
    let left = b"charged\x00\xff";
    assert_eq!(save(store, key, &first, left, 1).await, WriteOutcome::Kept);
    let (second, grant) = hold_by(store, key, &claim_of("b")).await;
    assert!(second.fence > first.fence);
    assert_eq!((grant.attempt, grant.previous), (2, Previous::Ended));
    assert_eq!(grant.checkpoint, Some(Bytes::from_static(left)));
    let again = claim(store, key, &claim_of("b")).await;
    assert_eq!(again, Claimed::Mine(grant), "as it was answered before");
    // An empty one is one all the same.
    assert_eq!(save(store, key, &second, b"", 1).await, WriteOutcome::Kept);
    let (_, grant) = hold_by(store, key, &claim_of("c")).await;
    assert_eq!((grant.attempt, grant.checkpoint), (3, Some(Bytes::new())));
}

pub(super) async fn a_lease_that_ended_is_the_holders_while_nobody_came(
    store: &dyn IdempotencyStore,
) {
    let key = "late";
    let (holder, _) = hold_by(store, key, &brief("a")).await;
    lease_is_over(store, key).await;
    assert_eq!(extend(store, key, &holder).await, WriteOutcome::Kept);
    let busy = claim(store, key, &claim_of("b")).await;
    assert!(matches!(busy, Claimed::Busy { .. }), "{busy:?}");
    let shortened = store.extend(NAME, key, &holder, 1).await;
    assert_eq!(shortened, Ok(WriteOutcome::Kept));
    lease_is_over(store, key).await;
    assert_eq!(
        complete(store, key, &holder, b"7").await,
        WriteOutcome::Kept
    );
}

pub(super) async fn an_extended_lease_does_not_end(store: &dyn IdempotencyStore) {
    let key = "extend";
    let (holder, _) = hold_by(store, key, &brief("a")).await;
    assert_eq!(extend(store, key, &holder).await, WriteOutcome::Kept);
    let Claimed::Busy { remaining_ms } = claim(store, key, &claim_of("b")).await else {
        panic!("taken over");
    };
    assert!(remaining_ms > HOUR - 60_000, "{remaining_ms}");
    // A checkpoint renews the lease too.
    let shortened = store.extend(NAME, key, &holder, 1).await;
    assert_eq!(shortened, Ok(WriteOutcome::Kept));
    let saved = save(store, key, &holder, b"", HOUR).await;
    assert_eq!(saved, WriteOutcome::Kept);
    let busy = claim(store, key, &claim_of("b")).await;
    assert!(matches!(busy, Claimed::Busy { .. }), "{busy:?}");
}

pub(super) async fn a_zombie_changes_nothing_and_is_told(store: &dyn IdempotencyStore) {
    let key = "zombie";
    let (zombie, _) = hold_by(store, key, &brief("a")).await;
    let (holder, _) = hold_by(store, key, &claim_of("b")).await;
    for settled in [false, true] {
        let lost = WriteOutcome::Lost(Loss::Taken);
        assert_eq!(extend(store, key, &zombie).await, lost);
        assert_eq!(save(store, key, &zombie, b"x", 1).await, lost);
        assert_eq!(complete(store, key, &zombie, b"8").await, lost);
        assert_eq!(release(store, key, &zombie).await, lost);
        assert_eq!(store.unknown(NAME, key, &zombie).await, Ok(lost));
        if settled {
            assert_eq!(replayed(claim(store, key, &claim_of("c")).await), "7");
        } else {
            let view = store.get(NAME, key).await.expect("an answer").unwrap();
            assert_eq!((view.phase, view.fence), (Phase::Running, holder.fence));
            assert!(view.remaining_ms > 1_000 && view.checkpoint_bytes == 0);
            assert_eq!(
                complete(store, key, &holder, b"7").await,
                WriteOutcome::Kept
            );
        }
    }
}

pub(super) async fn owner_and_fence_must_both_be_right(store: &dyn IdempotencyStore) {
    let key = "both";
    let holder = hold(store, key, "a").await;
    let other_owner = Holder {
        owner: "b".into(),
        ..holder.clone()
    };
    let older_fence = Holder {
        fence: holder.fence - 1,
        ..holder.clone()
    };
    for wrong in [other_owner, older_fence] {
        let lost = WriteOutcome::Lost(Loss::Taken);
        assert_eq!(complete(store, key, &wrong, b"8").await, lost);
        assert_eq!(release(store, key, &wrong).await, lost);
        assert_eq!(extend(store, key, &wrong).await, lost);
    }
    assert_eq!(
        complete(store, key, &holder, b"7").await,
        WriteOutcome::Kept
    );
}

pub(super) async fn a_release_keeps_what_is_known(store: &dyn IdempotencyStore) {
    let key = "release";
    let first = hold(store, key, "a").await;
    assert_eq!(
        save(store, key, &first, b"half", HOUR).await,
        WriteOutcome::Kept
    );
    assert_eq!(release(store, key, &first).await, WriteOutcome::Kept);
    assert_eq!(phase(store, key).await, Some(Phase::Released));
    let second = granted(claim(store, key, &claim_of("b")).await);
    assert!(second.fence > first.fence);
    assert_eq!((second.attempt, second.previous), (2, Previous::Released));
    assert_eq!(second.checkpoint, Some(Bytes::from_static(b"half")));
    let late = complete(store, key, &first, b"8").await;
    assert_eq!(late, WriteOutcome::Lost(Loss::Taken));
}

pub(super) async fn every_step_can_be_repeated(store: &dyn IdempotencyStore) {
    let over = WriteOutcome::Lost(Loss::Over);
    let holder = hold(store, "again-1", "a").await;
    assert_eq!(
        complete(store, "again-1", &holder, b"7").await,
        WriteOutcome::Kept
    );
    assert_eq!(
        complete(store, "again-1", &holder, b"8").await,
        WriteOutcome::Kept
    );
    assert_eq!(release(store, "again-1", &holder).await, over);
    assert_eq!(extend(store, "again-1", &holder).await, over);
    assert_eq!(store.unknown(NAME, "again-1", &holder).await, Ok(over));
    let first = replayed(claim(store, "again-1", &claim_of("b")).await);
    assert_eq!(first, "7", "the first outcome stays");

    let holder = hold(store, "again-2", "a").await;
    for _ in 0..2 {
        assert_eq!(release(store, "again-2", &holder).await, WriteOutcome::Kept);
    }
    assert_eq!(extend(store, "again-2", &holder).await, over);
    assert_eq!(complete(store, "again-2", &holder, b"7").await, over);
    assert_eq!(store.unknown(NAME, "again-2", &holder).await, Ok(over));
    assert_eq!(phase(store, "again-2").await, Some(Phase::Released));
}
