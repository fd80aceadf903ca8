//! The layers of `resilience_http::client`, held to every contract: each alone, and the stack of the default client. A
//! question travels by its number in a header of a reqwest request, its answer in the extensions of the response.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use reqwest::{Request, Response};
use resilience_core::conformance::layer::{Answer, Ask, Instance, Plan, Stack, Subject};
use resilience_core::{
    breaker::{CircuitBreaker, Window},
    bulkhead::Bulkhead,
    deadline::Timeout,
    keyed::Keyed,
    limit::upstream::UpstreamLimits,
    retry::{Backoff, Retry, RetryBudget},
};
use resilience_http::{
    HttpClassifier, OnBodyEnd,
    client::{
        CallTimeoutLayer, Host, HttpReplay, IdempotencyKeys, Propagation, UpstreamLimitsLayer,
    },
};
use tower::{
    BoxError, Layer, Service, ServiceBuilder,
    layer::layer_fn,
    util::{BoxCloneSyncService, MapRequestLayer, MapResponseLayer},
};

const PLACES: usize = 4;
const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn deadline_of_the_whole_call() {
    let make = || async {
        let timeout = Timeout::new("contract", MINUTE).unwrap();
        Instance::new(move || over_reqwest(CallTimeoutLayer::new(&timeout)))
    };
    Subject::new("deadline of the whole call", make).keeps_every_contract();
}

#[test]
fn propagation() {
    let make = || async { Instance::new(|| over_reqwest(Propagation::new().layer())) };
    Subject::new("propagation", make).keeps_every_contract();
}

#[test]
fn idempotency_keys() {
    let keys = || IdempotencyKeys::new().methods([reqwest::Method::GET]);
    let make = move || async move { Instance::new(move || over_reqwest(keys().layer())) };
    Subject::new("idempotency keys", make).keeps_every_contract();
}

#[test]
fn limits_of_peers() {
    let make = || async {
        let peers = UpstreamLimits::builder("contract").build().unwrap();
        Instance::new(move || over_reqwest(UpstreamLimitsLayer::new(&peers)))
    };
    Subject::new("limits of peers", make).keeps_every_contract();
}

/// The layers of the default client in their order, with settings that suit the checks.
#[test]
fn the_stack_of_the_default_client() {
    let make = || async {
        let deadline = Timeout::new("contract", MINUTE).unwrap();
        let retry = Retry::builder("contract")
            .backoff(Backoff::fixed(Duration::from_millis(10)))
            .budget(RetryBudget::unlimited())
            .build()
            .unwrap();
        let bulkheads = Bulkhead::builder("contract")
            .max_concurrent(PLACES)
            .keyed(Keyed::new())
            .unwrap();
        let breakers = CircuitBreaker::builder("contract")
            .window(Window::count(200))
            .minimum_calls(200)
            .keyed(Keyed::new())
            .unwrap();
        let counted = bulkheads.clone();
        let host: fn(&Request) -> Host = |request| Host::of(request.url());
        let stack = move || {
            let layers = ServiceBuilder::new()
                .layer(CallTimeoutLayer::new(&deadline))
                .layer(
                    retry
                        .layer()
                        .classify(HttpClassifier::new())
                        .replay(HttpReplay::new()),
                )
                .layer(bulkheads.layer(host).complete_on(OnBodyEnd::new()))
                .layer(
                    breakers
                        .layer(host)
                        .classify(HttpClassifier::new())
                        .complete_on(OnBodyEnd::new()),
                )
                .layer(Propagation::new().layer());
            over_reqwest(layers.into_inner())
        };
        Instance::new(stack).held(move || counted.snapshot().in_flight as u64)
    };
    Subject::new("the stack of the default client", make)
        .rejects_after(PLACES, Plan::Hang)
        .makes_further_attempts()
        .keeps_every_contract();
}

type Inner = BoxCloneSyncService<Request, Response, BoxError>;

/// `layer` in the middle, the checks' own types outside and inside.
fn over_reqwest<L>(
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
    L::Service: Service<Request, Response = Response, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    layer_fn(move |stack: Stack| {
        let inner = ServiceBuilder::new()
            .layer(MapRequestLayer::new(question))
            .layer(MapResponseLayer::new(answered))
            .service(stack);
        ServiceBuilder::new()
            .layer(MapRequestLayer::new(request))
            .layer(MapResponseLayer::new(told))
            .service(layer.layer(Inner::new(inner)))
    })
}

/// The questions that are under way, by number.
static ASKED: Mutex<Option<HashMap<u64, Ask>>> = Mutex::new(None);

fn request(ask: Ask) -> Request {
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    let asked = asked.get_or_insert_default();
    let number = asked.len() as u64;
    asked.insert(number, ask);
    let mut request = Request::new(reqwest::Method::GET, "http://api.test/".parse().unwrap());
    request.headers_mut().insert("question", number.into());
    request
}

#[expect(clippy::needless_pass_by_value, reason = "the request ends here")]
fn question(request: Request) -> Ask {
    let number = request.headers()["question"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    asked
        .as_ref()
        .and_then(|asked: &HashMap<u64, Ask>| asked.get(&number))
        .unwrap()
        .clone()
}

fn answered(answer: Answer) -> Response {
    let mut response = http::Response::new("a body");
    response.extensions_mut().insert(answer);
    response.into()
}

/// The body is dropped unread, as callers do.
#[expect(clippy::needless_pass_by_value, reason = "the response ends here")]
fn told(response: Response) -> Answer {
    *response.extensions().get().expect("the answer")
}
