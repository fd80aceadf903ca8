//! One process: calls with keys, calls that a limit admits, calls in a bulkhead, and calls through a breaker, until it gets a
//! SIGTERM. Then it ends gracefully. Prints each outcome it receives on a line of its own.

use std::{
    fmt::{self, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::{
    Reason,
    breaker::{CircuitBreaker, HalfOpen, OpenFor, Window, fleet::FleetRules},
    bulkhead::fleet::FleetBulkhead,
    error::Error,
    fleet::{FleetOptions, OnOutage},
    idempotency::{Attempt, Idempotency},
    limit::{Quota, fleet::FleetRateLimit},
};
use resilience_redis::Redis;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, stdin},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep},
};
use tower::{Layer, ServiceExt};
use tracing::{Event, Level, Subscriber, field::Visit};
use tracing_subscriber::{
    layer::{Context, SubscriberExt},
    registry::Registry,
};

use super::{KEYS_PER_SECOND, READY, SOON};

const NAME: &str = "mixed";
const LANES: usize = 4;
/// Keys that are in use at once.
const WINDOW: usize = 10;

#[derive(Clone)]
struct Worker {
    redis: Redis,
    dependency: SocketAddr,
    began: Instant,
    from: usize,
    rate: u64,
    places: usize,
    over: Arc<AtomicBool>,
    admitted: Arc<AtomicU64>,
}

/// Does what the arguments say: `REDIS DEPENDENCY FROM PREFIX RATE PLACES`: the first key that it uses, the prefix of all that
/// is in Redis, the limit in calls a second, and the places of the bulkhead. Ends by a SIGTERM, or with its input.
///
/// # Panics
/// If the arguments are others, or there is no Redis.
pub async fn mixed(arguments: &[String]) {
    let [redis, dependency, from, prefix, rate, places] = arguments else {
        panic!("REDIS DEPENDENCY FROM PREFIX RATE PLACES");
    };
    let recorder = Registry::default().with(Warnings);
    tracing::subscriber::set_global_default(recorder).expect("the only subscriber");
    let terminate = tokio::signal::unix::SignalKind::terminate();
    let mut terminate = tokio::signal::unix::signal(terminate).expect("signals");
    let redis = Redis::builder(redis).prefix(prefix.as_str()).connect();
    let redis = redis.expect("an address");
    redis.ready(SOON).await.expect("a Redis");
    let worker = Worker {
        redis,
        dependency: dependency.parse().expect("an address"),
        began: Instant::now(),
        from: from.parse().expect("a number"),
        rate: rate.parse().expect("a number"),
        places: places.parse().expect("a number"),
        over: Arc::default(),
        admitted: Arc::default(),
    };
    // Before the lanes begin, which say things too.
    println!("{READY}");
    let mut lanes = worker.start();
    tokio::select! {
        _ = terminate.recv() => {}
        // The parent process is gone.
        _ = async { stdin().read_to_end(&mut Vec::new()).await } => std::process::exit(1),
    }
    worker.over.store(true, Relaxed);
    while lanes.join_next().await.is_some() {}
    worker.say_admitted();
    let ended = worker.redis.shutdown(SOON / 3).await;
    // Its input is still being read.
    std::process::exit(i32::from(ended.is_err()));
}

