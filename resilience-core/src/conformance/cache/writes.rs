//! Invalidations, tombstones and writes.

use super::{
    HOUR, NAME, SOON, fill, get, granted, hour, invalidate, is_refused, lease, put, stale, text,
    value,
};
use crate::{
    cache::{
        CacheStore,
        record::{Fill, Leased, Stored, Token},
    },
    conformance::eventually,
};

async fn begin(store: &dyn CacheStore, key: &str, write_ms: u64) -> Token {
    let token = Token::random();
    begin_again(store, key, token, write_ms).await;
    token
}

async fn begin_again(store: &dyn CacheStore, key: &str, token: Token, write_ms: u64) {
    let begun = store.begin_write(NAME, key, token, write_ms).await;
    begun.expect("an answer");
}

async fn end(store: &dyn CacheStore, key: &str, token: Token, fill: Option<&Fill>) -> Stored {
    let ended = store.end_write(NAME, key, token, fill, HOUR).await;
    ended.expect("an answer")
}

pub(super) async fn an_invalidation_refuses_what_was_loaded_before(store: &dyn CacheStore) {
    for tombstone_ms in [0, 1, HOUR] {
        for is_stale in [false, true] {
            let (key, asked) = (&*format!("before-{tombstone_ms}-{is_stale}"), hour());
            if is_stale {
                put(store, key, &stale("old")).await;
            }
            granted(store, key, &asked).await;
            for _ in 0..2 {
                invalidate(store, key, tombstone_ms).await;
                assert_eq!(get(store, key).await, None);
            }
            let late = fill(store, key, &asked, &value("late")).await;
            assert_eq!(late, Stored::Refused, "{key}");
            assert_eq!(get(store, key).await, None);
        }
    }
}

pub(super) async fn a_tombstone_refuses_leases_until_it_is_over(store: &dyn CacheStore) {
    let key = "tombstone";
    put(store, key, &value("old")).await;
    invalidate(store, key, HOUR).await;
    let refused = lease(store, key, &hour()).await;
    let Leased::Refused { left_ms } = refused else {
        panic!("{refused:?}");
    };
    assert!((HOUR / 2..=HOUR).contains(&left_ms), "{left_ms}");
    assert_eq!(put(store, key, &value("latest")).await.1, Stored::Stored);
    assert_eq!(text(store, key).await.as_deref(), Some("latest"));
    invalidate(store, key, 30).await;
    eventually("the tombstone is over", SOON, || async {
        !is_refused(store, key).await
    })
    .await;
    assert_eq!(get(store, key).await, None);
}

pub(super) async fn an_invalidation_without_a_tombstone_leaves_nothing(store: &dyn CacheStore) {
    let key = "nothing";
    put(store, key, &value("old")).await;
    for _ in 0..2 {
        invalidate(store, key, 0).await;
    }
    let asked = hour();
    assert_eq!(granted(store, key, &asked).await, None);
    assert_eq!(
        fill(store, key, &asked, &value("new")).await,
        Stored::Stored
    );
}

pub(super) async fn a_write_stores_its_value(store: &dyn CacheStore) {
    for key in ["write", "write-over"] {
        if key == "write-over" {
            put(store, key, &value("old")).await;
        }
        let token = begin(store, key, HOUR).await;
        begin_again(store, key, token, HOUR).await;
        assert_eq!(get(store, key).await, None);
        for _ in 0..2 {
            let ended = end(store, key, token, Some(&value("new"))).await;
            assert_eq!(ended, Stored::Stored, "repeated, too");
        }
        let entry = get(store, key).await.expect("it is stored");
        assert_eq!(entry.version, token);
        assert!(entry.is_fresh());
    }
}

pub(super) async fn nothing_is_stored_during_a_write(store: &dyn CacheStore) {
    let (key, asked) = ("during", hour());
    granted(store, key, &asked).await;
    let token = begin(store, key, HOUR).await;
    assert!(is_refused(store, key).await);
    assert_eq!(put(store, key, &value("put")).await.1, Stored::Refused);
    let filled = fill(store, key, &asked, &value("loaded")).await;
    assert_eq!(filled, Stored::Refused);
    let as_write = store.fill(NAME, key, token, &value("as a fill")).await;
    assert_eq!(as_write, Ok(Stored::Refused), "no lease has that token");
    assert_eq!(get(store, key).await, None);
    let ended = end(store, key, token, Some(&value("written"))).await;
    assert_eq!(ended, Stored::Stored);
    assert_eq!(text(store, key).await.as_deref(), Some("written"));
}

pub(super) async fn a_write_in_doubt_leaves_an_invalidation(store: &dyn CacheStore) {
    let key = "doubt";
    put(store, key, &value("old")).await;
    let token = begin(store, key, HOUR).await;
    for _ in 0..2 {
        assert_eq!(end(store, key, token, None).await, Stored::Refused);
        assert!(get(store, key).await.is_none() && is_refused(store, key).await);
    }
    // It is over: a value can be put again.
    assert_eq!(put(store, key, &value("put")).await.1, Stored::Stored);
}

pub(super) async fn of_two_writes_at_once_neither_is_stored(store: &dyn CacheStore) {
    for swapped in [false, true] {
        let key = &*format!("two-{swapped}");
        let mut writes = [begin(store, key, HOUR).await, begin(store, key, HOUR).await];
        if swapped {
            writes.reverse();
        }
        for token in writes {
            begin_again(store, key, token, HOUR).await;
            let ended = end(store, key, token, Some(&value("one of two"))).await;
            assert_eq!(ended, Stored::Refused);
            assert_eq!(get(store, key).await, None);
            // Whether a third began is not known.
            assert_eq!(put(store, key, &value("put")).await.1, Stored::Refused);
        }
    }
}

pub(super) async fn an_invalidation_during_a_write_wins(store: &dyn CacheStore) {
    for tombstone_ms in [0, HOUR] {
        let key = &*format!("wins-{tombstone_ms}");
        let token = begin(store, key, HOUR).await;
        invalidate(store, key, tombstone_ms).await;
        assert!(is_refused(store, key).await, "the write is in progress");
        assert_eq!(put(store, key, &value("put")).await.1, Stored::Refused);
        let ended = end(store, key, token, Some(&value("written"))).await;
        assert_eq!(ended, Stored::Refused);
        assert_eq!(get(store, key).await, None);
    }
}

pub(super) async fn a_write_that_is_never_ended_ends_by_itself(store: &dyn CacheStore) {
    let key = "never";
    let token = begin(store, key, 30).await;
    eventually("the write is over", SOON, || async {
        put(store, key, &value("put")).await.1 == Stored::Stored
    })
    .await;
    let late = end(store, key, token, Some(&value("late"))).await;
    assert_eq!(late, Stored::Refused);
    // The truth has changed after the value was put, as far as is known.
    assert_eq!(get(store, key).await, None);
}

pub(super) async fn a_write_that_did_not_begin_invalidates(store: &dyn CacheStore) {
    let key = "unbegun";
    put(store, key, &value("old")).await;
    let ended = end(store, key, Token::random(), Some(&value("new"))).await;
    assert_eq!(ended, Stored::Refused);
    assert!(get(store, key).await.is_none() && is_refused(store, key).await);
}
