//! "A customer's phone lost the connection while it was paying. The app tried again, and we charged the card twice."
//!
//! A payment service on axum, two instances of it, in front of a card company that charges what it is told to charge.
//! `IdempotentRequests` around the route makes a payment with an `Idempotency-Key` take effect once, and gives its
//! receipt to a caller that asks again:
//!
//! ```text
//! cargo run -p resilience-examples --example payment_service
//! cargo run -p resilience-examples --example payment_service -- --redis redis://127.0.0.1:6379
//! ```
//!
//! 1. The same payment twice, at two instances: one charge, and one receipt.
//! 2. Ten times at once: one charge.
//! 3. The customer hangs up in the middle: the charge is made all the same, and the receipt is there later.
//! 4. The line breaks after the request was sent: the client sends it again by itself, with the same key.
//! 5. The key of one customer is nothing to another, and the key of one payment is none for another.
//! 6. An instance is replaced in the middle of a payment whose customer has hung up: the payment is made first, and the
//!    other instance has the receipt.
//!
//! Without `--redis` the instances share a store in this process. With it, each has a connection of its own, as separate
//! processes would have; `.store(..)` is the only line that differs.

use std::{
    error::Error as StdError,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Extension, Json, Router, extract::State, http::StatusCode, routing::post};
use resilience_core::{
    Error, Idempotency,
    idempotency::{Attempt, Effect, InProcessIdempotency},
};
use resilience_http::{Client, IdempotencyKeys, IdempotentRequests, server::IDEMPOTENT_REPLAYED};
use resilience_redis::Redis;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

type BoxError = Box<dyn StdError + Send + Sync>;

/// How long the card company takes.
const CHARGING: Duration = Duration::from_millis(150);
/// Less than what an orchestrator allows between SIGTERM and SIGKILL.
const DRAIN: Duration = Duration::from_secs(20);

/// Where the records are.
enum Store {
    InProcess(InProcessIdempotency),
    /// Each instance connects for itself.
    Redis(String),
}

impl Store {
    async fn handle(&self) -> Result<Idempotency, BoxError> {
        let payments = Idempotency::builder("payments");
        let payments = match self {
            Self::InProcess(records) => payments.store(records.clone()),
            Self::Redis(url) => {
                let redis = Redis::connect(url)?;
                let ready = redis.ready(Duration::from_secs(5)).await;
                ready.map_err(|status| format!("no Redis at {url}: {status:?}"))?;
                payments.store(redis.idempotency())
            }
        };
        // A charge under the same child key is made once by the card company.
        Ok(payments.effect(Effect::Idempotent).build()?)
    }
}

/// One running instance of the service.
struct Instance {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), BoxError>>,
}

impl Instance {
    /// The one layer is all there is to it.
    async fn start(store: &Store, card: &Arc<Card>) -> Result<Self, BoxError> {
        let payments = store.handle().await?;
        let app = app(&payments, card);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(serve(listener, app, payments, stopped));
        Ok(Self {
            address,
            stop,
            ended,
        })
    }

    /// What a SIGTERM does to a real one.
    async fn stop(self) -> Result<(), BoxError> {
        // An instance that has ended by itself says why.
        let _ = self.stop.send(());
        self.ended.await?
    }
}

/// Serves until `stopped`. Then axum takes no more connections and finishes the requests that it has, and the handle finishes
/// the payments in progress, also those whose customers have hung up, and writes their records.
async fn serve(
    listener: TcpListener,
    app: Router,
    payments: Idempotency,
    stopped: oneshot::Receiver<()>,
) -> Result<(), BoxError> {
    let (close, closed) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = closed.await;
    });
    let drain = async {
        let _ = stopped.await;
        let _ = close.send(());
        // With several handles: `redis.shutdown(..)`.
        payments.shutdown(DRAIN).await
    };
    let (served, drained) = tokio::join!(server.into_future(), drain);
    served?;
    Ok(drained?)
}

fn app(payments: &Idempotency, card: &Arc<Card>) -> Router {
    let once = IdempotentRequests::new(payments)
        .required(true)
        .scope(|head| {
            // A real service has the customer from what authenticates its requests, outside of this layer.
            let customer = head.headers.get("x-customer");
            customer.map_or_else(String::new, |name| {
                String::from_utf8_lossy(name.as_bytes()).into()
            })
        });
    Router::new()
        .route("/payments", post(pay))
        .layer(once.layer())
        .with_state(Arc::clone(card))
}

#[derive(Deserialize)]
struct Payment {
    cents: u64,
}

#[derive(Serialize)]
struct Receipt {
    number: usize,
    cents: u64,
}

/// The handler knows nothing of repetitions. What it calls gets a key of its own, the same whenever this payment is tried
/// again after a crash.
async fn pay(
    State(card): State<Arc<Card>>,
    Extension(attempt): Extension<Attempt>,
    Json(payment): Json<Payment>,
) -> (StatusCode, Json<Receipt>) {
    let number = card
        .charge(attempt.child_key("charge"), payment.cents)
        .await;
    let cents = payment.cents;
    (StatusCode::CREATED, Json(Receipt { number, cents }))
}

