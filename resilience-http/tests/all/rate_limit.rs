//! Rate limits around axum, on a real socket where that matters, and a client that respects them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{HeaderName, Request, Response, header};
use http_body_util::BodyExt;
use resilience_core::{
    Error, Reason,
    fleet::{FleetOptions, OnOutage},
    keyed::Keyed,
    limit::{
        Quota, RateLimit,
        fleet::{Costs, FleetRateLimit},
        store::{Demand, InProcessLimits, LimitStore, StoreDecision, StoreError, StoreFuture},
        upstream::UpstreamLimits,
    },
};
use resilience_http::{
    Client,
    rate_limit::{Policy, ServiceLimit, read_limits, read_policies},
    server::{ClientAddress, LimitKey, LimitRequests, MissingKey, RequestLimit},
};
use serde_json::Value;
use tokio::net::TcpListener;
use tower::ServiceExt;

const MINUTE: Duration = Duration::from_secs(60);

fn quota(permits: u64, period: Duration) -> Quota {
    Quota::per(permits, period).unwrap()
}

fn shared(permits: u64) -> FleetRateLimit {
    let limit = FleetRateLimit::builder("api").store(InProcessLimits::new());
    limit
        .limit("per-minute", quota(permits, MINUTE))
        .build()
        .unwrap()
}

/// Counts its calls.
fn app<L: RequestLimit>(limits: &LimitRequests<L>) -> (Router, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let handler = move || {
        counted.fetch_add(1, SeqCst);
        async { "served" }
    };
    let routes = Router::new()
        .route("/orders/{id}", get(handler.clone()))
        .route("/", get(handler));
    (routes.layer(limits.layer()), calls)
}

