//! Generations of tags.

use super::HOUR;
use crate::cache::{CacheStore, record::Generation};

async fn generations(store: &dyn CacheStore, name: &str, tags: &[&str]) -> Vec<Generation> {
    let all = store.generations(name, tags, HOUR).await;
    all.expect("an answer")
}

async fn numbers(store: &dyn CacheStore, name: &str, tags: &[&str]) -> Vec<u64> {
    let all = generations(store, name, tags).await;
    all.iter().map(|generation| generation.number).collect()
}

async fn invalidate(store: &dyn CacheStore, name: &str, tag: &str) {
    let done = store.invalidate_tag(name, tag, HOUR).await;
    done.expect("an answer");
}

pub(super) async fn a_generation_lasts_until_it_is_invalidated(store: &dyn CacheStore) {
    let (name, tags) = ("tags", ["fruit", "", "ä 🦀:}", "fruit"]);
    assert_eq!(generations(store, name, &[]).await, []);
    let first = generations(store, name, &tags).await;
    assert_eq!(first[0], first[3], "in their order");
    assert!(
        first.iter().all(|it| it.invalidated_ms.is_none()),
        "{first:?}"
    );
    assert_eq!(generations(store, name, &tags).await, first);
    let mut seen = vec![first[0].number];
    for _ in 0..3 {
        invalidate(store, name, "fruit").await;
        let after = generations(store, name, &tags).await;
        assert!(!seen.contains(&after[0].number), "{after:?} after {seen:?}");
        let since = after[0].invalidated_ms.expect("it was invalidated");
        assert!(since < HOUR / 2, "{since}");
        assert_eq!(after[1..3], first[1..3], "other tags");
        assert_eq!(numbers(store, name, &["fruit"]).await, [after[0].number]);
        seen.push(after[0].number);
    }
    invalidate(store, name, "").await;
    let after = generations(store, name, &tags).await;
    assert!(after[1].number != first[1].number && after[1].invalidated_ms.is_some());
    assert_eq!(after[2], first[2]);
}

pub(super) async fn tags_do_not_leak_into_each_other(store: &dyn CacheStore) {
    let all = [
        ("leak", "a"),
        ("leak", "b"),
        ("leak:a", "b"),
        ("leak", "a:b"),
        ("leaka", "b"),
        ("leak", "ab"),
        ("leak", "a}b"),
        ("leak", ""),
        ("leak:", ""),
        ("leak", &"long".repeat(60)),
        ("leak", &format!("{}x", "long".repeat(60))),
    ];
    for (at, (name, tag)) in all.iter().enumerate() {
        let mut before = Vec::new();
        for (name, tag) in all {
            before.extend(numbers(store, name, &[tag]).await);
        }
        // A tag that is unknown when it is invalidated, too.
        invalidate(store, name, tag).await;
        for (other, (name, tag)) in all.iter().enumerate() {
            let is_same = numbers(store, name, &[tag]).await == [before[other]];
            assert_eq!(is_same, other != at, "{name}, {tag}");
        }
    }
    invalidate(store, "leak", "unknown").await;
    let unknown = generations(store, "leak", &["unknown"]).await;
    assert!(unknown[0].invalidated_ms.is_some());
}

pub(super) async fn a_lost_tag_gets_another_generation(
    store: &dyn CacheStore,
    flush: &(dyn Fn() + Sync),
) {
    let before = numbers(store, "lost", &["a", "b"]).await;
    flush();
    let after = numbers(store, "lost", &["a", "b"]).await;
    assert!(before.iter().zip(&after).all(|(one, other)| one != other));
    assert_eq!(numbers(store, "lost", &["a", "b"]).await, after);
}
