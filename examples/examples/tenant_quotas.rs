//! "My API has tenants on several plans. One of them runs a script in a loop, and everybody else waits. I run several
//! instances, and when a customer buys a larger plan I do not want to restart them."
//!
//! Two instances of an axum service that share the quotas of its tenants:
//! - each tenant has a plan: requests per second, bytes per day; a request passes both or is charged on neither;
//! - plans are in a table that is changed while the service runs; who upgrades is served at once;
//! - what a request really costs is known when it is over: it reserves, and settles afterwards;
//! - a tenant that is refused gets a 429, told when to come back, and costs the store nothing until then;
//! - while the store cannot be reached, each instance goes by its share of the limit.
//!
//! ```text
//! cargo run -p resilience-examples --example tenant_quotas
//! cargo run -p resilience-examples --example tenant_quotas -- --redis redis://127.0.0.1:6379
//! ```
//!
//! Without `--redis` the instances share a store in this process. With it, each has a connection of its own, as separate
//! processes would have.

use std::{error::Error as StdError, net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header::CONTENT_LENGTH, request::Parts},
    routing::{get, post},
};
use resilience_core::{
    FleetOptions, FleetRateLimit, Quota,
    limit::{
        fleet::{Costs, FleetRateLimitBuilder, Plan, Plans},
        store::InProcessLimits,
    },
};
use resilience_http::{LimitKey, LimitRequests, Problem};
use resilience_redis::Redis;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::Instant};

type BoxError = Box<dyn StdError + Send + Sync>;

const TENANT: &str = "x-tenant";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = std::env::args().skip(1);
    let store = match (args.next().as_deref(), args.next(), args.next()) {
        (None, ..) => Store::InProcess(InProcessLimits::new()),
        (Some("--redis"), Some(url), None) => Store::redis(&url),
        _ => return Err("usage: tenant_quotas [--redis URL]".into()),
    };
    run(&store).await.map(drop)
}

/// The plans that are for sale. A minute, where a real service might have a second: so that there is something to see.
struct Tariff {
    trial: Plan,
    team: Plan,
}

impl Tariff {
    fn new() -> Result<Self, BoxError> {
        let plan = |requests, bytes| -> Result<Plan, BoxError> {
            Ok(Plan::new()
                .limit("requests", Quota::per(requests, minutes(1))?)?
                .limit("bytes", Quota::per(bytes, minutes(24 * 60))?)?)
        };
        Ok(Self {
            trial: plan(5, 10_000)?,
            team: plan(6_000, 100_000_000)?,
        })
    }
}

/// One instance of the service.
struct Instance {
    address: SocketAddr,
    limit: FleetRateLimit,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), BoxError>>,
}

