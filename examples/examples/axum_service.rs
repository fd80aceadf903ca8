//! "My axum service asks another service for every request. When that one is slow, mine is slow for everything, and
//! when it is down, mine answers 500 after half a minute."
//!
//! A quotes service that asks a pricing service over HTTP, and stays answerable whatever pricing does:
//! - the time a client allows (`request-timeout-ms`, at most 2 s) is the deadline of everything the request does,
//!   and what is left of it is passed on to pricing;
//! - at most eight requests are served at once, bodies included; the next one is told to come back;
//! - around the call to pricing: retries within a budget, and a circuit breaker;
//! - whatever says no, says it as `application/problem+json` with the right status and `Retry-After`.
//!
//! It sends itself a few requests and ends. With `-- --serve` it stays up for yours.
//!
//! ```text
//! cargo run -p resilience-examples --example axum_service
//! ```

use std::{
    error::Error as StdError,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use resilience_core::{Bulkhead, CircuitBreaker, Error, Keyed, Retry, retry::Backoff};
use resilience_http::{
    Client, InboundDeadline, Problem, body::rejected_in, headers::DEADLINE, server,
};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

type BoxError = Box<dyn StdError + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let pricing = Pricing::start().await?;
    let (stop, stopped) = oneshot::channel();
    let (address, ended) = serve(app(&pricing)?, stopped).await?;
    if std::env::args().any(|arg| arg == "--serve") {
        println!("curl -i -H 'request-timeout-ms: 500' http://{address}/quote/gadget");
        for mood in ["well", "hanging", "failing"] {
            println!("curl -X POST http://{}/mood/{mood}", pricing.address);
        }
        println!("ctrl-c ends it.");
        tokio::signal::ctrl_c().await?;
    } else {
        drive(address, &pricing).await?;
    }
    // Requests in progress are finished. With a `Redis`, or a handle with a `shutdown` of its own, that is awaited as well: see
    // the examples `payment_service` and `tenant_quotas`.
    let _ = stop.send(());
    Ok(ended.await??)
}

/// The service.
fn app(pricing: &Pricing) -> Result<Router, BoxError> {
    let retry = Retry::builder("pricing")
        .backoff(Backoff::full_jitter(ms(10), ms(100)))
        .build()?;
    let breaker = CircuitBreaker::builder("pricing")
        .consecutive_failures(12)
        .keyed(Keyed::new())?;
    let quotes = Quotes {
        pricing: Client::builder("pricing")
            .retry(retry)
            .breaker(breaker)
            .build()?,
        price_list: format!("http://{}/price", pricing.address),
    };
    let inbound = InboundDeadline::new("quotes", ms(2000))?;
    let places = Bulkhead::builder("quotes").max_concurrent(8).build()?;
    Ok(Router::new()
        .route("/quote/{item}", get(quote))
        .layer(server::bulkhead(&places))
        .layer(inbound.layer())
        .with_state(Arc::new(quotes)))
}

struct Quotes {
    pricing: Client,
    price_list: String,
}

impl Quotes {
    /// Asks pricing, through retry and breaker, within the time that is left of the request.
    async fn price(&self, item: &str) -> Result<String, Error<reqwest::Error>> {
        let answer = self
            .pricing
            .get(format!("{}/{item}", self.price_list))
            .send()
            .await?;
        let price = async { answer.error_for_status()?.text().await };
        price.await.map_err(Error::Service)
    }
}

/// The handler knows nothing of deadlines and breakers: what they say becomes the answer by itself.
async fn quote(
    State(quotes): State<Arc<Quotes>>,
    Path(item): Path<String>,
) -> Result<String, Problem> {
    let price = quotes.price(&item).await.map_err(to_problem)?;
    Ok(format!("{item} costs {price}\n"))
}

/// A rejection knows its answer; an error of the call itself is pricing's fault, not this service's.
fn to_problem(error: Error<reqwest::Error>) -> Problem {
    match error {
        Error::Rejected(rejected) => rejected.into(),
        // The deadline may have come while the body was read: reqwest wraps it then.
        Error::Service(error) => rejected_in(&error).map_or_else(
            || Problem::new(StatusCode::BAD_GATEWAY, "Pricing does not work"),
            Problem::from,
        ),
    }
}

/// One answer of the service, as its clients see it.
#[derive(Debug)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Answer {
    status: u16,
    retry_after: Option<String>,
    content_type: Option<String>,
    body: String,
    took: Duration,
}

/// Sends requests in every mood of pricing; returns the answers by scene.
async fn drive(address: SocketAddr, pricing: &Pricing) -> Result<[Vec<Answer>; 4], BoxError> {
    println!("1. Pricing is well.");
    let well = vec![ask(address, 1000).await?];
    show(&well);

    println!("2. Pricing hangs; the client allows 200 ms.");
    pricing.feel(Mood::Hanging);
    let hanging = vec![ask(address, 200).await?];
    show(&hanging);

    println!("3. Pricing hangs and 20 requests come at once, for eight places.");
    let mut crowd = JoinSet::new();
    for _ in 0..20 {
        crowd.spawn(ask(address, 300));
    }
    let crowded = crowd
        .join_all()
        .await
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    show(&crowded);

    println!("4. Pricing answers 503 to everything: soon the breaker answers in its place.");
    pricing.feel(Mood::Failing);
    let mut failing = Vec::new();
    for _ in 0..12 {
        failing.push(ask(address, 1000).await?);
    }
    show(&failing);
    Ok([well, hanging, crowded, failing])
}

