//! One master of a Cluster stops answering: what callers of the other shards notice.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::{
    fleet::{FleetOptions, OnOutage},
    idempotency::{Attempt, Idempotency},
    limit::{Quota, fleet::FleetRateLimit},
};
use resilience_redis::Redis;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::sleep,
};

use crate::redis_cluster::RedisCluster;

/// Calls about keys of shards that are well.
#[derive(Clone, Copy, Debug, Default)]
pub struct Healthy {
    /// In all, while a master of another shard was frozen.
    pub calls: usize,
    /// Of those, the ones that were refused because the store was unavailable.
    pub refused: usize,
}

impl Healthy {
    /// Refused calls, in percent.
    #[must_use]
    pub fn percent(&self) -> f64 {
        self.refused as f64 / self.calls.max(1) as f64 * 100.0
    }
}

/// By pattern.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shards {
    /// Of a rate limit.
    pub limit: Healthy,
    /// Of idempotency keys.
    pub idempotency: Healthy,
}

#[derive(Default)]
struct Count {
    calls: AtomicUsize,
    refused: AtomicUsize,
}

impl Count {
    fn of(&self) -> Healthy {
        Healthy {
            calls: self.calls.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }
}

const NAME: &str = "shards";
const KEYS: usize = 60;
const TASKS: usize = 16;
const SOON: Duration = Duration::from_secs(60);

fn subject(number: usize) -> String {
    format!("subject-{number}")
}

fn work(number: usize) -> impl FnOnce(Attempt) -> Ready<Result<usize, Infallible>> {
    move |_| ready(Ok(number))
}

/// The masters of the keys of a pattern, by the number of their subject.
fn masters(cluster: &RedisCluster, pattern: &str) -> Vec<usize> {
    let mut masters = vec![usize::MAX; KEYS];
    for node in 0..6 {
        let keys = ["KEYS", &format!("*:{pattern}:{NAME}:*")];
        let keys = cluster.node(node).try_words(&keys).expect("an answer");
        for key in keys.lines() {
            let number = key
                .split_once("subject-")
                .and_then(|(_, rest)| rest.split('}').next());
            if let Some(number) = number.and_then(|number| number.parse::<usize>().ok()) {
                masters[number] = cluster.master_of(key);
            }
        }
    }
    assert!(
        masters.iter().all(|&master| master != usize::MAX),
        "{masters:?}"
    );
    masters
}

/// Freezes the master of some keys for a time (`kill -STOP`), under callers of all keys that share one connection.
///
/// # Panics
/// If a server does not answer as set up.
pub async fn one_master_frozen(cluster: RedisCluster, time: Duration) -> (RedisCluster, Shards) {
    let redis = Redis::connect(&cluster.url()).expect("an address");
    redis.ready(SOON).await.expect("a Cluster");
    let options = || FleetOptions::new().on_outage(OnOutage::FailClosed);
    // A key lives until its bucket is full again.
    let quota = Quota::per(100_000, Duration::from_secs(3600)).expect("a quota");
    let limit = FleetRateLimit::builder(NAME)
        .store(redis.limits())
        .limit("per-hour", quota);
    let limit = limit.fleet(options()).build().expect("good settings");
    let once = Idempotency::builder(NAME).store(redis.idempotency());
    let once = once.fleet(options()).build().expect("good settings");
    for number in 0..KEYS {
        let _ = limit.check(&subject(number), 10_000).await;
        let _ = once.run(subject(number), work(number)).await;
    }
    let masters = spawn_blocking(move || {
        let (limit, once) = (masters(&cluster, "limit"), masters(&cluster, "idempotency"));
        (cluster, limit, once)
    });
    let (cluster, of_limit, of_once) = masters.await.expect("every key has a master");
    let sick = of_limit[0];
    let (over, frozen) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (limits, onces) = (Arc::new(Count::default()), Arc::new(Count::default()));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (limit, once) = (limit.clone(), once.clone());
        let (over, frozen) = (Arc::clone(&over), Arc::clone(&frozen));
        let (limits, onces) = (Arc::clone(&limits), Arc::clone(&onces));
        let well: Vec<[bool; 2]> = (0..KEYS)
            .map(|number| [of_limit[number] != sick, of_once[number] != sick])
            .collect();
        tasks.spawn(async move {
            for call in task.. {
                let number = call * 7 % KEYS;
                let during = frozen.load(Relaxed);
                let (count, is_well, is_refused) = if call % 2 == 0 {
                    let refused = limit.check(&subject(number), 1).await.is_err();
                    (&limits, well[number][0], refused)
                } else {
                    let done = once.run(subject(number), work(number)).await;
                    (&onces, well[number][1], done.is_err())
                };
                if during && frozen.load(Relaxed) && is_well {
                    count.calls.fetch_add(1, Relaxed);
                    count.refused.fetch_add(usize::from(is_refused), Relaxed);
                }
                if over.load(Relaxed) {
                    break;
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
    }
    sleep(Duration::from_secs(1)).await;
    cluster.node(sick).pause();
    frozen.store(true, Relaxed);
    sleep(time).await;
    frozen.store(false, Relaxed);
    cluster.node(sick).unpause();
    over.store(true, Relaxed);
    tasks.join_all().await;
    let shards = Shards {
        limit: limits.of(),
        idempotency: onces.of(),
    };
    (cluster, shards)
}
