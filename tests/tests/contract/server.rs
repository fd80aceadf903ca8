//! The layers of `resilience_http::server`, held to every contract: a question travels as the body of an HTTP request,
//! its answer in the extensions of the response.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use resilience_core::conformance::layer::{Answer, Ask, Instance, Plan, Stack, Subject};
use resilience_core::{
    Pattern, Reason, Rejected,
    bulkhead::Bulkhead,
    idempotency::Idempotency,
    limit::{Quota, RateLimit, fleet::FleetRateLimit, store::InProcessLimits},
};
use resilience_http::{
    OnBodyEnd,
    server::{self, IdempotentBody, IdempotentRequests, InboundDeadline, LimitRequests},
};
use tower::{
    BoxError, Layer, Service, ServiceBuilder,
    layer::layer_fn,
    util::{MapRequestLayer, MapResponseLayer, MapResultLayer},
};

const PLACES: usize = 4;
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn guard_around_a_bulkhead() {
    let make = || async {
        let (bulkhead, counted) = bulkhead();
        Instance::new(move || over_http(server::guard(bulkhead.layer()).answer(keep))).held(counted)
    };
    Subject::new("guard around a bulkhead", make)
        .rejects_after(PLACES, Plan::Hang)
        .keeps_every_contract();
}

#[test]
fn guard_around_a_bulkhead_until_the_end_of_the_body() {
    let make = || async {
        let (bulkhead, counted) = bulkhead();
        Instance::new(move || {
            let layer = bulkhead.layer().complete_on(OnBodyEnd::new());
            over_http(server::guard(layer).answer(keep))
        })
        .held(counted)
    };
    Subject::new("guard around a bulkhead until the end of the body", make)
        .rejects_after(PLACES, Plan::Hang)
        .keeps_every_contract();
}

#[test]
fn inbound_deadline() {
    let make = || async {
        let inbound = InboundDeadline::new("contract", Duration::from_secs(60)).unwrap();
        Instance::new(move || over_http(inbound.layer()))
    };
    Subject::new("inbound deadline", make).keeps_every_contract();
}

#[test]
fn limit_of_requests() {
    let make = || async {
        let limit = RateLimit::builder("contract").permits(1_000_000, SECOND);
        let limits = LimitRequests::new(&limit.build().unwrap());
        Instance::new(move || over_http(limits.layer()))
    };
    Subject::new("limit of requests", make).keeps_every_contract();
}

#[test]
fn shared_limit_of_requests() {
    let make = || async {
        let limit = FleetRateLimit::builder("contract")
            .store(InProcessLimits::new())
            .limit("a", Quota::per(1_000_000, SECOND).unwrap())
            .build()
            .unwrap();
        let limits = LimitRequests::new(&limit);
        Instance::new(move || over_http(limits.layer()))
    };
    Subject::new("shared limit of requests", make).keeps_every_contract();
}

/// What has no key passes as if the layer were not there. What has one runs in a task of its own, which is meant to
/// outlive its caller.
#[test]
fn idempotent_requests_without_a_key() {
    let make = || async {
        let handle = Idempotency::builder("contract").build().unwrap();
        let once = IdempotentRequests::new(&handle);
        Instance::new(move || over_bodies(once.layer()))
    };
    Subject::new("idempotent requests without a key", make).keeps_every_contract();
}

fn bulkhead() -> (Bulkhead, impl Fn() -> u64 + Send + Sync + 'static) {
    let bulkhead = Bulkhead::builder("contract")
        .max_concurrent(PLACES)
        .build()
        .unwrap();
    let counted = bulkhead.clone();
    (bulkhead, move || counted.snapshot().in_flight as u64)
}

/// Answers a rejection so that it can be told again.
fn keep<B: From<String>>(rejected: &Rejected) -> Response<B> {
    let mut response = Response::new(B::from(String::new()));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.extensions_mut().insert(rejected.clone());
    response
}

/// `layer` in the middle, the checks' own types outside and inside.
fn over_http<L, B>(
    layer: L,
) -> impl Layer<
    Stack,
    Service = impl Service<Ask, Response = Answer, Error = BoxError, Future: Send>
              + Clone
              + Send
              + Sync
              + 'static,
>
where
    L: Layer<Inner>,
    L::Service: Service<Request<Ask>, Response = Response<B>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: 'static,
{
    layer_fn(move |stack: Stack| {
        let inner: Inner = ServiceBuilder::new()
            .layer(MapRequestLayer::new(
                Request::into_body as fn(Request<Ask>) -> Ask,
            ))
            .layer(MapResponseLayer::new(
                answered as fn(Answer) -> Response<String>,
            ))
            .service(stack);
        ServiceBuilder::new()
            .layer(MapRequestLayer::new(
                Request::new as fn(Ask) -> Request<Ask>,
            ))
            .layer(MapResultLayer::new(told as fn(_) -> _))
            .service(layer.layer(inner))
    })
}

/// The same for layers that look at bodies: the question travels in the extensions of the request.
fn over_bodies<L, B>(
    layer: L,
) -> impl Layer<
    Stack,
    Service = impl Service<Ask, Response = Answer, Error = BoxError, Future: Send>
              + Clone
              + Send
              + Sync
              + 'static,
>
where
    L: Layer<Embodied>,
    L::Service: Service<Request<Full<Bytes>>, Response = Response<B>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: 'static,
{
    layer_fn(move |stack: Stack| {
        let inner = ServiceBuilder::new()
            .layer(MapRequestLayer::new(
                asked as fn(Request<IdempotentBody<Full<Bytes>>>) -> Ask,
            ))
            .layer(MapResponseLayer::new(
                embodied as fn(Answer) -> Response<Full<Bytes>>,
            ))
            .service(stack);
        let post = |ask: Ask| {
            let request = Request::post("/").extension(ask);
            request.body(Full::new(Bytes::from("a body"))).unwrap()
        };
        ServiceBuilder::new()
            .layer(MapRequestLayer::new(
                post as fn(Ask) -> Request<Full<Bytes>>,
            ))
            .layer(MapResultLayer::new(told as fn(_) -> _))
            .service(layer.layer(inner))
    })
}

type Embodied = tower::util::MapRequest<
    tower::util::MapResponse<Stack, fn(Answer) -> Response<Full<Bytes>>>,
    fn(Request<IdempotentBody<Full<Bytes>>>) -> Ask,
>;

fn asked(request: Request<IdempotentBody<Full<Bytes>>>) -> Ask {
    let (mut head, _) = request.into_parts();
    head.extensions
        .remove()
        .expect("every request has a question")
}

fn embodied(answer: Answer) -> Response<Full<Bytes>> {
    answered(answer).map(|body| Full::new(Bytes::from(body)))
}

type Inner = tower::util::MapRequest<
    tower::util::MapResponse<Stack, fn(Answer) -> Response<String>>,
    fn(Request<Ask>) -> Ask,
>;

fn answered(answer: Answer) -> Response<String> {
    let mut response = Response::new(String::from("a body"));
    response.extensions_mut().insert(answer);
    response
}

fn told<B>(result: Result<Response<B>, BoxError>) -> Result<Answer, BoxError> {
    let response = result?;
    if let Some(&answer) = response.extensions().get::<Answer>() {
        return Ok(answer);
    }
    match response.extensions().get::<Rejected>() {
        Some(rejected) => Err(rejected.clone().into()),
        None => {
            assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
            Err(Rejected::new(Pattern::Deadline, Reason::TimedOut, "contract").into())
        }
    }
}
