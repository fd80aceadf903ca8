//! What depends on the caller, and layers inside of idempotency.

use std::time::Duration;

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use resilience_core::deadline::Timeout;
use resilience_http::{
    idempotency::RecordedHeaders,
    server::{self, IdempotentRequests},
};

use super::rig::*;

const GZIP: &str = "gzip";

/// Encodes the response for callers that accept it, as a layer for compression does.
async fn compressed(request: Request, next: Next) -> Response {
    let accepted = request.headers().get(header::ACCEPT_ENCODING);
    let accepts = accepted.is_some_and(|encoding| encoding == GZIP);
    let response = next.run(request).await;
    if !accepts {
        return response;
    }
    let encoded = [(header::CONTENT_ENCODING, GZIP)];
    (response.status(), encoded, "\u{1f}encoded").into_response()
}

#[tokio::test]
async fn a_response_is_recorded_as_it_is_before_a_compression_inside() {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move || format!("payment {}", paid.another());
    let app = Router::new().route("/pay", post(handler));
    let app = app
        .layer(middleware::from_fn(compressed))
        .layer(once().layer());
    let plain = pay("k", "{}");
    let accepting = plain.clone().with(header::ACCEPT_ENCODING, "gzip");
    for ask in [&accepting, &plain, &accepting] {
        let response = ask.send(&app).await;
        assert!(!response.headers().contains_key(header::CONTENT_ENCODING));
        assert_eq!(text(response).await, "payment 1");
    }
    // A request without a key negotiates as ever.
    let keyless = accepting.without(&resilience_http::headers::IDEMPOTENCY_KEY);
    let response = keyless.send(&app).await;
    assert_eq!(response.headers()[header::CONTENT_ENCODING], GZIP);
    assert_eq!(effects.count(), 2);
}

/// A handler that encodes whatever the client accepts.
fn encoding(once: &IdempotentRequests) -> (Router, Effects) {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move |headers: HeaderMap| {
        paid.another();
        let accepts = headers.contains_key(header::ACCEPT_ENCODING);
        (
            [(header::CONTENT_ENCODING, GZIP)],
            format!("encoded: {accepts}"),
        )
    };
    (app(once, handler), effects)
}

#[tokio::test]
async fn a_response_that_is_encoded_all_the_same_is_not_replayed_to_callers_that_may_not_read_it() {
    let ask = pay("k", "{}").with(header::ACCEPT_ENCODING, "gzip");
    let (app, effects) = encoding(&once());
    let first = ask.send(&app).await;
    assert_eq!(first.headers()[header::CONTENT_ENCODING], GZIP);
    assert_eq!(text(first).await, "encoded: false");
    for again in [&ask, &pay("k", "{}")] {
        let (kind, _) = refused(again.send(&app).await, StatusCode::CONFLICT).await;
        assert_eq!((&*kind, effects.count()), ("outcome_not_kept", 1));
    }

    let (app, effects) = encoding(&once().refuse_unkept(true));
    for replay in [false, true] {
        let response = ask.send(&app).await;
        assert_eq!(is_replay(&response), replay);
        let (kind, _) = refused(response, StatusCode::INTERNAL_SERVER_ERROR).await;
        assert_eq!((&*kind, effects.count()), ("not_kept", 1));
    }

    let (app, effects) = encoding(&once().keep(RecordedHeaders::new().encoded(true)));
    for replay in [false, true] {
        let response = ask.send(&app).await;
        assert_eq!(is_replay(&response), replay);
        assert_eq!(response.headers()[header::CONTENT_ENCODING], GZIP);
        assert_eq!(text(response).await, "encoded: true");
    }
    assert_eq!(effects.count(), 1);
}

/// A layer for CORS and one for request ids, in the wrong place.
#[tokio::test]
async fn what_the_first_callers_site_was_allowed_and_its_request_was_called_is_not_replayed() {
    let id = HeaderName::from_static("x-request-id");
    let handler = {
        let id = id.clone();
        async move |headers: HeaderMap| {
            let origin = headers[header::ORIGIN].clone();
            let of_caller = [
                (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin),
                (header::VARY, HeaderValue::from_static("origin")),
                (id, headers["x-request-id"].clone()),
                (header::SET_COOKIE, HeaderValue::from_static("session=a")),
                (header::LOCATION, HeaderValue::from_static("/payments/1")),
            ];
            (of_caller, "paid")
        }
    };
    let app = app(&once(), handler);
    let by = |origin: &str, number: &str| {
        let ask = pay("k", "{}").with(header::ORIGIN, origin);
        ask.with(id.clone(), number)
    };
    let first = by("https://a.test", "1").send(&app).await;
    let origin = &first.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN];
    assert_eq!(
        (origin, &first.headers()[&id]),
        (
            &HeaderValue::from_static("https://a.test"),
            &HeaderValue::from_static("1")
        )
    );
    let again = by("https://b.test", "2").send(&app).await;
    assert!(is_replay(&again));
    for gone in [
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        header::VARY,
        header::SET_COOKIE,
        id,
    ] {
        assert!(!again.headers().contains_key(&gone), "{gone}");
    }
    assert_eq!(again.headers()[header::LOCATION], "/payments/1");
    assert_eq!(text(again).await, "paid");
}

/// Pays at once, and then takes a minute.
fn slow() -> (Router, Effects) {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move || {
        paid.another();
        tokio::time::sleep(Duration::from_secs(60)).await;
        "paid"
    };
    (Router::new().route("/pay", post(handler)), effects)
}

/// Ends a handler after a second with 408, as layers for timeouts do.
async fn cut_off(request: Request, next: Next) -> Response {
    let response = tokio::time::timeout(Duration::from_secs(1), next.run(request)).await;
    response.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_a_time_limit_inside_cuts_off_is_not_run_again() {
    let (app, effects) = slow();
    let app = app.layer(middleware::from_fn(cut_off));
    let (ours, ours_effects) = slow();
    let timeout = Timeout::new("pay", Duration::from_secs(1)).unwrap();
    let ours = ours.layer(server::guard(timeout.layer()));
    for (app, effects, status) in [(app, effects, 408), (ours, ours_effects, 504)] {
        let app = app.layer(once().layer());
        let ask = pay("k", "{}");
        assert_eq!(ask.status(&app).await, status);
        for _ in 0..3 {
            let (kind, _) = refused(ask.send(&app).await, StatusCode::CONFLICT).await;
            assert_eq!(kind, "outcome_unknown");
        }
        assert_eq!(effects.count(), 1, "{status}");
    }
}
