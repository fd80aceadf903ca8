//! "I call a partner's API with reqwest. It fails now and then, sometimes it hangs, and last month it took my service
//! down with it."
//!
//! Wraps the calls in `resilience_http::Client`, which is used like reqwest's own client, and shows what changes,
//! against a partner that this program starts on loopback:
//!
//! ```text
//! cargo run -p resilience-examples --example outbound_client
//! ```
//!
//! 1. Passing failures are retried, within a budget. Plain reqwest beside it for comparison.
//! 2. A POST is sent once, because the partner may have carried it out. With an idempotency key it is retried.
//! 3. A call ends at its deadline, retries and body included, and the partner is told how much time is left.
//! 4. A host that is down is left alone after a few failures; the other host does not notice.

use std::{
    collections::HashSet,
    error::Error as StdError,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use resilience_core::{CircuitBreaker, Error, Keyed, Retry, retry::Backoff};
use resilience_http::{Client, headers::DEADLINE};
use tokio::{net::TcpListener, time::Instant};

type BoxError = Box<dyn StdError + Send + Sync>;

/// What was seen, for the tests.
#[derive(Debug, Default)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Seen {
    plain_ok: usize,
    guarded_ok: usize,
    posts_without_key: usize,
    posts_with_key: usize,
    hung_for: Duration,
    told_deadline: Option<u64>,
    refused: usize,
    rejected: usize,
    other_host_ok: usize,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    run().await.map(drop)
}

async fn run() -> Result<Seen, BoxError> {
    let partner = Partner::start().await?;
    let client = client()?;
    let mut seen = Seen::default();
    passing_failures(&client, &partner, &mut seen).await?;
    posts(&client, &partner, &mut seen).await?;
    deadline(&client, &partner, &mut seen).await?;
    a_host_that_is_down(&client, &partner, &mut seen).await?;
    Ok(seen)
}

/// `Client::new("partner")` has sound defaults for services that call each other; here each setting is spelled out,
/// and shorter, so that the example is quick.
fn client() -> Result<Client, BoxError> {
    let retry = Retry::builder("partner")
        .max_attempts(3)
        .backoff(Backoff::decorrelated_jitter(ms(5), ms(50)))
        .build()?;
    let breaker = CircuitBreaker::builder("partner")
        .consecutive_failures(8)
        .keyed(Keyed::new())?;
    Ok(Client::builder("partner")
        .deadline(ms(2000))
        .retry(retry)
        .breaker(breaker)
        .build()?)
}

async fn passing_failures(
    client: &Client,
    partner: &Partner,
    seen: &mut Seen,
) -> Result<(), BoxError> {
    let plain = reqwest::Client::new();
    for item in 0..30 {
        let response = plain
            .get(partner.url(&format!("/stock/plain-{item}")))
            .send()
            .await?;
        seen.plain_ok += usize::from(response.status().is_success());
        let response = client
            .get(partner.url(&format!("/stock/guarded-{item}")))
            .send()
            .await?;
        seen.guarded_ok += usize::from(response.status().is_success());
    }
    println!(
        "1. The partner fails every third item once: plain reqwest got {} of 30 answers, the guarded client {}.",
        seen.plain_ok, seen.guarded_ok,
    );
    Ok(())
}

async fn posts(client: &Client, partner: &Partner, seen: &mut Seen) -> Result<(), BoxError> {
    let order = || client.post(partner.url("/orders")).body("two of them");
    let without = order().send().await?.status();
    seen.posts_without_key = partner.take_posts();
    let with = order().idempotency_key("order-4711").send().await?.status();
    seen.posts_with_key = partner.take_posts();
    println!(
        "2. A POST that fails: sent {} time ({without}). With an idempotency key: sent {} times ({with}).",
        seen.posts_without_key, seen.posts_with_key,
    );
    Ok(())
}

