//! Names, sizes, numbers at their bounds, and loss.

use bytes::Bytes;

use super::{HOUR, NAME, fill, get, granted, hour, put, text, value};
use crate::cache::{
    CacheStore,
    record::{Fill, Lease, Leased, Stored, TagGeneration, Token},
    store::validate::{MAX_BODY, MAX_KEY, MAX_MS, MAX_TAG, MAX_TAGS},
};

pub(super) async fn many_keys_are_read_in_their_order(store: &dyn CacheStore) {
    for (key, body) in [("many-a", "a"), ("many-b", "b"), ("many-c", "c")] {
        assert_eq!(put(store, key, &value(body)).await.1, Stored::Stored);
    }
    granted(store, "many-leased", &hour()).await;
    let keys = [
        "many-c",
        "many-0",
        "many-a",
        "many-leased",
        "many-c",
        "many-b",
    ];
    let got = store.get(NAME, &keys).await.expect("an answer");
    let got: Vec<_> = got
        .iter()
        .map(|it| it.as_ref().map_or_else(|| "-".to_owned(), super::body))
        .collect();
    assert_eq!(got, ["c", "-", "a", "-", "c", "b"]);
    let none = store.get(NAME, &[]).await.expect("an answer");
    assert!(none.is_empty());
}

pub(super) async fn names_and_keys_do_not_leak_into_each_other(store: &dyn CacheStore) {
    let (one, other) = (
        "long".repeat(MAX_KEY / 4),
        "long".repeat(MAX_KEY / 4 - 1) + "x",
    );
    let all = [
        ("leak", "a"),
        ("leak", "b"),
        ("leak:a", "b"),
        ("leak", "a:b"),
        ("leaka", "b"),
        ("leak", "ab"),
        ("leak", "a}b"),
        ("leak", "}:tag:a"),
        ("leak", "ä 🦀\n"),
        ("leak", &*one),
        ("leak", &*other),
    ];
    let mut versions = Vec::new();
    for (name, key) in all {
        let got = store.get(name, &[key]).await.expect("an answer");
        assert_eq!(got, [None], "{name}, {key}");
        let version = Token::random();
        let stored = store.put(name, key, version, &value("leak")).await;
        assert_eq!(stored, Ok(Stored::Stored));
        versions.push(version);
        let tags = store.generations(name, &["", "a"], HOUR).await;
        tags.expect("an answer");
    }
    for ((name, key), version) in all.iter().zip(versions) {
        let got = store.get(name, &[key]).await.expect("an answer");
        let got = got[0].as_ref().map(|entry| entry.version);
        assert_eq!(got, Some(version), "{name}, {key}");
    }
}

pub(super) async fn every_byte_and_number_is_returned(store: &dyn CacheStore) {
    let tag = |tag: &str, generation| TagGeneration {
        tag: tag.into(),
        generation,
    };
    let longest = "t".repeat(MAX_TAG);
    let most = (0..MAX_TAGS).map(|at| tag(&longest[at..], u64::MAX - at as u64));
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
    let fills = [
        Fill {
            body: Some(bytes.into()),
            fresh_ms: MAX_MS,
            keep_ms: MAX_MS,
            load_ms: MAX_MS,
            tags: most.collect(),
        },
        Fill {
            body: None,
            fresh_ms: 0,
            keep_ms: HOUR,
            load_ms: 0,
            tags: [tag("", 1), tag("ä 🦀", 0), tag("", u64::MAX)].into(),
        },
        Fill {
            body: Some(Bytes::from_static(b"\0\xff")),
            tags: [tag("\0", 1 << 53)].into(),
            ..value("")
        },
    ];
    let longest = "k".repeat(MAX_KEY);
    for (fill, number) in fills.iter().zip([u64::MAX, 1, 1 << 63]) {
        for key in ["bytes", &longest] {
            let version = Token::new(number).expect("not zero");
            let stored = store.put(NAME, key, version, fill).await;
            assert_eq!(stored, Ok(Stored::Stored));
            let entry = get(store, key).await.expect("it is stored");
            assert_eq!(entry.version, version);
            assert!(entry.body == fill.body, "every byte");
            let times = (entry.fresh_ms, entry.keep_ms, entry.load_ms);
            assert_eq!(times, (fill.fresh_ms, fill.keep_ms, fill.load_ms));
            assert_eq!(entry.tags, fill.tags);
            let renew = Lease {
                renew: Some(version),
                ..hour()
            };
            let Ok(Leased::Granted { stale: Some(stale) }) = store.lease(NAME, key, &renew).await
            else {
                panic!("not granted");
            };
            assert!(stale.version == version && stale.body == fill.body);
            assert_eq!(stale.tags, fill.tags);
            super::invalidate(store, key, 0).await;
        }
    }
    let longest = Lease {
        lease_ms: MAX_MS,
        ..hour()
    };
    granted(store, "longest", &longest).await;
    super::invalidate(store, "longest", MAX_MS).await;
    assert!(super::is_refused(store, "longest").await);
}

