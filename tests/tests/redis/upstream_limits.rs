//! What one instance was told by a server, all instances keep to, through a real Redis.

use std::time::Duration;

use resilience_core::limit::upstream::{Advertised, UpstreamLimits};
use resilience_redis::Redis;
use resilience_tests::{redis::RedisServer, until::eventually};

const BOUND: Duration = Duration::from_secs(20);

async fn instance(server: &RedisServer) -> UpstreamLimits {
    let redis = Redis::builder(&server.url())
        .budget(BOUND)
        .connect()
        .unwrap();
    redis.ready(BOUND).await.expect("connects");
    let peers = UpstreamLimits::builder("partners").store(redis.limits());
    peers.refresh(Duration::from_millis(50)).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_instances_leave_a_peer_alone_that_one_was_told_to_and_each_of_them_for_as_long() {
    let server = RedisServer::start();
    let (one, two) = (instance(&server).await, instance(&server).await);
    let peer = "api.test:443";
    // Both are told at about the same time: it is one word, not two.
    let (to_one, to_two) = (one.enter(peer).unwrap(), two.enter(peer).unwrap());
    to_one.observe(Advertised::RetryAfter(Duration::from_secs(100)));
    to_two.observe(Advertised::RetryAfter(Duration::from_secs(100)));
    let late = instance(&server).await;
    eventually("the word has come round", BOUND, async || {
        late.enter(peer).is_err()
    })
    .await;
    let wait = late.wait_for(peer).unwrap();
    assert!(wait > Duration::from_secs(70), "{wait:?}");
    assert!(wait <= Duration::from_secs(101), "{wait:?}");
    assert!(late.enter("other.test:443").is_ok());
    let keys = server.command("KEYS *");
    assert!(
        keys.contains("{resilience:limit:partners:api.test%3A443}"),
        "{keys}"
    );
}
