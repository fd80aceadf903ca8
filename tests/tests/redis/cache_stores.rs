//! Every store of cached values, held to one suite, and what only Redis' has.

use std::sync::Arc;

use resilience_core::{
    cache::{CacheStore, InProcessCache},
    conformance,
};
use resilience_redis::Redis;
use resilience_tests::{
    redis::{Flavour, RedisServer},
    redis_cluster::RedisCluster,
    redis_scene::SOON,
    redis_sentinel::RedisSentinels,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_this_process_conforms() {
    let store = InProcessCache::new();
    let shared: Arc<dyn CacheStore> = Arc::new(store.clone());
    conformance::cache::all(&shared, &|| store.flush()).await;
    conformance::cache::observing(&shared, &|| store.flush()).await;
}

/// Values of a megabyte on a busy machine take their time.
async fn connect(url: &str) -> Redis {
    let redis = Redis::builder(url).budget(SOON / 6).connect();
    let redis = redis.expect("good settings");
    redis.ready(SOON).await.expect("connects");
    redis
}

async fn conforms(url: &str, flush: &(dyn Fn() + Sync)) {
    let store: Arc<dyn CacheStore> = Arc::new(connect(url).await.cache());
    conformance::cache::all(&store, flush).await;
    conformance::cache::observing(&store, flush).await;
}

fn flush(server: &RedisServer) {
    assert_eq!(server.command("FLUSHALL"), "OK");
}

/// Redis, and Redis 6.2 and Valkey where the machine has them.
#[tokio::test(flavor = "multi_thread")]
async fn every_server_that_is_installed_conforms() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        conforms(&server.url(), &|| flush(&server)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_conforms() {
    let cluster = RedisCluster::start();
    let flush = || {
        for node in 0..6 {
            // Replicas refuse, and are emptied by their masters.
            let _ = cluster.node(node).command("FLUSHALL");
        }
    };
    conforms(&cluster.url(), &flush).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_found_through_sentinels_conforms() {
    let group = RedisSentinels::start();
    conforms(&group.url(), &|| flush(group.server(group.master()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_a_user_of_few_rights_it_conforms() {
    let server = RedisServer::start();
    // What the README tells operators to grant.
    let grant = "ACL SETUSER app on >right ~{resilience:* &{resilience:* +@connection +@scripting +@pubsub \
                 +@read +@write +@fast +time";
    assert_eq!(server.command(grant), "OK");
    let url = format!("redis://app:right@{}", server.addr());
    conforms(&url, &|| flush(&server)).await;
}
