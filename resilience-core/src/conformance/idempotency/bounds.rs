//! Times, sizes and names, waiters and crowds.

use std::{sync::Arc, time::Duration};

use crate::idempotency::{
    IdempotencyStore,
    record::{
        Claim, Claimed, Completion, Holder, Loss, Phase, StoreResolution, Takeover, WriteOutcome,
    },
    store::{MAX_CHECKPOINT, MAX_KEY, MAX_OUTCOME, MAX_WORD, validate::MAX_MS},
};

use super::{
    DAY, HOUR, NAME, SOON, brief, claim, claim_of, complete, done, granted, hold, hold_by, phase,
    release, replayed,
};
use crate::conformance::eventually;

pub(super) async fn a_record_outlives_its_lease_and_is_forgotten_in_the_end(
    store: &dyn IdempotencyStore,
) {
    let key = "retention";
    let (_, _) = hold_by(store, key, &brief("a")).await;
    let view = store.get(NAME, key).await.expect("an answer").unwrap();
    assert!((DAY - 60_000..=DAY).contains(&view.expires_ms), "{view:?}");

    let short = Claim {
        retention_ms: 40,
        ..brief("a")
    };
    let (holder, _) = hold_by(store, "forgotten", &short).await;
    eventually("the record is forgotten", SOON, || async {
        phase(store, "forgotten").await.is_none()
    })
    .await;
    // The holder is too old to bring back what was forgotten in due course. The record went a retention after the
    // claim; the holder's time is up a moment after that.
    eventually("the holder is too old", SOON, || async {
        let extended = store.extend(NAME, "forgotten", &holder, 1).await;
        extended == Ok(WriteOutcome::Lost(Loss::Gone)) || {
            // Too early: what it has brought back goes again.
            tokio::time::sleep(Duration::from_millis(50)).await;
            false
        }
    })
    .await;
}

pub(super) async fn names_and_keys_do_not_leak_into_each_other(store: &dyn IdempotencyStore) {
    for (name, key) in [
        ("leak", "a"),
        ("leak", "b"),
        ("leak:a", "b"),
        ("leak", "a:b"),
        ("leaka", "b"),
        ("leak", "ab"),
        ("leak", "a}b"),
        ("", "leak"),
        ("leak", "ä 🦀\n"),
        ("leak", &"long".repeat(MAX_KEY / 4)),
        ("leak", &format!("{}x", "long".repeat(MAX_KEY / 4 - 1))),
    ] {
        let claimed = store.claim(name, key, &claim_of("a")).await;
        granted(claimed.expect("an answer"));
        let second = store.claim(name, key, &claim_of("b")).await;
        assert!(matches!(second, Ok(Claimed::Busy { .. })), "{second:?}");
    }
}

pub(super) async fn what_makes_no_sense_is_refused(store: &dyn IdempotencyStore) {
    let good = claim_of("a");
    let refused_key = store.claim(NAME, "", &good).await;
    assert!(refused_key.is_err_and(|failure| !failure.ambiguous));
    let too_long = "k".repeat(MAX_KEY + 1);
    assert!(store.claim(NAME, &too_long, &good).await.is_err());
    let claims: [&dyn Fn(&mut Claim); 7] = [
        &|claim| claim.owner = "".into(),
        &|claim| claim.owner = "o".repeat(MAX_WORD + 1).into(),
        &|claim| claim.fingerprint = vec![0; MAX_WORD + 1].into(),
        &|claim| claim.lease_ms = 0,
        &|claim| claim.retention_ms = claim.lease_ms - 1,
        &|claim| claim.retention_ms = MAX_MS + 1,
        &|claim| (claim.lease_ms, claim.retention_ms) = (u64::MAX, u64::MAX),
    ];
    for (at, spoil) in claims.iter().enumerate() {
        let mut claim = good.clone();
        spoil(&mut claim);
        let refused = store.claim(NAME, "sense", &claim).await;
        let failure = refused.expect_err(&format!("claim {at} was taken"));
        assert!(!failure.ambiguous, "{failure}");
    }
    let holder = hold(store, "sense", "a").await;
    for fence in [0, (1 << 53) - 1, u64::MAX] {
        let wrong = Holder {
            fence,
            ..holder.clone()
        };
        assert!(store.extend(NAME, "sense", &wrong, 1).await.is_err());
        let resolution = StoreResolution::Release;
        let resolved = store.resolve(NAME, "sense", fence, &resolution).await;
        assert!(resolved.is_err(), "{fence}");
    }
    assert!(store.extend(NAME, "sense", &holder, 0).await.is_err());
    let large = vec![0; MAX_CHECKPOINT + 1].into();
    let saved = store.checkpoint(NAME, "sense", &holder, &large, 1).await;
    assert!(saved.is_err());
    for completion in [
        Completion {
            ttl_ms: 0,
            ..done(b"")
        },
        Completion {
            outcome: vec![0; MAX_OUTCOME + 1].into(),
            ..done(b"")
        },
    ] {
        let completed = store.complete(NAME, "sense", &holder, &completion).await;
        assert!(completed.is_err_and(|failure| !failure.ambiguous));
    }
    let view = store.get(NAME, "sense").await.expect("an answer").unwrap();
    assert_eq!((view.phase, view.fence), (Phase::Running, holder.fence));
    assert!(view.remaining_ms > HOUR - 60_000, "nothing was changed");
}

