//! What a switch of the master costs under load: a Sentinel group, callers, and a failover that is planned or not.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::{
    bulkhead::fleet::FleetBulkhead,
    fleet::{FleetOptions, OnOutage},
    limit::{Quota, fleet::FleetRateLimit},
};
use resilience_redis::Redis;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::failover::{Accepted, count, start_load, store_at};
use crate::{redis::RedisServer, redis_sentinel::RedisSentinels};

/// How the master is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// `SENTINEL FAILOVER`: the former master is healthy, and stays a master for some ten seconds.
    Planned,
    /// `kill -9`.
    Killed,
}

/// What one switch cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Switch {
    /// Keys whose completion was acknowledged.
    pub accepted: usize,
    /// Of those, the ones that the new master grants again.
    pub twice: usize,
    /// For how long the former master executed scripts after another had been promoted.
    pub in_use: Duration,
    /// The longest time without an acknowledged completion.
    pub pause: Duration,
}

const LEAD: Duration = Duration::from_millis(1_500);
const TAIL: Duration = Duration::from_secs(1);
/// The former master is not in use once it has executed nothing for this time.
const QUIET: Duration = Duration::from_millis(1_500);
const LATEST: Duration = Duration::from_secs(30);

/// One switch under load. With `durable` above zero, steps wait for this number of replicas.
///
/// # Panics
/// If a server does not answer as set up.
pub async fn switch(group: RedisSentinels, durable: u32, how: How) -> (RedisSentinels, Switch) {
    let url = group.url();
    let over = Arc::new(AtomicBool::new(false));
    let store = store_at(&url, durable).await;
    let load = start_load(&store, &over);
    sleep(LEAD).await;
    let (group, in_use) = spawn_blocking(move || replace(group, how))
        .await
        .expect("another master");
    sleep(TAIL).await;
    over.store(true, Relaxed);
    let accepted = load.join_all().await.concat();
    let (group, settled) = spawn_blocking(|| {
        let master = group.master();
        (group, master)
    })
    .await
    .expect("a master");
    let url = group.server(settled).url();
    let loss = count(&store_at(&url, 0).await, &accepted).await;
    let switch = Switch {
        accepted: loss.accepted,
        twice: loss.lost,
        in_use,
        pause: longest_pause(accepted),
    };
    (group, switch)
}

fn longest_pause(mut accepted: Vec<Accepted>) -> Duration {
    accepted.sort_by_key(|accepted| accepted.at);
    let pairs = accepted.windows(2);
    pairs
        .map(|pair| pair[1].at - pair[0].at)
        .max()
        .unwrap_or_default()
}

