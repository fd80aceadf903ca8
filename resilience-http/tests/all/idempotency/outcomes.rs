//! What becomes of a key whose handler did not accept the request, or says what it has done.

use axum::{
    Extension, Json, Router,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use http::{HeaderName, StatusCode, header};
use resilience_core::idempotency::Disposition;
use resilience_http::server::IdempotentRequests;
use serde_json::Value;

use super::rig::*;

/// Pays the amount in the body, if there is one.
fn paying_json(once: &IdempotentRequests) -> (Router, Effects) {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move |Json((amount,)): Json<(u32,)>| {
        format!("payment {} of {amount}", paid.another())
    };
    let app = Router::new().route("/pay", post(handler));
    (app.layer(once.layer()), effects)
}

#[tokio::test]
async fn a_body_that_is_refused_before_the_handler_leaves_its_key_to_the_corrected_one() {
    let typed = |body, kind| {
        let ask = pay("k", body).without(&header::CONTENT_TYPE);
        ask.with(header::CONTENT_TYPE, kind)
    };
    for (wrong, status) in [
        (pay("k", r#"["seven"]"#), 422),
        (pay("k", "[7"), 400),
        (typed("[7]", "text/plain"), 415),
    ] {
        let (app, effects) = paying_json(&once());
        assert_eq!(wrong.status(&app).await, status);
        assert_eq!(wrong.status(&app).await, status, "nothing was recorded");
        let right = pay("k", "[7]");
        assert_eq!(text(right.send(&app).await).await, "payment 1 of 7");
        assert!(is_replay(&right.send(&app).await));
        // The key is for that request now.
        let late = wrong.send(&app).await;
        let (kind, _) = refused(late, StatusCode::UNPROCESSABLE_ENTITY).await;
        assert_eq!((&*kind, effects.count()), ("key_reused", 1));
    }
}

/// A layer inside of idempotency that refuses requests.
async fn door(request: Request, next: Next) -> Response {
    if !request.headers().contains_key("x-token") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if request.headers().contains_key("x-busy") {
        return StatusCode::TOO_MANY_REQUESTS.into_response();
    }
    next.run(request).await
}

#[tokio::test]
async fn a_request_that_a_layer_inside_refuses_takes_no_key() {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move || format!("payment {}", paid.another());
    let app = Router::new().route("/pay", post(handler));
    let app = app
        .layer(middleware::from_fn(door))
        .layer(once().scope(|_| "tenant".into()).layer());
    let [token, busy] = ["x-token", "x-busy"].map(HeaderName::from_static);
    let ask = pay("k", "{}");
    let known = ask.clone().with(token, "7");
    assert_eq!(ask.status(&app).await, 401);
    assert_eq!(known.clone().with(busy, "1").status(&app).await, 429);
    assert_eq!(text(known.send(&app).await).await, "payment 1");
    // Authentication belongs outside: a replay does not ask it.
    assert!(is_replay(&ask.send(&app).await));
    assert_eq!(effects.count(), 1);
}

/// A handler that answers with this status, and says this of it.
fn saying(once: &IdempotentRequests, status: StatusCode, says: Disposition) -> (Router, Effects) {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move || {
        let body = format!("payment {}", paid.another());
        (status, Extension(says), body)
    };
    (app(once, handler), effects)
}

#[tokio::test]
async fn what_the_handler_says_about_its_response_counts_whatever_its_status() {
    use Disposition::{Record, Release, Unknown};
    let decided = once().decide(|_, _| Unknown);
    for once in [once(), decided] {
        for status in [200, 422, 503, 500] {
            let ask = pay(&status.to_string(), "{}");
            let status = StatusCode::from_u16(status).unwrap();
            let (app, effects) = saying(&once, status, Record);
            assert_eq!(ask.send(&app).await.status(), status);
            let again = ask.send(&app).await;
            assert_eq!((again.status(), is_replay(&again)), (status, true));
            assert_eq!(text(again).await, "payment 1");
            assert_eq!(effects.count(), 1);
        }
    }
    for status in [200, 402, 500] {
        let status = StatusCode::from_u16(status).unwrap();
        let (app, effects) = saying(&once(), status, Release);
        for _ in 0..2 {
            let response = pay("k", "{}").send(&app).await;
            assert_eq!((response.status(), is_replay(&response)), (status, false));
        }
        assert_eq!(effects.count(), 2);
    }
    for status in [200, 422, 503] {
        let status = StatusCode::from_u16(status).unwrap();
        let (app, effects) = saying(&once(), status, Unknown);
        assert_eq!(pay("k", "{}").send(&app).await.status(), status);
        let again = pay("k", "{}").send(&app).await;
        let (kind, _) = refused(again, StatusCode::CONFLICT).await;
        assert_eq!((&*kind, effects.count()), ("outcome_unknown", 1));
    }
}

/// A response of a handler that has paid is large, and its route promises the same one every time.
#[tokio::test]
async fn only_what_is_an_outcome_is_replaced_where_it_cannot_be_recorded() {
    let strict = once().max_response(5).refuse_unkept(true);
    let (app, _) = saying(
        &strict,
        StatusCode::UNPROCESSABLE_ENTITY,
        Disposition::Release,
    );
    assert_eq!(text(pay("k", "{}").send(&app).await).await, "payment 1");
    let (app, _) = saying(
        &strict,
        StatusCode::SERVICE_UNAVAILABLE,
        Disposition::Record,
    );
    for replay in [false, true] {
        let response = pay("other", "{}").send(&app).await;
        assert_eq!(is_replay(&response), replay);
        let (kind, _) = refused(response, StatusCode::INTERNAL_SERVER_ERROR).await;
        assert_eq!(kind, "not_kept");
    }
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_handler_whose_request_has_no_key_has_no_attempt_and_is_served_all_the_same() {
    use axum::extract::FromRequestParts;
    use resilience_core::idempotency::Attempt;
    use resilience_http::server::RequestAttempt;

    let handler = async |RequestAttempt(attempt): RequestAttempt| {
        attempt.map_or_else(|| "none".into(), |attempt| attempt.child_key("charge"))
    };
    let app = app(&once(), handler);
    let keyless = pay("", "{}").without(&resilience_http::headers::IDEMPOTENCY_KEY);
    assert_eq!(text(keyless.send(&app).await).await, "none");
    let get = pay("k", "").to(http::Method::GET, "/pay");
    assert_eq!(text(get.send(&app).await).await, "none");
    assert_eq!(text(pay("k", "{}").send(&app).await).await.len(), 36);
    // As it would be otherwise.
    let (mut head, ()) = http::Request::new(()).into_parts();
    let found = Extension::<Attempt>::from_request_parts(&mut head, &()).await;
    let response = found.unwrap_err().into_response();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn a_problem_of_a_handler_can_say_that_nothing_was_done() {
    use resilience_http::problem::Problem;
    let handler = async || {
        let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Out of stock");
        let mut response = problem
            .into_response::<String>()
            .map(axum::body::Body::from);
        response.extensions_mut().insert(Disposition::Release);
        response
    };
    let app = app(&once(), handler);
    for _ in 0..2 {
        let response = pay("k", "{}").send(&app).await;
        assert!(!is_replay(&response));
        let document: Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(document["title"], "Out of stock");
    }
}
