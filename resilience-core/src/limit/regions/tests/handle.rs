//! The store as callers have it, over ledgers in this process and a clock that the test moves.

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::{
    fleet::{FleetOptions, OnOutage},
    limit::{fleet::FleetRateLimit, store::InProcessLimits},
};

const SECOND: Duration = Duration::from_secs(1);

struct Two {
    ledgers: [InProcessRegion; 2],
    regions: [RegionalLimits; 2],
}

fn builder(ledgers: &[InProcessRegion; 2], here: usize) -> RegionalLimitsBuilder {
    let names = ["eu", "us"];
    RegionalLimits::builder("api")
        .store(InProcessLimits::new())
        .here(names[here], 1, ledgers[here].clone())
        .peer(names[1 - here], 1, ledgers[1 - here].clone())
}

impl Two {
    fn new() -> Self {
        let ledgers = [(); 2].map(|()| InProcessRegion::new());
        let regions = [0, 1].map(|here| builder(&ledgers, here).build().unwrap());
        Self { ledgers, regions }
    }

    fn shares(&self) -> [u32; 2] {
        self.regions
            .each_ref()
            .map(|region| region.snapshot().share)
    }

    /// Asks region `of` ten times a second for `seconds`; returns how many were admitted.
    async fn ask(&self, of: usize, subject: &str, quota: Quota, seconds: u64) -> u64 {
        let mut admitted = 0;
        for _ in 0..seconds * 10 {
            let demand = Demand {
                limit: "per-second",
                quota,
                cost: 1,
            };
            let decision = self.regions[of].decide("api", subject, &[demand]).await;
            admitted += u64::from(decision.unwrap().outcome.is_admitted());
            tokio::time::sleep(SECOND / 10).await;
        }
        admitted
    }
}