/// Replaces the master, and measures for how long the former one is in use after that.
fn replace(mut group: RedisSentinels, how: How) -> (RedisSentinels, Duration) {
    let former = group.master();
    match how {
        How::Planned => group.fail_over(),
        How::Killed => group.server_mut(former).kill(),
    }
    let start = Instant::now();
    let (mut promoted, mut used) = (None, start);
    let mut calls = scripts(group.server(former));
    loop {
        let now = Instant::now();
        assert!(
            now - start < LATEST,
            "no other master, or no end of the former one"
        );
        let now_calls = scripts(group.server(former));
        if now_calls.is_some() && now_calls != calls {
            (calls, used) = (now_calls, now);
        }
        if promoted.is_none() && group.has_promoted(former) {
            promoted = Some(now);
        }
        if let Some(promoted) = promoted
            && (now - used.max(promoted) > QUIET || calls.is_none())
        {
            group.has_another_master(former);
            return (group, used.saturating_duration_since(promoted));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Number of scripts that a master has executed; none once it is a replica or gone.
fn scripts(server: &RedisServer) -> Option<String> {
    server.process()?;
    let role = server.try_command("ROLE").ok()?;
    let stats = server.try_command("INFO commandstats").ok()?;
    let calls = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    let calls = calls
        .and_then(|calls| calls.split(',').next())
        .unwrap_or("0");
    role.starts_with("master").then(|| calls.to_owned())
}

/// What several switches did to a limit and to a bulkhead that a fleet shares.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overrun {
    /// Calls that the limit admitted beyond its burst and rate.
    pub admitted_above: usize,
    /// Most calls in the bulkhead at once.
    pub peak: usize,
    /// For how long more were in the bulkhead than there are places.
    pub above: Duration,
}

/// Places of the bulkhead.
pub const PLACES: usize = 4;
/// Calls a second, and the burst.
const RATE: u64 = 50;
const INSTANCES: usize = 4;

#[derive(Default)]
struct InFlight {
    now: usize,
    peak: usize,
    above: Duration,
    since: Option<Instant>,
}

impl InFlight {
    fn changed(&mut self, to: usize) {
        if let Some(since) = self.since.take() {
            self.above += since.elapsed();
        }
        (self.now, self.peak) = (to, self.peak.max(to));
        self.since = (to > PLACES).then(Instant::now);
    }
}

/// Planned switches under callers of a limit and of a bulkhead, `apart` from each other.
///
/// # Panics
/// If a server does not answer as set up.
pub async fn switches(group: RedisSentinels, times: usize, apart: Duration) -> Overrun {
    let url = group.url();
    let over = Arc::new(AtomicBool::new(false));
    let admitted = Arc::new(AtomicUsize::new(0));
    let in_flight = Arc::new(Mutex::new(InFlight::default()));
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..INSTANCES {
        let redis = connect(&url).await;
        tasks.spawn(ask_a_limit(
            redis.clone(),
            Arc::clone(&over),
            Arc::clone(&admitted),
        ));
        for _ in 0..PLACES {
            tasks.spawn(fill_a_bulkhead(
                redis.clone(),
                Arc::clone(&over),
                Arc::clone(&in_flight),
            ));
        }
    }
    sleep(LEAD).await;
    let switching = spawn_blocking(move || {
        for _ in 0..times {
            let former = group.master();
            let start = Instant::now();
            group.fail_over();
            group.has_another_master(former);
            std::thread::sleep(apart.saturating_sub(start.elapsed()));
        }
        group
    });
    let _group = switching.await.expect("the masters change");
    over.store(true, Relaxed);
    let took = start.elapsed();
    tasks.join_all().await;
    let allowed = RATE as f64 * (1.0 + took.as_secs_f64());
    let admitted = admitted.load(Relaxed);
    let in_flight = in_flight.lock().unwrap_or_else(PoisonError::into_inner);
    Overrun {
        admitted_above: admitted.saturating_sub(allowed.ceil() as usize),
        peak: in_flight.peak,
        above: in_flight.above,
    }
}

async fn connect(url: &str) -> Redis {
    let redis = Redis::connect(url).expect("an address");
    redis.ready(LATEST).await.expect("a master");
    redis
}

fn options() -> FleetOptions {
    // What is admitted without the store is not the subject.
    FleetOptions::new().on_outage(OnOutage::FailClosed)
}

async fn ask_a_limit(redis: Redis, over: Arc<AtomicBool>, admitted: Arc<AtomicUsize>) {
    let quota = Quota::per(RATE, Duration::from_secs(1)).expect("a quota");
    let limit = FleetRateLimit::builder("switches")
        .store(redis.limits())
        .limit("per-second", quota)
        .fleet(options());
    let limit = limit.build().expect("good settings");
    while !over.load(Relaxed) {
        match limit.check("all", 1).await {
            Ok(_) => drop(admitted.fetch_add(1, Relaxed)),
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn fill_a_bulkhead(redis: Redis, over: Arc<AtomicBool>, in_flight: Arc<Mutex<InFlight>>) {
    let bulkhead = FleetBulkhead::builder("switches")
        .store(redis.bulkheads())
        .max_concurrent(PLACES)
        .lease(Duration::from_secs(10))
        .fleet(options());
    let bulkhead = bulkhead.build().expect("good settings");
    let changed = |by: fn(usize) -> usize| {
        let mut in_flight = in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let to = by(in_flight.now);
        in_flight.changed(to);
    };
    while !over.load(Relaxed) {
        match bulkhead.acquire(1).await {
            Ok(_permit) => {
                changed(|now| now + 1);
                sleep(Duration::from_millis(fastrand::u64(20..400))).await;
                changed(|now| now - 1);
            }
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}
