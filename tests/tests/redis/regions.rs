//! Limits that are divided between two regions, each with a Redis of its own, and a network between them that fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use resilience_core::limit::{
    Quota,
    regions::{InProcessRegion, Ledger, RegionStore, RegionalLimits, Swap, WHOLE},
    store::{Demand, LimitStore},
};
use resilience_tests::{
    proxy::{Proxy, Weather},
    redis::{Flavour, RedisServer},
    redis_scene::{SOON, connect},
    until::eventually,
};
use tokio::{task::JoinHandle, time::Instant};

const INTERVAL: Duration = Duration::from_millis(100);
const TERM: Duration = Duration::from_millis(2_000);
const RATE: u64 = 300;
const BURST: u64 = 60;

fn quota() -> Quota {
    Quota::per(RATE, Duration::from_secs(1))
        .and_then(|quota| quota.burst(BURST))
        .expect("a valid quota")
}

/// Two regions with two processes each; what is between them goes through two proxies.
struct World {
    servers: [RedisServer; 2],
    between: [Proxy; 2],
    regions: [[RegionalLimits; 2]; 2],
}

impl World {
    async fn start() -> Self {
        let servers = [RedisServer::start(), RedisServer::start()];
        let to = |server: &RedisServer| Proxy::to(server.addr().parse().expect("an address"));
        let between =
            [to(&servers[0]).await, to(&servers[1]).await].map(|proxy| proxy.expect("a proxy"));
        let process = async |here: usize| {
            let (names, there) = (["eu", "us"], 1 - here);
            let near = connect(&servers[here].url()).await;
            let far = connect(&format!("redis://{}", between[there].address())).await;
            RegionalLimits::builder("api")
                .store(near.limits())
                .here(names[here], 1, near.regions())
                .peer(names[there], 1, far.regions())
                .interval(INTERVAL)
                .term(TERM)
                .build()
                .expect("good settings")
        };
        let regions = [
            [process(0).await, process(0).await],
            [process(1).await, process(1).await],
        ];
        Self {
            servers,
            between,
            regions,
        }
    }

    async fn set(&mut self, weather: Weather) {
        for proxy in &mut self.between {
            proxy.set(weather).await;
        }
    }

    /// The largest share that a process of each region goes by.
    fn shares(&self) -> [u32; 2] {
        let of = |region: &[RegionalLimits; 2]| {
            let shares = region.each_ref().map(|region| region.snapshot().share);
            shares[0].max(shares[1])
        };
        self.regions.each_ref().map(of)
    }

    async fn come_to(&self, what: &str, is_so: impl Fn([u32; 2]) -> bool) {
        eventually(what, SOON, || async {
            let shares = self.shares();
            assert!(shares[0] + shares[1] <= WHOLE, "{what}: {shares:?}");
            is_so(shares)
        })
        .await;
    }
}