/// The card company.
#[derive(Default)]
struct Card {
    asked: AtomicUsize,
    charges: Mutex<Vec<(String, u64)>>,
}

impl Card {
    async fn charge(&self, key: String, cents: u64) -> usize {
        self.asked.fetch_add(1, SeqCst);
        sleep(CHARGING).await;
        let mut charges = self.charges.lock().unwrap_or_else(PoisonError::into_inner);
        charges.push((key, cents));
        charges.len()
    }

    async fn is_asked_again(&self) {
        let before = self.asked.load(SeqCst);
        while self.asked.load(SeqCst) == before {
            sleep(Duration::from_millis(2)).await;
        }
    }

    fn charges(&self) -> usize {
        let charges = self.charges.lock();
        charges.unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// What a customer was told.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    status: u16,
    replayed: bool,
    body: String,
}

/// A customer's app.
async fn send(
    client: &Client,
    at: SocketAddr,
    customer: &str,
    key: Option<&str>,
    cents: u64,
) -> Result<Told, Error<reqwest::Error>> {
    let call = client.post(format!("http://{at}/payments"));
    let call = call
        .header("x-customer", customer)
        .json(&json!({ "cents": cents }));
    let call = match key {
        Some(key) => call.idempotency_key(format!("\"{key}\"")),
        None => call,
    };
    let response = call.send().await?;
    Ok(Told {
        status: response.status().as_u16(),
        replayed: response.headers().contains_key(IDEMPOTENT_REPLAYED),
        body: response.text().await.map_err(Error::Service)?,
    })
}

/// What was seen, for the tests: the charges that each scene has made, and what was told.
#[derive(Debug, Default)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Seen {
    twice: (usize, Vec<Told>),
    crowd: (usize, Vec<Told>),
    hung_up: (usize, Vec<Told>),
    cut_off: (usize, Vec<Told>),
    /// Attempts of the scene with the broken line.
    attempts: usize,
    others: (usize, Vec<Told>),
    replaced: (usize, Vec<Told>),
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = std::env::args().skip(1);
    let store = match (args.next().as_deref(), args.next(), args.next()) {
        (None, ..) => Store::InProcess(InProcessIdempotency::new()),
        (Some("--redis"), Some(url), None) => Store::Redis(url),
        _ => return Err("usage: payment_service [--redis URL]".into()),
    };
    run(&store).await.map(drop)
}

async fn run(store: &Store) -> Result<Seen, BoxError> {
    let card = Arc::new(Card::default());
    let (first, second) = (
        Instance::start(store, &card).await?,
        Instance::start(store, &card).await?,
    );
    let (one, two) = (first.address, second.address);
    // New in every run, so that a Redis that is there for longer has not heard of them.
    let order = |name: &str| format!("{name}-{:x}", fastrand::u64(..));
    let client = Client::new("payments")?;
    let mut seen = Seen::default();

    println!("1. Ada pays, and her app sends the payment again, to the other instance.");
    let key = order("ada");
    for at in [one, two] {
        seen.twice
            .1
            .push(send(&client, at, "ada", Some(&key), 1_999).await?);
    }
    seen.twice.0 = show(&card, 0, &seen.twice.1);

    println!("2. Bob's thumb is quick: ten payments with one key, at once.");
    let (before, key) = (card.charges(), order("bob"));
    let mut crowd = JoinSet::new();
    for at in [one, two].into_iter().cycle().take(10) {
        let (client, key) = (client.clone(), key.clone());
        crowd.spawn(async move { send(&client, at, "bob", Some(&key), 500).await });
    }
    seen.crowd.1 = crowd
        .join_all()
        .await
        .into_iter()
        .collect::<Result<_, _>>()?;
    seen.crowd.0 = show(&card, before, &seen.crowd.1);

    println!("3. Eve hangs up in the middle, and asks again later.");
    let (before, key) = (card.charges(), order("eve"));
    let call = send(&client, one, "eve", Some(&key), 700);
    tokio::select! {
        answer = call => return Err(format!("quicker than the card company can be: {answer:?}").into()),
        () = card.is_asked_again() => {}
    }
    seen.hung_up
        .1
        .push(send(&client, two, "eve", Some(&key), 700).await?);
    seen.hung_up.0 = show(&card, before, &seen.hung_up.1);

    println!(
        "4. The line breaks twice after Joe's payment was sent; his client has keys of its own."
    );
    let before = card.charges();
    let line = Line::to(one, 2).await?;
    let keyed = Client::builder("payments")
        .idempotency_keys(IdempotencyKeys::new())
        .build()?;
    seen.cut_off
        .1
        .push(send(&keyed, line.address, "joe", None, 4_200).await?);
    seen.attempts = line.attempts.load(SeqCst);
    println!("   {} attempts", seen.attempts);
    seen.cut_off.0 = show(&card, before, &seen.cut_off.1);

    println!("5. Ada's key, used by Bob; by Ada for another amount; and no key at all.");
    let (before, key) = (card.charges(), order("five"));
    for (customer, key, cents) in [
        ("ada", Some(&*key), 100),
        ("bob", Some(&*key), 100),
        ("ada", Some(&*key), 999),
        ("ada", None, 100),
    ] {
        seen.others
            .1
            .push(send(&client, one, customer, key, cents).await?);
    }
    seen.others.0 = show(&card, before, &seen.others.1);

    println!("6. Zoe hangs up in the middle, and the instance is replaced at that moment.");
    let (before, key) = (card.charges(), order("zoe"));
    tokio::select! {
        _ = send(&client, one, "zoe", Some(&key), 800) => {}
        () = card.is_asked_again() => {}
    }
    first.stop().await?;
    let told = send(&client, two, "zoe", Some(&key), 800).await?;
    seen.replaced.1.push(told);
    seen.replaced.0 = show(&card, before, &seen.replaced.1);
    second.stop().await?;
    Ok(seen)
}