async fn ask(app: &Router, path: &str, fields: &[(HeaderName, &str)]) -> Response<Body> {
    let mut request = Request::get(path);
    for (name, value) in fields {
        request = request.header(name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

async fn document(response: Response<Body>) -> Value {
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "application/problem+json"
    );
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

fn field<'a>(response: &'a Response<Body>, name: &str) -> &'a str {
    response.headers()[name].to_str().unwrap()
}

#[tokio::test(start_paused = true)]
async fn clients_are_told_how_they_stand_and_when_to_come_back() {
    let limits = LimitRequests::new(&shared(2)).jitter(0.0).unwrap();
    let (app, calls) = app(&limits);
    for left in [1, 0] {
        let response = ask(&app, "/", &[]).await;
        assert_eq!(response.status(), 200);
        assert_eq!(
            field(&response, "ratelimit-policy"),
            "\"per-minute\";q=2;w=60"
        );
        let told = format!("\"per-minute\";r={left};t=30");
        assert_eq!(field(&response, "ratelimit"), told);
    }
    tokio::time::advance(Duration::from_millis(500)).await;
    let refused = ask(&app, "/", &[]).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(field(&refused, "retry-after"), "30");
    assert_eq!(field(&refused, "ratelimit"), "\"per-minute\";r=0;t=30");
    let document = document(refused).await;
    assert_eq!(
        document["type"],
        "https://iana.org/assignments/http-problem-types#quota-exceeded"
    );
    assert_eq!(
        document["violated-policies"],
        serde_json::json!(["per-minute"])
    );
    assert_eq!(document["retry_after_ms"], 29_500);
    assert_eq!(
        calls.load(SeqCst),
        2,
        "a refused request reached the handler"
    );
    tokio::time::advance(Duration::from_millis(29_500)).await;
    assert_eq!(ask(&app, "/", &[]).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn those_who_are_refused_together_are_not_told_to_come_back_together() {
    let (app, _) = app(&LimitRequests::new(&shared(1)));
    ask(&app, "/", &[]).await;
    let mut told = Vec::new();
    for _ in 0..200 {
        let wait: u64 = field(&ask(&app, "/", &[]).await, "retry-after")
            .parse()
            .unwrap();
        told.push(wait);
    }
    assert!(told.iter().all(|wait| (60..=72).contains(wait)), "{told:?}");
    told.sort_unstable();
    told.dedup();
    assert!(told.len() > 6, "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_wait_of_less_than_a_second_is_never_none() {
    let limit = RateLimit::builder("local")
        .permits(10, Duration::from_secs(1))
        .burst(1);
    let (app, calls) = app(&LimitRequests::new(&limit.build().unwrap()));
    let first = ask(&app, "/", &[]).await;
    assert_eq!(field(&first, "ratelimit-policy"), "\"local\";q=10;w=1");
    assert_eq!(field(&first, "ratelimit"), "\"local\";r=0;t=1");
    for _ in 0..50 {
        let refused = ask(&app, "/", &[]).await;
        let wait: u64 = field(&refused, "retry-after").parse().unwrap();
        assert!((1..=2).contains(&wait), "{wait}");
    }
    assert_eq!(calls.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_window_of_less_than_a_second_is_told_by_the_second() {
    let limit = RateLimit::builder("local").permits(5, Duration::from_millis(100));
    let (app, _) = app(&LimitRequests::new(&limit.build().unwrap()));
    let response = ask(&app, "/", &[]).await;
    assert_eq!(field(&response, "ratelimit-policy"), "\"local\";q=50;w=1");
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_and_those_without_one_do_as_the_policy_says() {
    let tenant = HeaderName::from_static("x-tenant");
    for (policy, second) in [
        (MissingKey::Share, 429),
        (MissingKey::Pass, 200),
        (MissingKey::Refuse, 400),
    ] {
        let family = RateLimit::builder("tenants").permits(1, MINUTE);
        let limit = family.keyed(Keyed::new()).unwrap();
        let key = LimitKey::header(tenant.clone());
        let (app, _) = app(&LimitRequests::new(&limit).key(key).missing_key(policy));
        for name in ["a", "b"] {
            let of = [(tenant.clone(), name)];
            assert_eq!(ask(&app, "/", &of).await.status(), 200, "{name}");
            assert_eq!(ask(&app, "/", &of).await.status(), 429, "{name}");
        }
        ask(&app, "/", &[]).await;
        let none = ask(&app, "/", &[]).await;
        assert_eq!(none.status(), second, "{policy:?}");
        if policy == MissingKey::Refuse {
            let kind = &document(none).await["type"];
            assert_eq!(kind, "urn:problem-type:resilience:rate_limit:no_key");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn several_limits_with_their_own_costs_are_told_of_and_the_one_that_refuses_is_named() {
    let limit = FleetRateLimit::builder("api")
        .store(InProcessLimits::new())
        .limit("requests", quota(10, MINUTE))
        .limit("bytes", quota(1000, Duration::from_secs(3600)))
        .build()
        .unwrap();
    let length = |head: &http::request::Parts| {
        let length = head.headers.get(header::CONTENT_LENGTH);
        length
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .unwrap_or(0)
    };
    let limits = LimitRequests::new(&limit)
        .cost(move |head| Costs::each(1).on("bytes", length(head)))
        .unit("bytes", "content-bytes")
        .partition(true);
    let (app, calls) = app(&limits);
    let of = async |bytes| ask(&app, "/", &[(header::CONTENT_LENGTH, bytes)]).await;
    let first = of("800").await;
    // The first eight bytes of the SHA-256 of "all".
    let pk = [94, 245, 239, 3, 100, 182, 147, 156];
    let policies = read_policies(first.headers());
    let bytes = Policy::new("bytes", 1000).unit("content-bytes");
    assert_eq!(
        policies,
        [
            Policy::new("requests", 10).window(MINUTE).partition(pk),
            bytes.window(60 * MINUTE).partition(pk),
        ]
    );
    let left = |name, left, seconds| {
        let limit = ServiceLimit::new(name, left).partition(pk);
        limit.window(Duration::from_secs(seconds))
    };
    assert_eq!(
        read_limits(first.headers()),
        [left("requests", 9, 6), left("bytes", 200, 4)]
    );
    let refused = of("300").await;
    assert_eq!(refused.status(), 429);
    assert!(
        field(&refused, "ratelimit").starts_with("\"requests\";r=9"),
        "nothing was charged"
    );
    let names = &document(refused).await["violated-policies"];
    assert_eq!(*names, serde_json::json!(["bytes"]));
    let too_much = of("1001").await;
    assert_eq!(too_much.status(), 422);
    assert!(!too_much.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(calls.load(SeqCst), 1);
}

#[derive(Debug)]
struct Away;

impl LimitStore for Away {
    fn decide<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: &'a [Demand<'a>],
    ) -> StoreFuture<'a, StoreDecision> {
        Box::pin(async { Err(StoreError::new("away", false)) })
    }

    fn heartbeat<'a>(&'a self, _: &'a str, _: &'a str, _: Duration) -> StoreFuture<'a, u64> {
        Box::pin(async { Err(StoreError::new("away", false)) })
    }
}

#[tokio::test(start_paused = true)]
async fn without_its_store_a_limit_answers_as_its_policy_says() {
    for (policy, status) in [(OnOutage::FailOpen, 200), (OnOutage::FailClosed, 503)] {
        let limit = FleetRateLimit::builder("api")
            .store(Away)
            .limit("per-minute", quota(1, MINUTE))
            .fleet(FleetOptions::new().on_outage(policy))
            .build()
            .unwrap();
        let (app, _) = app(&LimitRequests::new(&limit));
        for _ in 0..3 {
            let response = ask(&app, "/", &[]).await;
            assert_eq!(response.status(), status, "{policy:?}");
            assert!(
                !response.headers().contains_key("ratelimit"),
                "the limits are unknown"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_is_a_key_and_its_parameters_are_not() {
    let family = RateLimit::builder("routes").permits(1, MINUTE);
    let limit = family.keyed(Keyed::new()).unwrap();
    let (app, _) = app(&LimitRequests::new(&limit).key(LimitKey::matched_path()));
    assert_eq!(ask(&app, "/orders/1", &[]).await.status(), 200);
    assert_eq!(ask(&app, "/orders/2", &[]).await.status(), 429);
    assert_eq!(ask(&app, "/", &[]).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn without_fields_a_refusal_says_when_to_come_back_still() {
    let (app, _) = app(&LimitRequests::new(&shared(1)).fields(false));
    assert!(
        !ask(&app, "/", &[])
            .await
            .headers()
            .contains_key("ratelimit")
    );
    let refused = ask(&app, "/", &[]).await;
    assert!(!refused.headers().contains_key("ratelimit-policy"));
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
}

#[test]
fn a_jitter_that_makes_no_sense_is_refused() {
    let limit = RateLimit::builder("l").build().unwrap();
    for wrong in [-0.1, 11.0, f64::NAN] {
        let error = LimitRequests::new(&limit).jitter(wrong).unwrap_err();
        assert_eq!(error.field(), "jitter");
    }
}

/// On a real socket.
async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

#[tokio::test]
async fn the_peer_is_the_key_and_behind_a_trusted_proxy_its_client_is() {
    let by = |address: ClientAddress| {
        let family = RateLimit::builder("addresses").permits(1, MINUTE);
        let limit = family.keyed(Keyed::new()).unwrap();
        app(&LimitRequests::new(&limit).key(LimitKey::address(address))).0
    };
    let http = reqwest::Client::new();
    let get = async |server: SocketAddr, client: &str| {
        let request = http.get(format!("http://{server}/"));
        let response = request.header("x-forwarded-for", client).send().await;
        response.unwrap().status().as_u16()
    };
    let strangers = serve(by(ClientAddress::new())).await;
    assert_eq!(get(strangers, "203.0.113.7").await, 200);
    assert_eq!(
        get(strangers, "203.0.113.8").await,
        429,
        "a header was believed"
    );
    let behind = serve(by(ClientAddress::new().trust(["127.0.0.0/8"]).unwrap())).await;
    assert_eq!(get(behind, "203.0.113.7").await, 200);
    assert_eq!(get(behind, "203.0.113.8").await, 200);
    assert_eq!(get(behind, "8.8.8.8, 203.0.113.7").await, 429);
}

#[tokio::test]
async fn a_client_that_keeps_to_what_it_is_told_is_refused_by_no_server() {
    let limit = RateLimit::builder("local")
        .permits(3, MINUTE)
        .build()
        .unwrap();
    let (app, calls) = app(&LimitRequests::new(&limit));
    let server = serve(app).await;
    let peers = UpstreamLimits::builder("peers").build().unwrap();
    let client = Client::builder("c")
        .upstream_limits(peers.clone())
        .build()
        .unwrap();
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(match client.get(format!("http://{server}/")).send().await {
            Ok(response) => response.status().as_u16(),
            Err(Error::Rejected(rejected)) => {
                assert_eq!(rejected.reason(), Reason::RateLimited);
                0
            }
            Err(error) => panic!("{error}"),
        });
    }
    assert_eq!(statuses, [200, 200, 200, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!((calls.load(SeqCst), peers.snapshot().rejected), (3, 7));
}
