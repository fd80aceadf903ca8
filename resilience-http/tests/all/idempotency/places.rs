//! A bulkhead around idempotent handlers, on a real server: clients that go away by each way there is, and the most
//! handlers in progress at once.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use resilience_core::bulkhead::Bulkhead;
use resilience_http::{
    headers::IDEMPOTENCY_KEY,
    server::{self, InboundDeadline},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use super::rig::*;

const BOUND: Duration = Duration::from_secs(60);
const PLACES: usize = 3;

/// Handlers that wait to be let go on.
#[derive(Clone)]
struct Handlers {
    begun: Arc<Semaphore>,
    go_on: Arc<Semaphore>,
    running: Effects,
    ended: Effects,
}

/// A server whose handlers are limited by a bulkhead, outside of idempotency as documented.
struct Scene {
    handlers: Handlers,
    places: Bulkhead,
    server: SocketAddr,
}

impl Handlers {
    fn new() -> Self {
        Self {
            begun: Arc::new(Semaphore::new(0)),
            go_on: Arc::new(Semaphore::new(0)),
            running: Effects::default(),
            ended: Effects::default(),
        }
    }

    async fn handle(self) -> &'static str {
        self.running.another();
        self.begun.add_permits(1);
        self.go_on.acquire().await.unwrap().forget();
        self.ended.another();
        "paid"
    }
}

impl Scene {
    async fn start(deadline: Duration) -> Self {
        let handlers = Handlers::new();
        let places = Bulkhead::builder("handlers").max_concurrent(PLACES);
        let places = places.build().unwrap();
        let (once, handler) = (once(), handlers.clone());
        let app = app(&once, move || handler.clone().handle());
        let inbound = InboundDeadline::new("inbound", deadline).unwrap();
        let app = app.layer(server::bulkhead(&places)).layer(inbound.layer());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            handlers,
            places,
            server,
        }
    }

    /// The status of the response, or `None` if the handler began, and the client went away in the middle.
    async fn unless_begun(&self, response: impl Future<Output = u16>) -> Option<u16> {
        let either = async {
            tokio::select! {
                biased;
                begun = self.handlers.begun.acquire() => {
                    begun.unwrap().forget();
                    None
                }
                status = response => Some(status),
            }
        };
        timeout(BOUND, either).await.expect("one or the other")
    }

    /// One of `outcomes` for each place, the other clients are refused; all places are held by handlers whose clients
    /// have gone, and free when these have ended.
    async fn stays_within_its_places(self, outcomes: &[Option<u16>]) {
        let admitted = outcomes.iter().filter(|outcome| **outcome != Some(503));
        assert_eq!(admitted.count(), PLACES, "{outcomes:?}");
        assert_eq!(self.handlers.running.count(), PLACES);
        assert_eq!(self.places.snapshot().in_flight, PLACES);
        self.handlers.go_on.add_permits(PLACES);
        let free = async {
            while self.places.snapshot().in_flight > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(BOUND, free)
            .await
            .expect("the places are free again");
        assert_eq!(self.handlers.ended.count(), PLACES);
    }
}

/// The status of a request over a connection of its own, which is closed when the future is dropped.
async fn over_http1(server: SocketAddr, key: usize) -> u16 {
    let mut client = TcpStream::connect(server).await.unwrap();
    let request = format!(
        "POST /pay HTTP/1.1\r\nhost: a.test\r\nidempotency-key: \"{key}\"\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).await.unwrap();
    std::str::from_utf8(&head[9..]).unwrap().parse().unwrap()
}

/// The status of a request over a shared connection; dropping the future resets its stream.
async fn over_http2(client: &reqwest::Client, server: SocketAddr, key: usize) -> u16 {
    let request = client.post(format!("http://{server}/pay")).body("{}");
    let request = request.header(IDEMPOTENCY_KEY, format!("\"{key}\""));
    let response = request.send().await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    response.status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_whose_clients_hang_up_are_never_more_than_the_places() {
    let scene = Scene::start(BOUND).await;
    let mut outcomes = Vec::new();
    for key in 0..60 {
        outcomes.push(scene.unless_begun(over_http1(scene.server, key)).await);
    }
    scene.stays_within_its_places(&outcomes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_whose_streams_are_reset_are_never_more_than_the_places() {
    let scene = Scene::start(BOUND).await;
    let client = reqwest::Client::builder().http2_prior_knowledge();
    let client = client.build().unwrap();
    let mut outcomes = Vec::new();
    for key in 0..100 {
        let response = over_http2(&client, scene.server, key);
        outcomes.push(scene.unless_begun(response).await);
    }
    scene.stays_within_its_places(&outcomes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_outlive_the_deadline_of_their_requests_are_never_more_than_the_places() {
    let scene = Scene::start(Duration::from_millis(100)).await;
    let mut outcomes = Vec::new();
    for key in 0..100 {
        outcomes.push(Some(over_http1(scene.server, key).await));
    }
    let late = outcomes.iter().filter(|outcome| **outcome == Some(504));
    assert_eq!(late.count(), PLACES);
    scene.stays_within_its_places(&outcomes).await;
}

/// The order by hand, of a plain handler: its place is free as soon as its client has gone, and so is the handler's work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_ends_with_its_client_gives_its_place_back() {
    let places = Bulkhead::builder("handlers")
        .max_concurrent(1)
        .build()
        .unwrap();
    let handlers = Handlers::new();
    let handler = handlers.clone();
    let app: Router = post_only(move || handler.clone().handle()).layer(server::bulkhead(&places));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    for key in 0..3 {
        tokio::select! {
            status = over_http1(server, key) => panic!("{status}"),
            begun = handlers.begun.acquire() => begun.unwrap().forget(),
        }
        let free = async {
            while places.snapshot().in_flight > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(BOUND, free).await.expect("the place is free again");
    }
}
