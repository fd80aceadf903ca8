//! The server's layers around axum, on a real socket where that matters, and around a plain
//! service.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use proptest::prelude::*;
use resilience_core::{
    bulkhead::Bulkhead,
    deadline::{self, Deadline, Timeout},
};
use resilience_http::server::{self, InboundDeadline, Malformed};
use tokio::time::Instant;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn inbound(maximum: Duration) -> InboundDeadline {
    InboundDeadline::new("inbound", maximum).unwrap()
}

fn bulkhead(places: usize) -> Bulkhead {
    Bulkhead::builder("handlers")
        .max_concurrent(places)
        .build()
        .unwrap()
}

fn request(headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::get("/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Responds with the milliseconds that are left.
fn told_the_time_left() -> Router {
    let left = async || {
        deadline::current().map_or_else(String::new, |at| at.remaining().as_millis().to_string())
    };
    Router::new().route("/", get(left))
}

async fn time_left(inbound: &InboundDeadline, headers: &[(&str, &str)]) -> String {
    let app = told_the_time_left().layer(inbound.layer());
    text(app.oneshot(request(headers)).await.unwrap()).await
}

// === the deadline ===

#[tokio::test(start_paused = true)]
async fn a_handler_has_the_time_that_its_client_allows_and_no_more_than_the_servers_maximum() {
    let inbound = inbound(ms(10_000));
    for (headers, left) in [
        (&[][..], "10000"),
        (&[("request-timeout-ms", "500")], "500"),
        (&[("request-timeout-ms", "20000")], "10000"),
        (&[("grpc-timeout", "7S")], "7000"),
        (
            &[("grpc-timeout", "7S"), ("request-timeout-ms", "500")],
            "500",
        ),
        (
            &[("grpc-timeout", "1m"), ("request-timeout-ms", "500")],
            "1",
        ),
        (
            &[("request-timeout-ms", "500"), ("request-timeout-ms", "300")],
            "300",
        ),
        (
            &[("request-timeout-ms", "99999999999999999999999")],
            "10000",
        ),
    ] {
        assert_eq!(time_left(&inbound, headers).await, left, "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_header_may_have_another_name() {
    let name = http::HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
    let inbound = inbound(ms(10_000)).header(name);
    let headers = [
        ("x-envoy-expected-rq-timeout-ms", "40"),
        ("request-timeout-ms", "30"),
    ];
    assert_eq!(time_left(&inbound, &headers).await, "40");
}

#[tokio::test(start_paused = true)]
async fn a_malformed_header_is_ignored_or_answered_400_as_the_policy_says() {
    for value in ["", "soon", "-1", "1.5", "5s"] {
        let headers = [("request-timeout-ms", value)];
        assert_eq!(
            time_left(&inbound(ms(900)), &headers).await,
            "900",
            "{value:?}"
        );

        let strict = inbound(ms(900)).malformed(Malformed::Reject);
        let app = told_the_time_left().layer(strict.layer());
        let response = app.oneshot(request(&headers)).await.unwrap();
        assert_eq!(response.status(), 400, "{value:?}");
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        let document = text(response).await;
        assert!(
            document.contains("resilience:deadline:malformed"),
            "{document}"
        );
        assert!(document.contains("request-timeout-ms"), "{document}");
    }
}

#[tokio::test]
async fn a_request_that_is_too_late_is_answered_504_and_its_handler_does_not_run() {
    let (ran, inbound) = (Arc::new(AtomicBool::new(false)), inbound(ms(10_000)));
    let handler = {
        let ran = Arc::clone(&ran);
        async move || ran.store(true, SeqCst)
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(inbound.layer());
    for late in [("request-timeout-ms", "0"), ("grpc-timeout", "0n")] {
        let response = app.clone().oneshot(request(&[late])).await.unwrap();
        assert_eq!(response.status(), 504);
        assert!(text(response).await.contains(r#""reason":"no_time_left""#));
    }
    assert!(!ran.load(SeqCst));
    assert_eq!(inbound.timeout().snapshot().rejected, 2);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_overruns_is_dropped_at_the_deadline_and_its_client_told_504() {
    struct SetOnDrop(Arc<AtomicBool>);
    impl Drop for SetOnDrop {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }

    let (dropped, inbound) = (Arc::new(AtomicBool::new(false)), inbound(ms(10_000)));
    let handler = {
        let dropped = Arc::clone(&dropped);
        async move || {
            let _guard = SetOnDrop(dropped);
            std::future::pending::<()>().await;
        }
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(inbound.layer());
    let started = Instant::now();
    let response = app
        .oneshot(request(&[("request-timeout-ms", "250")]))
        .await
        .unwrap();
    let took = started.elapsed();
    assert!((ms(250)..ms(255)).contains(&took), "{took:?}");
    assert!(dropped.load(SeqCst));
    assert_eq!(response.status(), 504);
    assert!(!response.headers().contains_key("retry-after"));
    assert!(text(response).await.contains(r#""reason":"timed_out""#));
    assert_eq!(inbound.timeout().snapshot().timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_in_the_queue_of_a_bulkhead_waits_no_longer_than_its_deadline() {
    let queue = Bulkhead::builder("handlers")
        .max_concurrent(1)
        .queue(9, ms(60_000))
        .build()
        .unwrap();
    let taken = queue.try_acquire().unwrap();
    let app = told_the_time_left()
        .layer(server::guard(queue.layer()))
        .layer(inbound(ms(10_000)).layer());
    let started = Instant::now();
    let late = app
        .clone()
        .oneshot(request(&[("request-timeout-ms", "100")]))
        .await
        .unwrap();
    let waited = started.elapsed();
    assert!((ms(95)..ms(105)).contains(&waited), "{waited:?}");
    // A permit was missing, the handler was not slow: the bulkhead rejects just before the
    // deadline.
    assert_eq!(late.status(), 503);
    assert!(text(late).await.contains(r#""reason":"queue_timed_out""#));
    assert_eq!(queue.snapshot().queued, 0);
    drop(taken);
    assert_eq!(app.oneshot(request(&[])).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_from_further_out_still_counts() {
    let outer = Deadline::after(ms(40));
    let left = deadline::scope(outer, async { time_left(&inbound(ms(900)), &[]).await });
    assert_eq!(left.await, "40");
}

proptest! {
    #[test]
    fn whatever_the_header_holds_the_maximum_is_kept_and_nothing_panics(
        own in "[ -~]{0,24}|[0-9]{1,25}",
        grpc in "[ -~]{0,12}|[0-9]{0,10}[HMSmunx]",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let response = runtime.block_on(async {
            let app = told_the_time_left().layer(inbound(ms(900)).layer());
            let response = app.oneshot(request(&[("request-timeout-ms", &own), ("grpc-timeout", &grpc)])).await.unwrap();
            (response.status(), text(response).await)
        });
        match response {
            (StatusCode::GATEWAY_TIMEOUT, _) => {}
            (status, left) => {
                prop_assert_eq!(status, 200);
                prop_assert!(left.parse::<u64>().unwrap() <= 900);
            }
        }
    }
}

#[test]
fn the_grpc_form_is_read_to_the_letter() {
    let parse = |value: &str| server::parse_grpc_timeout(&value.parse().unwrap());
    for (value, expected) in [
        ("1H", Duration::from_secs(3600)),
        ("2M", Duration::from_secs(120)),
        ("3S", Duration::from_secs(3)),
        ("4m", ms(4)),
        ("5u", Duration::from_micros(5)),
        ("6n", Duration::from_nanos(6)),
        ("00000007S", Duration::from_secs(7)),
        ("99999999H", Duration::from_secs(86_400)),
    ] {
        assert_eq!(parse(value), Some(expected), "{value}");
    }
    for value in [
        "",
        "S",
        "5",
        "5s",
        "5 S",
        "+5S",
        "123456789S",
        "1.5S",
        "5SS",
        "5\u{e9}",
    ] {
        assert_eq!(parse(value), None, "{value:?}");
    }
}

// === the guard ===

#[tokio::test]
async fn one_guard_goes_around_a_router_a_route_and_a_plain_service() {
    let full = bulkhead(1);
    let taken = full.try_acquire().unwrap();
    let timeout = Timeout::new("handlers", ms(1000)).unwrap();
    let layers = || {
        server::guard(
            ServiceBuilder::new()
                .layer(timeout.layer())
                .layer(full.layer()),
        )
    };

    let router = Router::new().route("/", get("hello")).layer(layers());
    let route_layer = Router::new().route("/", get("hello")).route_layer(layers());
    let route = Router::new().route("/", get(async || "hello").layer(layers()));
    let as_service = Router::new().route_service(
        "/",
        ServiceBuilder::new().layer(layers()).service(route.clone()),
    );
    let fallback = Router::new().fallback_service(router.clone());
    for app in [router, route_layer, route, as_service, fallback] {
        let response = app.oneshot(request(&[])).await.unwrap();
        assert_eq!(response.status(), 503);
        assert!(
            response.headers()["retry-after"]
                .to_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
                >= 1
        );
    }

    let plain = service_fn(async |_: Request<Body>| Err::<Response<String>, _>("its own error"));
    let rejected = layers().layer(plain).oneshot(request(&[])).await.unwrap();
    assert_eq!(rejected.status(), 503);
    drop(taken);
    let failed = layers().layer(plain).oneshot(request(&[])).await;
    assert_eq!(failed.unwrap_err(), "its own error");
}

#[tokio::test]
async fn the_answer_can_be_ones_own() {
    let full = bulkhead(1);
    let _taken = full.try_acquire().unwrap();
    let busy = |rejected: &resilience_core::Rejected| {
        let mut response = Response::new(Body::from(rejected.to_string()));
        *response.status_mut() = StatusCode::INSUFFICIENT_STORAGE;
        response
    };
    let app = Router::new()
        .route("/", get("hello"))
        .layer(server::guard(full.layer()).answer(busy));
    let response = app.oneshot(request(&[])).await.unwrap();
    assert_eq!(response.status(), 507);
    assert!(
        text(response)
            .await
            .starts_with("bulkhead `handlers`: full")
    );
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_handler_returns_rejections_and_problems_of_its_own_by_the_question_mark() {
    use resilience_core::{Error, Pattern, Reason, Rejected};
    use resilience_http::problem::Problem;

    struct SoldOut;
    impl From<SoldOut> for Problem {
        fn from(_: SoldOut) -> Self {
            Self::new(StatusCode::CONFLICT, "Sold out")
        }
    }
    async fn guarded_call() -> Result<(), Error<SoldOut>> {
        Err(Error::Service(SoldOut))
    }
    async fn no() -> Result<&'static str, Problem> {
        Err(
            Rejected::new(Pattern::CircuitBreaker, Reason::Open, "stock")
                .with_retry_after(ms(1500)),
        )?
    }
    async fn sold_out() -> Result<&'static str, Problem> {
        guarded_call().await?;
        Ok("sold")
    }

    let open = Router::new()
        .route("/", get(no))
        .oneshot(request(&[]))
        .await
        .unwrap();
    assert_eq!(open.status(), 503);
    assert_eq!(open.headers()["retry-after"], "2");
    let conflict = Router::new()
        .route("/", get(sold_out))
        .oneshot(request(&[]))
        .await
        .unwrap();
    assert_eq!(conflict.status(), 409);
    assert_eq!(
        conflict.headers()["content-type"],
        "application/problem+json"
    );
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_stack_of_boxed_errors_is_answered_through_axums_own_adapter() {
    use axum::error_handling::HandleErrorLayer;
    use resilience_http::problem::Problem;
    use tower::BoxError;

    let full = bulkhead(1);
    let taken = full.try_acquire().unwrap();
    let boxed = |never: Infallible| -> BoxError { match never {} };
    let app = Router::new().route("/", get("hello")).layer(
        ServiceBuilder::new()
            .layer(HandleErrorLayer::new(async |error: BoxError| {
                Problem::of_error(&error)
            }))
            .layer(full.layer())
            .map_err(boxed),
    );
    let rejected = app.clone().oneshot(request(&[])).await.unwrap();
    assert_eq!(rejected.status(), 503);
    assert!(text(rejected).await.contains(r#""reason":"full""#));
    drop(taken);
    assert_eq!(app.oneshot(request(&[])).await.unwrap().status(), 200);
}
