//! In the company of others: tower's balancer, its buffer, axum's routes.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, http::StatusCode, routing::get};
use resilience_core::conformance::layer::{Ask, Driven, Plan, Probe, Readiness, Stack, rest};
use resilience_core::{
    Verdict,
    breaker::{CircuitBreaker, HalfOpen, OpenFor, Override, State},
    bulkhead::Bulkhead,
    completion::Guard,
    deadline::Timeout,
};
use resilience_http::{HttpClassifier, OnBodyEnd, server};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt,
    balance::p2c::Balance,
    buffer::Buffer,
    discover::ServiceList,
    load::{CompleteOnResponse, PendingRequests},
    util::BoxCloneSyncService,
};

const SECOND: Duration = Duration::from_secs(1);

fn breaker(name: &str) -> CircuitBreaker {
    CircuitBreaker::builder(name)
        .consecutive_failures(5)
        .open_for(OpenFor::fixed(5 * SECOND))
        .half_open(HalfOpen::probes(1))
        .build()
        .unwrap()
}

fn trip(breaker: &CircuitBreaker) {
    for _ in 0..5 {
        breaker.acquire().unwrap().settle(Verdict::transient());
    }
    assert_eq!(breaker.state(), State::Open);
}

/// Endpoints under a balancer, each behind its own breaker as a gate.
fn balanced(
    endpoints: &[(&CircuitBreaker, &Probe)],
) -> impl Service<Ask, Response = u32, Future: Send> + use<> {
    let endpoint = |(breaker, probe): &(&CircuitBreaker, &Probe)| {
        let guarded = Stack::new(breaker.layer().gate().layer(Probe::clone(probe)));
        PendingRequests::new(guarded, CompleteOnResponse::default())
    };
    let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    Balance::new(ServiceList::new::<Ask>(endpoints))
}

#[tokio::test(start_paused = true)]
async fn a_balancer_passes_over_an_endpoint_whose_breaker_is_open() {
    let (good, bad) = (breaker("good"), breaker("bad"));
    let (up, down) = (Probe::default(), Probe::default());
    let mut balance = balanced(&[(&good, &up), (&bad, &down)]);
    for _ in 0..20 {
        assert!(call(&mut balance, Plan::Answer).await.is_ok());
    }
    let before = down.seen().calls;
    trip(&bad);
    for _ in 0..200 {
        assert!(call(&mut balance, Plan::Answer).await.is_ok());
    }
    assert_eq!(
        down.seen().calls,
        before,
        "calls went to the endpoint whose breaker is open"
    );
}

/// It fails on its own, under load; the calls that it fails are the only ones that fail.
#[tokio::test(start_paused = true)]
async fn a_balancer_learns_from_the_breaker_and_comes_back_to_a_healed_endpoint() {
    let (good, bad) = (breaker("good"), breaker("bad"));
    let (up, down) = (Probe::default(), Probe::default());
    let mut balance = balanced(&[(&good, &up), (&bad, &down)]);
    down.set(Readiness::Open);
    trip(&bad);
    assert!(call(&mut balance, Plan::Answer).await.is_ok());
    tokio::time::advance(6 * SECOND).await;
    for _ in 0..50 {
        rest().await;
        assert!(call(&mut balance, Plan::Answer).await.is_ok());
    }
    assert_eq!(bad.state(), State::Closed, "it was not probed");
    assert!(
        down.seen().calls > 5,
        "{} calls after it has healed",
        down.seen().calls
    );
}

#[tokio::test(start_paused = true)]
async fn when_all_endpoints_are_open_callers_wait_without_spinning_and_are_woken() {
    let (one, two) = (breaker("one"), breaker("two"));
    let probe = Probe::default();
    let mut balance = balanced(&[(&one, &probe), (&two, &probe)]);
    trip(&one);
    trip(&two);
    let mut waiting = Driven::new(call(&mut balance, Plan::Answer));
    assert!(!waiting.run().await);
    assert!(waiting.polls() <= 10, "{} polls", waiting.polls());
    tokio::time::advance(6 * SECOND).await;
    assert!(
        waiting.run().await,
        "no waiter was woken when the open interval was over"
    );
    assert!(waiting.polls() <= 10, "{} polls", waiting.polls());
    assert!(matches!(waiting.output(), Some(Ok(1))));
}

/// An order is no timer: who waits is woken by the handle.
#[tokio::test(start_paused = true)]
async fn who_waits_at_a_gate_is_woken_by_an_order() {
    let breaker = breaker("gate");
    breaker.set_override(Override::force_open("maintenance"));
    let mut service = breaker.layer().gate().layer(Stack::new(Probe::default()));
    let mut waiting = Driven::new(async { service.ready().await.map(|_| ()) });
    assert!(!waiting.run().await);
    tokio::time::advance(3600 * SECOND).await;
    assert!(!waiting.run().await, "an order lapsed by itself");
    assert!(breaker.clear_override("done"));
    assert!(
        waiting.run().await,
        "no waiter was woken by the end of the override"
    );
}

