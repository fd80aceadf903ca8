//! Two processes that share a store.

use std::collections::HashMap;

use super::*;
use crate::cache::{Freshness, Level, Loaded};

#[tokio::test(start_paused = true)]
async fn one_process_loads_and_the_other_reads_the_store_once() {
    let (one, other, _) = fleet();
    let truth = Truth::default();
    one.get_or_load("a", truth.load("1")).await.unwrap();
    settle().await;
    let levels = async |cache: &Strings| cache.lookup("a").await.map(|it| it.level);
    assert_eq!(levels(&other).await, Some(Level::Store));
    assert_eq!(levels(&other).await, Some(Level::Local));
    other.get_or_load("a", truth.load("2")).await.unwrap();
    assert_eq!(truth.asked(), 1);
    assert_eq!(one.snapshot().totals.fills_stored, 1);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_seen_by_the_other_process_at_once() {
    let (one, other, _) = fleet();
    one.put("a", "1".to_owned()).await.unwrap();
    assert_eq!(value(&other, "a").await.as_deref(), Some("1"));
    one.put("a", "2".to_owned()).await.unwrap();
    assert_eq!(value(&other, "a").await.as_deref(), Some("2"));
    one.invalidate("a").await.unwrap();
    assert_eq!(value(&other, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn of_two_processes_that_miss_one_loads_and_the_other_waits_for_its_fill() {
    let (one, other, _) = fleet();
    let (truth, gate) = Truth::gated();
    let callers: Vec<_> = [&one, &other, &other]
        .into_iter()
        .map(|cache| {
            let (cache, load) = (cache.clone(), truth.load("1"));
            tokio::spawn(async move { cache.get_or_load("a", load).await })
        })
        .collect();
    settle().await;
    pass(SECOND * 5).await;
    assert_eq!(truth.asked(), 1, "the lease is renewed");
    gate.notify_waiters();
    for caller in callers {
        let got = caller.await.unwrap().unwrap();
        assert_eq!(got.as_deref().map(String::as_str), Some("1"));
    }
    assert_eq!(truth.asked(), 1);
    assert!(other.snapshot().totals.waits >= 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_loader_that_fails_or_dies_loads_by_itself() {
    for dies in [false, true] {
        let (one, other, _) = fleet();
        let (slow, gate) = Truth::gated();
        let (load, holder) = (slow.fail(), one.clone());
        let holder = tokio::spawn(async move { holder.get_or_load("a", load).await.map(drop) });
        settle().await;
        let truth = Truth::default();
        let (load, waiter) = (truth.load("1"), other.clone());
        let waiter = tokio::spawn(async move { waiter.get_or_load("a", load).await });
        settle().await;
        assert_eq!(truth.asked(), 0);
        if dies {
            holder.abort();
        } else {
            gate.notify_waiters();
        }
        let got = tokio::time::timeout(SECOND * 3, waiter)
            .await
            .expect("soon");
        assert_eq!(
            got.unwrap().unwrap().as_deref().map(String::as_str),
            Some("1")
        );
        settle().await;
        assert_eq!(value(&one, "a").await.as_deref(), Some("1"));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_a_lease_and_a_load() {
    let (one, other, _) = fleet_of(|it| it.load_timeout(SECOND, SECOND * 3).lease(SECOND));
    let (hangs, _gate) = Truth::gated();
    let (load, holder) = (hangs.load("x"), one.clone());
    let holder = tokio::spawn(async move { holder.get_or_load("a", load).await });
    settle().await;
    let truth = Truth::default();
    let started = tokio::time::Instant::now();
    let got = other.get_or_load("a", truth.load("1")).await.unwrap();
    assert_eq!(got.as_deref().map(String::as_str), Some("1"));
    assert!(started.elapsed() <= SECOND * 5, "{:?}", started.elapsed());
    assert!(holder.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_slow_loader_never_brings_an_old_value_back() {
    let (one, other, _) = fleet_of(|it| it.tombstone(Duration::ZERO));
    let (slow, gate) = Truth::gated();
    let (load, loader) = (slow.load("old"), one.clone());
    let loader = tokio::spawn(async move { loader.get_or_load("a", load).await.map(drop) });
    settle().await;
    other.invalidate("a").await.unwrap();
    gate.notify_waiters();
    loader.await.unwrap().unwrap();
    settle().await;
    assert_eq!(value(&one, "a").await, None);
    assert_eq!(value(&other, "a").await, None);
    assert_eq!(one.snapshot().totals.fills_refused, 1);
}

#[tokio::test(start_paused = true)]
async fn nor_does_one_so_slow_that_its_lease_is_extended() {
    for tombstone in [Duration::ZERO, SECOND / 10] {
        let (one, other, _) = fleet_of(|it| it.lease(SECOND * 3).tombstone(tombstone));
        let (slow, gate) = Truth::gated();
        let (load, loader) = (slow.load("old"), one.clone());
        let loader = tokio::spawn(async move { loader.get_or_load("a", load).await.map(drop) });
        settle().await;
        pass(SECOND * 2).await;
        other.invalidate("a").await.unwrap();
        // The tombstone is over, and the loader asks for more time.
        for _ in 0..4 {
            pass(SECOND).await;
        }
        gate.notify_waiters();
        loader.await.unwrap().unwrap();
        settle().await;
        for cache in [&one, &other] {
            assert_eq!(value(cache, "a").await, None);
        }
        assert_eq!(one.snapshot().totals.fills_refused, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_loads_although_the_store_has_a_fresh_value() {
    let (one, other, _) = fleet();
    one.put("a", "1".to_owned()).await.unwrap();
    let (truth, refresh) = (Truth::default(), crate::cache::CallOptions::new().refresh());
    let got = other
        .load_with("a", refresh, truth.load("2"))
        .await
        .unwrap();
    assert_eq!(
        (got.value.unwrap().as_str(), got.level),
        ("2", Level::Loaded)
    );
    settle().await;
    assert_eq!(value(&one, "a").await.as_deref(), Some("2"));
    assert_eq!(truth.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_loaded_just_after_an_invalidation_is_held_nowhere() {
    let (one, other, _) = fleet();
    let keys = ["a".to_owned()];
    other.invalidate("a").await.unwrap();
    let old = |keys: Vec<String>| async move {
        let old = |key| (key, "old".to_owned());
        Ok::<HashMap<String, String>, Down>(keys.into_iter().map(old).collect())
    };
    let found = one.get_or_load_many(&keys, old).await.all().unwrap();
    assert_eq!(found["a"].as_str(), "old");
    settle().await;
    assert_eq!(value(&one, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_lags_does_not_bring_an_old_value_back() {
    let (one, other, _) = fleet();
    other.invalidate("a").await.unwrap();
    let truth = Truth::default();
    // Read from a replica that does not have the change yet.
    one.get_or_load("a", truth.load("old")).await.unwrap();
    settle().await;
    assert_eq!(value(&one, "a").await, None);
    pass(SECOND / 10).await;
    one.get_or_load("a", truth.load("new")).await.unwrap();
    settle().await;
    assert_eq!(value(&other, "a").await.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn tags_and_clearing_reach_the_other_process_also_during_a_load() {
    let (one, other, _) = fleet_of(|it| it.tombstone(Duration::ZERO));
    let tagged = |value: &str| Loaded::new(value.to_owned()).tag("red");
    one.put("a", tagged("1")).await.unwrap();
    one.put("b", "2".to_owned()).await.unwrap();
    assert_eq!(value(&other, "a").await.as_deref(), Some("1"));
    one.invalidate_tag("red").await.unwrap();
    assert_eq!(value(&other, "a").await, None);
    assert_eq!(value(&other, "b").await.as_deref(), Some("2"));
    let (slow, gate) = Truth::gated();
    let (load, loader) = (slow.answer(Ok::<_, Down>(tagged("old"))), other.clone());
    let loader = tokio::spawn(async move { loader.get_or_load("a", load).await.map(drop) });
    settle().await;
    pass(SECOND).await;
    one.invalidate_tag("red").await.unwrap();
    gate.notify_waiters();
    loader.await.unwrap().unwrap();
    settle().await;
    assert_eq!(value(&one, "a").await, None);
    pass(SECOND * 2).await;
    one.get_or_load("a", Truth::default().answer(Ok::<_, Down>(tagged("new"))))
        .await
        .unwrap();
    settle().await;
    assert_eq!(value(&other, "a").await.as_deref(), Some("new"));
    other.clear().await.unwrap();
    for cache in [&one, &other] {
        assert_eq!(value(cache, "a").await, None);
        assert_eq!(value(cache, "b").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn one_process_of_the_fleet_refreshes_a_stale_value() {
    let (one, other, _) = fleet_of(|it| it.stale_while_revalidate(SECOND * 30));
    one.put("a", "1".to_owned()).await.unwrap();
    value(&other, "a").await;
    value(&one, "a").await;
    pass(SECOND * 61).await;
    let (truth, gate) = Truth::gated();
    for cache in [&one, &other, &one, &other] {
        let options = crate::cache::CallOptions::new();
        let got = cache
            .load_with("a", options, truth.load("2"))
            .await
            .unwrap();
        assert_eq!(
            (got.value.unwrap().as_str(), got.freshness),
            ("1", Freshness::Stale)
        );
        settle().await;
    }
    assert_eq!(truth.asked(), 1);
    gate.notify_waiters();
    settle().await;
    for cache in [&one, &other] {
        assert_eq!(value(cache, "a").await.as_deref(), Some("2"));
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_value_that_cannot_be_read_another_is_loaded() {
    let store = InProcessCache::new();
    let make = |schema| {
        builder()
            .store(store.clone())
            .schema(schema)
            .build()
            .unwrap()
    };
    let (old, new) = (make(1), make(2));
    old.put("a", "1".to_owned()).await.unwrap();
    assert_eq!(value(&new, "a").await, None);
    let truth = Truth::default();
    new.get_or_load("a", truth.load("2")).await.unwrap();
    settle().await;
    assert_eq!(value(&new, "a").await.as_deref(), Some("2"));
    assert_eq!(value(&old, "a").await, None);
    assert!(new.snapshot().totals.unusable >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_too_large_is_served_and_not_stored() {
    let (one, other, _) = fleet_of(|it| it.max_value_bytes(10));
    let truth = Truth::default();
    let got = one
        .get_or_load("a", truth.load("longer than ten"))
        .await
        .unwrap();
    assert!(got.is_some());
    settle().await;
    assert_eq!(value(&other, "a").await, None);
    assert_eq!(one.snapshot().totals.fills_not_stored, 1);
    // Its lease went back.
    let started = tokio::time::Instant::now();
    other.get_or_load("a", truth.load("short")).await.unwrap();
    assert!(started.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_flushed_store_is_a_cold_cache_and_no_more() {
    let (one, other, store) = fleet();
    one.put("a", "1".to_owned()).await.unwrap();
    value(&other, "a").await;
    store.flush();
    let truth = Truth::default();
    for cache in [&one, &other] {
        let got = cache.get_or_load("a", truth.load("2")).await.unwrap();
        assert_eq!(got.as_deref().map(String::as_str), Some("2"));
        settle().await;
    }
    assert_eq!(truth.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn of_keys_that_are_no_keys_of_a_store_nothing_is_cached() {
    let (one, other, _) = fleet();
    let long = "x".repeat(1025);
    for key in ["", &long] {
        let truth = Truth::default();
        for cache in [&one, &one, &other] {
            cache.get_or_load(key, truth.load("1")).await.unwrap();
        }
        assert_eq!(truth.asked(), 3);
    }
    assert!(one.snapshot().available);
}

#[tokio::test(start_paused = true)]
async fn many_keys_take_one_load_in_the_fleet() {
    let (one, other, _) = fleet();
    let keys: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    let truth = Truth::default();
    let load = |asked: Arc<AtomicUsize>| {
        move |missing: Vec<String>| {
            asked.fetch_add(missing.len(), SeqCst);
            async move {
                tokio::time::sleep(SECOND).await;
                let found = missing.into_iter().map(|key| (key.clone(), key));
                Ok::<HashMap<_, _>, Down>(found.collect())
            }
        }
    };
    let both = tokio::join!(
        one.get_or_load_many(&keys, load(Arc::clone(&truth.asked))),
        other.get_or_load_many(&keys, load(Arc::clone(&truth.asked))),
    );
    assert_eq!(both.0.all().unwrap().len(), 10);
    assert_eq!(both.1.all().unwrap().len(), 10);
    assert_eq!(truth.asked(), 10);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_another_instance_is_served_a_stale_value_after_the_soft_timeout() {
    let (one, other, _) = fleet_of(|it| {
        it.stale_if_error(SECOND * 100)
            .load_timeout(SECOND / 10, SECOND * 5)
    });
    one.put("a", "1".to_owned()).await.unwrap();
    value(&other, "a").await;
    pass(SECOND * 61).await;
    let (slow, _gate) = Truth::gated();
    let started = tokio::time::Instant::now();
    for cache in [&one, &other] {
        let options = crate::cache::CallOptions::new();
        let got = cache.load_with("a", options, slow.load("2")).await.unwrap();
        assert_eq!(
            (got.value.unwrap().as_str(), got.freshness),
            ("1", Freshness::Stale)
        );
    }
    assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
    assert_eq!(slow.asked(), 1);
}
