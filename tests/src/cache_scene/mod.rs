//! Caches of a fleet on a real Redis: how often they load, what they hold while others change it, and what a call costs the
//! server. The tests run them for seconds; the figures run them in full.

mod failover;
mod raced_keys;
mod round_trips;
mod slow_loads;
mod stampede;
mod told;
mod writers;

use std::time::Duration;

use resilience_core::{
    Cache,
    cache::{CacheBuilder, CacheKey, LocalCache},
    fleet::FleetOptions,
};
use resilience_redis::{Redis, RedisCache};
use tokio::time::{Instant, sleep};

pub use self::{
    failover::{FailedOver, fail_over},
    round_trips::{RoundTrips, round_trips},
    slow_loads::{Resurrected, in_process, over_redis},
    stampede::{INSTANCE, Stampede, instance, stampede},
    told::times_to_be_told,
    writers::{Raced, race},
};

/// The bound of every wait: far above what a busy machine needs.
const SOON: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// What a step of a store may take: on a busy machine a process may stand still for longer than the default.
const BUDGET: Duration = Duration::from_millis(1500);

/// A store with a connection of its own.
async fn store(url: &str) -> RedisCache {
    let redis = Redis::builder(url).budget(BUDGET).connect();
    let redis = redis.expect("good settings");
    redis.ready(SOON).await.expect("Redis answers");
    redis.cache()
}

/// Values that do not end by themselves, with room for all of them, and fills right after an invalidation: what is wrong stays
/// wrong.
fn builder<K: CacheKey>(name: &str) -> CacheBuilder<K, u64> {
    Cache::builder(name)
        .ttl(HOUR)
        .jitter(0.0)
        .tombstone(Duration::ZERO)
        .local(LocalCache::entries(50_000))
}

/// An instance of a fleet that hears of changes.
async fn told<K: CacheKey>(builder: CacheBuilder<K, u64>, url: &str) -> Cache<K, u64> {
    let options = FleetOptions::new().budget(BUDGET);
    let cache = builder.store(store(url).await).fleet(options).build();
    let cache = cache.expect("good settings");
    until("changes are told", || cache.snapshot().coherent).await;
    cache
}

/// Waits for a condition.
async fn until(what: &str, mut is_met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_met() {
        assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}
