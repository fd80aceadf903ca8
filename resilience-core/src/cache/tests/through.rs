//! Read-through and write-through, and the layer.

use std::collections::HashMap;

use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::{
    cache::{CallOptions, Freshness, LoadError, guarded},
    error::{Error, Pattern, Reason, Rejected},
};

#[tokio::test(start_paused = true)]
async fn a_cache_with_a_loader_fetches_by_itself() {
    let truth = Truth::default();
    let asked = Arc::clone(&truth.asked);
    let cache = builder()
        .loader(move |key: String| {
            asked.fetch_add(1, SeqCst);
            async move {
                if key == "bad" {
                    Err(Down)
                } else {
                    Ok(key.to_uppercase())
                }
            }
        })
        .build()
        .unwrap();
    for _ in 0..2 {
        assert_eq!(*cache.fetch("a").await.unwrap().unwrap(), "A");
    }
    assert_eq!(truth.asked(), 1);
    let failed = cache.fetch("bad").await.unwrap_err();
    assert_eq!(failed.to_string(), "down");
    let without = local().fetch("a").await.unwrap_err();
    assert_eq!(without.rejected().unwrap().reason(), Reason::NoLoader);
}

#[tokio::test(start_paused = true)]
async fn a_write_changes_the_truth_first_and_then_every_cache() {
    let (one, other, _) = fleet();
    one.put("a", "1".to_owned()).await.unwrap();
    value(&other, "a").await;
    let seen = other.clone();
    let saved = one
        .write("a", "2".to_owned(), || async move {
            // Not the old value any more, and not the new one yet.
            assert_eq!(value(&seen, "a").await, None);
            Ok::<_, Down>(7)
        })
        .await;
    assert_eq!(saved, Ok(7));
    let truth = Truth::default();
    other.get_or_load("a", truth.load("no")).await.unwrap();
    assert_eq!(truth.asked(), 0);
    assert_eq!(value(&other, "a").await.as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_or_is_dropped_leaves_an_invalidation() {
    for fails in [true, false] {
        let (one, other, _) = fleet_of(|it| it.tombstone(Duration::ZERO));
        one.put("a", "1".to_owned()).await.unwrap();
        if fails {
            let failed = one
                .write("a", "2".to_owned(), || async { Err::<(), _>(Down) })
                .await;
            assert_eq!(failed, Err(Down));
        } else {
            let hang = || std::future::pending::<Result<(), Down>>();
            let mut write = tokio_test::task::spawn(one.write("a", "2".to_owned(), hang));
            tokio_test::assert_pending!(write.poll());
            drop(write);
        }
        settle().await;
        assert_eq!(value(&other, "a").await, None);
        assert_eq!(value(&one, "a").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_during_a_write_is_not_stored() {
    let (one, other, _) = fleet();
    let reader = other.clone();
    one.write("a", "2".to_owned(), || async move {
        let old = reader.get_or_load("a", Truth::default().load("1")).await;
        assert_eq!(old.unwrap().as_deref().map(String::as_str), Some("1"));
        Ok::<_, Down>(())
    })
    .await
    .unwrap();
    for cache in [&one, &other] {
        assert_eq!(value(cache, "a").await.as_deref(), Some("2"));
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_writes_at_once_neither_is_believed() {
    let (one, other, _) = fleet_of(|it| it.write_timeout(SECOND));
    let second = other.clone();
    one.write("a", "1".to_owned(), || async move {
        second
            .write("a", "2".to_owned(), || async { Ok::<_, Down>(()) })
            .await
    })
    .await
    .unwrap();
    assert_eq!(value(&one, "a").await, None);
    pass(SECOND).await;
    let truth = Truth::default();
    one.get_or_load("a", truth.load("2")).await.unwrap();
    settle().await;
    assert_eq!(value(&other, "a").await.as_deref(), Some("2"));
}

#[tokio::test(start_paused = true)]
async fn a_write_in_one_process_is_not_undone_by_a_load_that_began_before() {
    let cache = local();
    let (slow, gate) = Truth::gated();
    let (load, loader) = (slow.load("old"), cache.clone());
    let loader = tokio::spawn(async move { loader.get_or_load("a", load).await.map(drop) });
    settle().await;
    cache
        .write("a", "new".to_owned(), || async { Ok::<_, Down>(()) })
        .await
        .unwrap();
    gate.notify_waiters();
    loader.await.unwrap().unwrap();
    assert_eq!(value(&cache, "a").await.as_deref(), Some("new"));
}

type Call = Error<Down>;

#[tokio::test(start_paused = true)]
async fn a_layer_answers_from_the_cache_and_shares_calls_without_taking_places() {
    let cache = local();
    let (truth, gate) = Truth::gated();
    let inner = service_fn({
        let truth = truth.clone();
        move |request: String| {
            let load = truth.load(&format!("{request}!"));
            async move { load().await.map_err(Call::Service) }
        }
    });
    let service = ServiceBuilder::new()
        .layer(cache.layer(|request: &String| (request != "none").then(|| request.clone())))
        .concurrency_limit(1)
        .service(inner);
    let callers: Vec<_> = (0..5)
        .map(|_| tokio::spawn(service.clone().oneshot("a".to_owned())))
        .collect();
    settle().await;
    assert_eq!(truth.asked(), 1);
    gate.notify_waiters();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), "a!");
    }
    // A hit needs no place of the service.
    let held = tokio::spawn(service.clone().oneshot("none".to_owned()));
    settle().await;
    assert_eq!(service.clone().oneshot("a".to_owned()).await.unwrap(), "a!");
    assert_eq!(truth.asked(), 2);
    held.abort();
}

#[tokio::test(start_paused = true)]
async fn of_an_error_that_a_layer_shares_one_caller_gets_it_and_the_others_are_told() {
    let cache = local();
    let (truth, gate) = Truth::gated();
    let inner = service_fn({
        let truth = truth.clone();
        move |_: String| {
            let load = truth.fail();
            async move { load().await.map_err(Call::Service) }
        }
    });
    let layer = cache.layer(|request: &String| Some(request.clone()));
    let service = tower::Layer::layer(&layer, inner);
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let mut service = service.clone();
            tokio::spawn(async move { service.call("a".to_owned()).await })
        })
        .collect();
    settle().await;
    gate.notify_waiters();
    let mut own = 0;
    for caller in callers {
        match caller.await.unwrap().unwrap_err() {
            Error::Service(Down) => own += 1,
            Error::Rejected(rejected) => assert_eq!(rejected.reason(), Reason::SharedCallFailed),
        }
    }
    assert_eq!((own, truth.asked()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_layer_lets_responses_say_how_long_they_are_kept_and_what_they_are_about() {
    let cache = local();
    let inner = service_fn(|request: String| async move { Ok::<_, Call>(request) });
    let layer = cache
        .layer(|request: &String| Some(request.clone()))
        .ttl_of(|response| (response == "never").then_some(Duration::ZERO))
        .tags_of(|response| vec![response.chars().take(1).collect::<String>().into()]);
    let mut service = tower::Layer::layer(&layer, inner);
    for request in ["never", "apple"] {
        service.call(request.to_owned()).await.unwrap();
    }
    assert_eq!(value(&cache, "never").await, None);
    assert!(value(&cache, "apple").await.is_some());
    cache.invalidate_tag("a").await.unwrap();
    assert_eq!(value(&cache, "apple").await, None);
}

#[test]
fn layers_that_share_calls_are_described_with_the_stack() {
    let coalesce = crate::Coalesce::<u8, u8, Error<Down>>::builder("calls")
        .build()
        .unwrap();
    let cache = Cache::<u8, u8>::builder("values").build().unwrap();
    let stack = ServiceBuilder::new()
        .layer(cache.layer(|_: &u8| None))
        .layer(coalesce.layer(|_: &u8| None))
        .service(crate::execute::Execute);
    let described = crate::order::describe(&stack).to_string();
    assert_eq!(described, "cache `values`\n  coalescing `calls`\n");
}

/// A rejection by a layer below a cache.
fn open() -> Rejected {
    Rejected::new(Pattern::CircuitBreaker, Reason::Open, "below")
}

#[tokio::test(start_paused = true)]
async fn all_callers_of_a_layer_are_told_of_a_rejection_below() {
    let cache = local();
    let (truth, gate) = Truth::gated();
    let inner = service_fn({
        let truth = truth.clone();
        move |_: String| {
            let load = truth.fail();
            async move { load().await.map_err(|Down| Call::Rejected(open())) }
        }
    });
    let layer = cache.layer(|request: &String| Some(request.clone()));
    let service = tower::Layer::layer(&layer, inner);
    let callers: Vec<_> = (0..3)
        .map(|_| tokio::spawn(service.clone().oneshot("a".to_owned())))
        .collect();
    settle().await;
    gate.notify_waiters();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap_err(), Error::Rejected(open()));
    }
    assert_eq!(truth.asked(), 1);
}

/// A loader behind a stack, of which one layer rejects calls, or which fails itself.
async fn behind_a_stack(answer: Result<String, Call>) -> Result<String, Call> {
    answer
}

#[tokio::test(start_paused = true)]
async fn errors_of_a_guarded_loader_do_not_nest() {
    let cache = local();
    let load = || guarded(behind_a_stack(Err(Error::Rejected(open()))));
    let rejected = cache.get_or_load("a", load).await.unwrap_err();
    assert_eq!(rejected, Error::Rejected(open()));
    let load = || guarded(behind_a_stack(Err(Error::Service(Down))));
    let failed: LoadError<Down> = cache.get_or_load("a", load).await.unwrap_err();
    assert_eq!(failed, Error::Service(Arc::new(Down)));
    let load = || guarded(behind_a_stack(Ok("1".to_owned())));
    assert!(cache.get_or_load("a", load).await.unwrap().is_some());

    let load = |_: Vec<String>| {
        guarded(async { Err::<HashMap<String, String>, Call>(Error::Rejected(open())) })
    };
    let many = cache.get_or_load_many(&["b".to_owned()], load).await;
    assert_eq!(many.error, Some(Error::Rejected(open())));

    let through = builder()
        .loader(|_: String| guarded(behind_a_stack(Err(Error::Rejected(open())))))
        .build()
        .unwrap();
    let rejected = through.fetch("a").await.unwrap_err();
    assert_eq!(rejected.rejected(), Some(&open()));
}

#[tokio::test(start_paused = true)]
async fn the_rules_for_errors_see_the_own_error_of_a_guarded_loader() {
    let cache = builder()
        .negative_ttl(SECOND)
        .not_found(|Down: &Down| true)
        .build()
        .unwrap();
    let load = || guarded(behind_a_stack(Err(Error::Service(Down))));
    assert_eq!(cache.get_or_load("a", load).await, Ok(None));
    assert!(cache.lookup("a").await.unwrap().value.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_stands_in_for_a_rejection_by_the_stack_around_the_loader() {
    let cache = builder().stale_if_error(SECOND * 100).build().unwrap();
    cache.put("a", "1".to_owned()).await.unwrap();
    pass(SECOND * 61).await;
    let load = || guarded(behind_a_stack(Err(Error::Rejected(open()))));
    let got = cache
        .load_with("a", CallOptions::new(), load)
        .await
        .unwrap();
    assert_eq!(got.freshness, Freshness::StaleOnError);
}
