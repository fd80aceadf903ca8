//! Instances of one shared breaker on a real Redis, with calls in progress.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::{
    Verdict,
    breaker::{
        CircuitBreaker, CircuitBreakerBuilder, HalfOpen, OpenFor, State, Window,
        fleet::{BreakerView, FleetRules},
    },
    completion::Guard,
    error::Error,
    fleet::FleetOptions,
    idempotency::{
        IdempotencyStore,
        record::{Claim, Takeover},
    },
};
use resilience_redis::Redis;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use tower::{Layer, ServiceExt};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    layer::{Context, SubscriberExt},
    registry::Registry,
};

use crate::until::eventually;

/// Timeout for everything that has to happen, long enough for a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Time budget of a command: more than the default, so that a busy machine is not mistaken for a hung server.
pub const BUDGET: Duration = Duration::from_millis(250);

/// Quick to report, so that tests are quick.
pub fn rules() -> FleetRules {
    FleetRules::new().alert(Duration::from_millis(50))
}

/// Quick to report while all is well, too.
pub fn options() -> FleetOptions {
    FleetOptions::new().heartbeat(Duration::from_millis(200))
}

/// A breaker as the tests have it: ten calls suffice, and it is open for `open_for`.
pub fn builder(name: &str, open_for: Duration) -> CircuitBreakerBuilder {
    CircuitBreaker::builder(name)
        .window(Window::time(Duration::from_secs(600)))
        .minimum_calls(10)
        .open_for(OpenFor::fixed(open_for))
        .half_open(HalfOpen::probes(3))
        .fleet(options())
        .fleet_rules(rules())
}

/// Opens a connection, as every instance does.
///
/// # Panics
///
/// When it is not up within [`SOON`].
pub async fn connect(url: &str) -> Redis {
    let redis = Redis::builder(url)
        .budget(BUDGET)
        .connect()
        .expect("good settings");
    if let Err(status) = redis.ready(SOON).await {
        panic!("no connection to {url}: {status:?}");
    }
    redis
}

/// Whether Redis accepts a write: the claim of `key`.
pub async fn writes(redis: &Redis, key: &str) -> bool {
    let claim = Claim {
        owner: format!("owner-of-{key}").into(),
        fingerprint: "write".into(),
        lease_ms: 30_000,
        retention_ms: 60_000,
        takeover: Takeover::Any,
    };
    redis
        .idempotency()
        .claim("writes", key, &claim)
        .await
        .is_ok()
}

/// One instance of the fleet.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its connection.
    pub redis: Redis,
    /// Its breaker.
    pub breaker: CircuitBreaker,
}

impl Instance {
    /// Connects, builds the breaker, and waits until the fleet has heard of it.
    pub async fn start(url: &str, builder: CircuitBreakerBuilder) -> Self {
        let redis = connect(url).await;
        let breaker = builder
            .store(redis.breakers())
            .build()
            .expect("good settings");
        Self { redis, breaker }
    }

    /// Starts several instances of one name, and waits until all are live.
    pub async fn fleet(
        url: &str,
        size: usize,
        builder: impl Fn() -> CircuitBreakerBuilder,
    ) -> Vec<Self> {
        let all = (0..size).map(|_| Self::start(url, builder()));
        let all = futures_util::future::join_all(all).await;
        eventually("the whole fleet is live", SOON, || async {
            all[0]
                .view()
                .await
                .is_some_and(|view| view.live >= size as u64)
        })
        .await;
        all
    }

    /// Where the fleet stands, if the store says.
    pub async fn view(&self) -> Option<BreakerView> {
        self.breaker.fleet_view().await.ok()
    }

    /// Whether the store is unavailable to this instance.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.breaker.snapshot().degraded
    }

    /// Makes `calls` calls that end with `verdict`; rejected ones do not count.
    pub fn settle(&self, calls: usize, verdict: Verdict) {
        for _ in 0..calls {
            if let Ok(mut call) = self.breaker.acquire() {
                call.settle(verdict);
            }
        }
    }

    /// Makes a call through the layer. Returns whether it passed.
    pub async fn call(&self, verdict: Verdict) -> bool {
        let service = self
            .breaker
            .layer()
            .layer(tower::service_fn(move |()| async move {
                if verdict == Verdict::Success {
                    Ok(())
                } else {
                    Err(Error::Service(()))
                }
            }));
        !matches!(service.oneshot(()).await, Err(Error::Rejected(_)))
    }

    /// Makes calls that succeed until the breaker is closed.
    pub async fn call_until_closed(&self) {
        eventually("it closes", SOON, || async {
            self.call(Verdict::Success).await;
            self.breaker.state() == State::Closed
        })
        .await;
    }
}

