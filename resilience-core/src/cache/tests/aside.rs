//! Cache-aside in one process.

use std::{collections::HashMap, sync::atomic::Ordering::SeqCst};

use super::*;
use crate::{
    cache::{CallOptions, Freshness, Level, Loaded, LocalCache},
    error::{Error, Reason},
};

#[tokio::test(start_paused = true)]
async fn a_value_is_loaded_once_and_again_when_its_time_is_over() {
    let (cache, truth) = (local(), Truth::default());
    for _ in 0..3 {
        let got = cache.get_or_load("a", truth.load("1")).await.unwrap();
        assert_eq!(*got.unwrap(), "1");
    }
    assert_eq!(truth.asked(), 1);
    pass(SECOND * 60).await;
    assert_eq!(value(&cache, "a").await, None);
    let got = cache.get_or_load("a", truth.load("2")).await.unwrap();
    assert_eq!((*got.unwrap()).as_str(), "2");
    let snapshot = cache.snapshot();
    assert_eq!((snapshot.totals.hits_local, snapshot.totals.loads), (2, 2));
    assert_eq!((snapshot.totals.missing, snapshot.totals.loaded), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_crowd_shares_one_load_and_whoever_leaves_ends_it_for_nobody() {
    let cache = local();
    let (truth, gate) = Truth::gated();
    let mut crowd: Vec<_> = (0..20)
        .map(|_| {
            let (cache, load) = (cache.clone(), truth.load("1"));
            tokio::spawn(async move { cache.get_or_load("a", load).await })
        })
        .collect();
    settle().await;
    crowd.swap_remove(0).abort();
    settle().await;
    gate.notify_waiters();
    for caller in crowd {
        let got = caller.await.unwrap().unwrap();
        assert_eq!(got.as_deref().map(String::as_str), Some("1"));
    }
    assert_eq!(truth.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_shared_and_not_cached() {
    let cache = local();
    let (truth, gate) = Truth::gated();
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let (cache, load) = (cache.clone(), truth.fail());
            tokio::spawn(async move { cache.get_or_load("a", load).await })
        })
        .collect();
    settle().await;
    gate.notify_waiters();
    for caller in callers {
        let failed = caller.await.unwrap().unwrap_err();
        assert_eq!(failed.service().map(|error| &**error), Some(&Down));
    }
    let truth = Truth::default();
    assert!(cache.get_or_load("a", truth.load("1")).await.is_ok());
    assert_eq!(truth.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_panics_or_is_dropped_or_hangs_leaves_nothing_stuck() {
    let cache = builder().load_timeout(SECOND, SECOND * 2).build().unwrap();
    let panics = {
        let cache = cache.clone();
        tokio::spawn(async move {
            let load = || async {
                if true {
                    panic!("loader")
                } else {
                    Ok::<String, Down>("".into())
                }
            };
            cache.get_or_load("a", load).await.map(drop)
        })
    };
    assert!(panics.await.unwrap_err().is_panic());
    let (truth, _gate) = Truth::gated();
    let mut dropped = tokio_test::task::spawn(cache.get_or_load("a", truth.load("x")));
    tokio_test::assert_pending!(dropped.poll());
    drop(dropped);
    let hangs = cache.get_or_load("a", truth.load("x")).await.unwrap_err();
    let Error::Rejected(late) = hangs else {
        panic!("{hangs:?}")
    };
    assert_eq!(late.reason(), Reason::TimedOut);
    assert_eq!(cache.snapshot().loading, 0);
    let truth = Truth::default();
    assert!(cache.get_or_load("a", truth.load("1")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_was_invalidated_while_it_was_loaded_is_not_kept_and_later_callers_do_not_share_it() {
    let cache = local();
    let (slow, gate) = Truth::gated();
    let before = {
        let (cache, load) = (cache.clone(), slow.load("old"));
        tokio::spawn(async move { cache.get_or_load("a", load).await })
    };
    settle().await;
    cache.invalidate("a").await.unwrap();
    let truth = Truth::default();
    let after = cache.get_or_load("a", truth.load("new")).await.unwrap();
    assert_eq!(after.as_deref().map(String::as_str), Some("new"));
    gate.notify_waiters();
    let old = before.await.unwrap().unwrap();
    assert_eq!(old.as_deref().map(String::as_str), Some("old"));
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn that_there_is_no_value_is_remembered_for_its_own_time_if_it_has_one() {
    for (negative_ttl, asked) in [(Duration::ZERO, 3), (SECOND * 5, 1)] {
        let cache = builder().negative_ttl(negative_ttl).build().unwrap();
        let truth = Truth::default();
        for _ in 0..3 {
            assert_eq!(cache.get_or_load("a", truth.nothing()).await, Ok(None));
        }
        assert_eq!(truth.asked(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_that_says_not_found_is_no_error() {
    let cache = builder()
        .negative_ttl(SECOND * 5)
        .not_found(|_: &Down| true)
        .build()
        .unwrap();
    let truth = Truth::default();
    for _ in 0..2 {
        assert_eq!(cache.get_or_load("a", truth.fail()).await, Ok(None));
    }
    assert_eq!(truth.asked(), 1);
    let lookup = cache.lookup("a").await.expect("known");
    assert_eq!((lookup.value, lookup.level), (None, Level::Local));
}

#[tokio::test(start_paused = true)]
async fn tags_invalidate_all_that_have_them_also_while_they_are_loaded() {
    let cache = local();
    let tagged = |value: &str| Loaded::new(value.to_owned()).tag("red").tag("round");
    cache.put("apple", tagged("1")).await.unwrap();
    cache.put("cherry", tagged("2")).await.unwrap();
    cache
        .put("lime", Loaded::new("3".to_owned()).tag("round"))
        .await
        .unwrap();
    cache.invalidate_tag("red").await.unwrap();
    let mut values = Vec::new();
    for key in ["apple", "cherry", "lime"] {
        values.push(value(&cache, key).await);
    }
    assert_eq!(values, [None, None, Some("3".into())]);
    let (slow, gate) = Truth::gated();
    let load = slow.answer(Ok::<_, Down>(tagged("old")));
    let loading = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get_or_load("apple", load).await.map(drop) })
    };
    settle().await;
    cache.invalidate_tag("red").await.unwrap();
    gate.notify_waiters();
    loading.await.unwrap().unwrap();
    assert_eq!(value(&cache, "apple").await, None);
    cache.clear().await.unwrap();
    assert_eq!(value(&cache, "lime").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_loader_sets_the_time_to_live_of_its_value() {
    let cache = local();
    let brief = Truth::default();
    let load = brief.answer(Ok::<_, Down>(Loaded::new("1".to_owned()).ttl(SECOND)));
    cache.get_or_load("a", load).await.unwrap();
    assert!(value(&cache, "a").await.is_some());
    pass(SECOND).await;
    assert!(value(&cache, "a").await.is_none());
    let never = brief.answer(Ok::<_, Down>(
        Loaded::new("1".to_owned()).ttl(Duration::ZERO),
    ));
    cache.get_or_load("a", never).await.unwrap();
    assert!(value(&cache, "a").await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_call_may_load_anew_or_leave_the_cache_aside() {
    let (cache, truth) = (local(), Truth::default());
    cache.put("a", "1".to_owned()).await.unwrap();
    let bypass = CallOptions::new().bypass();
    let got = cache.load_with("a", bypass, truth.load("2")).await.unwrap();
    assert_eq!(
        (got.value.unwrap().as_str(), got.level),
        ("2", Level::Loaded)
    );
    assert_eq!(value(&cache, "a").await.as_deref(), Some("1"));
    let refresh = CallOptions::new().refresh();
    cache
        .load_with("a", refresh, truth.load("3"))
        .await
        .unwrap();
    let now = cache.lookup("a").await.unwrap();
    assert_eq!(
        (now.value.unwrap().as_str(), now.freshness),
        ("3", Freshness::Fresh)
    );
}

#[tokio::test(start_paused = true)]
async fn many_keys_take_one_load_for_what_is_missing() {
    let (cache, truth) = (local(), Truth::default());
    cache.put("a", "A".to_owned()).await.unwrap();
    let keys = ["a", "b", "c", "b", "none"].map(String::from);
    let asked = Arc::clone(&truth.asked);
    let found = cache
        .get_or_load_many(&keys, move |missing: Vec<String>| {
            asked.fetch_add(1, SeqCst);
            async move {
                assert_eq!(missing, ["b", "c", "none"]);
                let upper = |key: String| (key.clone(), key.to_uppercase());
                let found = missing.into_iter().filter(|key| key != "none").map(upper);
                Ok::<HashMap<String, String>, Down>(found.collect())
            }
        })
        .await
        .all()
        .unwrap();
    assert_eq!((truth.asked(), found.len()), (1, 3));
    assert_eq!(*found["c"], "C");
    let cached = cache.get_many(&keys).await;
    assert_eq!(cached.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn many_keys_of_which_some_cannot_be_loaded_return_those_that_are_cached() {
    let cache = local();
    cache.put("a", "A".to_owned()).await.unwrap();
    let keys = ["a", "b"].map(String::from);
    let fail = |_: Vec<String>| async { Err::<HashMap<String, String>, Down>(Down) };
    let partly = cache.get_or_load_many(&keys, fail).await;
    assert_eq!(partly.values.len(), 1);
    assert!(partly.error.is_some());
    assert!(partly.all().is_err());
}

#[tokio::test(start_paused = true)]
async fn loads_are_bounded() {
    let cache = builder()
        .max_loads(2)
        .load_timeout(SECOND, SECOND * 3)
        .build()
        .unwrap();
    let (truth, _gate) = Truth::gated();
    let callers: Vec<_> = (0..10)
        .map(|n| {
            let (cache, load) = (cache.clone(), truth.load("x"));
            tokio::spawn(async move { cache.get_or_load(&n.to_string(), load).await })
        })
        .collect();
    settle().await;
    assert_eq!((truth.asked(), cache.snapshot().loading), (2, 2));
    for caller in callers {
        assert!(caller.await.unwrap().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_process_holds_is_bounded_by_number_and_by_weight() {
    let few = Cache::<u32, String>::builder("few")
        .local(LocalCache::entries(100))
        .build()
        .unwrap();
    let heavy = Cache::<u32, String>::builder("heavy")
        .local(LocalCache::weight(100_000, |_, value: &String| {
            value.len() as u64
        }))
        .build()
        .unwrap();
    for n in 0..5_000 {
        few.put(&n, "x".to_owned()).await.unwrap();
        heavy.put(&n, "x".repeat(100)).await.unwrap();
    }
    let (few, heavy) = (few.snapshot(), heavy.snapshot());
    assert!(few.entries <= 128 && few.entries > 50, "{few:?}");
    assert!(heavy.weight <= 110_000, "{heavy:?}");
    assert!(few.totals.evictions >= 4_800);
}

#[tokio::test(start_paused = true)]
async fn a_borrowed_read_clones_nothing_and_sees_fresh_values_only() {
    let cache = local();
    assert_eq!(cache.peek_with("a", String::len), None);
    cache.put("a", "four".to_owned()).await.unwrap();
    assert_eq!(cache.peek_with("a", String::len), Some(4));
    assert_eq!(cache.snapshot().entries, 1);
    cache.invalidate("a").await.unwrap();
    assert_eq!(cache.peek_with("a", String::len), None);
}

#[test]
fn a_cache_of_this_process_is_built_anywhere_and_senseless_settings_are_named() {
    assert!(builder().build().is_ok());
    let zero = Duration::ZERO;
    for (refused, field) in [
        (builder().ttl(zero), "ttl"),
        (builder().jitter(0.95), "jitter"),
        (builder().load_timeout(SECOND, SECOND), "load_timeout"),
        (builder().max_loads(0), "max_loads"),
        (builder().max_value_bytes(0), "max_value_bytes"),
        (builder().lease(zero), "lease"),
        (builder().without_local(), "local"),
        (builder().local(LocalCache::entries(0)), "local"),
        (builder().fleet(crate::FleetOptions::new()), "fleet"),
        (builder().store(InProcessCache::new()), "store"),
    ] {
        assert_eq!(refused.build().unwrap_err().field(), field);
    }
}

#[tokio::test(start_paused = true)]
async fn hot_keys_are_named() {
    let cache = local();
    for n in 0..1_000 {
        cache.put(&n.to_string(), "x".to_owned()).await.unwrap();
    }
    for n in 0..30_000 {
        cache.get("7").await;
        cache.get(&(n % 1_000).to_string()).await;
    }
    let hot = cache.snapshot().hot_keys;
    assert_eq!(hot[0].key, "7");
    // One in 64 is counted.
    assert!((20_000..45_000).contains(&hot[0].requests), "{hot:?}");
    let json = serde_json::to_value(cache.snapshot()).unwrap();
    assert_eq!(json["hot_keys"][0]["key"], "7");
    assert_eq!(json["hits_local"], 60_000);
}

#[tokio::test(start_paused = true)]
async fn a_cache_is_warmed_up_with_bounded_concurrency() {
    let cache = Cache::<u32, u32>::builder("squares").build().unwrap();
    cache.put(&3, 9).await.unwrap();
    let running = Arc::new(AtomicUsize::new(0));
    let mut calls = 0;
    let done = cache
        .warm_up(
            1..=20,
            4,
            move |n| {
                let running = Arc::clone(&running);
                async move {
                    assert!(running.fetch_add(1, SeqCst) < 4);
                    tokio::time::sleep(SECOND / 10).await;
                    running.fetch_sub(1, SeqCst);
                    if n == 13 { Err(Down) } else { Ok(n * n) }
                }
            },
            |_| calls += 1,
        )
        .await;
    assert_eq!(
        (done.loaded, done.cached, done.failed, calls),
        (18, 1, 1, 20)
    );
}
