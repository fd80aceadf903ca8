//! Clients that hang up in the middle of a handler, over real HTTP, with their records in Redis: the effect takes place
//! once, and a client that comes back gets the receipt.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, http::HeaderMap, routing::post};
use resilience_core::idempotency::Idempotency;
use resilience_http::server::IdempotentRequests;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use crate::{
    fleet::connect,
    redis::RedisServer,
    report::{Target, figure},
};

const TIMES: usize = 1_000;
const AT_ONCE: usize = 32;
const BOUND: Duration = Duration::from_secs(60);

/// Payments, by key.
struct Payments {
    begun: Vec<Semaphore>,
    go_on: Semaphore,
    paid: Vec<AtomicUsize>,
}

impl Payments {
    fn new() -> Self {
        Self {
            begun: (0..TIMES).map(|_| Semaphore::new(0)).collect(),
            go_on: Semaphore::new(0),
            paid: (0..TIMES).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    /// Says that it has begun, and goes on when it is let.
    async fn pay(&self, headers: &HeaderMap) -> String {
        let key = headers["idempotency-key"].to_str().expect("text");
        let key: usize = key.trim_matches('"').parse().expect("a number");
        self.begun[key].add_permits(1);
        self.go_on.acquire().await.expect("open").forget();
        let times = self.paid[key].fetch_add(1, SeqCst) + 1;
        receipt(key, times)
    }
}

fn receipt(key: usize, times: usize) -> String {
    format!("payment {key}, for the {times}. time")
}

pub(crate) async fn run() {
    let redis = RedisServer::start();
    let store = connect(&redis.url()).await.idempotency();
    let handle = Idempotency::builder("payments").store(store);
    let handle = handle.wait(TIMES, BOUND).build().expect("good settings");
    let payments = Arc::new(Payments::new());
    let server = serve(&handle, Arc::clone(&payments)).await;

    let hanging = Arc::clone(&payments);
    each(move |key| {
        let payments = Arc::clone(&hanging);
        async move { hang_up(server, &payments, key).await }
    })
    .await;
    // Every handler is in the middle, and every client gone.
    payments.go_on.add_permits(TIMES);
    let replayed = each(move |key| async move { gets_the_receipt(server, key).await }).await;
    let once = payments.paid.iter().filter(|paid| paid.load(SeqCst) == 1);
    for (name, value) in [
        ("hang_up_mid_handler_one_effect", once.count()),
        ("hang_up_mid_handler_replayed", replayed),
    ] {
        let all = Target::Exactly(TIMES as f64);
        figure(name, value as f64, &format!("of {TIMES} keys"), all);
    }
}

async fn serve(handle: &Idempotency, payments: Arc<Payments>) -> SocketAddr {
    let pay = move |headers: HeaderMap| async move { payments.pay(&headers).await };
    let once = IdempotentRequests::new(handle);
    let app = Router::new().route("/pay", post(pay)).layer(once.layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Every key, some at once; how many of them came true.
async fn each<F: Future<Output = bool> + Send + 'static>(
    one: impl Fn(usize) -> F + Clone + Send + Sync + 'static,
) -> usize {
    let mut tasks = JoinSet::new();
    for first in 0..AT_ONCE {
        let one = one.clone();
        tasks.spawn(async move {
            let mut count = 0;
            for key in (first..TIMES).step_by(AT_ONCE) {
                let came = timeout(BOUND, one(key)).await.expect("within the bound");
                count += usize::from(came);
            }
            count
        });
    }
    tasks.join_all().await.into_iter().sum()
}

async fn send(server: SocketAddr, key: usize) -> TcpStream {
    let mut client = TcpStream::connect(server).await.expect("a connection");
    let request = format!(
        "POST /pay HTTP/1.1\r\nhost: a.test\r\nidempotency-key: \"{key}\"\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    let sent = client.write_all(request.as_bytes()).await;
    sent.expect("sent");
    client
}

/// As soon as the handler has begun.
async fn hang_up(server: SocketAddr, payments: &Payments, key: usize) -> bool {
    let client = send(server, key).await;
    let begun = payments.begun[key].acquire().await;
    begun.expect("open").forget();
    drop(client);
    true
}

async fn gets_the_receipt(server: SocketAddr, key: usize) -> bool {
    let mut answer = String::new();
    let mut client = send(server, key).await;
    let read = client.read_to_string(&mut answer).await;
    read.expect("an answer");
    answer.starts_with("HTTP/1.1 200")
        && answer.contains("\r\nidempotent-replayed:")
        && answer.ends_with(&receipt(key, 1))
}
