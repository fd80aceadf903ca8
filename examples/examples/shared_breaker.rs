//! "I run five instances of a service, none of them busy. When the partner's API goes down, each of them has to find
//! out by itself, and each new deployment starts by finding out again."
//!
//! A fleet of five in one process, with circuit breakers that share what they know, against a partner that this program
//! makes up:
//!
//! ```text
//! cargo run -p resilience-examples --example shared_breaker
//! cargo run -p resilience-examples --example shared_breaker -- --redis redis://127.0.0.1:6379
//! ```
//!
//! 1. Each instance has too few calls to tell alone; together they have enough, and open together.
//! 2. An instance that starts now is open from the start: it inherits the verdict and sends nothing.
//! 3. When the partner is back, the fleet finds out with one set of probes.
//! 4. One instance with a broken network opens alone and does not affect the others.
//! 5. An operator's override applies to all, also to those that start later.
//!
//! Without `--redis` the instances share a store in this process. With it, each has a connection of its own, as separate
//! processes would have; `.store(..)` is the only line that differs.

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use resilience_core::{
    CircuitBreaker, Error, FleetOptions,
    breaker::{
        CircuitBreakerBuilder, HalfOpen, OpenFor, State,
        fleet::{FleetOverride, FleetRules, InProcessBreakers, OverrideKind},
    },
    execute::{self, Execute},
};
use resilience_redis::Redis;
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceBuilder;

type BoxError = Box<dyn StdError + Send + Sync>;

const INSTANCES: usize = 5;
/// Minimum number of calls before a breaker trusts a rate.
const MINIMUM: u32 = 20;
/// Far fewer than that.
const CALLS_EACH: usize = 5;

/// What was seen, for the tests.
#[derive(Debug, Default)]
#[cfg_attr(not(test), allow(dead_code, reason = "read by the tests"))]
struct Seen {
    open_alone: usize,
    open_together: usize,
    sent_by_the_newcomer: usize,
    probes: usize,
    closed_again: usize,
    lone_failures: usize,
    poisoned: usize,
    forced_open: usize,
    calls_under_the_order: usize,
    closed_in_the_end: usize,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = std::env::args().skip(1);
    let store = match (args.next().as_deref(), args.next(), args.next()) {
        (None, ..) => Store::InProcess(InProcessBreakers::new()),
        (Some("--redis"), Some(url), None) => Store::redis(&url).await?,
        _ => return Err("usage: shared_breaker [--redis URL]".into()),
    };
    run(&store).await.map(drop)
}

async fn run(store: &Store) -> Result<Seen, BoxError> {
    let partner = Arc::new(Partner::default());
    let mut seen = Seen::default();

    // For comparison: the same calls through breakers that know nothing of each other.
    let alone = start(INSTANCES, &partner, builder)?;
    partner.down.store(true, SeqCst);
    each_calls(&alone, CALLS_EACH).await;
    seen.open_alone = count(&alone, State::Open);

    let mut fleet = start(INSTANCES, &partner, || store.share(builder()))?;
    open_together(&fleet, &mut seen).await?;
    a_newcomer(&mut fleet, &partner, store, &mut seen).await?;
    probe_and_close(&fleet, &partner, &mut seen).await?;
    a_broken_network(&fleet, &mut seen).await?;
    an_order(&mut fleet, &partner, store, &mut seen).await?;
    Ok(seen)
}

/// The breaker of every instance, but for the store. Short intervals, so that the example is quick.
fn builder() -> CircuitBreakerBuilder {
    CircuitBreaker::builder("partner")
        .minimum_calls(MINIMUM)
        .failure_rate(0.5)
        .open_for(OpenFor::fixed(ms(2000)))
        .half_open(HalfOpen::probes(3))
}

async fn open_together(fleet: &[Instance], seen: &mut Seen) -> Result<(), BoxError> {
    each_calls(fleet, CALLS_EACH).await;
    let start = Instant::now();
    all(fleet, State::Open).await?;
    seen.open_together = count(fleet, State::Open);
    let view = fleet[0].breaker.fleet_view().await?;
    println!(
        "1. {CALLS_EACH} failed calls each: of {INSTANCES} breakers that are alone, {} opened; of {INSTANCES} that \
         share, {}, {:.0?} after the last call. The reason: {}.",
        seen.open_alone,
        seen.open_together,
        start.elapsed(),
        view.cause,
    );
    Ok(())
}