async fn ask(address: SocketAddr, allowed_ms: u64) -> Result<Answer, BoxError> {
    let start = Instant::now();
    let url = format!("http://{address}/quote/gadget");
    let response = reqwest::Client::new()
        .get(url)
        .header(DEADLINE, allowed_ms)
        .send()
        .await?;
    let header = |name| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    Ok(Answer {
        status: response.status().as_u16(),
        retry_after: header("retry-after"),
        content_type: header("content-type"),
        took: start.elapsed(),
        body: response.text().await?,
    })
}

/// Prints each kind of answer once, with how often it came and how long it took at most.
fn show(answers: &[Answer]) {
    let mut rest: Vec<&Answer> = answers.iter().collect();
    while let Some(&first) = rest.first() {
        let title = |answer: &Answer| {
            (
                answer.status,
                answer.body.split("\"detail\"").next().map(str::to_owned),
            )
        };
        let (same, others): (Vec<&Answer>, _) = rest
            .into_iter()
            .partition(|answer| title(answer) == title(first));
        let longest = same
            .iter()
            .map(|answer| answer.took)
            .max()
            .unwrap_or_default();
        let retry_after = first
            .retry_after
            .as_ref()
            .map_or_else(String::new, |wait| format!(", Retry-After: {wait}"));
        println!(
            "   {} x {}{retry_after}, within {longest:.0?}\n      {}",
            same.len(),
            first.status,
            first.body.trim_end(),
        );
        rest = others;
    }
    println!();
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Serves until something is sent.
async fn serve(
    app: Router,
    stopped: oneshot::Receiver<()>,
) -> Result<(SocketAddr, JoinHandle<io::Result<()>>), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = axum::serve(listener, app).with_graceful_shutdown(async {
        // What is dropped unsent is the end of the program.
        let _ = stopped.await;
    });
    Ok((address, tokio::spawn(server.into_future())))
}

/// The service that everything depends on, with its moods.
struct Pricing {
    address: SocketAddr,
    mood: Arc<AtomicU8>,
    /// It ends with this.
    _stop: oneshot::Sender<()>,
}

#[derive(Clone, Copy)]
enum Mood {
    Well,
    Hanging,
    Failing,
}

impl Pricing {
    async fn start() -> Result<Self, BoxError> {
        let mood = Arc::new(AtomicU8::new(Mood::Well as u8));
        let app = Router::new()
            .route("/price/{item}", get(price))
            .route("/mood/{mood}", post(change))
            .with_state(Arc::clone(&mood));
        let (stop, stopped) = oneshot::channel();
        let (address, _) = serve(app, stopped).await?;
        Ok(Self {
            address,
            mood,
            _stop: stop,
        })
    }

    fn feel(&self, mood: Mood) {
        self.mood.store(mood as u8, Relaxed);
    }
}

async fn price(State(mood): State<Arc<AtomicU8>>) -> Result<&'static str, StatusCode> {
    match mood.load(Relaxed) {
        well if well == Mood::Well as u8 => Ok("12.50"),
        hanging if hanging == Mood::Hanging as u8 => std::future::pending().await,
        _ => Err(StatusCode::SERVICE_UNAVAILABLE),
    }
}

async fn change(State(mood): State<Arc<AtomicU8>>, Path(name): Path<String>) -> StatusCode {
    let new = match name.as_str() {
        "well" => Mood::Well,
        "hanging" => Mood::Hanging,
        "failing" => Mood::Failing,
        _ => return StatusCode::NOT_FOUND,
    };
    mood.store(new as u8, Relaxed);
    StatusCode::NO_CONTENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_service_stays_answerable_in_every_mood_of_pricing() {
        let pricing = Pricing::start().await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = serve(app(&pricing).unwrap(), stopped).await;
        let (address, ended) = serving.unwrap();
        let [well, hanging, crowded, failing] = drive(address, &pricing).await.unwrap();
        assert_eq!(well[0].status, 200);

        assert_eq!(hanging[0].status, 504);
        assert!(hanging[0].took < ms(1000), "{hanging:?}");

        let count = |answers: &[Answer], status| {
            answers
                .iter()
                .filter(|answer| answer.status == status)
                .count()
        };
        assert_eq!(
            (count(&crowded, 504), count(&crowded, 503)),
            (8, 12),
            "{crowded:?}"
        );

        let open: Vec<_> = failing
            .iter()
            .filter(|answer| answer.body.contains("\"open\""))
            .collect();
        assert!(open.len() >= 8 && count(&failing, 502) >= 1, "{failing:?}");
        for answer in open.into_iter().chain(&hanging) {
            assert_eq!(
                answer.content_type.as_deref(),
                Some("application/problem+json")
            );
            assert_eq!(
                answer.retry_after.is_some(),
                answer.status == 503,
                "{answer:?}"
            );
        }
        stop.send(()).unwrap();
        ended.await.unwrap().unwrap();
    }
}
