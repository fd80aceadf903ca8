//! The hot paths by name: closures that make a given number of calls, one after the other.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, poll_fn, ready},
    hint::black_box,
    time::Duration,
};

use resilience_core::{
    Coalesce, Error, Verdict,
    breaker::{self, CircuitBreaker, Window},
    bulkhead::{self, Bulkhead, BulkheadBuilder, fleet::FleetBulkhead},
    completion::Guard as _,
    deadline::Timeout,
    execute,
    fallback::Fallback,
    idempotency::{self, Idempotency},
    keyed::Keyed,
    limit::{
        Quota, RateLimit, RateLimitBuilder,
        fleet::{FleetRateLimit, FleetRateLimitBuilder, LeaseRules, Mode},
        store::InProcessLimits,
        upstream::UpstreamLimits,
    },
    retry::{Replayable, Retry},
    shed::LoadShed,
};
use tokio::{runtime::Runtime, task::yield_now};
use tower::{Layer, Service, ServiceBuilder, service_fn};

pub(crate) type Calls = Box<dyn FnMut(&Runtime, u64)>;

/// A name, and what prepares the calls.
type Path = (&'static str, fn() -> Calls);

/// A new path is one more line. The closures run in the context of the runtime.
pub(crate) const PATHS: &[Path] = &[
    ("bare_service", || service(bare())),
    ("breaker_time_window", || {
        layer(breaker().build().expect(VALID).layer())
    }),
    ("breaker_count_window", || {
        layer(count_window().build().expect(VALID).layer())
    }),
    ("breaker_slow_calls", || {
        layer(slow_calls().build().expect(VALID).layer())
    }),
    ("breaker_fleet_time_window", || {
        layer(in_fleet(breaker()).build().expect(VALID).layer())
    }),
    ("breaker_fleet_count_window", || {
        layer(in_fleet(count_window()).build().expect(VALID).layer())
    }),
    ("breaker_keyed", || {
        families(|| layer(breaker().keyed(Keyed::new()).expect(VALID).layer(key)))
    }),
    ("breaker_acquire", breaker_acquire),
    ("deadline", || layer(deadline().layer())),
    ("retry_budget", || layer(retry().layer())),
    ("bulkhead", || {
        layer(bulkhead().build().expect(VALID).layer())
    }),
    ("bulkhead_keyed", || {
        families(|| layer(bulkhead().keyed(Keyed::new()).expect(VALID).layer(key)))
    }),
    ("limit_check", limit_check),
    ("limit_check_keyed", || families(limit_check_keyed)),
    ("limit", || layer(limit().build().expect(VALID).layer())),
    ("limit_keyed", || {
        families(|| layer(limit().keyed(Keyed::new()).expect(VALID).layer(key)))
    }),
    ("shed", || layer(LoadShed::new(NAME).layer())),
    ("coalesce_passing", || layer(coalesce().layer(|_| None))),
    ("coalesce_started", || {
        layer(coalesce().layer(|it| Some(key(it))))
    }),
    ("fallback", || {
        layer(Fallback::value(NAME, Response(0)).layer())
    }),
    ("five_layers", five_layers),
    ("execute_guard", execute_guard),
    ("upstream_limits", upstream_limits),
    ("fleet_bulkhead_acquire", fleet_bulkhead_acquire),
    ("fleet_bulkhead", fleet_bulkhead_layer),
    ("fleet_limit_exact_check", || fleet_limit_check(Mode::Exact)),
    ("fleet_limit_leased_check", || fleet_limit_check(leased())),
    ("fleet_limit_leased", || {
        layer(fleet_limit(leased()).build().expect(VALID).layer(subject))
    }),
    ("idempotency_first_call", || idempotency(false)),
    ("idempotency_replay", || idempotency(true)),
];

const NAME: &str = "bench";
const VALID: &str = "a valid configuration";
const KEYS: u64 = 256;
/// More than is ever used.
const PLENTY: u64 = 1 << 31;

#[derive(Clone, Copy)]
struct Request(u64);

#[derive(Clone, Copy)]
struct Response(u64);

/// It never happens, but no layer can know that.
#[derive(Debug)]
struct Failure;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failure")
    }
}

impl std::error::Error for Failure {}

/// May be sent again, like a GET.
impl Replayable for Request {
    fn replay(&self) -> Option<Self> {
        Some(*self)
    }
}

type Answer = Ready<Result<Response, Error<Failure>>>;
type Bare = tower::util::ServiceFn<fn(Request) -> Answer>;

fn bare() -> Bare {
    service_fn(|request| ready(Ok(Response(request.0))))
}

/// `KEYS` keys in turn.
const fn key(request: &Request) -> u64 {
    request.0 % KEYS
}

const fn subject(_: &Request) -> &'static str {
    NAME
}

// --- How calls are made

fn layer<L>(layer: L) -> Calls
where
    L: Layer<Bare>,
    L::Service: Service<Request, Response = Response, Error: fmt::Debug> + 'static,
{
    service(layer.layer(bare()))
}

fn service<S>(mut service: S) -> Calls
where
    S: Service<Request, Response = Response, Error: fmt::Debug> + 'static,
{
    Box::new(move |runtime, calls| {
        runtime.block_on(async {
            for n in 0..calls {
                poll_fn(|cx| service.poll_ready(cx)).await.expect("ready");
                let response = service.call(black_box(Request(n))).await;
                black_box(response.expect("nothing is rejected").0);
            }
        });
    })
}

fn plain<T>(mut call: impl FnMut(u64) -> T + 'static) -> Calls {
    Box::new(move |_, calls| {
        for n in 0..calls {
            black_box(call(black_box(n)));
        }
    })
}