/// Prints each kind of answer once; how many charges there were.
fn show(card: &Card, before: usize, told: &[Told]) -> usize {
    let mut shown: Vec<&Told> = Vec::new();
    for answer in told {
        if !shown.contains(&answer) {
            let times = told.iter().filter(|other| *other == answer).count();
            let replayed = if answer.replayed { ", replayed" } else { "" };
            println!("   {times} x {}{replayed}: {}", answer.status, answer.body);
            shown.push(answer);
        }
    }
    let charges = card.charges() - before;
    println!("   charges: {charges}\n");
    charges
}

/// A line that lets requests through, and breaks when the first answers come.
struct Line {
    address: SocketAddr,
    attempts: Arc<AtomicUsize>,
}

impl Line {
    async fn to(server: SocketAddr, breaks: usize) -> Result<Self, BoxError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let attempts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&attempts);
        tokio::spawn(async move {
            while let Ok((mut customer, _)) = listener.accept().await {
                let breaks = counted.fetch_add(1, SeqCst) < breaks;
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(server).await?;
                    let (mut from_customer, mut to_customer) = customer.split();
                    let (mut from_server, mut to_server) = server.split();
                    let answer = async {
                        let mut first = [0; 1];
                        from_server.read_exact(&mut first).await?;
                        if breaks {
                            return Ok(0);
                        }
                        to_customer.write_all(&first).await?;
                        copy(&mut from_server, &mut to_customer).await
                    };
                    tokio::select! {
                        answered = answer => answered,
                        sent = copy(&mut from_customer, &mut to_server) => sent,
                    }
                });
            }
        });
        Ok(Self { address, attempts })
    }
}

#[cfg(test)]
mod tests {
    use resilience_tests::redis::RedisServer;

    use super::*;

    fn check(seen: &Seen) {
        let (charges, told) = &seen.twice;
        assert_eq!(
            (*charges, told[0].status, told[0].replayed),
            (1, 201, false),
            "{seen:?}"
        );
        assert!(told[1].replayed && told[0].body == told[1].body, "{seen:?}");

        let (charges, told) = &seen.crowd;
        let replayed = told.iter().filter(|answer| answer.replayed).count();
        assert_eq!((*charges, told.len(), replayed), (1, 10, 9), "{seen:?}");
        assert!(
            told.iter().all(|answer| answer.body == told[0].body),
            "{seen:?}"
        );

        let (charges, told) = &seen.hung_up;
        assert_eq!((*charges, told[0].status), (1, 201), "{seen:?}");
        assert!(told[0].replayed, "{seen:?}");

        let (charges, told) = &seen.cut_off;
        assert_eq!((*charges, seen.attempts), (1, 3), "{seen:?}");
        assert!(
            told[0].replayed && told[0].body.contains("4200"),
            "{seen:?}"
        );

        let (charges, told) = &seen.others;
        let statuses: Vec<_> = told.iter().map(|answer| answer.status).collect();
        assert_eq!(
            (*charges, statuses),
            (2, vec![201, 201, 422, 400]),
            "{seen:?}"
        );
        assert_ne!(told[0].body, told[1].body, "{seen:?}");

        let (charges, told) = &seen.replaced;
        assert_eq!((*charges, told[0].status), (1, 201), "{seen:?}");
        assert!(told[0].replayed, "{seen:?}");
    }

    #[tokio::test]
    async fn the_story_goes_as_it_is_told() {
        check(
            &run(&Store::InProcess(InProcessIdempotency::new()))
                .await
                .unwrap(),
        );
    }

    #[tokio::test]
    async fn it_goes_the_same_way_over_redis() {
        let server = RedisServer::start();
        check(&run(&Store::Redis(server.url())).await.unwrap());
    }
}