pub(super) async fn the_largest_is_taken(store: &dyn IdempotencyStore) {
    let key = "k".repeat(MAX_KEY);
    let largest = Claim {
        owner: "o".repeat(MAX_WORD).into(),
        fingerprint: vec![0xff; MAX_WORD].into(),
        lease_ms: MAX_MS,
        retention_ms: MAX_MS,
        takeover: Takeover::Ended,
    };
    let (holder, _) = hold_by(store, &key, &largest).await;
    let checkpoint = vec![0xff; MAX_CHECKPOINT].into();
    let saved = store.checkpoint(NAME, &key, &holder, &checkpoint, MAX_MS);
    assert_eq!(saved.await, Ok(WriteOutcome::Kept));
    let Claimed::Busy { remaining_ms } = claim(
        store,
        &key,
        &Claim {
            owner: "b".into(),
            ..largest.clone()
        },
    )
    .await
    else {
        panic!("granted twice");
    };
    assert!(remaining_ms > MAX_MS - 60_000, "{remaining_ms}");
    // A megabyte: a store of larger outcomes tests them itself.
    let completion = Completion {
        outcome: vec![0xff; 1 << 20].into(),
        ttl_ms: MAX_MS,
    };
    let completed = store.complete(NAME, &key, &holder, &completion).await;
    assert_eq!(completed, Ok(WriteOutcome::Kept));
    let again = replayed(claim(store, &key, &largest).await);
    assert_eq!(again, completion.outcome);
}

pub(super) async fn whoever_waits_is_told(store: &dyn IdempotencyStore) {
    for (key, how) in [("told-1", 0), ("told-2", 1), ("told-3", 2)] {
        let holder = hold(store, key, "a").await;
        let mut changes = store.subscribe(NAME, key);
        let mut second = changes.clone();
        let busy = store.claim(NAME, key, &claim_of("b")).await;
        assert!(matches!(busy, Ok(Claimed::Busy { .. })), "{busy:?}");
        // Subscriptions take effect in their own time: a waiter asks again now and then.
        let told = async {
            loop {
                let told = async { tokio::join!(changes.next(), second.next()) };
                if tokio::time::timeout(Duration::from_millis(20), told)
                    .await
                    .is_ok()
                    && phase(store, key).await != Some(Phase::Running)
                {
                    break;
                }
            }
        };
        let settled = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            match how {
                0 => complete(store, key, &holder, b"7").await,
                1 => release(store, key, &holder).await,
                _ => store.unknown(NAME, key, &holder).await.expect("an answer"),
            }
        };
        let (told, settled) = tokio::join!(tokio::time::timeout(SOON, told), settled);
        assert_eq!(settled, WriteOutcome::Kept);
        assert!(told.is_ok(), "no waiter was told of {key}");
    }
}

pub(super) async fn a_crowd_gets_one_grant(store: &Arc<dyn IdempotencyStore>) {
    for round in 0..5 {
        let tasks: Vec<_> = (0..20)
            .map(|number| {
                let store = Arc::clone(store);
                tokio::spawn(async move {
                    let claim = claim_of(&format!("owner {number}"));
                    let claimed = store.claim(NAME, &format!("crowd {round}"), &claim).await;
                    matches!(claimed.expect("an answer"), Claimed::New(_))
                })
            })
            .collect();
        let mut granted = 0;
        for task in tasks {
            granted += u32::from(task.await.expect("no panic"));
        }
        assert_eq!(granted, 1);
    }
}
