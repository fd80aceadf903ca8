//! What is full, lost, or makes no sense.

use super::*;

fn bounded(key: &str, bounds: Bounds) -> Write {
    Write {
        bounds,
        ..write(vec![change(key, Some(b"1"))])
    }
}

const TWO: Bounds = Bounds {
    max_entries: 2,
    max_age_ms: HOUR,
    max_first: 0,
};

pub(super) async fn a_full_shard_takes_no_more_keys(it: &dyn WriteBehindStore) {
    let shard = shard("full");
    for key in ["a", "b"] {
        first(written(it, shard, &bounded(key, TWO)).await);
    }
    let full = bounded("c", TWO);
    let outcome = written(it, shard, &full).await.outcome;
    assert!(matches!(outcome, WriteOutcome::Full { .. }), "{outcome:?}");
    assert_eq!(
        (value(it, shard, "c").await, entries(it, shard).await),
        (None, 2)
    );
    first(written(it, shard, &bounded("a", TWO)).await);
    // All or none.
    let both = Write {
        bounds: TWO,
        ..write(vec![change("a", Some(b"2")), change("c", Some(b"2"))])
    };
    let outcome = written(it, shard, &both).await.outcome;
    assert!(matches!(outcome, WriteOutcome::Full { .. }), "{outcome:?}");
    assert_eq!(value(it, shard, "a").await.as_deref(), Some(&b"1"[..]));
    let (fence, batch) = taken(it, shard).await;
    let sunk: Vec<_> = batch
        .iter()
        .map(|it| (&*it.key, it.version, SUNK))
        .collect();
    assert!(settle(it, shard, fence, &sunk).await);
    // The refused write was not remembered.
    first(written(it, shard, &full).await);
}

pub(super) async fn an_old_entry_refuses_writes(it: &dyn WriteBehindStore) {
    let shard = shard("old");
    put(it, shard, "a", b"1").await;
    let young = Bounds {
        max_age_ms: 20,
        ..WIDE
    };
    eventually("it is too old", SOON, async || {
        let outcome = written(it, shard, &bounded("a", young)).await.outcome;
        matches!(outcome, WriteOutcome::Full { oldest_ms } if oldest_ms >= 20)
    })
    .await;
}

pub(super) async fn what_is_written_through_comes_first(it: &dyn WriteBehindStore) {
    let shard = shard("through");
    put(it, shard, "a", b"1").await;
    put(it, shard, "b", b"1").await;
    let through = Bounds {
        max_first: 3,
        ..TWO
    };
    let outcome = written(it, shard, &bounded("c", through)).await.outcome;
    assert!(
        matches!(outcome, WriteOutcome::Stored { is_full: true, .. }),
        "{outcome:?}"
    );
    let outcome = written(it, shard, &bounded("d", through)).await.outcome;
    assert!(matches!(outcome, WriteOutcome::Full { .. }), "{outcome:?}");
    let (_, batch) = batch(take(it, shard, &asks(1, 0, HOUR)).await);
    assert_eq!(&*batch[0].key, "c");
}

pub(super) async fn another_number_of_shards_is_refused_while_there_are_entries(
    it: &dyn WriteBehindStore,
) {
    let of = |of| Shard {
        of,
        ..shard("resharded")
    };
    let version = put(it, of(8), "a", b"1").await;
    let other = write(vec![change("b", Some(b"1"))]);
    let outcome = written(it, of(16), &other).await.outcome;
    assert_eq!(outcome, WriteOutcome::Resharded { shards: 8 });
    let (fence, _) = taken(it, of(8)).await;
    assert!(settle(it, of(8), fence, &[("a", version, SUNK)]).await);
    assert!(first(written(it, of(16), &other).await) > version);
}

pub(super) async fn shards_and_names_do_not_leak_into_each_other(it: &dyn WriteBehindStore) {
    let all = [("leak", 0), ("leak", 1), ("leak:0", 0), ("leak}{", 1)];
    let all = all.map(|(name, index)| Shard { name, index, of: 2 });
    put(it, all[0], "a", b"1").await;
    for shard in &all[1..] {
        assert_eq!(
            (value(it, *shard, "a").await, entries(it, *shard).await),
            (None, 0)
        );
        put(it, *shard, "b", b"2").await;
    }
    for shard in all {
        assert_eq!(entries(it, shard).await, 1, "{shard:?}");
    }
}

