//! Commit, then invalidate.

use super::*;
use crate::cache::{Affected, Loaded};

/// A value of a key that has the tag `t`.
fn tagged(value: &str) -> impl FnOnce() -> Loading<Result<Loaded<String>, Down>> + Send + use<> {
    Truth::default().answer(Ok(Loaded::new(value.to_owned()).tag("t")))
}

/// Both instances hold `a` and `b`, and `c` by a tag.
async fn filled(tombstone: Duration) -> (Strings, Strings) {
    let (one, other, _) = fleet_of(|it| it.tombstone(tombstone));
    for cache in [&one, &other] {
        for key in ["a", "b"] {
            let load = Truth::default().load("old");
            cache.get_or_load(key, load).await.unwrap();
        }
        cache.get_or_load("c", tagged("old")).await.unwrap();
        settle().await;
        assert_eq!(
            values(cache).await,
            [Some("old"); 3].map(|it| it.map(String::from))
        );
    }
    (one, other)
}

async fn values(cache: &Strings) -> [Option<String>; 3] {
    [
        value(cache, "a").await,
        value(cache, "b").await,
        value(cache, "c").await,
    ]
}

fn all() -> Affected<String> {
    Affected::new().keys(["a", "b"].map(String::from)).tag("t")
}

#[tokio::test(start_paused = true)]
async fn after_a_change_no_instance_has_what_was_there_before() {
    let (one, other) = filled(Duration::ZERO).await;
    let done = one.change(all(), || async { Ok::<_, Down>(7) }).await;
    assert_eq!(done, Ok(7));
    for cache in [&one, &other] {
        assert_eq!(values(cache).await, [None, None, None]);
    }
    // Nothing is in the way of what is loaded now; by tag, a moment later.
    pass(SECOND).await;
    let load = Truth::default().load("new");
    other.get_or_load("a", load).await.unwrap();
    other.get_or_load("c", tagged("new")).await.unwrap();
    settle().await;
    assert_eq!(value(&one, "a").await.as_deref(), Some("new"));
    assert_eq!(value(&one, "c").await.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn what_is_loaded_while_a_change_is_in_progress_is_not_there_after_it() {
    let (one, other) = filled(Duration::ZERO).await;
    let readers = [one.clone(), other.clone()];
    let commit = || async move {
        for reader in &readers {
            for key in ["a", "b"] {
                let load = Truth::default().load("old");
                assert!(reader.get_or_load(key, load).await.unwrap().is_some());
                settle().await;
                // Announced as being written: served to its caller only.
                assert_eq!(value(reader, key).await, None);
            }
            pass(SECOND).await;
            reader.get_or_load("c", tagged("old")).await.unwrap();
        }
        settle().await;
        Ok::<_, Down>(())
    };
    one.change(all(), commit).await.unwrap();
    for cache in [&one, &other] {
        assert_eq!(values(cache).await, [None, None, None]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_that_outlasts_a_change_is_not_stored() {
    let (one, other) = filled(Duration::ZERO).await;
    let (slow, gate) = Truth::gated();
    let (reader, load) = (other.clone(), slow.load("old"));
    other.invalidate("a").await.unwrap();
    let reading = tokio::spawn(async move { reader.get_or_load("a", load).await });
    settle().await;
    one.change(all(), || async { Ok::<_, Down>(()) })
        .await
        .unwrap();
    gate.notify_waiters();
    let read = reading.await.unwrap().unwrap();
    assert_eq!(read.as_deref().map(String::as_str), Some("old"));
    settle().await;
    for cache in [&one, &other] {
        assert_eq!(value(cache, "a").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_fails_or_is_dropped_leaves_invalidations() {
    for fails in [true, false] {
        let (one, other) = filled(Duration::ZERO).await;
        let reader = other.clone();
        // By tag, what is loaded meanwhile is cached until the change is over.
        let read = async move {
            pass(SECOND).await;
            reader.get_or_load("c", tagged("old")).await
        };
        if fails {
            let commit = || async {
                read.await.unwrap();
                Err::<(), _>(Down)
            };
            assert_eq!(one.change(all(), commit).await, Err(Down));
        } else {
            let commit = || async {
                read.await.unwrap();
                std::future::pending::<Result<(), Down>>().await
            };
            let mut change = Box::pin(one.change(all(), commit));
            let within = tokio::time::timeout(SECOND * 5, &mut change).await;
            assert!(within.is_err());
            assert!(value(&other, "c").await.is_some());
            drop(change);
        }
        settle().await;
        for cache in [&one, &other] {
            assert_eq!(values(cache).await, [None, None, None], "{fails}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_without_a_store_drops_what_the_process_holds_and_is_about_to() {
    let cache = local();
    cache.put("a", "old".to_owned()).await.unwrap();
    cache.get_or_load("c", tagged("old")).await.unwrap();
    let (slow, gate) = Truth::gated();
    let (reader, load) = (cache.clone(), slow.load("old"));
    let reading = tokio::spawn(async move { reader.get_or_load("b", load).await });
    settle().await;
    cache
        .change(all(), || async { Ok::<_, Down>(()) })
        .await
        .unwrap();
    gate.notify_waiters();
    reading.await.unwrap().unwrap();
    assert_eq!(values(&cache).await, [None, None, None]);
}

#[test]
fn keys_of_all_shapes_are_affected() {
    let expected = Affected::<u64>::new().key(1).key(2);
    assert_eq!(Affected::from([1, 2]), expected);
    assert_eq!(Affected::from(vec![1, 2]), expected);
    assert_eq!(Affected::from(1), Affected::new().key(1));
}