/// Waits until every instance is in `state`.
pub async fn all_are(fleet: &[Instance], state: State) {
    eventually(&format!("all are {state:?}"), SOON, || async {
        fleet.iter().all(|one| one.breaker.state() == state)
    })
    .await;
}

/// Opens the whole fleet: each instance fails too few calls to open alone.
pub async fn open(fleet: &[Instance]) {
    fleet
        .iter()
        .for_each(|one| one.settle(9, Verdict::transient()));
    all_are(fleet, State::Open).await;
}

/// Calls through the layer, one after the other, to a service in memory that succeeds or fails on demand.
#[derive(Debug)]
pub struct Traffic {
    sick: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

/// Results of the calls.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Calls that the service failed.
    pub failed: u64,
    /// Calls that the breaker rejected.
    pub rejected: u64,
    /// Duration of the slowest call.
    pub slowest: Duration,
}

impl Traffic {
    /// Starts calling.
    #[must_use]
    pub fn through(breaker: &CircuitBreaker) -> Self {
        let (sick, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Seen>>::default());
        let (stop, mut stopped) = oneshot::channel();
        let is_sick = Arc::clone(&sick);
        let service = breaker.layer().layer(tower::service_fn(move |()| {
            let sick = is_sick.load(Relaxed);
            async move {
                if sick {
                    Err(Error::Service(()))
                } else {
                    Ok(())
                }
            }
        }));
        let notes = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                let start = Instant::now();
                let result = service.clone().oneshot(()).await;
                let took = start.elapsed();
                {
                    let mut seen = notes.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.slowest = seen.slowest.max(took);
                    match result {
                        Ok(()) => seen.succeeded += 1,
                        Err(Error::Service(())) => seen.failed += 1,
                        Err(Error::Rejected(_)) => seen.rejected += 1,
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self {
            sick,
            seen,
            stop: Some(stop),
            task: Some(task),
        }
    }

    /// Makes the service fail, or succeed again.
    pub fn set_sick(&self, sick: bool) {
        self.sick.store(sick, Relaxed);
    }

    /// Results of the calls so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for `more` further calls to succeed.
    pub async fn goes_on(&self, more: u64) {
        let before = self.seen().succeeded;
        eventually("calls go on", SOON, || async {
            self.seen().succeeded >= before + more
        })
        .await;
    }

    /// Stops calling.
    ///
    /// # Panics
    ///
    /// When a call does not end.
    pub async fn stop(mut self) -> Seen {
        drop(self.stop.take());
        if let Some(task) = self.task.take() {
            let ended = tokio::time::timeout(SOON, task).await;
            ended.expect("the last call ends").expect("no panic");
        }
        self.seen()
    }
}

/// Counts the events about the handle `name` by message, from the first call of this function in the process on.
pub fn events(name: &str) -> BTreeMap<String, usize> {
    let events = recorder().0.lock().unwrap_or_else(PoisonError::into_inner);
    events.get(name).cloned().unwrap_or_default()
}

/// Counts the events of breaker `name` that its store became unavailable, and that it is available again.
#[must_use]
pub fn told(name: &str) -> (usize, usize) {
    let events = events(name);
    let count = |start: &str| {
        let of = events
            .iter()
            .filter(|(message, _)| message.starts_with(start));
        of.map(|(_, count)| count).sum::<usize>()
    };
    (count("store unavailable"), count("store available"))
}

type Events = BTreeMap<String, BTreeMap<String, usize>>;

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Events>>);

fn recorder() -> &'static Recorder {
    static RECORDER: OnceLock<Recorder> = OnceLock::new();
    RECORDER.get_or_init(|| {
        let recorder = Recorder::default();
        tracing::subscriber::set_global_default(Registry::default().with(recorder.clone()))
            .expect("the only subscriber of this process");
        recorder
    })
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "resilience" {
            return;
        }
        let mut words = Words::default();
        event.record(&mut words);
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *events
            .entry(words.name)
            .or_default()
            .entry(words.message)
            .or_default() += 1;
    }
}

#[derive(Default)]
struct Words {
    name: String,
    message: String,
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "name" {
            value.clone_into(&mut self.name);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}
