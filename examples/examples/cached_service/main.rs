//! "Every page of ours asks another team's catalog over HTTP. It is slow on Mondays, and when it is down, so are we, although
//! nothing in it has changed for a week."
//!
//! Two instances of an axum service that reads through a cache: a handler asks the cache, the cache asks the
//! catalog through a guarded client, once for both instances, and keeps the answer for as long as the catalog's `Cache-Control`
//! says. What it did is in the headers `Cache-Status` (RFC 9211) and `Age`.
//!
//! ```text
//! cargo run -p resilience-examples --example cached_service
//! cargo run -p resilience-examples --example cached_service -- --redis redis://127.0.0.1:6379
//! REDIS_URL=redis://127.0.0.1:6379 cargo run -p resilience-examples --example cached_service
//! ```
//!
//! 1. A crowd at both instances asks for one item: one request to the catalog.
//! 2. An item that does not exist is remembered as well.
//! 3. The catalog tells one instance of a change: the other has the new item, too.
//! 4. The catalog hangs: an item that is out of time is served stale after 100 ms, while it is loaded.
//! 5. The catalog fails: what is cached is served, and said to be stale; for the rest the breaker answers.
//! 6. The catalog is back: the item is fresh again.
//! 7. What the cache has done, and its hot keys: `GET /cache`.
//!
//! Without a Redis the instances share a store in this process; `.store(..)` is the only line that differs.

mod catalog;
mod reader;

use std::{error::Error as StdError, io, net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use resilience_core::{
    Cache, CircuitBreaker, Error, Keyed, Retry,
    breaker::OpenFor,
    cache::{
        CacheSnapshot, CallOptions, Freshness, InProcessCache, Level, LoadError, Loaded, Lookup,
        guarded,
    },
    retry::Backoff,
};
use resilience_http::{Client, Problem};
use resilience_redis::Redis;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use self::{
    catalog::{Catalog, Mood},
    reader::{Answer, Reader},
};

type BoxError = Box<dyn StdError + Send + Sync>;
/// A request that failed, or a rejection by the guarded client.
type CallError = Error<reqwest::Error>;

/// How long a reader waits for a load that takes its time, if there is something stale to serve.
const SOFT: Duration = Duration::from_millis(100);
/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the catalog says of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Item {
    id: u64,
    revision: u64,
}

/// What a handler needs. Clones are the same.
#[derive(Clone)]
struct Items {
    cache: Cache<u64, Item>,
    client: Client,
    catalog: SocketAddr,
}

impl Items {
    /// Instances with the same store share what is cached.
    async fn new(store: &Store, catalog: SocketAddr) -> Result<Self, BoxError> {
        let items = Cache::builder("items")
            .negative_ttl(Duration::from_secs(60))
            .stale_if_error(Duration::from_secs(3600))
            .load_timeout(SOFT, Duration::from_secs(2));
        let cache = match store {
            Store::InProcess(store) => items.store(store.clone()),
            Store::Redis { url, prefix } => {
                let redis = Redis::builder(url).prefix(prefix.as_str()).connect()?;
                let ready = redis.ready(PATIENCE).await;
                ready.map_err(|status| format!("no Redis at this address: {status:?}"))?;
                items.store(redis.cache())
            }
        };
        let retry = Retry::builder("catalog")
            .max_attempts(2)
            .backoff(Backoff::full_jitter(ms(5), ms(20)))
            .build()?;
        let breaker = CircuitBreaker::builder("catalog")
            .consecutive_failures(6)
            .open_for(OpenFor::fixed(ms(500)))
            .keyed(Keyed::new())?;
        Ok(Self {
            cache: cache.build()?,
            client: Client::builder("catalog")
                .deadline(ms(1500))
                .retry(retry)
                .breaker(breaker)
                .build()?,
            catalog,
        })
    }

    async fn get(&self, id: u64) -> Result<Lookup<Item>, LoadError<reqwest::Error>> {
        let this = self.clone();
        let load = move || guarded(async move { this.load(id).await });
        self.cache.load_with(&id, CallOptions::new(), load).await
    }

    /// Asks the catalog: an item, or the knowledge that there is none. Everything else is an error, and not cached.
    async fn load(&self, id: u64) -> Result<Loaded<Item>, CallError> {
        let url = format!("http://{}/items/{id}", self.catalog);
        let response = self.client.get(url).send().await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(Loaded::missing());
        }
        let ttl = max_age(response.headers());
        let body = async { response.error_for_status()?.json::<Item>().await };
        let item = Loaded::new(body.await.map_err(Error::Service)?);
        Ok(match ttl {
            Some(ttl) => item.ttl(ttl),
            None => item,
        })
    }
}

