//! Options of a call, for one key and for many.

use std::collections::HashMap;

use super::*;
use crate::cache::{CallOptions, Freshness, Level};

type Many = Result<HashMap<String, String>, Down>;

/// A load of many keys that counts the keys it is asked for, and returns `value` for each, or fails.
fn many(
    truth: &Truth,
    value: Option<&'static str>,
) -> impl Fn(Vec<String>) -> Loading<Many> + Send + Sync + use<> {
    let asked = Arc::clone(&truth.asked);
    move |keys| {
        asked.fetch_add(keys.len(), SeqCst);
        Box::pin(async move {
            let value = value.ok_or(Down)?;
            Ok(keys
                .into_iter()
                .map(|key| (key, value.to_owned()))
                .collect())
        })
    }
}

fn keys() -> [String; 2] {
    ["a", "b"].map(String::from)
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_returns_the_error_and_leaves_what_is_cached() {
    let cache = builder().stale_if_error(SECOND * 100).build().unwrap();
    cache.put("a", "1".to_owned()).await.unwrap();
    let (truth, refresh) = (Truth::default(), CallOptions::new().refresh());
    // While the value is fresh, and while it is not.
    for freshness in [Freshness::Fresh, Freshness::StaleOnError] {
        let failed = cache.load_with("a", refresh, truth.fail()).await;
        assert_eq!(**failed.unwrap_err().service().unwrap(), Down);
        let usual = cache.load_with("a", CallOptions::new(), truth.fail()).await;
        let usual = usual.unwrap();
        assert_eq!(usual.freshness, freshness);
        assert_eq!(usual.value.unwrap().as_str(), "1");
        pass(SECOND * 61).await;
    }
    // The refreshes: the load that failed just now is not repeated for a usual call.
    assert_eq!(truth.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn many_keys_may_be_loaded_again_or_past_the_cache() {
    let (one, other, _) = fleet();
    let keys = keys();
    for key in &keys {
        one.put(key, "1".to_owned()).await.unwrap();
    }
    let truth = Truth::default();
    let bypass = CallOptions::new().bypass();
    let past = other.load_many_with(&keys, bypass, many(&truth, Some("2")));
    let past = past.await.all().unwrap();
    assert_eq!(
        (
            past["a"].value.as_deref().unwrap().as_str(),
            past["a"].level
        ),
        ("2", Level::Loaded)
    );
    settle().await;
    assert_eq!(value(&other, "a").await.as_deref(), Some("1"));

    let refresh = CallOptions::new().refresh();
    let again = other.load_many_with(&keys, refresh, many(&truth, Some("3")));
    let again = again.await.all().unwrap();
    assert_eq!((again["b"].level, again.len()), (Level::Loaded, 2));
    settle().await;
    for cache in [&one, &other] {
        assert_eq!(value(cache, "b").await.as_deref(), Some("3"));
    }
    assert_eq!(truth.asked(), 4);
}

#[tokio::test(start_paused = true)]
async fn of_many_keys_each_says_how_fresh_it_is_and_where_it_came_from() {
    let cache = builder()
        .stale_if_error(SECOND * 100)
        .negative_ttl(SECOND * 60)
        .build()
        .unwrap();
    cache.put("a", "1".to_owned()).await.unwrap();
    pass(SECOND * 61).await;
    cache.put("b", "1".to_owned()).await.unwrap();
    let truth = Truth::default();
    cache.get_or_load("none", truth.nothing()).await.unwrap();
    let asked = ["a", "b", "none", "lost"].map(String::from);
    let found = cache.load_many_with(&asked, CallOptions::new(), many(&truth, None));
    let found = found.await;
    let freshness = |key: &str| found.lookups[key].freshness;
    assert_eq!(freshness("a"), Freshness::StaleOnError);
    assert_eq!(freshness("b"), Freshness::Fresh);
    assert_eq!(found.lookups["none"].value, None);
    assert_eq!(found.lookups.get("lost"), None);
    assert!(found.error.is_some());
}

#[tokio::test(start_paused = true)]
async fn stale_values_of_many_keys_are_served_without_trying_again_just_after_a_failure() {
    let cache = builder().stale_if_error(SECOND * 100).build().unwrap();
    let keys = keys();
    for key in &keys {
        cache.put(key, "1".to_owned()).await.unwrap();
    }
    pass(SECOND * 61).await;
    let truth = Truth::default();
    for _ in 0..5 {
        let found = cache.get_or_load_many(&keys, many(&truth, None));
        assert_eq!(found.await.all().unwrap().len(), 2);
    }
    assert_eq!(truth.asked(), 2);
    pass(SECOND).await;
    let found = cache.get_or_load_many(&keys, many(&truth, Some("2")));
    assert_eq!(found.await.all().unwrap()["a"].as_str(), "2");
}
