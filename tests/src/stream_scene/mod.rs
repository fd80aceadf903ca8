//! Consumers in processes that are killed, stopped and cut off, and a ledger of what they do, which compares fences. The tests run
//! them for seconds; the figures run them in full.

mod balance;
mod consumer;
mod fleet;
mod ledger;
mod scenes;

use std::time::Duration;

use resilience_redis::{Redis, RedisStreams};
use tokio::time::{Instant, sleep};

pub use self::{
    consumer::{INSTANCE, consume},
    fleet::Faults,
    scenes::{Came, Plan, out_of_order, redelivered_after, run},
};

const STREAM: &str = "orders";
const GROUP: &str = "billing";
/// What a message of a process that dies waits at most, beside what it takes to find it.
pub const LEASE: Duration = Duration::from_secs(1);
/// The bound of every wait: far above what a busy machine needs.
const SOON: Duration = Duration::from_secs(60);
/// What a step of the broker may take.
const BUDGET: Duration = Duration::from_millis(1500);

async fn connect(url: &str) -> RedisStreams {
    let redis = Redis::builder(url).budget(BUDGET).connect();
    let redis = redis.expect("good settings");
    redis.ready(SOON).await.expect("Redis answers");
    redis.streams()
}

/// Waits for a condition.
async fn until(what: &str, within: Duration, mut is_met: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_met().await {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
