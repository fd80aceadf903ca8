//! A repeated request gets the recorded response.

use std::time::Duration;

use axum::{Extension, body::Bytes, response::AppendHeaders};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use resilience_core::idempotency::Attempt;
use resilience_http::idempotency::{FingerprintRules, RecordedHeaders};
use tokio::{sync::Notify, time::Instant};

use super::rig::*;

#[tokio::test(start_paused = true)]
async fn the_answer_is_given_again_byte_for_byte_and_says_so() {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move || {
        paid.another();
        let headers = AppendHeaders([
            (
                HeaderName::from_static("x-trace"),
                HeaderValue::from_static("one"),
            ),
            (
                HeaderName::from_static("x-trace"),
                HeaderValue::from_static("two"),
            ),
            (
                HeaderName::from_static("x-name"),
                HeaderValue::from_bytes(b"caf\xe9").unwrap(),
            ),
            (header::SET_COOKIE, HeaderValue::from_static("session=1")),
            (
                header::DATE,
                HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"),
            ),
            (header::CONNECTION, HeaderValue::from_static("x-hop")),
            (
                HeaderName::from_static("x-hop"),
                HeaderValue::from_static("1"),
            ),
        ]);
        (StatusCode::CREATED, headers, &b"\0receipt \xff"[..])
    };
    let app = app(&once(), handler);
    let ask = pay("\"k\"", "{}");
    let first = ask.send(&app).await;
    assert!(!is_replay(&first) && first.headers().contains_key(header::SET_COOKIE));
    assert!(!first.headers().contains_key(header::AGE));
    tokio::time::advance(Duration::from_millis(7_900)).await;
    let again = ask.send(&app).await;
    assert_eq!(again.status(), StatusCode::CREATED);
    let headers = again.headers();
    assert_eq!(headers["idempotent-replayed"], "true");
    assert_eq!(headers[header::AGE], "7");
    let traces: Vec<_> = headers.get_all("x-trace").iter().collect();
    assert_eq!(traces, ["one", "two"]);
    assert_eq!(headers["x-name"].as_bytes(), b"caf\xe9");
    assert_eq!(headers[header::CONTENT_TYPE], "application/octet-stream");
    for gone in ["set-cookie", "date", "connection", "x-hop"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
    let body = again.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, &b"\0receipt \xff"[..]);
    assert_eq!(effects.count(), 1);
}

#[tokio::test]
async fn trailers_come_again_and_cookies_if_they_are_asked_for() {
    let trailers = || HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static("\"7\""))]);
    let handler = async move || {
        let data = Ok::<_, std::io::Error>(Frame::data(Bytes::from("paid")));
        let frames = futures_util::stream::iter([data, Ok(Frame::trailers(trailers()))]);
        let body = axum::body::Body::new(StreamBody::new(frames));
        ([(header::SET_COOKIE, "session=1")], body)
    };
    let app = app(&once().keep(RecordedHeaders::new().cookies(true)), handler);
    for replay in [false, true] {
        let response = pay("k", "{}").send(&app).await;
        assert_eq!(is_replay(&response), replay);
        assert_eq!(response.headers()[header::SET_COOKIE], "session=1");
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers(), Some(&trailers()));
        assert_eq!(body.to_bytes(), "paid");
    }
}

