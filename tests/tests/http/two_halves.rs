//! The client and the server of the toolkit with their defaults: a caller gets the outcome of its first attempt.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::post};
use resilience_core::idempotency::{Effect, Idempotency, IdempotencyBuilder};
use resilience_http::{
    Client,
    client::IdempotencyKeys,
    server::{IdempotentRequests, InboundDeadline},
};
use resilience_tests::{
    proxy::{Proxy, Weather},
    until::eventually,
};

const BOUND: Duration = Duration::from_secs(30);
/// Shorter than every handler here.
const ATTEMPT: Duration = Duration::from_millis(500);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Payments that take some time each.
#[derive(Clone, Default)]
struct Bank {
    begun: Arc<AtomicUsize>,
    paid: Arc<AtomicUsize>,
}

impl Bank {
    /// A server whose handler takes `takes`, with nothing around it but the layer, or a deadline as well.
    async fn open(&self, takes: Duration, deadline: bool) -> SocketAddr {
        let bank = self.clone();
        let pay = async move || {
            bank.begun.fetch_add(1, SeqCst);
            tokio::time::sleep(takes).await;
            format!("payment {}", bank.paid.fetch_add(1, SeqCst) + 1)
        };
        let payments = Idempotency::builder("payments").build().unwrap();
        let once = IdempotentRequests::new(&payments);
        let mut app = Router::new().route("/pay", post(pay)).layer(once.layer());
        if deadline {
            let inbound = InboundDeadline::new("inbound", BOUND).unwrap();
            app = app.layer(inbound.layer());
        }
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        address
    }
}

fn keyed() -> Client {
    let client = Client::builder("payments").idempotency_keys(IdempotencyKeys::new());
    client.attempt_timeout(ATTEMPT).build().unwrap()
}

async fn pay(client: &Client, server: SocketAddr) -> (u16, String) {
    let response = client
        .post(format!("http://{server}/pay"))
        .body("20.00 EUR");
    let response = response.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_whose_attempts_time_out_gets_the_outcome_of_the_first_one() {
    let calls = [(600, false), (1_000, true), (1_500, false), (1_500, true)];
    let calls = calls.map(|(takes, deadline)| async move {
        let bank = Bank::default();
        let server = bank.open(ms(takes), deadline).await;
        let told = pay(&keyed(), server).await;
        assert_eq!(told, (200, "payment 1".into()), "{takes} ms, {deadline}");
        assert_eq!(bank.begun.load(SeqCst), 1, "{takes} ms, {deadline}");
    });
    futures_util::future::join_all(calls).await;
}

/// A server that fails for the first request that reaches its handler, and pays for the others.
async fn fails_first(handle: IdempotencyBuilder, begun: &Arc<AtomicUsize>) -> SocketAddr {
    let begun = Arc::clone(begun);
    let pay = async move || match begun.fetch_add(1, SeqCst) {
        0 => Err(StatusCode::INTERNAL_SERVER_ERROR),
        number => Ok(format!("payment {number}")),
    };
    let once = IdempotentRequests::new(&handle.build().unwrap());
    let app = Router::new().route("/pay", post(pay)).layer(once.layer());
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// A 500 says neither that something was done nor that nothing was: it is neither replayed as if it were the outcome, nor
/// is the work repeated that must not be.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_tried_again_where_the_work_may_be_and_is_unknown_where_it_may_not() {
    let begun = Arc::new(AtomicUsize::new(0));
    let payments = || Idempotency::builder("payments");
    let server = fails_first(payments(), &begun).await;
    let (status, told) = pay(&keyed(), server).await;
    assert_eq!(status, 409, "{told}");
    assert!(told.contains("outcome_unknown"), "{told}");
    assert_eq!(begun.load(SeqCst), 1);

    let begun = Arc::new(AtomicUsize::new(0));
    let server = fails_first(payments().effect(Effect::Idempotent), &begun).await;
    let told = pay(&keyed(), server).await;
    assert_eq!(told, (200, "payment 1".into()));
    assert_eq!(begun.load(SeqCst), 2);
}

/// Longer than all attempts of a retry together.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_waits_for_its_first_attempt_for_as_long_as_its_deadline_allows() {
    let bank = Bank::default();
    let server = bank.open(ms(4_000), false).await;
    assert_eq!(pay(&keyed(), server).await, (200, "payment 1".into()));
    assert_eq!(bank.begun.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_whose_connection_breaks_during_the_work_gets_its_outcome() {
    let bank = Bank::default();
    let server = bank.open(ms(700), false).await;
    let mut proxy = Proxy::to(server).await.unwrap();
    let client = Client::builder("payments").idempotency_keys(IdempotencyKeys::new());
    let client = client.build().unwrap();
    let call = pay(&client, proxy.address());
    let breaks = async {
        eventually("the handler has begun", BOUND, async || {
            bank.begun.load(SeqCst) == 1
        })
        .await;
        proxy.set(Weather::Reset).await;
        proxy.set(Weather::Fine).await;
        proxy
    };
    let (told, _proxy) = tokio::join!(call, breaks);
    assert_eq!(told, (200, "payment 1".into()));
    assert_eq!(bank.begun.load(SeqCst), 1);
}