impl Instance {
    async fn start(store: &Store, tariff: &Tariff, plans: &Plans) -> Result<Self, BoxError> {
        let limit = store
            .limit("api")
            .await?
            .plan(tariff.trial.clone())
            .plans(plans.clone())
            .build()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(serve(listener, limit.clone(), stopped));
        Ok(Self {
            address,
            limit,
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

/// Serves until `stopped`. Then axum finishes the requests that it has, and the limit gives its tokens back and leaves the
/// fleet.
async fn serve(
    listener: TcpListener,
    limit: FleetRateLimit,
    stopped: oneshot::Receiver<()>,
) -> Result<(), BoxError> {
    let (close, closed) = oneshot::channel::<()>();
    let server = axum::serve(listener, app(&limit)).with_graceful_shutdown(async {
        let _ = closed.await;
    });
    let drain = async {
        let _ = stopped.await;
        let _ = close.send(());
        limit.shutdown(PATIENCE).await
    };
    let (served, drained) = tokio::join!(server.into_future(), drain);
    served?;
    Ok(drained?)
}

fn app(limit: &FleetRateLimit) -> Router {
    // What is uploaded is charged by its length, before a byte of it is read.
    let by_tenant = LimitRequests::new(limit)
        .key(LimitKey::by(|head| Some(tenant(&head.headers).to_owned())))
        .cost(|head| Costs::each(1).on("bytes", length(head)))
        .unit("bytes", "content-bytes");
    Router::new()
        .route("/hello", get(async || "hello\n"))
        .route("/upload", post(upload))
        .layer(by_tenant.layer())
        // How much this one sends back is known afterwards: it asks the limit itself.
        .route("/export", get(export))
        .with_state(limit.clone())
}

/// Who asks. A real service would have it from a token that it has checked.
fn tenant(headers: &HeaderMap) -> &str {
    let tenant = headers.get(TENANT).and_then(|value| value.to_str().ok());
    tenant.unwrap_or("nobody")
}

fn length(head: &Parts) -> u64 {
    let length = head.headers.get(CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    length.unwrap_or(0)
}

async fn upload(body: Bytes) -> String {
    format!("{} bytes\n", body.len())
}

/// Reserves the most that an export can be, and settles by what it was.
async fn export(
    State(limit): State<FleetRateLimit>,
    headers: HeaderMap,
) -> Result<String, Problem> {
    let tenant = tenant(&headers);
    let reserved = limit
        .reserve(tenant, Costs::each(1).on("bytes", 5_000))
        .await?;
    let answer = format!("{tenant}: all there is\n");
    let used = Costs::each(1).on("bytes", answer.len() as u64);
    if let Err(failure) = reserved.settle(used).await {
        // The tenant has paid too much, until the bucket has filled up: no reason to keep the answer back.
        eprintln!("not settled: {failure}");
    }
    Ok(answer)
}

/// What was seen, for the tests.
#[derive(Debug, Default)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Seen {
    served: usize,
    refused: Option<Answer>,
    others: usize,
    too_large: Option<Answer>,
    after_the_upgrade: usize,
    bytes_left: u64,
    live: u64,
}

async fn run(store: &Store) -> Result<Seen, BoxError> {
    let (tariff, plans) = (Tariff::new()?, Plans::new());
    let one = Instance::start(store, &tariff, &plans).await?;
    let other = Instance::start(store, &tariff, &plans).await?;
    let client = Client::default();
    let mut seen = Seen::default();

    greedy(&client, [&one, &other], &mut seen).await?;
    too_large(&client, &one, &mut seen).await?;

    plans.set("greedy", tariff.team.clone());
    for instance in [&one, &other] {
        // On its old plan the next request would have passed after 12 s; on the new one, after 10 ms.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let answer = client.get(instance, "/hello", "greedy").await?;
        seen.after_the_upgrade += usize::from(answer.status == 200);
    }
    println!(
        "3. It buys a larger plan: {} of 2 requests were served, without a restart.",
        seen.after_the_upgrade
    );

    client.get(&other, "/export", "reporting").await?;
    let ruling = one.limit.peek("reporting").await?;
    let bytes = ruling.limits().find(|limit| limit.name == "bytes");
    seen.bytes_left = bytes.ok_or("the plan has no bytes")?.remaining;
    println!(
        "4. An export reserved 5000 of 10000 bytes and used fewer: {} are left.",
        seen.bytes_left
    );

    let start = Instant::now();
    while one.limit.snapshot().live_instances < 2 && start.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    seen.live = one.limit.snapshot().live_instances;
    println!(
        "5. {} instances share the limits. Without the store, each would go by so large a part of them.",
        seen.live
    );
    one.stop().await?;
    other.stop().await?;
    Ok(seen)
}

/// Both instances are asked in turn, by one tenant as often as it can and by another now and then.
async fn greedy(
    client: &Client,
    instances: [&Instance; 2],
    seen: &mut Seen,
) -> Result<(), BoxError> {
    for number in 0..20 {
        let instance = instances[number % 2];
        let answer = client.get(instance, "/hello", "greedy").await?;
        if answer.status == 200 {
            seen.served += 1;
        } else {
            seen.refused = Some(answer);
        }
        if number % 5 == 0 {
            let answer = client.get(instance, "/hello", "modest").await?;
            seen.others += usize::from(answer.status == 200);
        }
    }
    println!(
        "1. Of 20 requests to two instances, {} were served; of those of another tenant meanwhile, {} of 4.",
        seen.served, seen.others
    );
    if let Some(refused) = &seen.refused {
        println!(
            "   {} Retry-After: {}\n   RateLimit-Policy: {}\n   RateLimit: {}",
            refused.status, refused.retry_after, refused.policy, refused.standing
        );
    }
    Ok(())
}

/// More bytes than the plan ever allows at once: the request is not charged either.
async fn too_large(client: &Client, instance: &Instance, seen: &mut Seen) -> Result<(), BoxError> {
    let answer = client.upload(instance, "uploading", 10_001).await?;
    println!("2. An upload of 10001 bytes, of 10000: {}.", answer.status);
    let ruling = instance.limit.peek("uploading").await?;
    let untouched = ruling.limits().all(|limit| limit.full_in.is_zero());
    seen.too_large = untouched.then_some(answer);
    Ok(())
}

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where buckets are kept.
enum Store {
    InProcess(InProcessLimits),
    /// Each instance has a connection of its own.
    Redis {
        url: String,
        prefix: String,
    },
}

impl Store {
    fn redis(url: &str) -> Self {
        // Instances that belong together have the same prefix. This run's buckets are for this run only.
        let (url, prefix) = (url.to_owned(), format!("example-{:08x}", fastrand::u32(..)));
        Self::Redis { url, prefix }
    }

    async fn limit(&self, name: &'static str) -> Result<FleetRateLimitBuilder, BoxError> {
        let builder = match self {
            Self::InProcess(store) => FleetRateLimit::builder(name).store(store.clone()),
            Self::Redis { url, prefix } => {
                let redis = Redis::builder(url).prefix(prefix.as_str()).connect()?;
                // A service need not wait for it: until the connection is up it would go by its share.
                if let Err(status) = redis.ready(PATIENCE).await {
                    return Err(format!("no Redis at this address: {status:?}").into());
                }
                FleetRateLimit::builder(name).store(redis.limits())
            }
        };
        // So that the example is quick.
        Ok(builder.fleet(FleetOptions::new().heartbeat(Duration::from_millis(200))))
    }
}

/// One answer of the service, as its clients see it.
#[derive(Debug)]
struct Answer {
    status: u16,
    retry_after: String,
    policy: String,
    standing: String,
}

#[derive(Default)]
struct Client(reqwest::Client);

impl Client {
    async fn get(&self, at: &Instance, path: &str, tenant: &str) -> Result<Answer, BoxError> {
        let url = format!("http://{}{path}", at.address);
        self.send(self.0.get(url), tenant).await
    }

    async fn upload(&self, at: &Instance, tenant: &str, bytes: usize) -> Result<Answer, BoxError> {
        let request = self.0.post(format!("http://{}/upload", at.address));
        self.send(request.body(vec![0; bytes]), tenant).await
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
        tenant: &str,
    ) -> Result<Answer, BoxError> {
        let response = request.header(TENANT, tenant).send().await?;
        let field = |name: &str| {
            let value = response.headers().get(name);
            value
                .and_then(|value| value.to_str().ok())
                .unwrap_or("")
                .to_owned()
        };
        Ok(Answer {
            status: response.status().as_u16(),
            retry_after: field("retry-after"),
            policy: field("ratelimit-policy"),
            standing: field("ratelimit"),
        })
    }
}

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

#[cfg(test)]
mod tests {
    use resilience_tests::redis::RedisServer;

    use super::*;

    fn check(seen: &Seen) {
        // A token comes in every 12 s; a busy machine may take as long.
        assert!((5..=6).contains(&seen.served), "{seen:?}");
        assert_eq!(seen.others, 4, "{seen:?}");
        let refused = seen.refused.as_ref().expect("one was refused");
        assert_eq!(refused.status, 429);
        assert!(refused.retry_after.parse::<u64>().unwrap() >= 1, "{seen:?}");
        assert!(refused.policy.contains("\"requests\";q=5;w=60"), "{seen:?}");
        assert!(refused.standing.contains("\"requests\";r=0;"), "{seen:?}");
        let too_large = seen.too_large.as_ref().expect("it was charged for nothing");
        assert_eq!(too_large.status, 422);
        assert_eq!(seen.after_the_upgrade, 2, "{seen:?}");
        assert!((9_950..10_000).contains(&seen.bytes_left), "{seen:?}");
        assert_eq!(seen.live, 2, "{seen:?}");
    }

    #[tokio::test]
    async fn the_story_goes_as_it_is_told() {
        let store = Store::InProcess(InProcessLimits::new());
        check(&run(&store).await.unwrap());
    }

    #[tokio::test]
    async fn it_goes_the_same_way_over_redis() {
        let server = RedisServer::start();
        let store = Store::redis(&server.url());
        check(&run(&store).await.unwrap());
    }
}
