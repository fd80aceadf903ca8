//! Every store of shared breakers, held to one suite.

use std::time::Duration;

use resilience_core::breaker::fleet::InProcess;
use resilience_redis::Redis;
use resilience_tests::{breaker_conformance, redis::RedisServer};

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_this_process_conforms() {
    breaker_conformance::all(&InProcess::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_conforms() {
    let server = RedisServer::start();
    let redis = Redis::builder(&server.url())
        .budget(Duration::from_secs(2))
        .connect()
        .expect("good settings");
    redis.ready(Duration::from_secs(5)).await.expect("connects");
    breaker_conformance::all(&redis.breakers()).await;
}
