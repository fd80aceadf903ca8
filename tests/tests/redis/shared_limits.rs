//! The rate limit of a fleet, over the store of this process and over Redis: the same suite; then Redis in trouble.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::{
    Reason,
    fleet::{FleetOptions, OnOutage},
    limit::{
        Quota,
        fleet::{Costs, DecidedBy, FleetRateLimit, FleetRateLimitBuilder, LeaseRules, Mode},
        store::{InProcessLimits, LimitStore},
    },
};
use resilience_redis::Redis;
use resilience_tests::{
    redis::RedisServer,
    redis_scene::{SOON, connect},
    until::eventually,
};
use tokio::{task::JoinSet, time::Instant};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const LEASED: Mode = Mode::Leased(LeaseRules::new());

/// Makes stores of one backend, a connection of its own each, as instances have.
trait Backend {
    type Store: LimitStore;
    async fn store(&self) -> Self::Store;
}

impl Backend for InProcessLimits {
    type Store = Self;

    async fn store(&self) -> Self {
        self.clone()
    }
}

impl Backend for RedisServer {
    type Store = resilience_redis::RedisLimits;

    async fn store(&self) -> Self::Store {
        connect(&self.url()).await.limits()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_fleet_conforms_in_this_process() {
    all(&InProcessLimits::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_fleet_conforms_on_redis() {
    all(&RedisServer::start()).await;
}

async fn all(backend: &impl Backend) {
    instances_share_their_limits_and_all_are_charged_or_none(backend).await;
    a_refusal_says_when_and_then_it_passes(backend, Mode::Exact).await;
    a_refusal_says_when_and_then_it_passes(backend, LEASED).await;
    what_was_reserved_is_settled(backend).await;
    for mode in [Mode::Exact, LEASED] {
        instances_together_never_admit_more_than_there_was(backend, mode).await;
    }
    instances_know_how_many_they_are(backend).await;
    leases_go_back(backend).await;
}

fn per(permits: u64, period: Duration) -> Quota {
    Quota::per(permits, period).expect("a valid quota")
}

async fn builder(backend: &impl Backend, name: &str) -> FleetRateLimitBuilder {
    FleetRateLimit::builder(name)
        .store(backend.store().await)
        .fleet(options())
}

/// A busy machine is not a store that is away.
fn options() -> FleetOptions {
    FleetOptions::new()
        .on_outage(OnOutage::FailClosed)
        .budget(5 * SECOND)
        .heartbeat(Duration::from_millis(100))
}

async fn left(limit: &FleetRateLimit, subject: &str) -> Vec<u64> {
    let ruling = limit.peek(subject).await.expect("an answer");
    ruling.limits().map(|limit| limit.remaining).collect()
}

async fn instances_share_their_limits_and_all_are_charged_or_none(backend: &impl Backend) {
    let mut fleet = Vec::new();
    for _ in 0..3 {
        let builder = builder(backend, "several").await;
        let builder = builder
            .limit("calls", per(10, HOUR))
            .limit("bytes", per(1_000, HOUR));
        fleet.push(builder.build().unwrap());
    }
    let costs = |bytes| Costs::each(1).on("bytes", bytes);
    for (number, limit) in fleet.iter().enumerate() {
        let ruling = limit.check("t", costs(300)).await.unwrap();
        assert_eq!(ruling.binding().unwrap().name, "bytes");
        assert_eq!(
            left(limit, "t").await,
            [9 - number as u64, 700 - 300 * number as u64]
        );
    }
    for limit in &fleet {
        let refused = limit.ask("t", costs(300)).await;
        assert!(!refused.is_admitted());
        assert_eq!(refused.binding().unwrap().name, "bytes");
        let wait = refused.retry_after().unwrap();
        assert!((SECOND * 650..=SECOND * 720).contains(&wait), "{wait:?}");
        let never = limit.check("t", costs(1_001)).await.unwrap_err();
        assert_eq!(
            (never.reason(), never.retry_after()),
            (Reason::TooCostly, None)
        );
        assert_eq!(left(limit, "t").await, [7, 100], "neither was charged");
    }
}

async fn a_refusal_says_when_and_then_it_passes(backend: &impl Backend, mode: Mode) {
    let builder = builder(backend, &format!("wait {mode:?}")).await.mode(mode);
    let limit = builder.limit("calls", per(20, SECOND)).build().unwrap();
    for _ in 0..3 {
        while limit.ask("t", 5).await.is_admitted() {}
        let refused = limit.ask("t", 5).await;
        let wait = refused.retry_after().unwrap();
        assert!(
            !wait.is_zero() && wait <= Duration::from_millis(260),
            "{wait:?}"
        );
        tokio::time::sleep(wait).await;
        assert!(limit.check("t", 5).await.is_ok(), "after {wait:?}");
    }
}

async fn what_was_reserved_is_settled(backend: &impl Backend) {
    let builder = builder(backend, "reserve").await;
    let limit = builder.limit("tokens", per(1_000, HOUR)).build().unwrap();
    let reserved = limit.reserve("t", 800).await.unwrap();
    assert_eq!(left(&limit, "t").await, [200]);
    assert!(reserved.settle(100).await.unwrap().is_paid());
    assert_eq!(left(&limit, "t").await, [900]);
    let reserved = limit.reserve("t", 100).await.unwrap();
    let settled = reserved.settle(2_000).await.unwrap();
    let unpaid: Vec<_> = settled.unpaid().collect();
    assert!(
        matches!(unpaid[..], [("tokens", 1_095..=1_100)]),
        "{unpaid:?}"
    );
    limit.reset("t").await.unwrap();
    assert_eq!(left(&limit, "t").await, [1_000]);
}

/// Instances with as many calls as they can make: never more than the burst and what was gained, and nearly all of it.
async fn instances_together_never_admit_more_than_there_was(backend: &impl Backend, mode: Mode) {
    const RATE: u64 = 2_000;
    const BURST: u64 = 500;
    let quota = per(RATE, SECOND).burst(BURST).unwrap();
    let name = format!("never {mode:?}");
    let (admitted, over) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let builder = builder(backend, &name).await.mode(mode);
        let limit = builder.limit("calls", quota).build().unwrap();
        for _ in 0..4 {
            let (limit, admitted) = (limit.clone(), Arc::clone(&admitted));
            let over = Arc::clone(&over);
            tasks.spawn(async move {
                while !over.load(Relaxed) {
                    let cost = fastrand::u64(1..4);
                    if limit.ask("hot", cost).await.is_admitted() {
                        admitted.fetch_add(cost, Relaxed);
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
    }
    for _ in 0..15 {
        tokio::time::sleep(SECOND / 10).await;
        let admitted = admitted.load(Relaxed);
        let most = BURST as f64 + start.elapsed().as_secs_f64() * RATE as f64;
        assert!(admitted as f64 <= most, "{mode:?}: {admitted} of {most}");
    }
    over.store(true, Relaxed);
    tasks.join_all().await;
    let (admitted, most) = (
        admitted.load(Relaxed) as f64,
        start.elapsed().as_secs_f64() * RATE as f64,
    );
    assert!(
        admitted > most * 0.5,
        "{mode:?}: {admitted} of {most}: starved"
    );
}

async fn instances_know_how_many_they_are(backend: &impl Backend) {
    let mut fleet = Vec::new();
    for _ in 0..3 {
        let builder = builder(backend, "live").await;
        fleet.push(builder.limit("calls", per(9, HOUR)).build().unwrap());
    }
    eventually("all know of all", SOON, || async {
        fleet
            .iter()
            .all(|limit| limit.snapshot().live_instances == 3)
    })
    .await;
    fleet.truncate(2);
    eventually("one has left", SOON, || async {
        fleet
            .iter()
            .all(|limit| limit.snapshot().live_instances == 2)
    })
    .await;
}

async fn leases_go_back(backend: &impl Backend) {
    let lending = builder(backend, "lease").await.mode(LEASED);
    let lending = lending.limit("calls", per(100_000, HOUR)).build().unwrap();
    let looking = builder(backend, "lease")
        .await
        .limit("calls", per(100_000, HOUR))
        .build()
        .unwrap();
    // In a task of its own, so that no crowd of calls waits for anything else.
    let mut paid = 0;
    while paid < 1_000 {
        let ruling = lending.check("t", 1).await.unwrap();
        assert_eq!(ruling.decided_by(), DecidedBy::Lease);
        paid += 1;
    }
    drop(lending);
    // 28 tokens come in a second.
    eventually("what was not spent is back", SOON, || async {
        left(&looking, "t").await[0] >= 99_000
    })
    .await;
    assert!(left(&looking, "t").await[0] <= 99_000 + 28 * 30);
}

fn scripts_run(server: &RedisServer) -> u64 {
    let stats = server.command("INFO commandstats");
    let calls = |name: &str| {
        let rest = stats.split(&format!("cmdstat_{name}:calls=")).nth(1);
        rest.map_or(0, |rest| {
            rest.split(',').next().unwrap().parse::<u64>().unwrap()
        })
    };
    calls("evalsha") + calls("eval")
}

/// Five hundred calls at once, on a new subject.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_on_one_subject_costs_a_handful_of_commands() {
    let server = RedisServer::start();
    let builder = builder(&server, "crowd").await.mode(LEASED);
    let builder = builder.fleet(options().heartbeat(HOUR));
    let limit = builder.limit("calls", per(300, HOUR)).build().unwrap();
    let mut crowd = JoinSet::new();
    for _ in 0..500 {
        let limit = limit.clone();
        crowd.spawn(async move { u32::from(limit.ask("t", 1).await.is_admitted()) });
    }
    assert_eq!(crowd.join_all().await.into_iter().sum::<u32>(), 300);
    let scripts = scripts_run(&server);
    assert!(scripts <= 20, "{scripts} scripts for 500 calls");
}

/// The first of a refused subject's calls asks, the others know.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refused_calls_reaches_the_server_once() {
    let server = RedisServer::start();
    let builder = builder(&server, "flood").await;
    let builder = builder.fleet(options().heartbeat(HOUR));
    let limit = builder.limit("calls", per(1, HOUR)).build().unwrap();
    assert!(limit.check("t", 1).await.is_ok());
    assert!(limit.check("t", 1).await.is_err());
    eventually("the instance is on the list", SOON, || async {
        let is_there = |keys: &str| !server.command(keys).is_empty();
        is_there("KEYS *:live") && is_there("KEYS *:names")
    })
    .await;
    let before = scripts_run(&server);
    for _ in 0..10_000 {
        assert_eq!(limit.ask("t", 1).await.decided_by(), DecidedBy::Memory);
    }
    assert_eq!(scripts_run(&server), before);
}

/// A limit of ten, as an application has it: a quarter of a second for the store.
async fn ten(redis: &Redis, policy: OnOutage) -> FleetRateLimit {
    let options = FleetOptions::new()
        .on_outage(policy)
        .budget(Duration::from_millis(250))
        .heartbeat(Duration::from_millis(100));
    let limit = FleetRateLimit::builder("ten")
        .store(redis.limits())
        .limit("per-hour", per(10, HOUR))
        .fleet(options)
        .build()
        .unwrap();
    eventually(
        "the store has heard of it, and it knows its share",
        SOON,
        || async { limit.snapshot().store_calls > 0 && limit.snapshot().local_parts.is_some() },
    )
    .await;
    limit
}

/// What a call may take when the store hangs: one budget, and what a busy machine adds.
const BOUND: Duration = SECOND;

async fn a_call(limit: &FleetRateLimit) -> DecidedBy {
    let start = Instant::now();
    let ruling = limit.ask("t", 0).await;
    assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    ruling.decided_by()
}

async fn lost_and_found(
    limit: &FleetRateLimit,
    away: DecidedBy,
    strike: impl FnOnce(),
    heal: impl FnOnce(),
) {
    assert_eq!(a_call(limit).await, DecidedBy::Store);
    strike();
    eventually("the store is found missing", SOON, || async {
        a_call(limit).await;
        limit.snapshot().degraded
    })
    .await;
    let start = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(a_call(limit).await, away);
    }
    assert!(
        start.elapsed() < BOUND,
        "calls wait for a store that is lost"
    );
    heal();
    eventually("the store is back", SOON, || async {
        a_call(limit).await == DecidedBy::Store && !limit.snapshot().degraded
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_costs_a_few_budgets_and_then_the_policy_has_the_word() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let limit = ten(&redis, OnOutage::Local).await;
    assert!(limit.check("t", 10).await.is_ok());
    let (pause, unpause) = (|| server.pause(), || server.unpause());
    lost_and_found(&limit, DecidedBy::LocalShare, pause, unpause).await;
    assert!(
        limit.check("t", 1).await.is_err(),
        "the store has kept its word"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_is_back_without_anybody_doing_anything() {
    for policy in [OnOutage::FailOpen, OnOutage::FailClosed] {
        let mut server = RedisServer::start();
        let redis = connect(&server.url()).await;
        let limit = ten(&redis, policy).await;
        assert_eq!(a_call(&limit).await, DecidedBy::Store);
        server.kill();
        eventually("the store is found missing", SOON, || async {
            a_call(&limit).await;
            limit.snapshot().degraded
        })
        .await;
        let result = limit.check("t", 1).await;
        match policy {
            OnOutage::FailOpen => assert!(result.is_ok()),
            _ => assert_eq!(result.unwrap_err().reason(), Reason::StoreUnreachable),
        }
        server.restart();
        eventually("the store is back", SOON, || async {
            a_call(&limit).await == DecidedBy::Store && !limit.snapshot().degraded
        })
        .await;
        assert!(limit.check("t", 10).await.is_ok());
    }
}

/// Scripts are lost, connections are cut: no caller notices, and the count is right.
#[tokio::test(flavor = "multi_thread")]
async fn lost_scripts_and_cut_connections_cost_no_token_too_many() {
    let server = RedisServer::start();
    for mode in [Mode::Exact, LEASED] {
        let name = format!("cut {mode:?}");
        let limit = builder(&server, &name).await.mode(mode);
        let limit = limit.limit("calls", per(3_000, HOUR)).build().unwrap();
        let mut admitted = 0;
        for number in 0..6_000 {
            admitted += u64::from(limit.ask("t", 1).await.is_admitted());
            match number % 500 {
                100 => drop(server.command("SCRIPT FLUSH")),
                300 => drop(server.command("CLIENT KILL TYPE normal SKIPME yes")),
                _ => {}
            }
            if limit.snapshot().degraded || number % 500 == 300 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        // A token comes in every 1.2 s. A command that was cut off may have been carried out: tokens are lost then.
        assert!(admitted <= 3_000 + 60, "{mode:?}: {admitted}");
        assert!(admitted >= 1_500, "{mode:?}: {admitted}");
    }
}