impl Worker {
    fn start(&self) -> JoinSet<()> {
        let options = || FleetOptions::new().on_outage(OnOutage::FailClosed);
        let keys = Idempotency::builder(NAME)
            .store(self.redis.idempotency())
            .lease(Duration::from_secs(3));
        let quota = Quota::per(self.rate, Duration::from_secs(1)).expect("a quota");
        let limit = FleetRateLimit::builder(NAME)
            .store(self.redis.limits())
            .limit("per-second", quota)
            .fleet(options());
        let bulkhead = FleetBulkhead::builder(NAME)
            .store(self.redis.bulkheads())
            .max_concurrent(self.places)
            .lease(Duration::from_secs(5))
            .queue(100, Duration::from_millis(200))
            .fleet(options());
        let breaker = CircuitBreaker::builder(NAME)
            .window(Window::time(Duration::from_secs(2)))
            .minimum_calls(10)
            .open_for(OpenFor::fixed(Duration::from_millis(300)))
            .half_open(HalfOpen::probes(3).max_wait(Duration::from_secs(1)))
            .store(self.redis.breakers())
            .fleet(FleetOptions::new().heartbeat(Duration::from_millis(300)))
            .fleet_rules(FleetRules::new().alert(Duration::from_millis(50)));
        let (keys, limit) = (keys.build(), limit.build());
        let (keys, limit) = (keys.expect("good settings"), limit.expect("good settings"));
        let (bulkhead, breaker) = (bulkhead.build(), breaker.build());
        let bulkhead = bulkhead.expect("good settings");
        let breaker = breaker.expect("good settings");
        let mut lanes = JoinSet::new();
        for _ in 0..LANES {
            lanes.spawn(self.clone().use_keys(keys.clone()));
            lanes.spawn(self.clone().use_places(bulkhead.clone()));
        }
        lanes.spawn(self.clone().use_limit(limit));
        lanes.spawn(self.clone().use_breaker(breaker.clone()));
        lanes.spawn(self.clone().tell(breaker));
        lanes
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Relaxed)
    }

    /// All processes go through the keys at the same pace, so that they meet.
    async fn use_keys(self, keys: Idempotency) {
        while self.goes_on() {
            let passed = self.began.elapsed().as_millis() as usize * KEYS_PER_SECOND as usize;
            let key = self.from + passed / 1_000 + fastrand::usize(..WINDOW);
            let dependency = self.dependency;
            let work = move |_: Attempt| async move {
                some_time(30).await;
                let number = ask(dependency, &format!("effect {key}")).await?;
                some_time(30).await;
                Ok::<_, std::io::Error>(format!("{key}:{number}"))
            };
            match keys.run(format!("key-{key}"), work).await {
                Ok(outcome) => println!("told {key} {}", outcome.value),
                Err(Error::Rejected(rejected)) if rejected.reason() == Reason::OutcomeUnknown => {
                    println!("unknown {key}");
                    some_time(20).await;
                }
                Err(_) => some_time(20).await,
            }
        }
    }

    async fn use_places(self, bulkhead: FleetBulkhead) {
        while self.goes_on() {
            let Ok(_permit) = bulkhead.acquire(1).await else {
                some_time(20).await;
                continue;
            };
            if let Ok(mut stream) = connect(self.dependency).await {
                let entered = say(&mut stream, "enter").await;
                some_time(100).await;
                // Answered before the place is given back.
                if entered.is_ok() {
                    let _ = say(&mut stream, "leave").await;
                }
            }
        }
    }

    async fn use_limit(self, limit: FleetRateLimit) {
        while self.goes_on() {
            match limit.check("all", 1).await {
                Ok(_) => drop(self.admitted.fetch_add(1, Relaxed)),
                Err(_) => some_time(10).await,
            }
        }
    }

    async fn use_breaker(self, breaker: CircuitBreaker) {
        let dependency = self.dependency;
        let call = move |()| async move {
            match ask(dependency, "call").await.as_deref() {
                Ok("ok") => Ok(()),
                _ => Err(Error::Service(())),
            }
        };
        let service = breaker.layer().layer(tower::service_fn(call));
        while self.goes_on() {
            let _ = service.clone().oneshot(()).await;
            some_time(20).await;
        }
    }

    /// What else there is to say.
    async fn tell(self, breaker: CircuitBreaker) {
        while self.goes_on() {
            println!("state {}", breaker.state().as_str());
            self.say_admitted();
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn say_admitted(&self) {
        println!("admitted {}", self.admitted.swap(0, Relaxed));
    }
}

async fn some_time(most_ms: u64) {
    sleep(Duration::from_millis(fastrand::u64(most_ms / 4..most_ms))).await;
}

async fn connect(dependency: SocketAddr) -> std::io::Result<BufReader<TcpStream>> {
    TcpStream::connect(dependency).await.map(BufReader::new)
}

async fn ask(dependency: SocketAddr, line: &str) -> std::io::Result<String> {
    say(&mut connect(dependency).await?, line).await
}

async fn say(stream: &mut BufReader<TcpStream>, line: &str) -> std::io::Result<String> {
    stream.write_all(format!("{line}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    Ok(answer.trim().to_owned())
}

/// Says what is logged at the levels WARN and ERROR.
struct Warnings;

impl<S: Subscriber> tracing_subscriber::Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= Level::WARN {
            let mut text = Text::default();
            event.record(&mut text);
            println!("warning {}", text.0.replace('\n', " "));
        }
    }
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        // Without numbers and names, so that events of one kind are counted together.
        if matches!(field.name(), "message" | "reason" | "failure" | "why") {
            let text = format!("{value:?} ").replace(|one: char| one.is_ascii_digit(), "");
            let _ = self.0.write_str(&text);
        }
    }
}
