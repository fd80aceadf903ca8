//! Writes and their versions.

use std::collections::HashSet;

use super::*;

pub(super) async fn a_write_is_read_taken_and_sunk(it: &dyn WriteBehindStore) {
    let shard = shard("a_write");
    assert_eq!(value(it, shard, "a").await, None);
    assert_eq!(take(it, shard, &asks(1, 0, HOUR)).await, Taken::nothing());
    let version = put(it, shard, "a", b"1").await;
    let read = it
        .read(shard, "a")
        .await
        .expect("an answer")
        .expect("dirty");
    assert_eq!(
        (read.version, read.value.as_deref()),
        (version, Some(&b"1"[..]))
    );
    let (fence, batch) = taken(it, shard).await;
    let expected = TakenEntry {
        key: "a".into(),
        version,
        attempts: 0,
        value: Some(Bytes::from_static(b"1")),
    };
    assert_eq!(batch, [expected]);
    assert!(fence > version);
    assert_eq!(
        value(it, shard, "a").await.as_deref(),
        Some(&b"1"[..]),
        "until it is sunk"
    );
    assert!(settle(it, shard, fence, &[("a", version, SUNK)]).await);
    assert_eq!(
        (value(it, shard, "a").await, entries(it, shard).await),
        (None, 0)
    );
}

pub(super) async fn the_last_value_of_a_key_counts(it: &dyn WriteBehindStore) {
    let shard = shard("last_value");
    let mut last = 0;
    for value in [&b"1"[..], b"2", b"3"] {
        let version = put(it, shard, "a", value).await;
        assert!(version > last);
        last = version;
    }
    let (fence, batch) = taken(it, shard).await;
    assert_eq!((batch.len(), batch[0].version), (1, last));
    assert!(settle(it, shard, fence, &[("a", last, SUNK)]).await);
    assert!(put(it, shard, "a", b"4").await > last, "after it was sunk");
}

pub(super) async fn a_repeated_write_is_stored_once(it: &dyn WriteBehindStore) {
    let shard = shard("repeated");
    let write = write(vec![change("a", Some(b"1"))]);
    let version = first(written(it, shard, &write).await);
    let repeated = WriteOutcome::Repeated { first: version };
    assert_eq!(written(it, shard, &write).await.outcome, repeated);
    let (fence, _) = taken(it, shard).await;
    assert!(settle(it, shard, fence, &[("a", version, SUNK)]).await);
    // Also when it was sunk meanwhile.
    assert_eq!(written(it, shard, &write).await.outcome, repeated);
    assert_eq!(entries(it, shard).await, 0);
    let later = Write {
        number: 2,
        ..write.clone()
    };
    assert!(first(written(it, shard, &later).await) > version);
    assert_eq!(written(it, shard, &write).await.outcome, WriteOutcome::Late);
}

pub(super) async fn a_deletion_is_no_empty_value(it: &dyn WriteBehindStore) {
    let shard = shard("deletion");
    let changes = vec![change("deleted", None), change("empty", Some(b""))];
    first(written(it, shard, &write(changes)).await);
    let deleted = it.read(shard, "deleted").await.expect("an answer");
    assert_eq!(deleted.expect("dirty").value, None);
    assert_eq!(value(it, shard, "empty").await, Some(Bytes::new()));
    let (_, mut batch) = taken(it, shard).await;
    batch.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(
        (&batch[0].value, &batch[1].value),
        (&None, &Some(Bytes::new()))
    );
}

pub(super) async fn many_changes_are_stored_together(it: &dyn WriteBehindStore) {
    let shard = shard("many");
    let changes = (0..100).map(|at| change(&format!("key-{at:03}"), Some(b"x")));
    let written = written(it, shard, &write(changes.collect())).await;
    let from = first(written);
    assert_eq!(written.before.entries, 0);
    for at in [0, 57, 99] {
        let read = it.read(shard, &format!("key-{at:03}")).await;
        assert_eq!(
            read.expect("an answer").map(|it| it.version),
            Some(from + at)
        );
    }
    assert_eq!(entries(it, shard).await, 100);
    let (_, batch) = batch(take(it, shard, &asks(30, 0, HOUR)).await);
    assert_eq!(batch.len(), 30);
}

pub(super) async fn versions_are_above_those_that_the_caller_knows(it: &dyn WriteBehindStore) {
    let shard = shard("floor");
    let floor = (1 << 53) - (1 << 30);
    let mut known = write(vec![change("a", Some(b"1"))]);
    known.floor = floor;
    let version = first(written(it, shard, &known).await);
    assert_eq!(version, floor + 1);
    assert_eq!(put(it, shard, "b", b"1").await, floor + 2);
    let mut asks = asks(1, 0, HOUR);
    asks.floor = floor + 100;
    assert_eq!(batch(take(it, shard, &asks).await).0, floor + 101);
}

pub(super) async fn a_crowd_of_writers_gets_versions_of_its_own(store: &Arc<dyn WriteBehindStore>) {
    let shard = shard("crowd");
    let writing = (0..64).map(|at| {
        let store = Arc::clone(store);
        tokio::spawn(async move { put(&*store, shard, &format!("key-{}", at % 8), b"x").await })
    });
    let writing: Vec<_> = writing.collect();
    let mut versions = HashSet::new();
    for writing in writing {
        versions.insert(writing.await.expect("written"));
    }
    assert_eq!(versions.len(), 64);
    let (fence, batch) = taken(&**store, shard).await;
    assert_eq!(batch.len(), 8);
    assert!(versions.iter().all(|version| *version < fence));
}
