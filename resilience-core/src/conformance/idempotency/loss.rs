//! Records that the store has lost.

use crate::idempotency::{
    IdempotencyStore,
    record::{Claim, Claimed, Loss, Phase, WriteOutcome},
};
use bytes::Bytes;

use super::{
    NAME, claim, claim_of, complete, extend, hold, hold_by, phase, release, replayed, save,
};

pub(super) async fn a_lost_record_is_brought_back_by_its_holder(
    store: &dyn IdempotencyStore,
    flush: &(dyn Fn() + Sync),
) {
    let key = "lost";
    let holder = hold(store, key, "a").await;
    flush();
    assert_eq!(extend(store, key, &holder).await, WriteOutcome::Restored);
    let busy = claim(store, key, &claim_of("b")).await;
    assert!(matches!(busy, Claimed::Busy { .. }), "{busy:?}");
    flush();
    assert_eq!(
        save(store, key, &holder, b"half", 1).await,
        WriteOutcome::Restored
    );
    let (holder, grant) = hold_by(store, key, &claim_of("b")).await;
    assert_eq!(
        (grant.attempt, grant.checkpoint),
        (2, Some(Bytes::from_static(b"half")))
    );
    flush();
    assert_eq!(
        complete(store, key, &holder, b"7").await,
        WriteOutcome::Restored
    );
    let other = Claim {
        fingerprint: Bytes::new(),
        ..claim_of("c")
    };
    assert_eq!(claim(store, key, &other).await, Claimed::Mismatch);
    assert_eq!(replayed(claim(store, key, &claim_of("c")).await), "7");

    for (key, phase_then) in [("lost-2", Phase::Released), ("lost-3", Phase::Unknown)] {
        let holder = hold(store, key, "a").await;
        flush();
        let ended = match phase_then {
            Phase::Unknown => store.unknown(NAME, key, &holder).await.expect("an answer"),
            _ => release(store, key, &holder).await,
        };
        assert_eq!(ended, WriteOutcome::Restored);
        assert_eq!(phase(store, key).await, Some(phase_then));
    }
}

pub(super) async fn a_lost_record_is_not_brought_back_over_a_newer_one(
    store: &dyn IdempotencyStore,
    flush: &(dyn Fn() + Sync),
) {
    let key = "newer";
    let old = hold(store, key, "a").await;
    flush();
    let new = hold(store, key, "b").await;
    let lost = WriteOutcome::Lost(Loss::Taken);
    assert_eq!(extend(store, key, &old).await, lost);
    assert_eq!(complete(store, key, &old, b"8").await, lost);
    assert_eq!(complete(store, key, &new, b"7").await, WriteOutcome::Kept);
    assert_eq!(complete(store, key, &old, b"8").await, lost);
    // An older state has come back, as after a failover to a replica that lagged.
    flush();
    assert_eq!(extend(store, key, &old).await, WriteOutcome::Restored);
    assert_eq!(
        complete(store, key, &new, b"7").await,
        WriteOutcome::Restored
    );
    assert_eq!(complete(store, key, &old, b"8").await, lost);
    assert_eq!(replayed(claim(store, key, &claim_of("c")).await), "7");
    // Lost once more, and the older one is first to bring it back: what was accepted stays.
    flush();
    assert_eq!(
        complete(store, key, &old, b"8").await,
        WriteOutcome::Restored
    );
    assert_eq!(complete(store, key, &new, b"7").await, lost);
    assert_eq!(extend(store, key, &new).await, lost);
    assert_eq!(replayed(claim(store, key, &claim_of("c")).await), "8");
}

pub(super) async fn fences_go_up_over_every_loss(
    store: &dyn IdempotencyStore,
    flush: &(dyn Fn() + Sync),
) {
    let mut last = 0;
    for round in 0..20 {
        let holder = hold(store, "fences", &format!("owner {round}")).await;
        assert!(holder.fence > last, "{} after {last}", holder.fence);
        last = holder.fence;
        if round % 2 == 0 {
            flush();
        } else {
            release(store, "fences", &holder).await;
        }
    }
}
