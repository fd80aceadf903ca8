//! One idempotency key per call.

use std::{
    future::pending,
    sync::{Arc, Mutex},
};

use http::Method;
use resilience_core::retry::RetryBudget;
use tower::{
    BoxError, Layer, ServiceExt,
    hedge::{Hedge, Policy},
    service_fn,
};

use super::*;
use crate::idempotency::{KeyForm, KeyRules};

fn keyed() -> Client {
    let keys = IdempotencyKeys::new();
    builder().idempotency_keys(keys).build().unwrap()
}

/// The keys of the requests that a server received.
fn keys(server: &Server) -> Vec<Option<String>> {
    let all = server.seen().into_iter();
    all.map(|request| {
        let key = KeyRules::new().bare(false).read(&request.headers).unwrap();
        key.map(|key| key.as_str().to_owned())
    })
    .collect()
}

#[tokio::test]
async fn all_attempts_of_a_call_carry_one_key_and_the_next_call_another() {
    let server = Server::start(|n| match n {
        1 | 4 => vec![Step::Reset],
        2 | 5 => answer("503 Service Unavailable", "", ""),
        _ => answer("200 OK", "", "paid"),
    })
    .await;
    let client = keyed();
    for method in [Method::POST, Method::PATCH] {
        let call = client.request(method, server.url()).body("1");
        assert_eq!(call.send().await.unwrap().status(), 200);
    }
    let keys = keys(&server);
    assert_eq!(keys.len(), 6);
    assert!(keys[0].is_some());
    assert!(keys[..3].iter().all(|key| *key == keys[0]), "{keys:?}");
    assert!(keys[3..].iter().all(|key| *key == keys[3]), "{keys:?}");
    assert_ne!(keys[0], keys[3]);
}

#[derive(Clone)]
struct CopyAll;

impl Policy<http::Request<()>> for CopyAll {
    fn clone_request(&self, request: &http::Request<()>) -> Option<http::Request<()>> {
        Some(request.clone())
    }

    fn can_retry(&self, _: &http::Request<()>) -> bool {
        true
    }
}

/// tower's hedge sends a second request when the first response takes long.
#[tokio::test(start_paused = true)]
async fn a_hedge_carries_the_key_of_the_call_that_it_copies() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let hangs_once = service_fn(move |request: http::Request<()>| {
        let mut seen = log.lock().unwrap();
        seen.push(request.headers()[headers::IDEMPOTENCY_KEY].clone());
        let first = seen.len() == 1;
        async move {
            if first {
                pending::<()>().await;
            }
            Ok::<_, BoxError>(())
        }
    });
    let hedge =
        Hedge::new_with_mock_latencies(hangs_once, CopyAll, 10, 0.9, 60_000 * MS, &[10; 20]);
    let call = http::Request::post("/").body(()).unwrap();
    let stack = IdempotencyKeys::new().layer().layer(hedge);
    stack.oneshot(call).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn a_key_of_the_callers_own_stays_and_other_methods_get_none() {
    let server = Server::start(|_| answer("200 OK", "", "")).await;
    let client = keyed();
    let own = client.post(server.url()).idempotency_key("\"order-17\"");
    own.send().await.unwrap();
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        client.request(method, server.url()).send().await.unwrap();
    }
    let none = [const { None }; 3];
    assert_eq!(
        keys(&server),
        [&[Some("order-17".into())], &none[..]].concat()
    );
}

#[tokio::test]
async fn methods_and_form_are_the_owners() {
    let server = Server::start(|_| answer("200 OK", "", "")).await;
    let puts = IdempotencyKeys::new()
        .methods([Method::PUT])
        .form(KeyForm::Bare);
    let client = builder().idempotency_keys(puts).build().unwrap();
    client.post(server.url()).send().await.unwrap();
    client.put(server.url()).send().await.unwrap();
    let seen = server.seen();
    assert!(!seen[0].headers.contains_key(headers::IDEMPOTENCY_KEY));
    let key = seen[1].headers[headers::IDEMPOTENCY_KEY].to_str().unwrap();
    assert_eq!(key.len(), 36);
}

#[tokio::test]
async fn without_keys_a_post_has_none_and_is_sent_once() {
    let server = fails_once().await;
    client().post(server.url()).send().await.unwrap();
    assert_eq!(keys(&server), [None]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_first_attempt_is_under_way_is_waited_out_and_no_evidence() {
    let fake = Fake::new(|n| match n {
        1 => fake::answer(409, &[("retry-after", "2")], ""),
        2 => fake::answer(409, &[], "no retry-after: another conflict"),
        _ => fake::answer(200, &[], ""),
    });
    let keys = IdempotencyKeys::new();
    let builder = builder().breaker(breakers(1)).idempotency_keys(keys);
    let client = fake.client(builder);
    let start = Instant::now();
    let response = client.post("http://a.test/").send().await.unwrap();
    assert_eq!(response.status(), 409);
    assert_eq!(fake.attempts(), 2);
    assert!(start.elapsed() >= 2_000 * MS, "{:?}", start.elapsed());
    let breaker = client.breakers().unwrap().get(&Host::new("a.test", 80));
    assert_eq!(breaker.snapshot().state, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_of_a_client_without_keys_is_an_answer_like_any_other() {
    let fake = Fake::new(|_| fake::answer(409, &[("retry-after", "2")], ""));
    let retry = Retry::builder("pay")
        .budget(RetryBudget::unlimited())
        .build();
    let client = fake.client(builder().retry(retry.unwrap()));
    client.get("http://a.test/").send().await.unwrap();
    assert_eq!(fake.attempts(), 1);
}
