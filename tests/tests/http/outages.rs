//! A server that is cut off from its store while it serves.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::post};
use resilience_core::idempotency::{Idempotency, OnUnrecorded};
use resilience_http::{
    Client,
    client::{Host, IdempotencyKeys},
    headers::IDEMPOTENCY_UNRECORDED,
    server::IdempotentRequests,
};
use resilience_redis::Redis;
use resilience_tests::{
    proxy::{Proxy, Weather},
    redis::RedisServer,
    torture::outages,
    until::eventually,
};
use tokio::sync::Notify;

const BOUND: Duration = Duration::from_secs(30);

/// In short; `make torture` is the long one.
#[tokio::test(flavor = "multi_thread")]
async fn no_success_is_told_that_has_neither_a_record_nor_the_mark_that_it_has_none() {
    let came = outages(60).await;
    println!("{came:?}");
    assert_eq!((came.without_record, came.lost), (0, 0));
    assert!(came.answered > 0 && came.cut_off > 0, "{came:?}");
}

/// A payment service whose line to Redis breaks while it works.
struct Bank {
    address: SocketAddr,
    payments: Idempotency,
    line: Proxy,
    begun: Arc<Notify>,
    go_on: Arc<Notify>,
    paid: Arc<AtomicUsize>,
    _redis: RedisServer,
}

impl Bank {
    async fn open(policy: OnUnrecorded) -> Self {
        let server = RedisServer::start();
        let proxy = Proxy::to(server.addr().parse().unwrap()).await.unwrap();
        let redis = Redis::connect(&format!("redis://{}", proxy.address())).unwrap();
        redis.ready(BOUND).await.expect("connects");
        let payments = Idempotency::builder("payments")
            .store(redis.idempotency())
            .on_unrecorded(policy)
            .build()
            .unwrap();
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let paid = Arc::new(AtomicUsize::new(0));
        let (begins, goes_on, counted) = (begun.clone(), go_on.clone(), paid.clone());
        let pay = async move || {
            begins.notify_one();
            goes_on.notified().await;
            counted.fetch_add(1, SeqCst);
            (StatusCode::CREATED, "receipt")
        };
        let once = IdempotentRequests::new(&payments);
        let app = Router::new().route("/pay", post(pay)).layer(once.layer());
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            address,
            payments,
            line: proxy,
            begun,
            go_on,
            paid,
            _redis: server,
        }
    }

    /// The line breaks in the middle of the work.
    async fn breaks(&mut self) {
        self.begun.notified().await;
        self.line.set(Weather::Refuse).await;
        self.go_on.notify_one();
    }

    async fn is_mended(&mut self) {
        self.line.set(Weather::Fine).await;
        eventually("the outcome is recorded", BOUND, async || {
            self.payments.snapshot().recorded == 1
        })
        .await;
    }

    fn url(&self) -> String {
        format!("http://{}/pay", self.address)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_not_recorded_is_held_back_and_says_nothing_about_the_server() {
    let mut bank = Bank::open(OnUnrecorded::default()).await;
    let url = bank.url();
    let client = Client::builder("payments").idempotency_keys(IdempotencyKeys::new());
    let client = client.build().unwrap();
    let pay = || client.post(&url).idempotency_key("\"7\"");
    let held = pay().timeout(Duration::from_secs(2)).send();
    let (held, ()) = tokio::join!(held, bank.breaks());
    let held = held.unwrap();
    assert_eq!(held.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(held.headers()[IDEMPOTENCY_UNRECORDED], "true");
    assert!(!held.headers().contains_key("retry-after"));
    let document = held.text().await.unwrap();
    assert!(document.contains("urn:problem-type:resilience:idempotency:unrecorded"));
    assert_eq!(client.retry().unwrap().snapshot().retries, 0);
    let host = Host::of(&url.parse().unwrap());
    let totals = client.breakers().unwrap().get(&host).snapshot().totals;
    assert_eq!((totals.failures, totals.ignored), (0, 1));

    bank.is_mended().await;
    let replayed = pay().send().await.unwrap();
    assert_eq!(replayed.status(), StatusCode::CREATED);
    assert_eq!(replayed.headers()["idempotent-replayed"], "true");
    assert!(!replayed.headers().contains_key(IDEMPOTENCY_UNRECORDED));
    assert_eq!(bank.paid.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_without_a_record_is_marked_where_it_is_sent_all_the_same() {
    let mut bank = Bank::open(OnUnrecorded::Answer).await;
    let url = bank.url();
    let pay = || {
        let post = reqwest::Client::new().post(&url);
        post.header("idempotency-key", "\"7\"").send()
    };
    let (told, ()) = tokio::join!(pay(), bank.breaks());
    let told = told.unwrap();
    assert_eq!(told.status(), StatusCode::CREATED);
    assert_eq!(told.headers()[IDEMPOTENCY_UNRECORDED], "true");
    bank.is_mended().await;
    let replayed = pay().await.unwrap();
    assert_eq!(replayed.status(), StatusCode::CREATED);
    assert!(!replayed.headers().contains_key(IDEMPOTENCY_UNRECORDED));
    assert_eq!(bank.paid.load(SeqCst), 1);
}