fn quota() -> Quota {
    Quota::per(8, SECOND).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_region_with_all_the_demand_gets_nearly_all_of_the_rate_and_gives_it_back() {
    let two = Two::new();
    assert_eq!(two.shares(), [13, 13], "the floors, to begin with");
    two.ask(0, "tenant", quota(), 40).await;
    let [eu, us] = two.shares();
    assert!(eu >= 240 && us >= 13 && eu + us <= WHOLE, "{eu} and {us}");
    let admitted = two.ask(0, "tenant", quota(), 20).await;
    assert!((140..=164).contains(&admitted), "{admitted} of 160");
    two.ask(1, "tenant", quota(), 40).await;
    let [eu, us] = two.shares();
    assert!(us >= 240 && eu + us <= WHOLE, "{eu} and {us}");
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(two.shares(), [128, 128], "each its base without demand");
}

/// Callers of a region, through a limit that caches denials.
struct Crowd(FleetRateLimit);

impl Crowd {
    fn of(region: &RegionalLimits) -> Self {
        let limit = FleetRateLimit::builder("api")
            .store(region.clone())
            .limit("per-second", quota());
        Self(limit.build().unwrap())
    }

    async fn ask(&self, times: usize) {
        for _ in 0..times {
            drop(self.0.ask("tenant", 1).await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lent_share_comes_back_although_the_borrower_stays_busy() {
    for retries in [1, 20] {
        let two = Two::new();
        let [eu, us] = two.regions.each_ref().map(Crowd::of);
        for _ in 0..400 {
            eu.ask(retries).await;
            tokio::time::sleep(SECOND / 10).await;
        }
        assert!(two.shares()[0] >= 240, "{:?}", two.shares());
        let start = tokio::time::Instant::now();
        while two.shares()[1] < 120 {
            eu.ask(retries).await;
            us.ask(1).await;
            tokio::time::sleep(SECOND / 10).await;
            assert!(start.elapsed() < 14 * SECOND, "{:?}", two.shares());
        }
        for _ in 0..200 {
            eu.ask(retries).await;
            us.ask(1).await;
            tokio::time::sleep(SECOND / 10).await;
            assert!(two.shares()[1] >= 120, "it stays: {:?}", two.shares());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flushed_ledger_keeps_its_region_to_the_floor_until_all_loans_have_ended() {
    let two = Two::new();
    two.ask(0, "tenant", quota(), 40).await;
    two.ledgers[1].flush();
    for _ in 0..100 {
        tokio::time::sleep(SECOND / 10).await;
        let [eu, us] = two.shares();
        assert!(eu + us <= WHOLE, "{eu} and {us}");
    }
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(two.shares(), [128, 128]);
}

#[tokio::test(start_paused = true)]
async fn the_burst_is_divided_once_and_for_all_and_to_the_token() {
    let two = Two::new();
    let quota = Quota::per(1, 3600 * SECOND).unwrap().burst(7).unwrap();
    let of = async |region: usize| {
        let mut got = 0;
        let demand = Demand {
            limit: "l",
            quota,
            cost: 1,
        };
        while let decision = two.regions[region]
            .decide("api", "t", &[demand])
            .await
            .unwrap()
            && decision.outcome.is_admitted()
        {
            got += 1;
        }
        got
    };
    assert_eq!([of(0).await, of(1).await], [3, 4]);
    let single = Demand {
        limit: "l",
        quota: Quota::per(1, SECOND).unwrap(),
        cost: 1,
    };
    let failure = two.regions[0]
        .decide("api", "u", &[single])
        .await
        .unwrap_err();
    assert!(failure.reason.contains("cannot be divided"), "{failure}");
    assert!(two.regions[1].decide("api", "u", &[single]).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_work_is_refused_when_the_region_is_built() {
    let ledgers = [(); 2].map(|()| InProcessRegion::new());
    let of = || builder(&ledgers, 0);
    let field = |builder: RegionalLimitsBuilder| builder.build().unwrap_err().field();
    assert_eq!(field(of().keep(0.0)), "keep");
    assert_eq!(field(of().keep(1.1)), "keep");
    assert_eq!(field(of().interval(SECOND / 1000)), "interval");
    assert_eq!(field(of().term(5 * SECOND)), "term");
    assert_eq!(field(of().peer("eu", 1, ledgers[1].clone())), "peer");
    assert_eq!(field(of().peer("ap", 1_000, ledgers[1].clone())), "region");
    let options = FleetOptions::new();
    assert_eq!(
        field(of().fleet(options.clone().heartbeat(SECOND))),
        "heartbeat"
    );
    let open = options.on_outage(OnOutage::FailOpen);
    assert_eq!(field(of().fleet(open)), "on_outage");
    let nowhere = RegionalLimits::builder("api").store(InProcessLimits::new());
    assert_eq!(field(nowhere), "here");
}

/// A ledger that never answers while it hangs.
#[derive(Clone, Debug)]
struct Hanging {
    inner: InProcessRegion,
    hangs: Arc<std::sync::atomic::AtomicBool>,
}

impl Hanging {
    fn new() -> Self {
        let (inner, hangs) = (InProcessRegion::new(), Arc::default());
        Self { inner, hangs }
    }

    fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Relaxed);
    }

    fn or_hangs<'a, T: Send + 'a>(&self, answer: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        if self.hangs.load(Relaxed) {
            return Box::pin(std::future::pending());
        }
        answer
    }
}

impl RegionStore for Hanging {
    fn report<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        demand: u64,
        ttl_ms: u64,
    ) -> StoreFuture<'a, LedgerView> {
        self.or_hangs(self.inner.report(name, instance, demand, ttl_ms))
    }

    fn read<'a>(&'a self, name: &'a str) -> StoreFuture<'a, LedgerView> {
        self.or_hangs(self.inner.read(name))
    }

    fn swap<'a>(&'a self, name: &'a str, swap: &'a Swap, ttl_ms: u64) -> StoreFuture<'a, bool> {
        self.or_hangs(self.inner.swap(name, swap, ttl_ms))
    }
}

#[tokio::test(start_paused = true)]
async fn ledgers_that_never_answer_hang_nothing_and_the_shares_come_back_with_them() {
    let ledgers = [Hanging::new(), Hanging::new()];
    let build = |here: usize| {
        let names = ["eu", "us"];
        RegionalLimits::builder("api")
            .store(InProcessLimits::new())
            .here(names[here], 1, ledgers[here].clone())
            .peer(names[1 - here], 1, ledgers[1 - here].clone())
            .build()
            .unwrap()
    };
    let two = Two {
        ledgers: ledgers.each_ref().map(|ledger| ledger.inner.clone()),
        regions: [build(0), build(1)],
    };
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(two.shares(), [128, 128]);
    // The peer's ledger: this region keeps its own share.
    ledgers[1].hang(true);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(two.shares(), [128, 13], "the floor, without a ledger");
    assert!(!two.regions[0].snapshot().degraded && two.regions[1].snapshot().degraded);
    let started = tokio::time::Instant::now();
    let demand = Demand {
        limit: "l",
        quota: quota(),
        cost: 1,
    };
    for region in &two.regions {
        let decision = region.decide("api", "t", &[demand]).await.unwrap();
        assert!(decision.outcome.is_admitted());
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
    two.regions[1].shutdown(2 * SECOND).await.unwrap();
    assert!(started.elapsed() <= SECOND, "{:?}", started.elapsed());
    ledgers[1].hang(false);
    let again = build(1);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(
        (two.regions[0].snapshot().share, again.snapshot().share),
        (128, 128)
    );
    assert!(!again.snapshot().degraded);
}

#[tokio::test(start_paused = true)]
async fn a_region_that_is_shut_down_takes_its_demand_back() {
    let two = Two::new();
    two.ask(0, "tenant", quota(), 5).await;
    let demand = || async { two.ledgers[0].read("api").await.unwrap().demand };
    assert!(demand().await > 0);
    two.regions[0].shutdown(SECOND).await.unwrap();
    tokio::time::sleep(SECOND / 100).await;
    assert_eq!(demand().await, 0);
}