/// For how long an answer may be kept; zero: not at all. A cache for HTTP would look at more than that.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let control = headers.get(header::CACHE_CONTROL)?.to_str().ok()?;
    let mut directives = control.split(',').map(str::trim);
    if directives.clone().any(|it| it == "no-store") {
        return Some(Duration::ZERO);
    }
    let seconds = directives.find_map(|it| it.strip_prefix("max-age="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

fn app(items: Items) -> Router {
    Router::new()
        .route("/items/{id}", get(item))
        .route("/items/{id}/changed", post(changed))
        .route("/cache", get(cache))
        .with_state(items)
}

async fn item(
    State(items): State<Items>,
    Path(id): Path<u64>,
) -> Result<impl IntoResponse, Problem> {
    let found = items.get(id).await.map_err(to_problem)?;
    let status = match (found.level, found.freshness) {
        (Level::Loaded, _) => "items; fwd=miss",
        (_, Freshness::Fresh) => "items; hit",
        (_, Freshness::StaleOnError) => "items; hit; detail=stale-on-error",
        (_, _) => "items; hit; detail=stale",
    };
    let missing = || Problem::new(StatusCode::NOT_FOUND, "There is no such item");
    let item = found.value.ok_or_else(missing)?;
    let age = found.age.as_secs().to_string();
    Ok((
        [("cache-status", status), ("age", &age)],
        Json(item.as_ref().clone()),
    )
        .into_response())
}

/// Called by the catalog after a change. When this answers 204, every instance has heard of it, or will within a round trip.
async fn changed(State(items): State<Items>, Path(id): Path<u64>) -> StatusCode {
    match items.cache.invalidate(&id).await {
        Ok(()) => StatusCode::NO_CONTENT,
        // The store did not answer: it is repeated in the background.
        Err(_) => StatusCode::ACCEPTED,
    }
}

async fn cache(State(items): State<Items>) -> Json<CacheSnapshot> {
    Json(items.cache.snapshot())
}

/// A rejection, by the cache or by the client below it, knows its answer; an error of the call is the catalog's fault.
fn to_problem(error: LoadError<reqwest::Error>) -> Problem {
    match error {
        Error::Rejected(rejected) => rejected.into(),
        Error::Service(_) => Problem::new(StatusCode::BAD_GATEWAY, "The catalog does not work"),
    }
}

/// Where cached items are.
enum Store {
    InProcess(InProcessCache),
    /// Each instance has a connection of its own.
    Redis {
        url: String,
        prefix: String,
    },
}

impl Store {
    fn redis(url: &str) -> Self {
        // Instances that belong together have the same prefix. This run's items are for this run only.
        let (url, prefix) = (url.to_owned(), format!("example-{:08x}", fastrand::u32(..)));
        Self::Redis { url, prefix }
    }
}

/// One running instance of the service.
struct Instance {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), BoxError>>,
}

impl Instance {
    async fn start(store: &Store, catalog: SocketAddr) -> Result<Self, BoxError> {
        let items = Items::new(store, catalog).await?;
        let (stop, stopped) = oneshot::channel();
        let cache = items.cache.clone();
        let (address, server) = serve(app(items), stopped).await?;
        let ended = tokio::spawn(async move {
            server.await??;
            // Loads in the background, and what the store has not heard of yet.
            Ok(cache.shutdown(PATIENCE).await?)
        });
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

/// What was seen, for the tests.
#[derive(Debug, Default)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Seen {
    crowd: (usize, u64),
    missing: (Vec<u16>, u64),
    revisions: Vec<u64>,
    hanging: Option<Answer>,
    failing: (usize, u64),
    others: Vec<u16>,
    fresh_again: bool,
    hot: String,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = std::env::args().skip(1);
    let url = match (args.next().as_deref(), args.next(), args.next()) {
        (None, ..) => std::env::var("REDIS_URL").ok(),
        (Some("--redis"), Some(url), None) => Some(url),
        _ => return Err("usage: cached_service [--redis URL]".into()),
    };
    let store = match url {
        Some(url) => Store::redis(&url),
        None => Store::InProcess(InProcessCache::new()),
    };
    run(&store).await.map(drop)
}

/// Fresh for a minute; for a second; missing.
const POPULAR: u64 = 7;
const SHORT: u64 = 13;
const MISSING: u64 = 404;

async fn run(store: &Store) -> Result<Seen, BoxError> {
    let catalog = Catalog::start().await?;
    let one = Instance::start(store, catalog.address).await?;
    let other = Instance::start(store, catalog.address).await?;
    let reader = Reader {
        http: reqwest::Client::new(),
        instances: [one.address, other.address],
    };
    let mut seen = Seen::default();
    crowd(&reader, &catalog, &mut seen).await?;
    missing(&reader, &catalog, &mut seen).await?;
    change(&reader, &catalog, &mut seen).await?;
    hanging(&reader, &catalog, &mut seen).await?;
    failing(&reader, &catalog, &mut seen).await?;
    back(&reader, &catalog, &mut seen).await?;
    hot_keys(&reader, &mut seen).await?;
    one.stop().await?;
    other.stop().await?;
    Ok(seen)
}

async fn crowd(reader: &Reader, catalog: &Catalog, seen: &mut Seen) -> Result<(), BoxError> {
    let mut crowd = JoinSet::new();
    for number in 0..100 {
        let reader = reader.clone();
        crowd.spawn(async move { reader.get(number % 2, POPULAR).await });
    }
    for answer in crowd.join_all().await {
        seen.crowd.0 += usize::from(answer?.status == 200);
    }
    seen.crowd.1 = catalog.take_requests();
    println!(
        "1. {} of 100 readers have the item, for {} request to the catalog.",
        seen.crowd.0, seen.crowd.1
    );
    Ok(())
}

async fn missing(reader: &Reader, catalog: &Catalog, seen: &mut Seen) -> Result<(), BoxError> {
    for number in 0..4 {
        let answer = reader.get(number % 2, MISSING).await?;
        seen.missing.0.push(answer.status);
    }
    seen.missing.1 = catalog.take_requests();
    println!(
        "2. An item that does not exist, four times: {:?}, for {} request.",
        seen.missing.0, seen.missing.1
    );
    Ok(())
}

async fn change(reader: &Reader, catalog: &Catalog, seen: &mut Seen) -> Result<(), BoxError> {
    catalog.revise();
    let before = reader.get(1, POPULAR).await?;
    let url = format!("http://{}/items/{POPULAR}/changed", reader.instances[0]);
    reader.http.post(url).send().await?.error_for_status()?;
    // Over Redis, the other instance hears of it within a round trip.
    let start = Instant::now();
    let mut after = reader.get(1, POPULAR).await?;
    while after.revision == before.revision && start.elapsed() < PATIENCE {
        after = reader.get(1, POPULAR).await?;
    }
    seen.revisions = [before.revision, after.revision]
        .into_iter()
        .flatten()
        .collect();
    println!(
        "3. The item was changed: the second instance had revision {:?}, and after the first one was told, {:?}.",
        before.revision, after.revision
    );
    Ok(())
}

async fn hanging(reader: &Reader, catalog: &Catalog, seen: &mut Seen) -> Result<(), BoxError> {
    reader.get(0, SHORT).await?;
    catalog.feel(Mood::Hanging);
    let answer = reader.until(SHORT, |answer| answer.is_stale()).await?;
    println!(
        "4. The catalog hangs: {} after {:.0?}, {}.",
        answer.status, answer.took, answer.cache_status
    );
    seen.hanging = Some(answer);
    Ok(())
}

async fn failing(reader: &Reader, catalog: &Catalog, seen: &mut Seen) -> Result<(), BoxError> {
    catalog.feel(Mood::Failing);
    let on_error = |answer: &Answer| answer.cache_status.contains("stale-on-error");
    let first = reader.until(SHORT, on_error).await?;
    catalog.take_requests();
    for _ in 0..50 {
        let answer = reader.get(0, SHORT).await?;
        seen.failing.0 += usize::from(answer.is_stale());
    }
    seen.failing.1 = catalog.take_requests();
    for id in 1_000..1_012 {
        let answer = reader.get(0, id).await?;
        seen.others.push(answer.status);
    }
    println!(
        "5. The catalog fails: {}, {} of 50 times, for {} requests. Items that are not cached: {:?}.",
        first.cache_status, seen.failing.0, seen.failing.1, seen.others
    );
    Ok(())
}

async fn back(reader: &Reader, catalog: &Catalog, seen: &mut Seen) -> Result<(), BoxError> {
    catalog.feel(Mood::Well);
    let start = Instant::now();
    let answer = reader.until(SHORT, |answer| !answer.is_stale()).await?;
    seen.fresh_again = answer.status == 200;
    println!(
        "6. The catalog is back: after {:.0?}, {}.",
        start.elapsed(),
        answer.cache_status
    );
    Ok(())
}

async fn hot_keys(reader: &Reader, seen: &mut Seen) -> Result<(), BoxError> {
    let start = Instant::now();
    let url = format!("http://{}/cache", reader.instances[0]);
    let popular = POPULAR.to_string();
    let (mut snapshot, mut hot) = (Value::Null, Value::Null);
    // One request in 64 is counted: the more there are, the surer it is.
    while hot != popular.as_str() && start.elapsed() < PATIENCE {
        for _ in 0..50 {
            reader.get(0, POPULAR).await?;
        }
        snapshot = reader.http.get(&url).send().await?.json().await?;
        hot = snapshot["hot_keys"][0]["key"].clone();
    }
    seen.hot = hot.as_str().unwrap_or_default().to_owned();
    println!("7. The hottest key is {hot}.");
    for count in [
        "hits_local",
        "loaded",
        "stale",
        "stale_on_error",
        "failed",
        "loads",
        "loads_failed",
    ] {
        println!("   {count}: {}", snapshot[count]);
    }
    Ok(())
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[cfg(test)]
mod tests {
    use resilience_tests::redis::RedisServer;

    use super::*;

    fn check(seen: &Seen) {
        assert_eq!(seen.crowd, (100, 1));
        assert_eq!(seen.missing, (vec![404; 4], 1));
        assert_eq!(seen.revisions, [0, 1]);
        let hanging = seen.hanging.as_ref().expect("an answer");
        assert_eq!(hanging.status, 200);
        assert!(hanging.took < ms(1_400), "{hanging:?}");
        assert_eq!(seen.failing.0, 50);
        // It is tried once a second, twice each time.
        assert!(seen.failing.1 < 20, "{seen:?}");
        assert!(seen.others.contains(&503), "{seen:?}");
        assert!(
            seen.others.iter().all(|status| [502, 503].contains(status)),
            "{seen:?}"
        );
        assert!(seen.fresh_again);
        assert_eq!(seen.hot, POPULAR.to_string());
    }

    #[tokio::test]
    async fn the_story_goes_as_it_is_told() {
        let store = Store::InProcess(InProcessCache::new());
        check(&run(&store).await.unwrap());
    }

    #[tokio::test]
    async fn it_goes_the_same_way_over_redis() {
        let server = RedisServer::start();
        check(&run(&Store::redis(&server.url())).await.unwrap());
    }

    #[test]
    fn the_time_to_live_is_read_from_cache_control() {
        let with = |control: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, control.parse().unwrap());
            max_age(&headers)
        };
        assert_eq!(with("public, max-age=60"), Some(Duration::from_secs(60)));
        assert_eq!(with("max-age=60, no-store"), Some(Duration::ZERO));
        assert_eq!(with("max-age=soon"), None);
        assert_eq!(max_age(&HeaderMap::new()), None);
    }
}
