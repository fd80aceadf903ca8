//! Batches, their leases, and what becomes of their entries.

use super::*;

pub(super) async fn one_batch_at_a_time(it: &dyn WriteBehindStore) {
    let shard = shard("one_batch");
    let version = put(it, shard, "a", b"1").await;
    let (fence, _) = taken(it, shard).await;
    put(it, shard, "b", b"1").await;
    let busy = take(it, shard, &asks(10, 0, HOUR)).await.batch;
    assert!(
        matches!(busy, TakenBatch::Busy { for_ms } if for_ms <= HOUR),
        "{busy:?}"
    );
    let state = it.state(shard).await.expect("an answer");
    assert_eq!(state.lease.map(|it| it.0).as_deref(), Some("sinker"));
    assert!(settle(it, shard, fence, &[("a", version, SUNK)]).await);
    let (later, batch) = taken(it, shard).await;
    assert!(later > fence);
    assert_eq!(&*batch[0].key, "b");
}

pub(super) async fn a_lease_that_ends_is_taken_over_and_its_holder_changes_nothing(
    it: &dyn WriteBehindStore,
) {
    let shard = shard("taken_over");
    let version = put(it, shard, "a", b"1").await;
    let (fence, _) = batch(take(it, shard, &asks(10, 0, 20)).await);
    let (later, batch) = taken_soon(it, shard, &asks(10, 0, HOUR)).await;
    assert!(later > fence && batch[0].version == version);
    assert!(!settle(it, shard, fence, &[("a", version, SUNK)]).await);
    assert!(!it.renew(shard, fence, HOUR).await.expect("an answer"));
    assert!(value(it, shard, "a").await.is_some());
    assert!(settle(it, shard, later, &[("a", version, SUNK)]).await);
    assert!(!settle(it, shard, fence, &[("a", version, SUNK)]).await);
}

pub(super) async fn a_lease_that_is_renewed_does_not_end(it: &dyn WriteBehindStore) {
    let shard = shard("renewed");
    put(it, shard, "a", b"1").await;
    let (fence, _) = batch(take(it, shard, &asks(10, 0, 50)).await);
    assert!(it.renew(shard, fence, HOUR).await.expect("an answer"));
    tokio::time::sleep(Duration::from_millis(80)).await;
    let busy = take(it, shard, &asks(10, 0, HOUR)).await.batch;
    assert!(matches!(busy, TakenBatch::Busy { .. }), "{busy:?}");
}

pub(super) async fn a_write_during_the_sink_stays_dirty(it: &dyn WriteBehindStore) {
    let shard = shard("during");
    let early = put(it, shard, "a", b"1").await;
    let (fence, _) = taken(it, shard).await;
    let late = put(it, shard, "a", b"2").await;
    assert!(settle(it, shard, fence, &[("a", early, SUNK)]).await);
    assert_eq!(value(it, shard, "a").await.as_deref(), Some(&b"2"[..]));
    let (fence, batch) = taken(it, shard).await;
    assert_eq!((batch[0].version, batch[0].attempts), (late, 0));
    // As well when the earlier one is refused for good.
    let last = put(it, shard, "a", b"3").await;
    let dead = EntryResult::Dead {
        reason: "no".into(),
    };
    assert!(settle(it, shard, fence, &[("a", late, dead)]).await);
    let (_, batch) = taken(it, shard).await;
    assert_eq!(batch[0].version, last);
    assert_eq!(it.state(shard).await.expect("an answer").dead, 0);
}

pub(super) async fn a_repeated_settlement_changes_nothing(it: &dyn WriteBehindStore) {
    let shard = shard("settled_twice");
    let early = put(it, shard, "a", b"1").await;
    let (fence, _) = taken(it, shard).await;
    let retry = EntryResult::Retry { after_ms: 0 };
    for _ in 0..2 {
        assert!(settle(it, shard, fence, &[("a", early, retry.clone())]).await);
    }
    let (_, batch) = taken_soon(it, shard, &asks(10, 0, HOUR)).await;
    assert_eq!(batch[0].attempts, 1);
}

pub(super) async fn a_batch_waits_for_more_until_its_age(it: &dyn WriteBehindStore) {
    let shard = shard("age");
    put(it, shard, "a", b"1").await;
    let waits = take(it, shard, &asks(2, HOUR, HOUR)).await.batch;
    let waits = match waits {
        TakenBatch::NotDue {
            in_ms,
            is_paused: false,
        } => in_ms,
        other => panic!("{other:?}"),
    };
    assert!(waits <= HOUR && waits > HOUR / 2);
    let (_, batch) = taken_soon(it, shard, &asks(2, 20, 10)).await;
    assert_eq!(batch.len(), 1);
    put(it, shard, "b", b"1").await;
    // Full: at once.
    let (_, batch) = taken_soon(it, shard, &asks(2, HOUR, HOUR)).await;
    assert_eq!(batch.len(), 2);
}

pub(super) async fn a_refused_entry_waits_and_others_do_not(it: &dyn WriteBehindStore) {
    let shard = shard("refused");
    let bad = put(it, shard, "bad", b"1").await;
    let (fence, _) = taken(it, shard).await;
    let retry = EntryResult::Retry { after_ms: HOUR };
    assert!(settle(it, shard, fence, &[("bad", bad, retry)]).await);
    let good = put(it, shard, "good", b"1").await;
    let (fence, batch) = taken(it, shard).await;
    assert_eq!((batch.len(), &*batch[0].key), (1, "good"));
    assert!(settle(it, shard, fence, &[("good", good, SUNK)]).await);
    // A later value waits as long.
    put(it, shard, "bad", b"2").await;
    let waits = take(it, shard, &asks(10, 0, HOUR)).await.batch;
    assert!(matches!(waits, TakenBatch::NotDue { .. }), "{waits:?}");
    assert_eq!(value(it, shard, "bad").await.as_deref(), Some(&b"2"[..]));
}

pub(super) async fn a_pause_keeps_all_batches(it: &dyn WriteBehindStore) {
    let shard = shard("pause");
    let version = put(it, shard, "a", b"1").await;
    let (fence, _) = taken(it, shard).await;
    let paused = |fence, pause_ms| Settle {
        pause_ms: Some(pause_ms),
        ..settling(fence, &[])
    };
    assert!(
        it.settle(shard, &paused(fence, 30))
            .await
            .expect("an answer")
    );
    let counting = async {
        loop {
            let taken = take(it, shard, &asks(10, 0, HOUR)).await;
            if let TakenBatch::Batch { fence, pauses, .. } = taken.batch {
                return (fence, pauses);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let counted = tokio::time::timeout(SOON, counting).await;
    let (fence, pauses) = counted.expect("the pause is over soon");
    assert_eq!(pauses, 1);
    assert!(
        it.settle(shard, &paused(fence, HOUR))
            .await
            .expect("an answer")
    );
    let waits = take(it, shard, &asks(10, 0, HOUR)).await.batch;
    assert!(
        matches!(
            waits,
            TakenBatch::NotDue {
                is_paused: true,
                ..
            }
        ),
        "{waits:?}"
    );
    let state = it.state(shard).await.expect("an answer");
    assert!(state.pause_ms > HOUR / 2 && state.lease.is_none());
    assert!(
        it.read(shard, "a")
            .await
            .expect("an answer")
            .map(|it| it.version)
            == Some(version)
    );
}