pub(super) async fn every_byte_and_number_is_returned(it: &dyn WriteBehindStore) {
    let shard = shard("bytes \u{e4}:{}%\n");
    let every: Vec<u8> = (0..=255).chain(b"1:2:3:v:".iter().copied()).collect();
    let keys = ["\u{0}:\r\n", "1:2:3", "{a}", &"\u{e4}".repeat(500)];
    for key in keys {
        let changes = vec![RawChange {
            key: key.into(),
            value: Some(every.clone().into()),
        }];
        first(written(it, shard, &write(changes)).await);
        assert_eq!(value(it, shard, key).await.as_deref(), Some(&every[..]));
    }
    let (fence, batch) = taken(it, shard).await;
    assert_eq!(batch.len(), keys.len());
    assert!(
        batch
            .iter()
            .all(|it| it.value.as_deref() == Some(&every[..]))
    );
    let reason = "\u{e4}:1:\n".repeat(80);
    let dead = |it: &TakenEntry| {
        let reason = reason.clone();
        (it.key.to_string(), it.version, EntryResult::Dead { reason })
    };
    let dead: Vec<_> = batch.iter().map(dead).collect();
    let dead: Vec<_> = dead
        .iter()
        .map(|(key, version, it)| (&**key, *version, it.clone()))
        .collect();
    assert!(settle(it, shard, fence, &dead).await);
    let letters = it.dead(shard, None, 10).await.expect("an answer");
    assert_eq!(letters.len(), keys.len());
    for letter in letters {
        assert_eq!(
            (&*letter.reason, letter.value.as_deref()),
            (&*reason, Some(&every[..]))
        );
    }
}

pub(super) async fn what_makes_no_sense_is_refused(it: &dyn WriteBehindStore) {
    let named = shard("senseless");
    let good = || write(vec![change("a", Some(b"1"))]);
    let twice = vec![change("a", None), change("a", None)];
    let writes = [
        write(Vec::new()),
        write(twice),
        write(vec![change("", None)]),
        write(vec![change(&"x".repeat(1025), None)]),
        Write {
            number: 0,
            ..good()
        },
        Write {
            number: 1 << 53,
            ..good()
        },
        Write {
            floor: 1 << 53,
            ..good()
        },
        Write {
            incarnation: 0,
            ..good()
        },
        Write {
            keep_ms: 0,
            ..good()
        },
        Write {
            remember_ms: u64::MAX,
            ..good()
        },
        Write {
            writer: "".into(),
            ..good()
        },
        Write {
            bounds: Bounds {
                max_entries: 0,
                ..WIDE
            },
            ..good()
        },
    ];
    for write in &writes {
        let refused = it.write(named, write).await.expect_err("refused");
        assert!(!refused.ambiguous, "{refused}");
    }
    for (name, index, of) in [("", 0, 1), ("x", 1, 1), ("x", 0, 0), ("x", 0, 1025)] {
        let shard = Shard { name, index, of };
        assert!(it.write(shard, &good()).await.is_err(), "{shard:?}");
        assert!(it.state(shard).await.is_err(), "{shard:?}");
    }
    let takes = [
        asks(0, 0, HOUR),
        asks(1001, 0, HOUR),
        asks(1, 0, 0),
        asks(1, u64::MAX, HOUR),
        Take {
            holder: "".into(),
            ..asks(1, 0, HOUR)
        },
    ];
    for take in &takes {
        assert!(it.take(named, take).await.is_err(), "{take:?}");
    }
    assert!(it.renew(named, 0, HOUR).await.is_err());
    assert!(it.settle(named, &settling(0, &[])).await.is_err());
    let twice = settling(1, &[("a", 1, SUNK), ("a", 1, SUNK)]);
    assert!(it.settle(named, &twice).await.is_err());
    let long = EntryResult::Dead {
        reason: "x".repeat(513),
    };
    assert!(
        it.settle(named, &settling(1, &[("a", 1, long)]))
            .await
            .is_err()
    );
    assert!(it.dead(named, None, 0).await.is_err());
    assert_eq!(entries(it, named).await, 0);
}

pub(super) async fn a_shard_that_is_lost_is_empty_and_versions_go_on(
    it: &dyn WriteBehindStore,
    flush: &(dyn Fn() + Sync),
) {
    let shard = shard("lost");
    let version = put(it, shard, "a", b"1").await;
    let before = it.state(shard).await.expect("an answer").head;
    assert_eq!(
        (before.incarnation, before.version, before.entries),
        (7, version, 1)
    );
    let (fence, _) = taken(it, shard).await;
    flush();
    assert_eq!(take(it, shard, &asks(1, 0, HOUR)).await, Taken::nothing());
    assert!(!settle(it, shard, fence, &[("a", version, SUNK)]).await);
    assert!(!it.renew(shard, fence, HOUR).await.expect("an answer"));
    let other = Write {
        incarnation: 8,
        floor: fence,
        ..write(vec![change("a", Some(b"2"))])
    };
    let written = written(it, shard, &other).await;
    assert_eq!(written.before.incarnation, 0);
    assert!(first(written) > fence);
    let state = it.state(shard).await.expect("an answer");
    assert_eq!(state.head.incarnation, 8);
}