async fn a_newcomer(
    fleet: &mut Vec<Instance>,
    partner: &Arc<Partner>,
    store: &Store,
    seen: &mut Seen,
) -> Result<(), BoxError> {
    fleet.extend(start(1, partner, || store.share(builder()))?);
    let newcomer = &fleet[INSTANCES..];
    // A moment, for the store to answer: it is asked when the breaker is built.
    all(newcomer, State::Open).await?;
    let before = partner.calls.load(SeqCst);
    let answer = newcomer[0].call().await;
    seen.sent_by_the_newcomer = partner.calls.load(SeqCst) - before;
    let Err(Error::Rejected(no)) = answer else {
        return Err("a partner that is down has answered".into());
    };
    println!(
        "2. An instance that starts now inherits the verdict: its first call got `{no}`, and the partner {} requests.",
        seen.sent_by_the_newcomer,
    );
    Ok(())
}

async fn probe_and_close(
    fleet: &[Instance],
    partner: &Partner,
    seen: &mut Seen,
) -> Result<(), BoxError> {
    partner.down.store(false, SeqCst);
    // Open until the interval is over; what is sent then, until they are closed, are the probes.
    let calling = async {
        while count(fleet, State::Closed) == 0 {
            each_calls(fleet, 1).await;
            sleep(ms(5)).await;
        }
    };
    timeout(PATIENCE, calling).await?;
    seen.probes = partner.probes.load(SeqCst);
    all(fleet, State::Closed).await?;
    seen.closed_again = count(fleet, State::Closed);
    println!(
        "3. The partner is back: {} probes in all, and {} instances are closed.",
        seen.probes, seen.closed_again,
    );
    Ok(())
}

async fn a_broken_network(fleet: &[Instance], seen: &mut Seen) -> Result<(), BoxError> {
    fleet[0].broken.store(true, SeqCst);
    for _ in 0..MINIMUM {
        seen.lone_failures += usize::from(fleet[0].call().await.is_err());
        each_calls(&fleet[1..], 1).await;
    }
    all(&fleet[..1], State::Open).await?;
    // Time for several reports, in which the others could have been infected.
    sleep(ms(400)).await;
    seen.poisoned = count(&fleet[1..], State::Open);
    println!(
        "4. One instance's network is broken: it opened alone after {} failures; of the others, {} did.",
        seen.lone_failures, seen.poisoned,
    );
    fleet[0].broken.store(false, SeqCst);
    Ok(())
}

async fn an_order(
    fleet: &mut Vec<Instance>,
    partner: &Arc<Partner>,
    store: &Store,
    seen: &mut Seen,
) -> Result<(), BoxError> {
    let active_override = FleetOverride {
        kind: OverrideKind::ForceOpen,
        reason: "the partner migrates its database".to_owned(),
        by: "operations".to_owned(),
        expires_ms: None,
    };
    fleet[1].fleet()?.set_override(active_override).await?;
    fleet.extend(start(1, partner, || store.share(builder()))?);
    all(fleet, State::ForcedOpen).await?;
    let before = partner.calls.load(SeqCst);
    each_calls(fleet, 1).await;
    seen.forced_open = count(fleet, State::ForcedOpen);
    seen.calls_under_the_order = partner.calls.load(SeqCst) - before;
    let lasting = fleet[2].breaker.fleet_view().await?.active_override;
    let active_override = lasting.ok_or("the order is lost")?;
    fleet[2].fleet()?.clear_override("operations").await?;
    // The one that had opened alone need not wait for probes of its own.
    fleet[2].fleet()?.reset("operations", "migrated").await?;
    all(fleet, State::Closed).await?;
    seen.closed_in_the_end = count(fleet, State::Closed);
    println!(
        "5. Forced open by {} ({}): {} of {} instances, the newest included; {} requests got through. Lifted: {} \
         closed.",
        active_override.by,
        active_override.reason,
        seen.forced_open,
        fleet.len(),
        seen.calls_under_the_order,
        seen.closed_in_the_end,
    );
    Ok(())
}

/// Where verdicts are kept.
enum Store {
    InProcess(InProcessBreakers),
    /// Each instance has a connection of its own.
    Redis {
        url: String,
        prefix: String,
    },
}

impl Store {
    /// Checks that something answers there: without it the breakers would go by their own windows, and there would be
    /// nothing to see.
    async fn redis(url: &str) -> Result<Self, BoxError> {
        let redis = Redis::connect(url)?;
        if let Err(status) = redis.ready(PATIENCE).await {
            return Err(format!("no Redis at this address: {status:?}").into());
        }
        // Instances that belong together have the same prefix. This run's verdicts are for this run only.
        let (url, prefix) = (url.to_owned(), format!("example-{:08x}", fastrand::u32(..)));
        Ok(Self::Redis { url, prefix })
    }