pub(super) async fn what_makes_no_sense_is_refused(store: &dyn CacheStore) {
    let (key, good, token) = ("sense", value("good"), Token::random());
    for wrong in ["", &*"k".repeat(MAX_KEY + 1)] {
        let got = store.get(NAME, &[wrong]).await;
        assert!(got.is_err_and(|error| !error.ambiguous));
        assert!(store.get(NAME, &[key, wrong]).await.is_err());
        assert!(store.lease(NAME, wrong, &hour()).await.is_err());
        assert!(store.put(NAME, wrong, token, &good).await.is_err());
        assert!(store.fill(NAME, wrong, token, &good).await.is_err());
        assert!(store.release(NAME, wrong, token).await.is_err());
        assert!(store.invalidate(NAME, wrong, 1).await.is_err());
        assert!(store.begin_write(NAME, wrong, token, 1).await.is_err());
        let ended = store.end_write(NAME, wrong, token, None, 1).await;
        assert!(ended.is_err());
    }
    for lease_ms in [0, MAX_MS + 1, u64::MAX] {
        let lease = Lease { lease_ms, ..hour() };
        let leased = store.lease(NAME, key, &lease).await;
        assert!(leased.is_err_and(|error| !error.ambiguous), "{lease_ms}");
    }
    let tag = |size| TagGeneration {
        tag: "t".repeat(size).into(),
        generation: 1,
    };
    let spoils: [&dyn Fn(&mut Fill); 7] = [
        &|fill| (fill.fresh_ms, fill.keep_ms) = (0, 0),
        &|fill| fill.fresh_ms = fill.keep_ms + 1,
        &|fill| fill.keep_ms = MAX_MS + 1,
        &|fill| fill.load_ms = u64::MAX,
        &|fill| fill.body = Some(vec![0; MAX_BODY + 1].into()),
        &|fill| fill.tags = [tag(MAX_TAG + 1)].into(),
        &|fill| fill.tags = (0..=MAX_TAGS).map(|_| tag(1)).collect(),
    ];
    assert_eq!(put(store, key, &good).await.1, Stored::Stored);
    for (at, spoil) in spoils.iter().enumerate() {
        let mut wrong = good.clone();
        spoil(&mut wrong);
        let put = store.put(NAME, key, token, &wrong).await;
        assert!(put.is_err_and(|error| !error.ambiguous), "{at}");
        assert!(store.fill(NAME, key, token, &wrong).await.is_err(), "{at}");
        let ended = store.end_write(NAME, key, token, Some(&wrong), 1).await;
        assert!(ended.is_err(), "{at}");
    }
    let most = MAX_MS + 1;
    assert!(store.invalidate(NAME, key, most).await.is_err());
    assert!(store.begin_write(NAME, key, token, most).await.is_err());
    let ended = store.end_write(NAME, key, token, None, most).await;
    assert!(ended.is_err());
    let wrong = &*"t".repeat(MAX_TAG + 1);
    assert!(store.generations(NAME, &[wrong], 1).await.is_err());
    assert!(store.generations(NAME, &["t"], most).await.is_err());
    assert!(store.invalidate_tag(NAME, wrong, 1).await.is_err());
    assert!(store.invalidate_tag(NAME, "t", most).await.is_err());
    assert_eq!(text(store, key).await.as_deref(), Some("good"), "unchanged");
}

pub(super) async fn what_is_lost_is_a_miss(store: &dyn CacheStore, flush: &(dyn Fn() + Sync)) {
    let asked = hour();
    put(store, "lost-value", &value("a")).await;
    granted(store, "lost-lease", &asked).await;
    flush();
    assert_eq!(get(store, "lost-value").await, None);
    let filled = fill(store, "lost-lease", &asked, &value("late")).await;
    assert_eq!(filled, Stored::Refused);
    assert_eq!(granted(store, "lost-lease", &hour()).await, None);
}
