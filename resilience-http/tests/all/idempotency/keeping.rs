//! Which responses are recorded.

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering::SeqCst},
};

use axum::{Router, body::Body, extract::State};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use resilience_core::idempotency::{Disposition, Effect};
use resilience_http::{
    headers::IDEMPOTENCY_KEY,
    server::{IDEMPOTENT_REPLAYED, IdempotentBody, IdempotentRequests},
};
use tokio::sync::mpsc;
use tower::{Layer, ServiceExt, service_fn};

use super::rig::*;

/// Responds as the request demands, and counts.
fn answering(once: &IdempotentRequests) -> (Router, Arc<AtomicU16>, Effects) {
    let (status, effects) = (Arc::new(AtomicU16::new(200)), Effects::default());
    let paid = effects.clone();
    let handler = async move |State(status): State<Arc<AtomicU16>>| {
        paid.another();
        StatusCode::from_u16(status.load(SeqCst)).unwrap()
    };
    let app = Router::new().route("/pay", axum::routing::post(handler));
    let app = app.layer(once.layer()).with_state(Arc::clone(&status));
    (app, status, effects)
}

#[tokio::test]
async fn an_outcome_is_kept_a_refusal_leaves_the_key_free_and_a_failure_is_unknown() {
    for status in [200, 201, 204, 303, 402, 409, 410, 418, 423, 424] {
        let (app, say, effects) = answering(&once());
        say.store(status, SeqCst);
        let ask = pay("k", "{}");
        assert_eq!(ask.status(&app).await, status);
        say.store(200, SeqCst);
        let again = ask.send(&app).await;
        assert_eq!((again.status().as_u16(), is_replay(&again)), (status, true));
        assert_eq!(effects.count(), 1, "{status}");
    }
    for status in [
        400, 401, 403, 404, 405, 406, 411, 412, 413, 415, 422, 425, 428, 429, 501, 503,
    ] {
        let (app, say, effects) = answering(&once());
        say.store(status, SeqCst);
        let ask = pay("k", "{}");
        assert_eq!(ask.status(&app).await, status);
        say.store(200, SeqCst);
        let again = ask.send(&app).await;
        assert_eq!((again.status().as_u16(), is_replay(&again)), (200, false));
        assert_eq!(effects.count(), 2, "{status}");
    }
    for status in [408, 499, 500, 502, 504, 507, 599] {
        let (app, say, effects) = answering(&once());
        say.store(status, SeqCst);
        let ask = pay("k", "{}");
        assert_eq!(ask.status(&app).await, status);
        say.store(200, SeqCst);
        for _ in 0..2 {
            let (kind, _) = refused(ask.send(&app).await, StatusCode::CONFLICT).await;
            assert_eq!(
                (&*kind, effects.count()),
                ("outcome_unknown", 1),
                "{status}"
            );
        }
        let repeatable = builder().effect(Effect::Idempotent).build().unwrap();
        let (app, say, effects) = answering(&IdempotentRequests::new(&repeatable));
        say.store(status, SeqCst);
        assert_eq!(ask.status(&app).await, status);
        say.store(200, SeqCst);
        assert_eq!(ask.status(&app).await, 200, "{status}");
        assert_eq!(effects.count(), 2, "{status}");
    }
}

#[tokio::test]
async fn what_becomes_of_an_answer_is_the_owners_to_say() {
    let transactional = once().decide(|status, _| match status.is_server_error() {
        true => Disposition::Release,
        false => Disposition::Record,
    });
    let (app, say, effects) = answering(&transactional);
    say.store(500, SeqCst);
    let ask = pay("k", "{}");
    assert_eq!(ask.status(&app).await, 500);
    assert_eq!(ask.status(&app).await, 500);
    say.store(200, SeqCst);
    assert_eq!(ask.status(&app).await, 200);
    assert!(is_replay(&ask.send(&app).await));
    assert_eq!(effects.count(), 3);

    let (app, say, effects) = answering(&once().decide(|_, _| Disposition::Unknown));
    say.store(504, SeqCst);
    assert_eq!(ask.status(&app).await, 504);
    let (kind, _) = refused(ask.send(&app).await, StatusCode::CONFLICT).await;
    assert_eq!((&*kind, effects.count()), ("outcome_unknown", 1));
}

#[tokio::test]
async fn an_answer_above_the_limit_is_passed_on_whole_and_not_kept() {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move || {
        paid.another();
        let parts = (0..10).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from("12345"))));
        Body::new(StreamBody::new(futures_util::stream::iter(
            parts.collect::<Vec<_>>(),
        )))
    };
    let small = app(&once().max_response(20), handler.clone());
    let ask = pay("k", "{}");
    assert_eq!(text(ask.send(&small).await).await, "12345".repeat(10));
    let (kind, _) = refused(ask.send(&small).await, StatusCode::CONFLICT).await;
    assert_eq!((&*kind, effects.count()), ("outcome_not_kept", 1));
    // A body of exactly the limit is recorded.
    let enough = app(&once().max_response(50), handler);
    ask.send(&enough).await;
    let again = ask.send(&enough).await;
    assert!(is_replay(&again));
    assert_eq!(text(again).await, "12345".repeat(10));
}