    fn share(&self, builder: CircuitBreakerBuilder) -> CircuitBreakerBuilder {
        let rules = FleetRules::new().min_instances(2).quorum(0.3).alert(ms(50));
        let builder = builder
            .fleet(FleetOptions::new().heartbeat(ms(200)))
            .fleet_rules(rules);
        match self {
            Self::InProcess(store) => builder.store(store.clone()),
            Self::Redis { url, prefix } => {
                let redis = Redis::builder(url).prefix(prefix.as_str()).connect();
                let redis = redis.expect("the URL has worked before");
                builder.store(redis.breakers())
            }
        }
    }
}

/// One instance of the service: a breaker, and a network that may be broken.
struct Instance {
    breaker: CircuitBreaker,
    partner: Arc<Partner>,
    broken: AtomicBool,
}

impl Instance {
    async fn call(&self) -> Result<(), Error<&'static str>> {
        let stack = ServiceBuilder::new()
            .layer(self.breaker.layer())
            .service(Execute);
        let (partner, breaker) = (Arc::clone(&self.partner), self.breaker.clone());
        let broken = self.broken.load(SeqCst);
        let request = move || async move {
            if broken {
                return Err("no route");
            }
            let probing = breaker.state() == State::HalfOpen;
            partner.ask(probing)
        };
        execute::Guarded::new(stack).call(request).await
    }

    fn fleet(&self) -> Result<resilience_core::breaker::fleet::Fleet, BoxError> {
        Ok(self.breaker.fleet().ok_or("it is not shared")?)
    }
}

fn start(
    count: usize,
    partner: &Arc<Partner>,
    builder: impl Fn() -> CircuitBreakerBuilder,
) -> Result<Vec<Instance>, BoxError> {
    let instance = |_| {
        Ok(Instance {
            breaker: builder().build()?,
            partner: Arc::clone(partner),
            broken: AtomicBool::new(false),
        })
    };
    (0..count).map(instance).collect()
}

/// The partner's API.
#[derive(Debug, Default)]
struct Partner {
    down: AtomicBool,
    calls: AtomicUsize,
    /// Those of them that were probes.
    probes: AtomicUsize,
}

impl Partner {
    fn ask(&self, probing: bool) -> Result<(), &'static str> {
        self.calls.fetch_add(1, SeqCst);
        self.probes.fetch_add(usize::from(probing), SeqCst);
        if self.down.load(SeqCst) {
            Err("connection refused")
        } else {
            Ok(())
        }
    }
}

async fn each_calls(instances: &[Instance], times: usize) {
    for _ in 0..times {
        for instance in instances {
            // What comes of it is the breaker's to know.
            let _ = instance.call().await;
        }
    }
}

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until all of them are in `state`.
async fn all(instances: &[Instance], state: State) -> Result<(), BoxError> {
    let waiting = async {
        while count(instances, state) < instances.len() {
            sleep(ms(2)).await;
        }
    };
    let late = |_| format!("only {} are {state}", count(instances, state));
    Ok(timeout(PATIENCE, waiting).await.map_err(late)?)
}

fn count(instances: &[Instance], state: State) -> usize {
    let is = |instance: &&Instance| instance.breaker.state() == state;
    instances.iter().filter(is).count()
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[cfg(test)]
mod tests {
    use resilience_tests::redis::RedisServer;

    use super::*;

    fn check(seen: &Seen) {
        assert_eq!(seen.open_alone, 0, "{seen:?}");
        assert_eq!(seen.open_together, INSTANCES, "{seen:?}");
        assert_eq!(seen.sent_by_the_newcomer, 0, "{seen:?}");
        assert!((2..=3).contains(&seen.probes), "{seen:?}");
        assert_eq!(seen.closed_again, INSTANCES + 1, "{seen:?}");
        assert_eq!(seen.poisoned, 0, "{seen:?}");
        assert_eq!(
            (seen.forced_open, seen.closed_in_the_end),
            (INSTANCES + 2, INSTANCES + 2)
        );
        assert_eq!(seen.calls_under_the_order, 0, "{seen:?}");
    }

    #[tokio::test]
    async fn the_story_goes_as_it_is_told() {
        check(
            &run(&Store::InProcess(InProcessBreakers::new()))
                .await
                .unwrap(),
        );
    }

    #[tokio::test]
    async fn it_goes_the_same_way_over_redis() {
        let server = RedisServer::start();
        check(
            &run(&Store::redis(&server.url()).await.unwrap())
                .await
                .unwrap(),
        );
    }
}
