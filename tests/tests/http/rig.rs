//! Two guarded clients: the default one, and a stack by hand in another order.

use std::{future::Future, net::SocketAddr, time::Duration};

use reqwest::{Method, Response, Url};
use resilience_core::{
    Error, Rejected,
    breaker::{BreakerSnapshot, CircuitBreaker, HalfOpen, KeyedCircuitBreaker, OpenFor, Window},
    bulkhead::{Bulkhead, KeyedBulkhead},
    deadline::Timeout,
    keyed::Keyed,
    retry::{Backoff, Retry, RetryBudget},
};
use resilience_http::{
    Client, HttpClassifier, OnBodyEnd,
    client::{CallTimeoutLayer, Host, HttpReplay, Propagation, ReqwestService, reqwest_builder},
};
use tokio::time::{Instant, sleep};
use tower::ServiceBuilder;

pub(crate) const DEADLINE: Duration = Duration::from_millis(400);
/// What a loaded machine may add to anything.
pub(crate) const SLACK: Duration = Duration::from_secs(5);
pub(crate) const OPEN_FOR: Duration = Duration::from_millis(200);
/// Failures in a row that open a breaker.
pub(crate) const TRIPS: u32 = 10;

pub(crate) type Sent = Result<Response, Error<reqwest::Error>>;

/// A client and the handles of its layers.
pub(crate) struct Rig {
    pub(crate) kind: &'static str,
    pub(crate) client: Client,
    pub(crate) retry: Retry,
    breakers: KeyedCircuitBreaker<Host>,
    bulkheads: KeyedBulkhead<Host>,
    host: Host,
}

/// Both clients, for calls to `server`.
pub(crate) fn rigs(server: SocketAddr) -> [Rig; 2] {
    [
        Rig::default_client(server, OnBodyEnd::new().name("rig")),
        Rig::by_hand(server, OnBodyEnd::new().name("rig")),
    ]
}

impl Rig {
    /// The client as it comes, with settings that suit a test.
    pub(crate) fn default_client(server: SocketAddr, body_end: OnBodyEnd) -> Self {
        let (retry, breakers, bulkheads) = handles();
        let client = Client::builder("rig")
            .deadline(DEADLINE)
            .retry(retry.clone())
            .breaker(breakers.clone())
            .bulkhead(bulkheads.clone())
            .body_end(body_end)
            .build()
            .unwrap();
        Self {
            kind: "default client",
            client,
            retry,
            breakers,
            bulkheads,
            host: host(server),
        }
    }

    /// The bulkhead outside the retry, one place for the whole call; and the breaker outermost of all but that, so
    /// that what it sees is the outcome of all attempts.
    pub(crate) fn by_hand(server: SocketAddr, body_end: OnBodyEnd) -> Self {
        let (retry, breakers, bulkheads) = handles();
        let deadline = Timeout::new("rig", DEADLINE).unwrap();
        let http = reqwest_builder().build().unwrap();
        let host_of: fn(&reqwest::Request) -> Host = |request| Host::of(request.url());
        let stack = ServiceBuilder::new()
            .layer(bulkheads.layer(host_of).complete_on(body_end.clone()))
            .layer(CallTimeoutLayer::new(&deadline))
            .layer(
                retry
                    .layer()
                    .classify(HttpClassifier::new())
                    .replay(HttpReplay::new()),
            )
            .layer(
                breakers
                    .layer(host_of)
                    .classify(HttpClassifier::new())
                    .complete_on(body_end),
            )
            .layer(Propagation::new().layer())
            .service(ReqwestService::new(http.clone()));
        let client = Client::from_service(http, stack);
        Self {
            kind: "stack by hand",
            client,
            retry,
            breakers,
            bulkheads,
            host: host(server),
        }
    }

    pub(crate) async fn send(&self, method: Method, url: &str) -> Sent {
        self.client.request(method, url).send().await
    }

    pub(crate) async fn get(&self, url: &str) -> Sent {
        self.send(Method::GET, url).await
    }

    pub(crate) fn breaker(&self) -> BreakerSnapshot {
        self.breakers.get(&self.host).snapshot()
    }

    /// Successes, failures, and what was ignored, as the breaker has counted them.
    pub(crate) fn judged(&self) -> (u64, u64, u64) {
        let totals = self.breaker().totals;
        (totals.successes, totals.failures, totals.ignored)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.bulkheads.get(&self.host).snapshot().in_flight
    }

    /// Nothing is held once a call is over; the sockets may take a moment to follow.
    pub(crate) async fn settles(&self, judged: (u64, u64, u64)) {
        let done = eventually(|| self.in_flight() == 0 && self.judged() == judged).await;
        let seen = (self.in_flight(), self.judged());
        assert!(
            done,
            "{}: (in flight, (ok, failed, ignored)) is {seen:?}, not (0, {judged:?})",
            self.kind
        );
    }
}

fn handles() -> (Retry, KeyedCircuitBreaker<Host>, KeyedBulkhead<Host>) {
    let retry = Retry::builder("rig")
        .max_attempts(2)
        .backoff(Backoff::fixed(Duration::from_millis(1)))
        .budget(RetryBudget::unlimited())
        .build()
        .unwrap();
    let breakers = CircuitBreaker::builder("rig")
        .window(Window::count(1000))
        .minimum_calls(1000)
        .consecutive_failures(TRIPS)
        .open_for(OpenFor::fixed(OPEN_FOR))
        .half_open(HalfOpen::probes(1))
        .keyed(Keyed::new())
        .unwrap();
    let bulkheads = Bulkhead::builder("rig")
        .max_concurrent(8)
        .keyed(Keyed::new())
        .unwrap();
    (retry, breakers, bulkheads)
}

fn host(server: SocketAddr) -> Host {
    Host::of(&Url::parse(&format!("http://{server}/")).unwrap())
}

pub(crate) fn service_error(sent: Sent) -> reqwest::Error {
    match sent {
        Err(Error::Service(error)) => error,
        other => panic!("expected an error of reqwest's, not {other:?}"),
    }
}

pub(crate) fn rejection(sent: Sent) -> Rejected {
    match sent {
        Err(Error::Rejected(rejected)) => rejected,
        other => panic!("expected a rejection, not {other:?}"),
    }
}

/// Whether `holds` comes true within the time that a loaded machine may take.
pub(crate) async fn eventually(holds: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < SLACK {
        if holds() {
            return true;
        }
        sleep(Duration::from_millis(2)).await;
    }
    holds()
}

/// How long something takes.
pub(crate) async fn timed<F: Future>(future: F) -> (Duration, F::Output) {
    let start = Instant::now();
    let output = future.await;
    (start.elapsed(), output)
}
