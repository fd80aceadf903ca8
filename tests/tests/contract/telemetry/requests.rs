//! The events of requests with an idempotency key.

use axum::{Router, body::Body, http::header, routing::post};
use http::{Request, StatusCode};
use resilience_core::idempotency::Idempotency;
use resilience_http::server::IdempotentRequests;
use resilience_redis::Redis;
use resilience_tests::redis::free_port;
use tower::ServiceExt;
use tracing::Level;

use super::events::listen;

const SHARED: &str =
    "requests without credentials share the scope of their idempotency keys: set a scope";
const RENEWED: &str =
    "idempotency keys are scoped by a credential that changes when it is renewed: set a scope";

fn pay(credentials: Option<(&str, &str)>) -> Request<Body> {
    let mut request = Request::post("/pay").header("idempotency-key", "k");
    if let Some((name, value)) = credentials {
        request = request.header(name, value);
    }
    request.body(Body::empty()).unwrap()
}

fn app(once: &IdempotentRequests) -> Router {
    let pay = post(async || "paid");
    Router::new().route("/pay", pay).layer(once.layer())
}

async fn send(app: &Router, credentials: Option<(&str, &str)>) -> StatusCode {
    let response = app.clone().oneshot(pay(credentials)).await;
    response.unwrap().status()
}

#[tokio::test(start_paused = true)]
async fn the_scope_of_keys_that_cannot_be_known_is_told_once() {
    let (recorder, _default) = listen();
    let handle = Idempotency::builder("requests").build().unwrap();
    let once = IdempotentRequests::new(&handle);
    let is = |message| {
        let name = ("name", "requests");
        let pattern = ("pattern", "idempotency");
        recorder.has(Level::WARN, &[name, pattern, ("message", message)]);
    };
    let of = app(&once);
    for _ in 0..2 {
        send(&of, None).await;
    }
    is(SHARED);
    for token in ["Bearer a", "Bearer b"] {
        send(&of, Some(("authorization", token))).await;
    }
    is(RENEWED);
    // Told already.
    send(&of, None).await;
    send(&of, Some(("cookie", "session=a"))).await;
    assert!(recorder.take().is_empty());

    // What stays as it is, and what the owner knows, is nothing to tell.
    let of = app(&IdempotentRequests::new(&handle));
    send(&of, Some(("x-api-key", "a"))).await;
    send(&of, Some(("authorization", "Basic YTpi"))).await;
    let of = app(&once.scope(|_| "tenant".into()));
    send(&of, Some(("authorization", "Bearer a"))).await;
    send(&of, None).await;
    assert!(recorder.take().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_not_recorded_because_it_is_encoded_is_told_once() {
    let (recorder, _default) = listen();
    let handle = Idempotency::builder("encoded").build().unwrap();
    let once = IdempotentRequests::new(&handle).scope(|_| "tenant".into());
    let pay = post(async || ([(header::CONTENT_ENCODING, "gzip")], "encoded"));
    let app = Router::new().route("/pay", pay).layer(once.layer());
    assert_eq!(send(&app, None).await, 200);
    let message = "the work counts as done, but its outcome is not kept";
    let event = recorder.has(Level::WARN, &[("name", "encoded"), ("message", message)]);
    assert!(
        event.fields["why"].contains("Content-Encoding"),
        "{event:?}"
    );
    assert_eq!(send(&app, None).await, 409);
}

#[tokio::test]
async fn a_default_prefix_is_told() {
    let (recorder, _default) = listen();
    let url = format!("redis://127.0.0.1:{}", free_port());
    let redis = Redis::builder(&url).service("payments").connect().unwrap();
    let told = || -> Vec<String> {
        let seen = recorder.take().into_iter();
        seen.filter_map(|event| event.fields.get("prefix").cloned())
            .collect()
    };
    drop(redis.idempotency());
    assert_eq!(told(), [""; 0]);
    drop(Redis::connect(&url).unwrap().idempotency());
    assert_eq!(told(), ["resilience"]);
}