/// Callers in both processes of a region, who want more than there is.
struct Traffic {
    admitted: Arc<AtomicU64>,
    slowest: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(region: &[RegionalLimits; 2]) -> Self {
        let mut traffic = Self {
            admitted: Arc::default(),
            slowest: Arc::default(),
            stop: Arc::default(),
            tasks: Vec::new(),
        };
        for limits in region {
            let (limits, stop) = (limits.clone(), Arc::clone(&traffic.stop));
            let (admitted, slowest) = (Arc::clone(&traffic.admitted), Arc::clone(&traffic.slowest));
            traffic.tasks.push(tokio::spawn(async move {
                while !stop.load(SeqCst) {
                    let demand = Demand {
                        limit: "per-second",
                        quota: quota(),
                        cost: 1,
                    };
                    let begun = Instant::now();
                    let decision = limits.decide("api", "tenant", &[demand]).await;
                    let took = begun.elapsed().as_millis() as u64;
                    slowest.fetch_max(took, SeqCst);
                    let decision = decision.expect("the region's own Redis answers");
                    admitted.fetch_add(u64::from(decision.outcome.is_admitted()), SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }));
        }
        traffic
    }

    /// What was admitted, and the slowest decision in milliseconds.
    async fn stop(self) -> (u64, u64) {
        self.stop.store(true, SeqCst);
        for task in self.tasks {
            task.await.expect("no panic");
        }
        (self.admitted.load(SeqCst), self.slowest.load(SeqCst))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_regions_admit_no_more_than_one_limit_also_when_they_cannot_reach_each_other() {
    let mut world = World::start().await;
    let begun = Instant::now();
    let eu = Traffic::start(&world.regions[0]);
    world
        .come_to("the rate goes to Europe", |[eu, us]| eu >= 230 && us <= 26)
        .await;
    world.set(Weather::Blackhole).await;
    let us = Traffic::start(&world.regions[1]);
    let cut = Instant::now();
    world
        .come_to("each has its base", |shares| shares == [128, 128])
        .await;
    let took = cut.elapsed();
    assert!(took < TERM * 3, "{took:?}");
    // Healed, in another weather: open connections are reset on the way.
    world.set(Weather::Reset).await;
    world.set(Weather::Fine).await;
    let (of_eu, slowest_eu) = eu.stop().await;
    world
        .come_to("the rate goes to America", |[eu, us]| us >= 230 && eu <= 26)
        .await;
    let (of_us, slowest_us) = us.stop().await;
    let time = begun.elapsed();
    let most = BURST as f64 + RATE as f64 * time.as_secs_f64();
    println!(
        "{of_eu} and {of_us} admitted in {time:?}, of {most:.0} at most; slowest decision {slowest_eu} and {slowest_us} ms; \
         base {took:?} after the cut"
    );
    assert!((of_eu + of_us) as f64 <= most);
    assert!((of_eu + of_us) as f64 >= most / 4.0, "the limit is used");
    world
        .come_to("each has its base without demand", |shares| {
            shares == [128, 128]
        })
        .await;
}

/// A server that was flushed does not know what it had lent.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_whose_redis_was_flushed_does_not_use_what_it_had_lent() {
    let world = World::start().await;
    let eu = Traffic::start(&world.regions[0]);
    world
        .come_to("the rate goes to Europe", |[eu, us]| eu >= 230 && us <= 26)
        .await;
    let _ = world.servers[1].command("FLUSHALL");
    let flushed = Instant::now();
    while flushed.elapsed() < TERM * 2 {
        let shares = world.shares();
        assert!(shares[0] + shares[1] <= WHOLE, "{shares:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world
        .come_to("it is lent again", |[eu, us]| eu >= 230 && us <= 26)
        .await;
    eu.stop().await;
}

fn swap(expected: u64, not_after: u64, ledger: &Ledger) -> Swap {
    Swap::new(expected, not_after, ledger.clone())
}

/// Every store of ledgers does the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_is_written_once_per_version_in_time_and_never_under_an_old_version() {
    for flavour in Flavour::installed() {
        let server = RedisServer::start_flavour(flavour, &[]);
        let store = connect(&server.url()).await.regions();
        holds(&store, || {
            let _ = server.command("FLUSHALL");
        })
        .await;
        assert_eq!(server.command("DBSIZE"), "2");
        for part in ["ledger", "demand"] {
            let ttl: i64 = server
                .command(&format!("PTTL {{resilience:region:api}}:{part}"))
                .parse()
                .expect("a number");
            assert!((1..=60_000).contains(&ttl), "{part}: {ttl}");
        }
    }
    let store = InProcessRegion::new();
    holds(&store, || store.flush()).await;
}

async fn holds(store: &dyn RegionStore, flush: impl FnOnce()) {
    let look = async || store.read("api").await.expect("a page");
    let first = look().await;
    assert_eq!(
        (first.version, &first.ledger, first.demand),
        (0, &Ledger::default(), 0)
    );
    let ledger: Ledger = "1 5 7 > us 3 4 5 6 < ap%20%C3%A9 1 2 3"
        .parse()
        .expect("a ledger");
    let later = first.now + 60_000_000;
    assert!(
        store
            .swap("api", &swap(0, later, &ledger), 60_000)
            .await
            .expect("an answer")
    );
    assert!(
        !store
            .swap("api", &swap(0, later, &Ledger::default()), 60_000)
            .await
            .expect("an answer")
    );
    let second = look().await;
    assert_eq!(second.ledger, ledger);
    assert!(second.version > 0 && second.now >= first.now);
    let late = swap(
        second.version,
        first.now.saturating_sub(1),
        &Ledger::default(),
    );
    assert!(
        !store.swap("api", &late, 60_000).await.expect("an answer"),
        "too late"
    );
    assert_eq!(look().await.ledger, ledger);
    let told = store.report("api", "one", 5, 60_000).await.expect("a page");
    assert_eq!((told.demand, told.version), (5, second.version));
    store.report("api", "brief", 100, 50).await.expect("a page");
    assert_eq!(
        store
            .report("api", "two", 7, 60_000)
            .await
            .expect("a page")
            .ledger,
        ledger
    );
    eventually(
        "a demand that is not repeated is forgotten",
        SOON,
        || async { store.read("api").await.expect("a page").demand == 12 },
    )
    .await;
    assert_eq!(store.read("other").await.expect("a page").demand, 0);
    flush();
    let lost = look().await;
    assert_eq!((lost.version, lost.demand), (0, 0));
    assert!(
        store
            .swap("api", &swap(0, later, &ledger), 60_000)
            .await
            .expect("an answer")
    );
    assert!(
        look().await.version > second.version,
        "versions go on upwards"
    );
    store.report("api", "one", 5, 60_000).await.expect("a page");
}
