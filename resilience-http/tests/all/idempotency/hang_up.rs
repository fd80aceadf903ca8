//! Clients that disconnect during their request, over real sockets.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, header::HOST};
use resilience_http::{headers::IDEMPOTENCY_KEY, idempotency::KeyRules};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use super::rig::*;

const TIMES: usize = 1_000;
const BOUND: Duration = Duration::from_secs(60);

/// A handler that reports its start, and waits for permission to continue.
#[derive(Clone)]
struct Slow {
    /// By key.
    begun: Arc<Vec<Semaphore>>,
    go_on: Arc<Semaphore>,
    effects: Effects,
    /// Handlers that were dropped before their end.
    dropped: Effects,
}

struct Unfinished(Option<Effects>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(dropped) = self.0.take() {
            dropped.another();
        }
    }
}

impl Slow {
    fn new() -> Self {
        Self {
            begun: Arc::new((0..TIMES).map(|_| Semaphore::new(0)).collect()),
            go_on: Arc::new(Semaphore::new(0)),
            effects: Effects::default(),
            dropped: Effects::default(),
        }
    }

    async fn handle(self, headers: HeaderMap) -> String {
        let mut unfinished = Unfinished(Some(self.dropped));
        let key = KeyRules::new().read(&headers).unwrap().unwrap();
        let key: usize = key.as_str().parse().unwrap();
        self.begun[key].add_permits(1);
        self.go_on.acquire().await.unwrap().forget();
        unfinished.0 = None;
        format!("payment {}", self.effects.another())
    }
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// Sends a request, and disconnects as soon as its handler has started.
async fn hang_up(server: SocketAddr, slow: &Slow, key: usize) {
    let mut client = TcpStream::connect(server).await.unwrap();
    let request = format!(
        "POST /pay HTTP/1.1\r\nhost: a.test\r\nidempotency-key: \"{key}\"\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    slow.begun[key].acquire().await.unwrap().forget();
    drop(client);
}

async fn again(client: &reqwest::Client, server: SocketAddr, key: usize) -> (HeaderMap, String) {
    let request = client.post(format!("http://{server}/pay")).body("{}");
    // The host is part of the request's identity.
    let request = request.header(HOST, "a.test");
    let request = request.header(IDEMPOTENCY_KEY, format!("\"{key}\""));
    let response = request.send().await.unwrap();
    (response.headers().clone(), response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_up_mid_handler_has_paid_once_and_gets_the_receipt_a_thousand_times_of_a_thousand()
 {
    let slow = Slow::new();
    let handler = slow.clone();
    let handle = builder().wait(TIMES, BOUND).build().unwrap();
    let once = resilience_http::server::IdempotentRequests::new(&handle);
    let server = serve(app(&once, move |headers| handler.clone().handle(headers))).await;
    let all = async {
        let hanging = stream::iter(0..TIMES).map(|key| hang_up(server, &slow, key));
        hanging.buffer_unordered(32).collect::<()>().await;
        // Every handler is running, and every client has disconnected.
        assert_eq!(slow.effects.count(), 0);
        slow.go_on.add_permits(TIMES);
        let client = reqwest::Client::new();
        let coming = stream::iter(0..TIMES).map(|key| again(&client, server, key));
        coming.buffer_unordered(32).collect::<Vec<_>>().await
    };
    let answers = timeout(BOUND, all).await.expect("within the bound");
    let replayed = answers
        .iter()
        .filter(|(headers, _)| headers.contains_key("idempotent-replayed"));
    assert_eq!(replayed.count(), TIMES);
    let mut receipts: Vec<_> = answers.into_iter().map(|(_, receipt)| receipt).collect();
    receipts.sort();
    receipts.dedup();
    assert_eq!(
        receipts.len(),
        TIMES,
        "everybody has a receipt of their own"
    );
    assert_eq!((slow.effects.count(), slow.dropped.count()), (TIMES, 0));
}

/// Without the layer the test above fails: proof that it can.
#[tokio::test]
async fn without_the_layer_a_handler_whose_client_hangs_up_is_dropped_in_the_middle() {
    let slow = Slow::new();
    let handler = slow.clone();
    let server = serve(post_only(move |headers| handler.clone().handle(headers))).await;
    hang_up(server, &slow, 0).await;
    let noticed = async {
        while slow.dropped.count() == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(BOUND, noticed).await.expect("it is noticed");
    assert_eq!(slow.effects.count(), 0);
}