#[tokio::test]
async fn quoted_and_bare_are_one_key_and_so_are_spellings_of_one_json() {
    let (app, effects) = paying(&once());
    let first = pay("\"k\"", r#"{"amount":7,"to":"a"}"#).send(&app).await;
    assert_eq!(text(first).await, "payment 1");
    let again = pay("k", "{ \"to\":\"a\", \"amount\":7.0 }")
        .send(&app)
        .await;
    assert!(is_replay(&again));
    assert_eq!(text(again).await, "payment 1");
    assert_eq!(pay("other", "{}").status(&app).await, 200);
    assert_eq!(effects.count(), 2);
}

#[tokio::test]
async fn another_request_with_the_same_key_is_refused_and_none_is_served_twice() {
    let (app, effects) = paying(&once());
    let first = pay("k", r#"{"amount":7}"#);
    assert_eq!(first.status(&app).await, 200);
    for other in [
        pay("k", r#"{"amount":8}"#),
        pay("k", r#"{"amount":7,"amount":7}"#),
        first.clone().to(Method::POST, "/refund"),
        first.clone().to(Method::POST, "/pay?dry_run=1"),
        first.clone().to(Method::PATCH, "/pay"),
    ] {
        let (kind, document) =
            refused(other.send(&app).await, StatusCode::UNPROCESSABLE_ENTITY).await;
        assert_eq!(kind, "key_reused", "{document}");
    }
    assert_eq!(effects.count(), 1);
    assert!(is_replay(&first.send(&app).await));
}

#[tokio::test]
async fn what_is_compared_is_the_owners_to_say() {
    let compare = FingerprintRules::new().only_fields(["/amount"]).unwrap();
    let (app, effects) = paying(&once().compare(compare));
    assert_eq!(pay("k", r#"{"amount":7,"at":1}"#).status(&app).await, 200);
    assert!(is_replay(
        &pay("k", r#"{"at":2,"amount":7}"#).send(&app).await
    ));
    assert_eq!(pay("k", r#"{"amount":8,"at":1}"#).status(&app).await, 422);
    assert_eq!(effects.count(), 1);
}

/// The worst fault of a store of responses: showing one client's response to another.
#[tokio::test]
async fn one_callers_key_never_finds_anothers_answer() {
    let (app, effects) = paying(&once());
    let by = |token: &str| pay("k", "{}").with(header::AUTHORIZATION, token);
    for (caller, payment) in [("Bearer a", 1), ("Bearer b", 2), ("Bearer ab", 3)] {
        let first = by(caller).send(&app).await;
        assert!(!is_replay(&first), "{caller}");
        assert_eq!(text(first).await, format!("payment {payment}"));
    }
    let anonymous = pay("k", "{}");
    assert!(!is_replay(&anonymous.send(&app).await));
    let two = by("Bearer a").with(header::AUTHORIZATION, "Bearer b");
    assert!(!is_replay(&two.send(&app).await));
    assert!(is_replay(&by("Bearer a").send(&app).await));
    assert_eq!(effects.count(), 5);
    // The scope covers the other usual credentials, not `Authorization` alone.
    for name in ["x-api-key", "api-key", "x-auth-token", "cookie"] {
        let name = HeaderName::from_static(name);
        let (app, effects) = paying(&once());
        for (caller, payment) in [("a", 1), ("b", 2)] {
            let ask = pay("k", "{}").with(name.clone(), caller);
            let first = ask.send(&app).await;
            assert!(!is_replay(&first), "{name}: {caller}");
            assert_eq!(text(first).await, format!("payment {payment}"));
            assert!(is_replay(&ask.send(&app).await), "{name}: {caller}");
        }
        assert!(!is_replay(&pay("k", "{}").send(&app).await), "{name}");
        assert_eq!(effects.count(), 3, "{name}");
    }
}

#[tokio::test]
async fn a_tenant_that_authentication_has_found_keeps_its_keys_when_its_token_is_renewed() {
    let tenant = HeaderName::from_static("x-tenant");
    let of = tenant.clone();
    let scope = move |head: &http::request::Parts| {
        let tenant = head
            .headers
            .get(&of)
            .and_then(|tenant| tenant.to_str().ok());
        tenant.unwrap_or("anonymous").to_owned()
    };
    let (app, effects) = paying(&once().scope(scope));
    let by = |name: &str, token: &str| {
        let ask = pay("k", "{}").with(tenant.clone(), name);
        ask.with(header::AUTHORIZATION, token)
    };
    assert_eq!(by("a", "old").status(&app).await, 200);
    assert!(is_replay(&by("a", "new").send(&app).await));
    assert!(!is_replay(&by("b", "new").send(&app).await));
    assert_eq!(effects.count(), 2);
}

#[tokio::test]
async fn without_a_key_and_with_other_methods_everything_is_as_without_the_layer() {
    let (app, effects) = paying(&once());
    let keyless = pay("", "{}").without(&resilience_http::headers::IDEMPOTENCY_KEY);
    let get = pay("k", "").to(Method::GET, "/pay");
    for ask in [keyless, get] {
        for _ in 0..2 {
            assert!(!is_replay(&ask.send(&app).await));
        }
    }
    assert_eq!(effects.count(), 4);
    let (app, effects) = paying(&once().methods([Method::PUT]).required(true));
    let put = pay("k", "").to(Method::PUT, "/pay");
    put.send(&app).await;
    assert!(is_replay(&put.send(&app).await));
    pay("k", "").send(&app).await;
    assert_eq!(effects.count(), 2);
}

#[tokio::test]
async fn a_handler_finds_its_attempt_and_its_body() {
    let handler = async |Extension(attempt): Extension<Attempt>, body: Bytes| {
        let (fence, child) = (attempt.fence(), attempt.child_key("charge"));
        format!("{} {child} {}", fence > 0, String::from_utf8_lossy(&body))
    };
    let app = app(&once(), handler);
    let said = text(pay("k", "[1]").send(&app).await).await;
    let words: Vec<_> = said.split(' ').collect();
    assert_eq!((words[0], words[1].len(), words[2]), ("true", 36, "[1]"));
}

#[tokio::test(start_paused = true)]
async fn while_the_first_is_served_the_others_are_told_to_come_back() {
    let open = std::sync::Arc::new(Notify::new());
    let gate = open.clone();
    let handler = move || {
        let gate = gate.clone();
        async move {
            gate.notified().await;
            "paid"
        }
    };
    let minute = Duration::from_secs(60);
    let handle = builder().lease(minute).without_wait().build().unwrap();
    let once = resilience_http::server::IdempotentRequests::new(&handle);
    let app = app(&once, handler.clone());
    let first = tokio::spawn({
        let app = app.clone();
        async move { text(pay("k", "{}").send(&app).await).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let busy = pay("k", "{}").send(&app).await;
    assert_eq!(busy.headers()[header::RETRY_AFTER], "1");
    assert_eq!(refused(busy, StatusCode::CONFLICT).await.0, "in_flight");
    // Another layer over the same records, with a longer wait: what is left of the lease.
    let slow = super::rig::app(&once.come_back_within(Duration::MAX), handler);
    let busy = pay("k", "{}").send(&slow).await;
    let wait = busy.headers()[header::RETRY_AFTER].to_str().unwrap();
    let wait: u64 = wait.parse().unwrap();
    assert!((30..=60).contains(&wait), "{wait}");
    open.notify_one();
    assert_eq!(first.await.unwrap(), "paid");
    assert!(is_replay(&pay("k", "{}").send(&app).await));
}

#[tokio::test(start_paused = true)]
async fn of_a_crowd_with_one_key_one_is_served_and_the_others_get_its_answer() {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move || {
        tokio::time::sleep(Duration::from_secs(2)).await;
        format!("payment {}", paid.another())
    };
    let app = app(&once(), handler);
    let start = Instant::now();
    let crowd = (0..50).map(|_| async { text(pay("k", "{}").send(&app).await).await });
    let answers = futures_util::future::join_all(crowd).await;
    assert!(
        answers.iter().all(|answer| answer == "payment 1"),
        "{answers:?}"
    );
    assert_eq!(effects.count(), 1);
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
}

/// A client that is gone by then would ask again anyway.
#[tokio::test(start_paused = true)]
async fn who_waits_is_answered_before_its_time_is_over() {
    let handler = async || {
        tokio::time::sleep(Duration::from_secs(5)).await;
        "paid"
    };
    let app = app(&once(), handler);
    let first = tokio::spawn({
        let app = app.clone();
        async move { text(pay("k", "{}").send(&app).await).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    for (allowed, waited) in [("500", 250), ("2000", 1_750)] {
        let start = Instant::now();
        let ask = pay("k", "{}").with(resilience_http::headers::DEADLINE, allowed);
        let busy = ask.send(&app).await;
        assert_eq!(refused(busy, StatusCode::CONFLICT).await.0, "in_flight");
        let elapsed = start.elapsed();
        let waited = Duration::from_millis(waited);
        assert!(
            elapsed.abs_diff(waited) < Duration::from_millis(20),
            "{elapsed:?}"
        );
    }
    let ask = pay("k", "{}").with(resilience_http::headers::DEADLINE, "9000");
    let replayed = ask.send(&app).await;
    assert!(is_replay(&replayed));
    assert_eq!(text(replayed).await, first.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_shuts_down_finishes_its_work_and_sends_new_requests_elsewhere() {
    let handle = builder().build().unwrap();
    let handler = async || {
        tokio::time::sleep(Duration::from_secs(5)).await;
        "paid"
    };
    let once = resilience_http::server::IdempotentRequests::new(&handle);
    let app = app(&once, handler);
    let first = tokio::spawn({
        let app = app.clone();
        async move { text(pay("k", "{}").send(&app).await).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let shutdown = tokio::spawn(async move { handle.shutdown(Duration::from_secs(20)).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    for key in ["k", "another"] {
        let late = pay(key, "{}").send(&app).await;
        assert_eq!(late.headers()[header::RETRY_AFTER], "1");
        let (kind, _) = refused(late, StatusCode::SERVICE_UNAVAILABLE).await;
        assert_eq!(kind, "shutting_down");
    }
    assert_eq!(first.await.unwrap(), "paid");
    assert_eq!(shutdown.await.unwrap(), Ok(()));
}
