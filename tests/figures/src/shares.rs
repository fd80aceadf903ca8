//! A limit whose store goes away: by how much more than it allows a fleet admits, in the worst stretch of time.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use resilience_core::{
    fleet::FleetOptions,
    limit::{Quota, fleet::FleetRateLimit},
};
use resilience_redis::Redis;
use tokio::task::JoinHandle;

use crate::{
    fleet::ms,
    redis::RedisServer,
    report::{Target, figure},
};

const INSTANCES: usize = 6;
const RATE: u64 = 20;
const BURST: u64 = 40;

/// Calls that were admitted: when each began, and when it was over.
type Admitted = Arc<Mutex<Vec<(Instant, Instant)>>>;

/// An instance whose callers want more than there is.
struct Instance {
    limit: FleetRateLimit,
    over: Arc<AtomicBool>,
    calls: JoinHandle<()>,
}

impl Instance {
    fn start(server: &RedisServer, options: &FleetOptions, admitted: &Admitted) -> Self {
        let redis = Redis::builder(&server.url());
        let redis = redis.connect().expect("good settings");
        let quota = Quota::per(RATE, ms(1_000)).and_then(|quota| quota.burst(BURST));
        let limit = FleetRateLimit::builder("shares")
            .store(redis.limits())
            .limit("per-second", quota.expect("a valid quota"))
            .fleet(options.clone())
            .build()
            .expect("a good limit");
        let over = Arc::new(AtomicBool::new(false));
        let calls = tokio::spawn({
            let (limit, over) = (limit.clone(), Arc::clone(&over));
            let admitted = Arc::clone(admitted);
            async move {
                while !over.load(Relaxed) {
                    let began = Instant::now();
                    if limit.ask("tenant", 1).await.is_admitted() {
                        let mut admitted = admitted.lock().unwrap_or_else(PoisonError::into_inner);
                        admitted.push((began, Instant::now()));
                    } else {
                        tokio::time::sleep(ms(5)).await;
                    }
                }
            }
        });
        Self { limit, over, calls }
    }

    async fn stop(self) {
        self.over.store(true, Relaxed);
        self.calls.await.expect("it ends");
    }
}

/// The instances of one scene.
struct Fleet {
    server: RedisServer,
    options: FleetOptions,
    instances: Vec<Instance>,
    admitted: Admitted,
}

impl Fleet {
    fn start(server: RedisServer, options: FleetOptions) -> Self {
        let mut fleet = Self {
            server,
            options,
            instances: Vec::new(),
            admitted: Arc::default(),
        };
        for _ in 0..INSTANCES {
            fleet.add();
        }
        fleet
    }

    fn add(&mut self) {
        let instance = Instance::start(&self.server, &self.options, &self.admitted);
        self.instances.push(instance);
    }

    /// All instances know of all.
    async fn known(&self) {
        let all = Some(INSTANCES as u64);
        let wait = async {
            while (self.instances.iter())
                .any(|instance| instance.limit.snapshot().local_parts != all)
            {
                tokio::time::sleep(ms(10)).await;
            }
        };
        tokio::time::timeout(ms(30_000), wait)
            .await
            .expect("all know their shares");
    }

    /// By how many percent more was admitted than the limit allows, in the worst stretch of time; and the calls.
    async fn end(self) -> (f64, usize) {
        for instance in self.instances {
            instance.stop().await;
        }
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.sort_by_key(|(_, ended)| *ended);
        let over = |(first, (began, _)): (usize, &(Instant, Instant))| {
            let calls = admitted[first..].iter().zip(1u32..);
            calls
                .map(|((_, ended), count)| {
                    let gained = ended.duration_since(*began).as_secs_f64() * RATE as f64;
                    f64::from(count) / (BURST as f64 + gained)
                })
                .fold(0.0, f64::max)
        };
        let worst = admitted.iter().enumerate().map(over).fold(0.0, f64::max);
        ((worst * 100.0 - 100.0).max(0.0), admitted.len())
    }
}

pub(crate) async fn run() {
    let expected = || FleetOptions::new().expected_instances(INSTANCES as u64);
    let mut worst: f64 = 0.0;
    for (scene, (over, calls)) in [
        (
            "started_without",
            started_without(FleetOptions::new()).await,
        ),
        (
            "started_without_expected",
            started_without(expected()).await,
        ),
        (
            "restarted_without",
            restarted_without(FleetOptions::new()).await,
        ),
        (
            "restarted_without_expected",
            restarted_without(expected()).await,
        ),
        ("stopped", stopped().await),
        ("restarted_empty", restarted_empty().await),
    ] {
        worst = worst.max(over);
        figure(
            &format!("local_share_over_limit_{scene}_percent"),
            over,
            &format!("% in the worst stretch of time, of {calls} calls"),
            Target::AtMost(10.0),
        );
    }
    let target = Target::AtMost(10.0);
    figure("local_share_over_limit_percent", worst, "%", target);
}

/// Six processes that start while Redis is away, which comes after 15 seconds.
async fn started_without(options: FleetOptions) -> (f64, usize) {
    let mut server = RedisServer::start();
    server.kill();
    let mut fleet = Fleet::start(server, options);
    rest(15_000).await;
    fleet.server.restart();
    rest(10_000).await;
    fleet.end().await
}

/// Each process is replaced by another one while Redis is away.
async fn restarted_without(options: FleetOptions) -> (f64, usize) {
    let mut fleet = Fleet::start(RedisServer::start(), options);
    fleet.known().await;
    fleet.server.kill();
    for _ in 0..INSTANCES {
        rest(2_000).await;
        fleet.instances.remove(0).stop().await;
        fleet.add();
    }
    fleet.server.restart();
    rest(10_000).await;
    fleet.end().await
}

/// Redis is stopped for five seconds, and keeps its data.
async fn stopped() -> (f64, usize) {
    let fleet = Fleet::start(RedisServer::start(), FleetOptions::new());
    fleet.known().await;
    fleet.server.pause();
    rest(5_000).await;
    fleet.server.unpause();
    rest(10_000).await;
    fleet.end().await
}

/// Redis is restarted, and has lost its data.
async fn restarted_empty() -> (f64, usize) {
    let mut fleet = Fleet::start(RedisServer::start(), FleetOptions::new());
    fleet.known().await;
    for _ in 0..3 {
        fleet.server.kill();
        rest(500).await;
        fleet.server.restart();
        rest(6_000).await;
    }
    fleet.end().await
}

fn rest(millis: u64) -> impl Future<Output = ()> {
    tokio::time::sleep(Duration::from_millis(millis))
}
