//! The server layers behind real connections on loopback.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use resilience_core::bulkhead::Bulkhead;
use resilience_http::server::{self, InboundDeadline};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tower::{ServiceBuilder, service_fn};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn inbound(maximum: Duration) -> InboundDeadline {
    InboundDeadline::new("inbound", maximum).unwrap()
}

fn bulkhead(places: usize) -> Bulkhead {
    Bulkhead::builder("handlers")
        .max_concurrent(places)
        .build()
        .unwrap()
}

/// A server on loopback. Ended when this is dropped.
struct Server {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, task }
    }

    /// Sends a request on a connection of its own.
    async fn send(&self, path: &str) -> TcpStream {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        connection.write_all(head.as_bytes()).await.unwrap();
        connection
    }

    async fn get(&self, path: &str) -> String {
        read(self.send(path).await).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The whole response. A connection that is reset ends it too.
async fn read(mut connection: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = within(connection.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(ms(10_000), future)
        .await
        .expect("within ten seconds")
}

async fn until(mut condition: impl FnMut() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(ms(2)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn one_bulkhead_is_shared_by_routes_and_connections() {
    let places = bulkhead(3);
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU32::new(0)));
    let handler = |word: &'static str| {
        let (gate, running) = (Arc::clone(&gate), Arc::clone(&running));
        get(async move || {
            running.fetch_add(1, SeqCst);
            gate.acquire().await.unwrap().forget();
            word
        })
    };
    let app = Router::new()
        .route("/a", handler("from a").layer(server::guard(places.layer())))
        .route("/b", handler("from b").layer(server::guard(places.layer())))
        .nest(
            "/c",
            Router::new()
                .route("/", handler("from c"))
                .layer(server::guard(places.layer())),
        );
    let server = Server::start(app).await;

    let held = [
        server.send("/a").await,
        server.send("/b").await,
        server.send("/c").await,
    ];
    until(|| running.load(SeqCst) == 3).await;
    for path in ["/a", "/b", "/c"] {
        let answer = server.get(path).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(
            answer.contains("\r\ncontent-type: application/problem+json\r\n"),
            "{answer}"
        );
        assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
        assert!(
            !answer.contains("handlers"),
            "the name is internal: {answer}"
        );
    }
    assert_eq!(
        running.load(SeqCst),
        3,
        "a rejected request does not reach its handler"
    );

    gate.add_permits(3);
    for (connection, word) in held.into_iter().zip(["from a", "from b", "from c"]) {
        assert!(read(connection).await.ends_with(word));
    }
    until(|| places.snapshot().in_flight == 0).await;
    gate.add_permits(1);
    assert!(server.get("/b").await.ends_with("from b"));
}

/// A body whose pieces come from the test.
struct Pieces(mpsc::Receiver<&'static str>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|piece| piece.map(|piece| Ok(Frame::data(Bytes::from(piece)))))
    }
}

/// A server that responds with the bodies that the test supplies.
async fn streaming(places: &Bulkhead) -> (Server, mpsc::Sender<Pieces>) {
    let (hand, bodies) = mpsc::channel(4);
    let bodies = Arc::new(Mutex::new(bodies));
    let handler = async move || {
        Body::new(
            bodies
                .lock()
                .unwrap()
                .try_recv()
                .expect("a body was handed over"),
        )
    };
    let app = Router::new().route("/", get(handler).layer(server::bulkhead(places)));
    (Server::start(app).await, hand)
}

#[tokio::test]
async fn a_place_is_held_until_the_end_of_the_body() {
    let places = bulkhead(1);
    let (server, hand) = streaming(&places).await;
    let (pieces, body) = mpsc::channel(1);
    hand.try_send(Pieces(body)).map_err(drop).unwrap();

    let connection = server.send("/").await;
    pieces.send("first ").await.unwrap();
    // The second can be sent once the first is being sent: its head is out by then.
    within(pieces.send("second")).await.unwrap();
    assert_eq!(places.snapshot().in_flight, 1);
    let refused = server.get("/").await;
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains(r#""reason":"full""#),
        "{refused}"
    );
    drop(pieces);
    let answer = read(connection).await;
    assert!(
        answer.contains("first ") && answer.contains("second"),
        "{answer}"
    );
    until(|| places.snapshot().in_flight == 0).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_half_way_through_the_body_gives_its_place_back() {
    let places = bulkhead(1);
    let (server, hand) = streaming(&places).await;
    let (pieces, body) = mpsc::channel(1);
    hand.try_send(Pieces(body)).map_err(drop).unwrap();

    let mut connection = server.send("/").await;
    pieces.send("first").await.unwrap();
    let mut head = [0; 12];
    within(connection.read_exact(&mut head)).await.unwrap();
    assert_eq!((&head, places.snapshot().in_flight), (b"HTTP/1.1 200", 1));
    drop(connection);
    until(|| places.snapshot().in_flight == 0).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_and_a_handler_that_panics_give_their_places_back() {
    let places = bulkhead(1);
    let app = Router::new()
        .route("/hang", get(std::future::pending::<()>))
        .route(
            "/panic",
            get(async || -> &'static str { panic!("as a handler might") }),
        )
        .route("/", get("hello"))
        .layer(server::guard(places.layer()));
    let server = Server::start(app).await;

    let hanging = server.send("/hang").await;
    until(|| places.snapshot().in_flight == 1).await;
    assert!(server.get("/").await.starts_with("HTTP/1.1 503 "));
    drop(hanging);
    until(|| places.snapshot().in_flight == 0).await;
    assert_eq!(server.get("/panic").await, "");
    assert!(server.get("/").await.ends_with("hello"));
    assert_eq!(places.snapshot().in_flight, 0);
}

#[tokio::test]
async fn many_connections_at_once_are_never_more_than_the_places() {
    let (places, gate) = (bulkhead(4), Arc::new(Semaphore::new(0)));
    let (now, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let handler = {
        let (now, most, gate) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&gate));
        async move || {
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            gate.acquire().await.unwrap().forget();
            now.fetch_sub(1, SeqCst);
            "served"
        }
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(server::guard(places.layer()));
    let server = Server::start(app).await;

    let mut connections = Vec::new();
    for _ in 0..24 {
        connections.push(server.send("/").await);
    }
    until(|| places.snapshot().rejected_full == 20).await;
    gate.add_permits(4);
    let mut served = 0;
    for connection in connections {
        let answer = read(connection).await;
        assert!(
            answer.ends_with("served") || answer.starts_with("HTTP/1.1 503 "),
            "{answer}"
        );
        served += u32::from(answer.ends_with("served"));
    }
    assert_eq!((most.load(SeqCst), served), (4, 4));
}

#[tokio::test]
async fn a_plain_hyper_server_is_guarded_the_same_way() {
    use hyper_util::{rt::TokioIo, service::TowerToHyperService};

    let places = bulkhead(1);
    let hello = service_fn(async |_: Request<hyper::body::Incoming>| {
        Ok::<_, Infallible>(Response::new(http_body_util::Full::<Bytes>::from("hello")))
    });
    let service = ServiceBuilder::new()
        .layer(inbound(ms(1000)).layer())
        .layer(server::guard(places.layer()))
        .service(hello);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(connection), service),
            );
        }
    });
    let server = Server { address, task };

    assert!(server.get("/").await.ends_with("hello"));
    let taken = places.try_acquire().unwrap();
    assert!(server.get("/").await.starts_with("HTTP/1.1 503 "));
    drop(taken);
    assert!(server.get("/").await.ends_with("hello"));
}
