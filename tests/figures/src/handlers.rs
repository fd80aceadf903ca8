//! Idempotent handlers behind a bulkhead, on real servers, while their clients go away: by hanging up, by resetting
//! their HTTP/2 streams, or by the deadline of their requests. Handlers go on; they must keep their places.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, routing::post};
use http_body_util::Full;
use hyper::{Request, body::Bytes, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use resilience_core::{
    bulkhead::{Bulkhead, fleet::FleetBulkhead},
    idempotency::Idempotency,
};
use resilience_http::{
    OnBodyEnd,
    server::{self, IdempotentRequests, InboundDeadline},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::{
    fleet::{connect, ms},
    redis::RedisServer,
    report::{Target, figure},
};

const PLACES: usize = 4;
const REQUESTS: usize = 200;
const LEASE: Duration = ms(300);
const BOUND: Duration = ms(60_000);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    HangUp,
    Reset,
    Deadline,
}

/// Handlers that wait to be let go on, and the most of them at once.
#[derive(Clone)]
struct Handlers {
    begun: Arc<Semaphore>,
    go_on: Arc<Semaphore>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Handlers {
    fn new() -> Self {
        Self {
            begun: Arc::new(Semaphore::new(0)),
            go_on: Arc::new(Semaphore::new(0)),
            now: Arc::default(),
            most: Arc::default(),
        }
    }

    async fn handle(self) -> &'static str {
        self.most
            .fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        self.begun.add_permits(1);
        self.go_on.acquire().await.expect("open").forget();
        self.now.fetch_sub(1, SeqCst);
        "paid"
    }
}

pub(crate) async fn run() {
    let redis = RedisServer::start();
    let (mut above, mut requests) = (0, 0);
    for way in [Way::HangUp, Way::Reset, Way::Deadline] {
        let handlers = Handlers::new();
        let places = Bulkhead::builder("places").max_concurrent(PLACES);
        let places = places.build().expect("good settings");
        let app = payments(&handlers).layer(server::bulkhead(&places));
        let servers = [serve(app, way).await];
        above += clients(way, &servers, &handlers).await;

        let handlers = Handlers::new();
        let mut servers = Vec::new();
        for _ in 0..2 {
            let store = connect(&redis.url()).await.bulkheads();
            let places = FleetBulkhead::builder(format!("{way:?}"))
                .store(store)
                .max_concurrent(PLACES)
                .lease(LEASE)
                .build()
                .expect("good settings");
            let layer = places.layer().complete_on(OnBodyEnd::new());
            let app = payments(&handlers).layer(server::guard(layer));
            servers.push(serve(app, way).await);
        }
        above += clients(way, &servers, &handlers).await;
        requests += 2 * REQUESTS;
    }
    figure(
        "handlers_above_the_bulkhead",
        above as f64,
        &format!(
            "of {requests} requests whose clients hang up, reset their stream or have a deadline"
        ),
        Target::Exactly(0.0),
    );
}

fn payments(handlers: &Handlers) -> Router {
    let handle = Idempotency::builder("payments").build();
    let once = IdempotentRequests::new(&handle.expect("good settings"));
    let handlers = handlers.clone();
    let pay = move || handlers.clone().handle();
    Router::new().route("/pay", post(pay)).layer(once.layer())
}

async fn serve(app: Router, way: Way) -> SocketAddr {
    let deadline = if way == Way::Deadline { ms(100) } else { BOUND };
    let inbound = InboundDeadline::new("inbound", deadline).expect("good settings");
    let app = app.layer(inbound.layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Sends the requests, lets the leases of those admitted be renewed, and sends some more. Returns how many handlers
/// there were at most, above the places.
async fn clients(way: Way, servers: &[SocketAddr], handlers: &Handlers) -> usize {
    let mut streams = Vec::new();
    for server in servers {
        streams.push(http2_to(*server).await);
    }
    for key in 0..REQUESTS {
        if key == REQUESTS - REQUESTS / 4 {
            sleep(3 * LEASE).await;
        }
        let at = key % servers.len();
        let answered = async {
            match way {
                Way::Reset => over_http2(&mut streams[at], key).await,
                Way::HangUp | Way::Deadline => over_http1(servers[at], key).await,
            }
        };
        if way == Way::Deadline {
            timeout(BOUND, answered).await.expect("an answer in time");
            continue;
        }
        tokio::select! {
            begun = handlers.begun.acquire() => begun.expect("open").forget(),
            () = answered => {}
        }
    }
    assert!(handlers.most.load(SeqCst) >= PLACES, "the places are used");
    handlers.go_on.add_permits(REQUESTS);
    handlers.most.load(SeqCst) - PLACES
}

async fn over_http1(server: SocketAddr, key: usize) {
    let mut client = TcpStream::connect(server).await.expect("a connection");
    let request = format!(
        "POST /pay HTTP/1.1\r\nhost: a.test\r\nidempotency-key: \"{key}\"\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    let sent = client.write_all(request.as_bytes()).await;
    sent.expect("sent");
    let mut head = [0; 12];
    client.read_exact(&mut head).await.expect("a response");
}

type Streams = http2::SendRequest<Full<Bytes>>;

async fn http2_to(server: SocketAddr) -> Streams {
    let client = TcpStream::connect(server).await.expect("a connection");
    let (streams, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(client))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    streams
}

/// Dropped before the response, it resets the stream.
async fn over_http2(streams: &mut Streams, key: usize) {
    let request = Request::post("http://a.test/pay")
        .header("idempotency-key", format!("\"{key}\""))
        .body(Full::from("{}"))
        .expect("a request");
    streams.ready().await.expect("open");
    streams.send_request(request).await.expect("a response");
}
