//! Replies that get lost after the request was served: with keys on both sides, a POST takes effect once.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, extract::Request, middleware, routing::post};
use resilience_core::{
    idempotency::{Idempotency, IdempotencyBuilder},
    retry::{Backoff, Retry, RetryBudget},
};
use resilience_http::{
    Client,
    client::{ClientBuilder, IdempotencyKeys},
    server::IdempotentRequests,
};
use resilience_redis::Redis;
use resilience_tests::{
    proxy::{Proxy, Weather},
    redis::RedisServer,
    until::eventually,
};

const BOUND: Duration = Duration::from_secs(30);

/// A payment service on a real socket.
#[derive(Clone, Default)]
struct Bank {
    /// Requests that came in, served or not.
    asked: Arc<AtomicUsize>,
    paid: Arc<AtomicUsize>,
}

impl Bank {
    async fn open(&self, layered: impl FnOnce(Router) -> Router) -> SocketAddr {
        let (asked, paid) = (self.asked.clone(), self.paid.clone());
        let pay = async move || format!("payment {}", paid.fetch_add(1, SeqCst) + 1);
        let count = move |request: Request, next: middleware::Next| {
            asked.fetch_add(1, SeqCst);
            next.run(request)
        };
        let app = layered(Router::new().route("/pay", post(pay)));
        let app = app.layer(middleware::from_fn(count));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        address
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    fn paid(&self) -> usize {
        self.paid.load(SeqCst)
    }
}

fn client() -> ClientBuilder {
    let retry = Retry::builder("payments")
        .max_attempts(50)
        .backoff(Backoff::fixed(Duration::from_millis(20)))
        .budget(RetryBudget::unlimited());
    Client::builder("payments")
        .deadline(BOUND)
        .without_breaker()
        .retry(retry.build().unwrap())
}

fn once(handle: IdempotencyBuilder) -> impl FnOnce(Router) -> Router {
    let handle = handle.wait(100, BOUND).build().unwrap();
    let once = IdempotentRequests::new(&handle).required(true);
    move |app: Router| app.layer(once.layer())
}

/// One payment through weather that cuts replies off until at least two were lost. What the caller gets.
async fn pay(
    client: &Client,
    bank: &Bank,
    server: SocketAddr,
    storm: Weather,
) -> reqwest::Response {
    let mut proxy = Proxy::to(server).await.unwrap();
    proxy.set(storm).await;
    let url = format!("http://{}/pay", proxy.address());
    let before = bank.asked();
    let call = client.post(url).body("20.00 EUR").idempotent(true).send();
    let clears = async {
        // When the third request is there, the replies to two are lost.
        eventually("a third attempt", BOUND, async || {
            bank.asked() >= before + 3
        })
        .await;
        proxy.set(Weather::Fine).await;
        proxy
    };
    let (response, _proxy) = tokio::join!(call, clears);
    response.unwrap()
}

async fn pays_once(builder: IdempotencyBuilder) {
    let bank = Bank::default();
    let server = bank.open(once(builder)).await;
    let keyed = client().idempotency_keys(IdempotencyKeys::new());
    let keyed = keyed.build().unwrap();
    for (number, cut) in [0, 1, 20, 60].into_iter().enumerate() {
        let response = pay(&keyed, &bank, server, Weather::CutAfter(cut)).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["idempotent-replayed"], "true");
        let receipt = response.text().await.unwrap();
        assert_eq!(
            receipt,
            format!("payment {}", number + 1),
            "cut after {cut}"
        );
        assert_eq!(bank.paid(), number + 1, "cut after {cut}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_whose_reply_is_lost_takes_effect_once_and_its_caller_gets_the_receipt() {
    pays_once(Idempotency::builder("payments")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_whose_reply_is_lost_takes_effect_once_with_its_records_in_redis() {
    let server = RedisServer::start();
    let redis = Redis::builder(&server.url())
        .budget(BOUND)
        .connect()
        .unwrap();
    redis.ready(BOUND).await.expect("connects");
    pays_once(Idempotency::builder("payments").store(redis.idempotency())).await;
}

/// What the tests above would see without the layers: that they can fail.
#[tokio::test(flavor = "multi_thread")]
async fn without_keys_a_post_whose_reply_is_lost_takes_effect_again() {
    let bank = Bank::default();
    let server = bank.open(|app| app).await;
    let plain = client().build().unwrap();
    pay(&plain, &bank, server, Weather::CutAfter(20)).await;
    assert!(bank.paid() >= 3, "{}", bank.paid());
}

/// Two instances behind which one Redis stands: each gets half of the attempts.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_instance_gives_the_answer_that_the_first_has_given() {
    let server = RedisServer::start();
    let redis = Redis::builder(&server.url())
        .budget(BOUND)
        .connect()
        .unwrap();
    redis.ready(BOUND).await.expect("connects");
    let bank = Bank::default();
    let handle = || Idempotency::builder("payments").store(redis.idempotency());
    let instances = [
        bank.open(once(handle())).await,
        bank.open(once(handle())).await,
    ];
    let client = client().build().unwrap();
    for key in 0..20 {
        let send = |instance: SocketAddr| {
            let call = client.post(format!("http://{instance}/pay"));
            let call = call.idempotency_key(format!("\"{key}\"")).send();
            async move { call.await.unwrap().text().await.unwrap() }
        };
        // At once, and once more.
        let (one, other) = tokio::join!(send(instances[0]), send(instances[1]));
        let again = send(instances[key % 2]).await;
        assert_eq!((&one, &again), (&other, &other));
    }
    assert_eq!(bank.paid(), 20);
}