/// As a gate, a timeout never calls an endpoint ready only to refuse the call.
#[tokio::test(start_paused = true)]
async fn a_balancer_never_takes_an_endpoint_that_is_not_ready_for_one_that_is() {
    let timeout = Timeout::new("endpoint", SECOND).unwrap();
    let (up, down) = (Probe::default(), Probe::default());
    down.set(Readiness::Closed);
    let endpoint = |probe: &Probe| {
        let guarded = Stack::new(timeout.layer().gate().layer(probe.clone()));
        PendingRequests::new(guarded, CompleteOnResponse::default())
    };
    let mut balance = Balance::new(ServiceList::new::<Ask>(vec![
        endpoint(&up),
        endpoint(&down),
    ]));
    for _ in 0..50 {
        assert!(call(&mut balance, Plan::Answer).await.is_ok());
        tokio::time::advance(SECOND).await;
    }
    assert_eq!((up.seen().calls, down.seen().calls), (50, 0));
}

async fn call<S: Service<Ask>>(service: &mut S, plan: Plan) -> Result<S::Response, S::Error> {
    service.ready().await?.call(plan.into()).await
}

/// All of a program's clones, one worker: the breaker opens, rejects and closes again behind it.
#[tokio::test(start_paused = true)]
async fn a_breaker_behind_a_buffer_opens_and_closes_for_everybody() {
    let (breaker, probe) = (breaker("buffered"), Probe::default());
    let mut service = Buffer::new(Stack::new(breaker.layer().layer(probe.clone())), 16);
    for _ in 0..5 {
        assert!(call(&mut service, Plan::Fail).await.is_err());
    }
    for _ in 0..50 {
        assert!(call(&mut service.clone(), Plan::Answer).await.is_err());
    }
    assert_eq!(probe.seen().calls, 5);
    tokio::time::advance(6 * SECOND).await;
    assert!(call(&mut service, Plan::Answer).await.is_ok());
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_stack_of_all_layers_fits_in_a_boxed_service_that_is_clone_and_sync() {
    let timeout = Timeout::new("boxed", SECOND).unwrap();
    let bulkhead = Bulkhead::builder("boxed").build().unwrap();
    let breaker = breaker("boxed");
    let stack = ServiceBuilder::new()
        .layer(BoxCloneSyncService::layer())
        .layer(timeout.layer())
        .layer(bulkhead.layer())
        .layer(breaker.layer())
        .service(Probe::default());
    let shared: &(dyn Fn() -> _ + Sync) = &|| stack.clone();
    assert!(call(&mut shared(), Plan::Answer).await.is_ok());
}

/// axum clones the service of a route for every connection and every request.
#[tokio::test]
async fn one_breaker_on_two_routes_is_one_breaker() {
    let broken = Arc::new(AtomicBool::new(true));
    let breaker = breaker("handlers");
    let guard = || {
        server::guard(
            breaker
                .layer()
                .classify(HttpClassifier::new())
                .complete_on(OnBodyEnd::new()),
        )
    };
    let flaky = {
        let broken = Arc::clone(&broken);
        move || async move {
            if broken.load(SeqCst) {
                StatusCode::INTERNAL_SERVER_ERROR
            } else {
                StatusCode::OK
            }
        }
    };
    let app = Router::new()
        .route("/flaky", get(flaky).layer(guard()))
        .route("/other", get(async || "fine").layer(guard()))
        .route("/free", get(async || "free"));
    for _ in 0..5 {
        assert_eq!(status(&app, "/flaky").await, 500);
    }
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(status(&app, "/flaky").await, 503);
    assert_eq!(
        status(&app, "/other").await,
        503,
        "the other route has a breaker of its own"
    );
    assert_eq!(status(&app, "/free").await, 200);
}

#[tokio::test]
async fn one_bulkhead_on_two_routes_and_many_connections_is_one_bulkhead() {
    let bulkhead = Bulkhead::builder("handlers")
        .max_concurrent(2)
        .build()
        .unwrap();
    let app = Router::new()
        .route(
            "/slow",
            get(std::future::pending::<()>).layer(server::bulkhead(&bulkhead)),
        )
        .route(
            "/other",
            get(async || "fine").layer(server::bulkhead(&bulkhead)),
        );
    let hung: Vec<_> = (0..2)
        .map(|_| Driven::new(app.clone().oneshot(request("/slow"))))
        .collect();
    let mut hung = hung;
    for one in &mut hung {
        assert!(!one.run().await);
    }
    assert_eq!(bulkhead.snapshot().in_flight, 2);
    assert_eq!(status(&app, "/other").await, 503);
    // The client hangs up.
    drop(hung);
    assert_eq!(bulkhead.snapshot().in_flight, 0);
    assert_eq!(status(&app, "/other").await, 200);
}

fn request(path: &str) -> http::Request<Body> {
    http::Request::get(path).body(Body::empty()).unwrap()
}

async fn status(app: &Router, path: &str) -> u16 {
    let response: Result<_, Infallible> = app.clone().oneshot(request(path)).await;
    response.unwrap().status().as_u16()
}