async fn deadline(client: &Client, partner: &Partner, seen: &mut Seen) -> Result<(), BoxError> {
    let start = Instant::now();
    let hung = client
        .get(partner.url("/hang"))
        .timeout(ms(300))
        .send()
        .await;
    seen.hung_for = start.elapsed();
    seen.told_deadline = partner.deadline();
    let Err(Error::Rejected(no)) = hung else {
        return Err(format!("a partner that hangs has answered: {hung:?}").into());
    };
    println!(
        "3. A partner that hangs: after {:.0?} the answer is `{no}`. It had been told that {} ms were left.",
        seen.hung_for,
        seen.told_deadline.unwrap_or_default(),
    );
    Ok(())
}

async fn a_host_that_is_down(
    client: &Client,
    partner: &Partner,
    seen: &mut Seen,
) -> Result<(), BoxError> {
    // A port that was free a moment ago: connections are refused.
    let down = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let mut says = None;
    for _ in 0..50 {
        match client.get(format!("http://{down}/")).send().await {
            Err(Error::Service(_)) => seen.refused += 1,
            Err(Error::Rejected(no)) => {
                seen.rejected += 1;
                says.get_or_insert_with(|| no.to_string());
            }
            Ok(response) => {
                return Err(format!("unexpected response from a closed port: {response:?}").into());
            }
        }
        let response = client.get(partner.url("/stock/gadget")).send().await?;
        seen.other_host_ok += usize::from(response.status().is_success());
    }
    println!(
        "4. Of 50 calls to a host that is down, {} found out, and {} were told at once: `{}`. The other host answered \
         {} of 50.",
        seen.refused,
        seen.rejected,
        says.unwrap_or_default(),
        seen.other_host_ok,
    );
    Ok(())
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The partner: an HTTP server with bad habits.
struct Partner {
    address: SocketAddr,
    habits: Arc<Habits>,
}

#[derive(Default)]
struct Habits {
    /// The items whose first request has failed.
    failed: Mutex<HashSet<String>>,
    posts: Mutex<usize>,
    deadline: Mutex<Option<u64>>,
}

impl Partner {
    async fn start() -> Result<Self, BoxError> {
        let habits = Arc::new(Habits::default());
        let app = Router::new()
            .route("/stock/{item}", get(stock))
            .route("/orders", post(order))
            .route("/hang", get(hang))
            .with_state(Arc::clone(&habits));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, habits })
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn take_posts(&self) -> usize {
        std::mem::take(
            &mut *self
                .habits
                .posts
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn deadline(&self) -> Option<u64> {
        *self
            .habits
            .deadline
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn stock(State(habits): State<Arc<Habits>>, Path(item): Path<String>) -> StatusCode {
    let third = item
        .rsplit('-')
        .next()
        .and_then(|n| n.parse::<u32>().ok())
        .is_some_and(|n| n % 3 == 0);
    let mut failed = habits.failed.lock().unwrap_or_else(PoisonError::into_inner);
    if third && failed.insert(item) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}

/// Fails every first request, though it may well have carried it out.
async fn order(State(habits): State<Arc<Habits>>) -> StatusCode {
    let mut posts = habits.posts.lock().unwrap_or_else(PoisonError::into_inner);
    *posts += 1;
    if *posts == 1 {
        StatusCode::BAD_GATEWAY
    } else {
        StatusCode::CREATED
    }
}

async fn hang(State(habits): State<Arc<Habits>>, headers: HeaderMap) {
    let told = headers
        .get(DEADLINE)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    *habits
        .deadline
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = told;
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_story_goes_as_it_is_told() {
        let seen = run().await.unwrap();
        assert_eq!((seen.plain_ok, seen.guarded_ok), (20, 30));
        assert_eq!((seen.posts_without_key, seen.posts_with_key), (1, 2));
        assert!((ms(290)..ms(1000)).contains(&seen.hung_for), "{seen:?}");
        assert!(
            seen.told_deadline
                .is_some_and(|left| (100..=300).contains(&left)),
            "{seen:?}"
        );
        assert!(
            seen.refused <= 8 && seen.refused + seen.rejected == 50,
            "{seen:?}"
        );
        assert_eq!(seen.other_host_ok, 50);
    }
}
