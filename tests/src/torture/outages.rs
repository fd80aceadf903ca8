//! A server that is cut off from its store while it serves: the answers of its clients, and the records of the store.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, http::HeaderMap, routing::post};
use resilience_core::idempotency::{Idempotency, Key, record::Phase};
use resilience_http::server::IdempotentRequests;
use resilience_redis::Redis;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

use crate::{
    proxy::{Proxy, Weather},
    redis::RedisServer,
    until::eventually,
};

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outages {
    /// Responses with a status of 200.
    pub answered: usize,
    /// Of those, the ones without a record and without the mark that says so.
    pub without_record: usize,
    /// Responses that were held back: 503 with the mark.
    pub held_back: usize,
    /// Handlers that ran, and whose outcome was not recorded when the store was back.
    pub lost: usize,
    /// Times that the server was cut off.
    pub cut_off: usize,
}

const CLIENTS: usize = 16;
const SOON: Duration = Duration::from_secs(60);
const TENANT: &str = "tenant";

/// Sends requests with `requests` keys, each with a deadline and until it is answered or held back, while the store goes away and
/// comes back.
///
/// # Panics
/// If the servers do not start, or a request gets no response.
pub async fn outages(requests: usize) -> Outages {
    let store = RedisServer::start();
    let mut line = Proxy::to(store.addr().parse().expect("an address"))
        .await
        .expect("a port");
    let near = payments(&format!("redis://{}", line.address())).await;
    let direct = payments(&store.url()).await;
    let ran = Arc::new(AtomicUsize::new(0));
    let server = serve(&near, &ran).await;

    let done = Arc::new(AtomicBool::new(false));
    let weather = {
        let done = Arc::clone(&done);
        async move {
            let mut cut_off = 0;
            while !done.load(Relaxed) {
                for bad in [Weather::Blackhole, Weather::Refuse, Weather::CutAfter(20)] {
                    // A store that was away is noticed within a second to be back.
                    sleep(Duration::from_millis(fastrand::u64(300..1_500))).await;
                    line.set(bad).await;
                    sleep(Duration::from_millis(fastrand::u64(100..1_000))).await;
                    line.set(Weather::Fine).await;
                    cut_off += 1;
                }
            }
            (cut_off, line)
        }
    };
    let mut clients = JoinSet::new();
    for first in 0..CLIENTS {
        let direct = direct.clone();
        clients.spawn(async move {
            let mut told = Outages::default();
            for key in (first..requests).step_by(CLIENTS) {
                // Refused while the store is away: nothing was done.
                while !told.note(&direct, key, &send(server, key).await).await {
                    sleep(Duration::from_millis(20)).await;
                }
            }
            told
        });
    }
    let told = async {
        let told = clients.join_all().await;
        done.store(true, Relaxed);
        told
    };
    let (told, (cut_off, _line)) = tokio::join!(told, weather);
    let mut sum = Outages {
        cut_off,
        ..Outages::default()
    };
    for told in told {
        sum.answered += told.answered;
        sum.without_record += told.without_record;
        sum.held_back += told.held_back;
    }
    eventually(
        "completions are written when the store is back",
        SOON,
        async || near.snapshot().running == 0,
    )
    .await;
    let recorded = recorded(&direct, requests).await;
    sum.lost = ran.load(Relaxed) - recorded;
    sum
}

impl Outages {
    /// Whether the response says what became of the request.
    async fn note(&mut self, direct: &Idempotency, key: usize, response: &str) -> bool {
        let marked = response.contains("\r\nidempotency-unrecorded: true\r\n");
        let is_answered = response.starts_with("HTTP/1.1 200");
        if is_answered {
            self.answered += 1;
            self.without_record += usize::from(!marked && !is_done(direct, key).await);
        }
        self.held_back += usize::from(marked && !is_answered);
        is_answered || marked
    }
}

async fn recorded(direct: &Idempotency, requests: usize) -> usize {
    let mut recorded = 0;
    for key in 0..requests {
        recorded += usize::from(is_done(direct, key).await);
    }
    recorded
}

async fn is_done(direct: &Idempotency, key: usize) -> bool {
    let key = Key::new(key.to_string()).scope(TENANT);
    let view = direct.get(key).await.expect("an answer");
    view.is_some_and(|view| view.phase == Phase::Done)
}

async fn payments(url: &str) -> Idempotency {
    let redis = Redis::connect(url).expect("an address");
    redis.ready(SOON).await.expect("a Redis");
    let payments = Idempotency::builder("outages").store(redis.idempotency());
    payments.build().expect("valid settings")
}

async fn serve(payments: &Idempotency, ran: &Arc<AtomicUsize>) -> SocketAddr {
    let once = IdempotentRequests::new(payments).scope(|_| TENANT.into());
    let ran = Arc::clone(ran);
    let pay = async move |_: HeaderMap| {
        sleep(Duration::from_millis(fastrand::u64(10..300))).await;
        ran.fetch_add(1, Relaxed);
        "paid"
    };
    let app = Router::new().route("/pay", post(pay)).layer(once.layer());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

async fn send(server: SocketAddr, key: usize) -> String {
    let mut stream = TcpStream::connect(server).await.expect("a connection");
    let request = format!(
        "POST /pay HTTP/1.1\r\nhost: a.test\r\nidempotency-key: \"{key}\"\r\nrequest-timeout-ms: 1000\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer).await;
    read.expect("a response");
    answer
}