fn asynchronous<T>(mut call: impl AsyncFnMut(u64) -> T + 'static) -> Calls {
    Box::new(move |runtime, calls| {
        runtime.block_on(async {
            for n in 0..calls {
                black_box(call(black_box(n)).await);
            }
        });
    })
}

/// Each map draws its hash keys at random, which decides how long its look-ups are: a mean over many.
const FAMILIES: u64 = 16;

fn families(make: fn() -> Calls) -> Calls {
    let mut families: Vec<Calls> = (0..FAMILIES).map(|_| make()).collect();
    Box::new(move |runtime, calls| {
        for family in &mut families {
            family(runtime, calls / FAMILIES);
        }
    })
}

// --- What is called

fn coalesce() -> Coalesce<u64, Response, Error<Failure>> {
    Coalesce::builder(NAME).build().expect(VALID)
}

/// A shorter window would slide during the calls, more often on a slow machine.
fn breaker() -> breaker::CircuitBreakerBuilder {
    CircuitBreaker::builder(NAME).window(Window::time(Duration::from_secs(24 * 3600)))
}

fn count_window() -> breaker::CircuitBreakerBuilder {
    breaker().window(Window::count(100))
}

fn slow_calls() -> breaker::CircuitBreakerBuilder {
    breaker().slow_calls(Duration::from_millis(500), 0.8)
}

fn in_fleet(builder: breaker::CircuitBreakerBuilder) -> breaker::CircuitBreakerBuilder {
    builder.store(breaker::fleet::InProcessBreakers::new())
}

/// Without tower.
fn breaker_acquire() -> Calls {
    let breaker = breaker().build().expect(VALID);
    plain(move |_| breaker.acquire().expect("closed").settle(Verdict::Success))
}

fn deadline() -> Timeout {
    Timeout::new(NAME, Duration::from_secs(3600)).expect(VALID)
}

fn retry() -> Retry {
    Retry::builder(NAME).build().expect(VALID)
}

fn bulkhead() -> BulkheadBuilder {
    Bulkhead::builder(NAME).max_concurrent(32)
}

fn limit() -> RateLimitBuilder {
    RateLimit::builder(NAME).permits(PLENTY, Duration::from_secs(1))
}

fn limit_check() -> Calls {
    let limit = limit().build().expect(VALID);
    plain(move |_| limit.try_acquire(1).expect("below the limit"))
}

fn limit_check_keyed() -> Calls {
    let limits = limit().keyed(Keyed::new()).expect(VALID);
    plain(move |n| limits.check(&(n % KEYS), 1).expect("below the limit"))
}

/// As in the benches.
fn five_layers() -> Calls {
    layer(
        ServiceBuilder::new()
            .layer(deadline().layer())
            .layer(retry().layer())
            .layer(bulkhead().build().expect(VALID).layer())
            .layer(breaker().build().expect(VALID).layer())
            .layer(LoadShed::new(NAME).layer()),
    )
}

/// A closure behind a breaker.
fn execute_guard() -> Calls {
    let guarded = execute::guard(breaker().build().expect(VALID).layer());
    asynchronous(async move |n| {
        let work = || ready(Ok::<u64, Failure>(n));
        guarded.call(work).await.expect("nothing is rejected")
    })
}

fn upstream_limits() -> Calls {
    let limits = UpstreamLimits::builder(NAME).build().expect(VALID);
    plain(move |_| drop(limits.enter("api.test:443").expect("nothing was said")))
}

fn fleet_bulkhead() -> FleetBulkhead {
    let store = bulkhead::fleet::InProcessBulkheads::new();
    FleetBulkhead::builder(NAME)
        .store(store)
        .build()
        .expect(VALID)
}

/// Includes the release, which the agent sends: it gets its turn after each call.
fn fleet_bulkhead_acquire() -> Calls {
    let bulkhead = fleet_bulkhead();
    asynchronous(async move |_| {
        drop(bulkhead.acquire(1).await.expect("a free place"));
        yield_now().await;
    })
}

fn fleet_bulkhead_layer() -> Calls {
    let mut service = fleet_bulkhead().layer().layer(bare());
    asynchronous(async move |n| {
        poll_fn(|cx| service.poll_ready(cx)).await.expect("ready");
        let response = service.call(Request(n)).await.expect("a free place").0;
        yield_now().await;
        response
    })
}

/// Leases of an hour: the size of renewed ones would depend on the speed of the machine.
fn leased() -> Mode {
    Mode::Leased(LeaseRules::new().time(Duration::from_secs(3600)))
}

fn fleet_limit(mode: Mode) -> FleetRateLimitBuilder {
    let quota = Quota::per(PLENTY, Duration::from_secs(1)).expect(VALID);
    let builder = FleetRateLimit::builder(NAME).store(InProcessLimits::new());
    builder.limit("calls", quota).mode(mode)
}

fn fleet_limit_check(mode: Mode) -> Calls {
    let limit = fleet_limit(mode).build().expect(VALID);
    asynchronous(async move |_| limit.check("tenant-7", 1).await.expect("below the limit"))
}

/// `run`, each call with a key of its own, or all of them with one.
fn idempotency(replay: bool) -> Calls {
    let store = idempotency::InProcessIdempotency::new();
    let builder = Idempotency::builder(NAME).store(store.clone());
    let work = builder.build().expect(VALID);
    asynchronous(async move |n| {
        // In a store that grows, later calls would take more than the first.
        if !replay && n % 1024 == 0 {
            store.flush();
        }
        let key = format!("key-{}", if replay { 0 } else { n });
        let done = work.run(key, async move |_| Ok::<_, Infallible>(n)).await;
        done.expect("an outcome").value
    })
}
