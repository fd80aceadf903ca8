//! Values beyond their time to live.

use super::*;
use crate::{
    cache::{CallOptions, Freshness, RefreshEarly},
    classify,
    verdict::Verdict,
};

fn patient() -> CacheBuilder<String, String> {
    builder()
        .stale_while_revalidate(SECOND * 10)
        .stale_if_error(SECOND * 100)
}

async fn freshness(
    cache: &Strings,
    load: impl FnOnce() -> Loading<Result<String, Down>> + Send + 'static,
) -> (String, Freshness) {
    let options = CallOptions::new();
    let got = cache.load_with("a", options, load).await.unwrap();
    ((*got.value.unwrap()).clone(), got.freshness)
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_served_at_once_while_one_caller_loads_it_again() {
    let cache = patient().build().unwrap();
    cache.put("a", "1".to_owned()).await.unwrap();
    pass(SECOND * 61).await;
    let (truth, gate) = Truth::gated();
    for _ in 0..5 {
        assert_eq!(
            freshness(&cache, truth.load("2")).await,
            ("1".into(), Freshness::Stale)
        );
        settle().await;
    }
    assert_eq!(truth.asked(), 1);
    gate.notify_waiters();
    settle().await;
    assert_eq!(
        freshness(&cache, truth.load("3")).await,
        ("2".into(), Freshness::Fresh)
    );
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_stands_in_for_an_error_and_the_loader_is_left_alone_for_a_while() {
    let cache = patient().build().unwrap();
    cache.put("a", "1".to_owned()).await.unwrap();
    pass(SECOND * 75).await;
    let truth = Truth::default();
    for _ in 0..5 {
        assert_eq!(
            freshness(&cache, truth.fail()).await,
            ("1".into(), Freshness::StaleOnError)
        );
    }
    assert_eq!(truth.asked(), 1);
    pass(SECOND).await;
    assert_eq!(
        freshness(&cache, truth.load("2")).await,
        ("2".into(), Freshness::Fresh)
    );
    pass(SECOND * 161).await;
    assert!(cache.get_or_load("a", truth.fail()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_is_not_repeated_by_every_caller() {
    let cache = patient().build().unwrap();
    cache.put("a", "1".to_owned()).await.unwrap();
    pass(SECOND * 61).await;
    let truth = Truth::default();
    for _ in 0..10 {
        assert_eq!(freshness(&cache, truth.fail()).await.1, Freshness::Stale);
        settle().await;
    }
    assert_eq!(truth.asked(), 1);
    pass(SECOND).await;
    freshness(&cache, truth.fail()).await;
    settle().await;
    assert_eq!(truth.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_invalidated_never_stands_in_for_an_error() {
    let cache = patient().build().unwrap();
    cache.put("a", "1".to_owned()).await.unwrap();
    cache.invalidate("a").await.unwrap();
    assert!(
        cache
            .get_or_load("a", Truth::default().fail())
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn an_error_that_is_the_callers_own_fault_is_returned() {
    let cache = patient()
        .classify(classify::results(|_: Result<&(), &Down>| Verdict::Ignored))
        .build()
        .unwrap();
    cache.put("a", "1".to_owned()).await.unwrap();
    pass(SECOND * 75).await;
    let refused = cache.get_or_load("a", Truth::default().fail()).await;
    assert!(refused.is_err());
}

#[tokio::test(start_paused = true)]
async fn after_the_soft_timeout_a_stale_value_is_served_and_the_load_goes_on() {
    let cache = patient()
        .load_timeout(SECOND / 10, SECOND * 5)
        .build()
        .unwrap();
    cache.put("a", "1".to_owned()).await.unwrap();
    pass(SECOND * 75).await;
    let (truth, gate) = Truth::gated();
    assert_eq!(
        freshness(&cache, truth.load("2")).await,
        ("1".into(), Freshness::Stale)
    );
    gate.notify_waiters();
    settle().await;
    assert_eq!(value(&cache, "a").await.as_deref(), Some("2"));
    assert_eq!(truth.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_negative_value_is_never_served_stale() {
    let cache = patient().negative_ttl(SECOND).build().unwrap();
    cache
        .get_or_load("a", Truth::default().nothing())
        .await
        .unwrap();
    assert!(cache.lookup("a").await.is_some());
    pass(SECOND).await;
    assert!(cache.lookup("a").await.is_none());
    assert!(
        cache
            .get_or_load("a", Truth::default().fail())
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn a_value_is_refreshed_before_its_end_while_everybody_is_served_a_fresh_one() {
    let cache = patient()
        .refresh_early(RefreshEarly::Threshold(0.5))
        .build()
        .unwrap();
    cache.put("a", "1".to_owned()).await.unwrap();
    let truth = Truth::default();
    assert_eq!(freshness(&cache, truth.load("2")).await.0, "1");
    settle().await;
    assert_eq!(truth.asked(), 0);
    pass(SECOND * 31).await;
    assert_eq!(
        freshness(&cache, truth.load("2")).await,
        ("1".into(), Freshness::Fresh)
    );
    settle().await;
    assert_eq!(
        freshness(&cache, truth.load("3")).await,
        ("2".into(), Freshness::Fresh)
    );
    assert_eq!(truth.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_during_a_refresh_is_not_undone_by_it() {
    let cache = patient().build().unwrap();
    cache.put("a", "1".to_owned()).await.unwrap();
    pass(SECOND * 61).await;
    let (truth, gate) = Truth::gated();
    freshness(&cache, truth.load("old")).await;
    settle().await;
    assert_eq!(truth.asked(), 1);
    cache.invalidate("a").await.unwrap();
    gate.notify_waiters();
    settle().await;
    assert_eq!(value(&cache, "a").await, None);
}
