//! How soon a fleet hears of an invalidation.

use std::{convert::Infallible, time::Duration};

use futures_util::future::join_all;
use resilience_core::Cache;
use tokio::{task::yield_now, time::Instant};

use super::{builder, told, until};
use crate::redis::RedisServer;

const NAME: &str = "told";
const KEY: &str = "key";

/// The time from the call that invalidates a key to the moment when none of `instances` serves its value, of each of `times`
/// invalidations.
///
/// # Panics
///
/// If an instance is not told.
pub async fn times_to_be_told(instances: usize, times: usize) -> Vec<Duration> {
    let server = RedisServer::start();
    let url = server.url();
    let make = || told(builder::<String>(NAME), &url);
    let writer = make().await;
    let fleet = join_all((0..instances).map(|_| make())).await;
    let mut all = Vec::with_capacity(times);
    for number in 0..times {
        join_all(fleet.iter().map(|it| hold(it, number as u64))).await;
        let start = Instant::now();
        writer.invalidate(KEY).await.expect("an answer");
        until_none(&fleet).await;
        all.push(start.elapsed());
    }
    all
}

async fn until_none(fleet: &[Cache<String, u64>]) {
    // Looks as often as it can: a timer would be too coarse. What does not come at all is found by the slow way.
    for _ in 0..1_000_000 {
        if fleet.iter().all(is_without) {
            return;
        }
        yield_now().await;
    }
    until("every instance is told", || fleet.iter().all(is_without)).await;
}

fn is_without(cache: &Cache<String, u64>) -> bool {
    cache.peek_with(KEY, |_| ()).is_none()
}

/// Reads until the instance holds the value: not the one that loads it, but the next read keeps it.
async fn hold(cache: &Cache<String, u64>, number: u64) {
    while is_without(cache) {
        let load = move || async move { Ok::<_, Infallible>(number) };
        cache.get_or_load(KEY, load).await.expect("it never fails");
    }
}
