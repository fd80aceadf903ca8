//! Requests that are refused before the handler runs.

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{Limited, StreamBody};
use resilience_core::{
    fleet::{FleetOptions, OnOutage, Pushed, Subscription},
    idempotency::{
        IdempotencyStore,
        record::{Claim, Claimed, Completion, Holder, RecordView, StoreResolution, WriteOutcome},
        store::{StoreError, StoreFuture},
    },
};
use resilience_http::{
    headers::IDEMPOTENCY_KEY, idempotency::KeyRules, server::IdempotentRequests,
};
use tower::{ServiceExt, util::MapRequestLayer};

use super::rig::*;

#[tokio::test]
async fn a_key_that_is_required_and_missing_or_none_at_all_is_400() {
    let (app, effects) = paying(&once().required(true));
    let missing = pay("", "{}").without(&IDEMPOTENCY_KEY);
    let (kind, _) = refused(missing.send(&app).await, StatusCode::BAD_REQUEST).await;
    assert_eq!(kind, "no_key");
    let twice = pay("a", "{}").with(IDEMPOTENCY_KEY, "a");
    for malformed in [pay("\"open", "{}"), pay("a b", "{}"), pay("", "{}"), twice] {
        let (kind, _) = refused(malformed.send(&app).await, StatusCode::BAD_REQUEST).await;
        assert_eq!(kind, "malformed_key");
    }
    let get = missing.to(Method::GET, "/pay");
    assert_eq!(get.status(&app).await, 200);
    assert_eq!(effects.count(), 1);
}

/// The sender of a malformed key relies on a protection that it does not have.
#[tokio::test]
async fn a_malformed_key_is_400_where_none_is_required_too() {
    let (app, effects) = paying(&once());
    assert_eq!(pay("\"open", "{}").status(&app).await, 400);
    let long = "k".repeat(37);
    let short = once().rules(KeyRules::new().max_len(36).unwrap());
    assert_eq!(pay(&long, "{}").status(&paying(&short).0).await, 400);
    assert_eq!(effects.count(), 0);
}

fn streamed(parts: Vec<Result<&'static str, std::io::Error>>) -> Request<Body> {
    let frames = parts
        .into_iter()
        .map(|part| part.map(|text| Frame::data(Bytes::from(text))));
    let body = Body::new(StreamBody::new(futures_util::stream::iter(
        frames.collect::<Vec<_>>(),
    )));
    Request::post("/pay")
        .header(IDEMPOTENCY_KEY, "k")
        .body(body)
        .unwrap()
}

#[tokio::test]
async fn a_body_above_the_limit_is_413_and_is_not_served() {
    let (app, effects) = paying(&once().max_request(4));
    let (kind, _) = refused(
        pay("k", "12345").send(&app).await,
        StatusCode::PAYLOAD_TOO_LARGE,
    )
    .await;
    assert_eq!(kind, "too_large");
    let unknown = app
        .clone()
        .oneshot(streamed(vec![Ok("123"), Ok("45")]))
        .await
        .unwrap();
    assert_eq!(unknown.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(effects.count(), 0);
    assert_eq!(pay("k", "1234").status(&app).await, 200);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_served_and_takes_no_key() {
    let (app, effects) = paying(&once());
    let broken = streamed(vec![Ok("12"), Err(std::io::Error::other("reset"))]);
    let response = app.clone().oneshot(broken).await.unwrap();
    assert_eq!(
        refused(response, StatusCode::BAD_REQUEST).await.0,
        "unreadable_body"
    );
    assert_eq!(effects.count(), 0);
    let whole = app
        .clone()
        .oneshot(streamed(vec![Ok("12"), Ok("34")]))
        .await
        .unwrap();
    assert_eq!(whole.status(), 200);
}

/// A handler that reads the body, behind an outer layer that limits its length.
fn limited(app: Router) -> Router {
    app.layer(MapRequestLayer::new(|request: Request<Body>| {
        request.map(|body| Body::new(Limited::new(body, 4)))
    }))
}

async fn reads(body: String) -> String {
    format!("{} bytes", body.len())
}

#[tokio::test]
async fn a_body_above_the_limit_of_an_outer_layer_is_413_with_this_layer_as_without() {
    let (plain, guarded) = (limited(post_only(reads)), limited(app(&once(), reads)));
    let status = async |app: &Router, request: Request<Body>| {
        let response = app.clone().oneshot(request).await.unwrap();
        response.status().as_u16()
    };
    for parts in [&["1234"][..], &["12", "34"], &["12345"], &["12", "345"]] {
        let request = || streamed(parts.iter().map(|part| Ok(*part)).collect());
        let expected = if parts.concat().len() <= 4 { 200 } else { 413 };
        let mut keyless = request();
        keyless.headers_mut().remove(IDEMPOTENCY_KEY);
        assert_eq!(status(&plain, request()).await, expected);
        assert_eq!(status(&guarded, keyless).await, expected);
        assert_eq!(status(&guarded, request()).await, expected);
    }
}

/// A store that is always unavailable.
#[derive(Clone, Debug)]
struct Away;

fn away<T>() -> StoreFuture<'static, T> {
    Box::pin(async { Err(StoreError::new("away", false)) })
}

impl IdempotencyStore for Away {
    fn claim<'a>(&'a self, _: &'a str, _: &'a str, _: &'a Claim) -> StoreFuture<'a, Claimed> {
        away()
    }

    fn extend<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a Holder,
        _: u64,
    ) -> StoreFuture<'a, WriteOutcome> {
        away()
    }

    fn checkpoint<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a Holder,
        _: &'a Bytes,
        _: u64,
    ) -> StoreFuture<'a, WriteOutcome> {
        away()
    }

    fn complete<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a Holder,
        _: &'a Completion,
    ) -> StoreFuture<'a, WriteOutcome> {
        away()
    }

    fn release<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a Holder,
    ) -> StoreFuture<'a, WriteOutcome> {
        away()
    }

    fn unknown<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a Holder,
    ) -> StoreFuture<'a, WriteOutcome> {
        away()
    }

    fn resolve<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: u64,
        _: &'a StoreResolution,
    ) -> StoreFuture<'a, WriteOutcome> {
        away()
    }

    fn get<'a>(&'a self, _: &'a str, _: &'a str) -> StoreFuture<'a, Option<RecordView>> {
        away()
    }

    fn subscribe(&self, _: &str, _: &str) -> Subscription<()> {
        Subscription::new(tokio::sync::watch::channel(Pushed::None).1)
    }
}

#[tokio::test(start_paused = true)]
async fn without_its_store_a_request_with_a_key_is_503_unless_the_handle_says_otherwise() {
    for (policy, status, served) in [
        (OnOutage::FailClosed, 503, 0),
        (OnOutage::FailOpen, 200, 2),
        (OnOutage::Local, 200, 1),
    ] {
        let fleet = FleetOptions::new().on_outage(policy);
        let handle = builder().store(Away).fleet(fleet).build().unwrap();
        let (app, effects) = paying(&IdempotentRequests::new(&handle));
        for _ in 0..2 {
            let response = pay("k", "{}").send(&app).await;
            assert_eq!(response.status(), status, "{policy:?}");
            let retry = response.headers().contains_key("retry-after");
            assert_eq!(retry, status == 503);
        }
        assert_eq!(effects.count(), served, "{policy:?}");
        let keyless = pay("", "").without(&IDEMPOTENCY_KEY);
        assert_eq!(keyless.status(&app).await, 200, "no store is asked");
    }
}