#[tokio::test]
async fn a_route_that_promises_the_same_answer_always_answers_500_twice() {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move || {
        paid.another();
        "much too long"
    };
    let app = app(&once().max_response(5).refuse_unkept(true), handler);
    for replay in [false, true] {
        let response = pay("k", "{}").send(&app).await;
        assert_eq!(is_replay(&response), replay);
        let (kind, _) = refused(response, StatusCode::INTERNAL_SERVER_ERROR).await;
        assert_eq!(kind, "not_kept");
    }
    assert_eq!(effects.count(), 1);
}

/// A stream of events has no end to wait for.
#[tokio::test]
async fn events_arrive_while_they_are_sent() {
    let (send, events) = mpsc::channel::<&str>(1);
    let events = Arc::new(std::sync::Mutex::new(Some(events)));
    let handler = async move || {
        let mut events = events.lock().unwrap().take().unwrap();
        let frames = futures_util::stream::poll_fn(move |cx| {
            let next = events.poll_recv(cx);
            next.map(|event| {
                event.map(|event| Ok::<_, std::io::Error>(Frame::data(Bytes::from(event))))
            })
        });
        let kind = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
        (kind, Body::new(StreamBody::new(frames)))
    };
    let app = app(&once(), handler);
    let mut body = pay("k", "{}").send(&app).await.into_body();
    for event in ["one", "two"] {
        send.send(event).await.unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), event);
    }
    drop(send);
    assert!(body.frame().await.is_none());
    assert_eq!(pay("k", "{}").status(&app).await, 409);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_kept_as_if_it_were_whole() {
    let handler = async || {
        let parts = [
            Ok(Frame::data(Bytes::from("half"))),
            Err(std::io::Error::other("disk")),
        ];
        Body::new(StreamBody::new(futures_util::stream::iter(parts)))
    };
    let app = app(&once(), handler);
    let mut body = pay("k", "{}").send(&app).await.into_body();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "half"
    );
    assert!(body.frame().await.unwrap().is_err());
    assert_eq!(pay("k", "{}").status(&app).await, 409);
}

#[tokio::test]
async fn a_panic_is_a_500_and_leaves_the_outcome_unknown() {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move || {
        paid.another();
        assert!(paid.count() > 9, "a handler with a fault");
    };
    let app = app(&once(), handler);
    let ask = pay("k", "{}");
    let first = ask.send(&app).await;
    let (kind, document) = refused(first, StatusCode::INTERNAL_SERVER_ERROR).await;
    assert_eq!(kind, "panicked");
    let reveals = document.to_string().contains("a handler with a fault");
    assert!(!reveals, "{document}");
    let (kind, _) = refused(ask.send(&app).await, StatusCode::CONFLICT).await;
    assert_eq!((&*kind, effects.count()), ("outcome_unknown", 1));
}

#[tokio::test]
async fn a_handler_whose_work_may_be_repeated_runs_again_after_a_panic() {
    let effects = Effects::default();
    let paid = effects.clone();
    let handler = async move || {
        assert!(paid.another() > 1, "a handler with a fault");
        "paid"
    };
    let handle = builder().effect(Effect::Idempotent).build().unwrap();
    let app = app(&IdempotentRequests::new(&handle), handler);
    let ask = pay("k", "{}");
    assert_eq!(ask.status(&app).await, 500);
    assert_eq!(text(ask.send(&app).await).await, "paid");
}

/// Around a plain service, whose errors are not responses.
#[tokio::test]
async fn a_service_that_fails_instead_of_answering_leaves_the_outcome_unknown() {
    let effects = Effects::default();
    let paid = effects.clone();
    let service = service_fn(move |request: Request<IdempotentBody<Full<Bytes>>>| {
        let paid = paid.clone();
        async move {
            paid.another();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            match &*body {
                b"fail" => Err(std::io::Error::other("disk")),
                _ => Ok(Response::new(Full::new(body))),
            }
        }
    });
    let service = once().layer().layer(service);
    let send = |key: &'static str, body: &'static str| {
        let request = Request::post("/pay").header(IDEMPOTENCY_KEY, key);
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        service.clone().oneshot(request)
    };
    assert_eq!(send("a", "fail").await.unwrap_err().to_string(), "disk");
    assert_eq!(send("a", "fail").await.unwrap().status(), 409);
    assert_eq!(effects.count(), 1);
    for replay in [false, true] {
        let response = send("b", "echo").await.unwrap();
        let marked = response.headers().contains_key(IDEMPOTENT_REPLAYED);
        assert_eq!(marked, replay);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "echo");
    }
    assert_eq!(effects.count(), 2);
}
