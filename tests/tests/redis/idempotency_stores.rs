//! Every store of idempotency records, held to one suite.

use std::{sync::Arc, time::Duration};

use resilience_core::{
    conformance,
    idempotency::{Idempotency, IdempotencyStore, InProcessIdempotency},
};
use resilience_redis::Redis;
use resilience_tests::{
    redis::{Flavour, RedisServer, replicated},
    redis_cluster::RedisCluster,
    redis_sentinel::RedisSentinels,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_this_process_conforms() {
    let store = InProcessIdempotency::new();
    let shared: Arc<dyn IdempotencyStore> = Arc::new(store.clone());
    conformance::idempotency::all(&shared, &|| store.flush()).await;
}

/// Outcomes of a megabyte on a busy machine take their time.
async fn connect(url: &str) -> Redis {
    let redis = Redis::builder(url)
        .budget(Duration::from_secs(5))
        .connect()
        .expect("good settings");
    redis
        .ready(Duration::from_secs(30))
        .await
        .expect("connects");
    redis
}

async fn conforms(url: &str, flush: &(dyn Fn() + Sync)) {
    let store: Arc<dyn IdempotencyStore> = Arc::new(connect(url).await.idempotency());
    conformance::idempotency::all(&store, flush).await;
}

/// With one name of a handle, and with keys and requests that are the same.
#[tokio::test(flavor = "multi_thread")]
async fn services_on_one_redis_have_keys_of_their_own() {
    let server = RedisServer::start();
    for (service, answer) in [("shop", 1_u32), ("bank", 2)] {
        let redis = Redis::builder(&server.url()).service(service);
        let redis = redis.connect().expect("good settings");
        redis
            .ready(Duration::from_secs(30))
            .await
            .expect("connects");
        let payments = Idempotency::builder("payments").store(redis.idempotency());
        let payments = payments.build().expect("good settings");
        for _ in 0..2 {
            let pay = move |_| async move { Ok::<_, std::io::Error>(answer) };
            let outcome = payments.run("order-7", pay).await.expect("an outcome");
            assert_eq!(outcome.into_inner(), answer, "{service}");
        }
    }
    let keys = server.command("KEYS *");
    for service in ["shop", "bank"] {
        let key = format!("{{resilience/{service}:idempotency:payments:");
        assert!(keys.contains(&key), "{keys}");
    }
    for (wrong, field) in [("", "service"), (&*"x".repeat(54), "prefix")] {
        let refused = Redis::builder(&server.url()).service(wrong).connect();
        let why = refused.expect_err("refused").to_string();
        assert!(why.contains(field), "{why}");
    }
}

fn flush(server: &RedisServer) {
    assert_eq!(server.command("FLUSHALL"), "OK");
}

/// Redis, and Valkey where the machine has it.
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
                 +@read +@write +@fast +time +wait";
    assert_eq!(server.command(grant), "OK");
    let url = format!("redis://app:right@{}", server.addr());
    conforms(&url, &|| flush(&server)).await;
}

/// Every step counts only when a replica has it: the same answers.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_replica_to_wait_for_it_conforms() {
    let (master, _replica) = replicated();
    let store = connect(&master.url()).await.idempotency();
    let durable = store.durable(1, Duration::from_secs(2)).expect("settings");
    let soon = Duration::from_secs(30);
    durable.ready(soon).await.expect("connects");
    let durable: Arc<dyn IdempotencyStore> = Arc::new(durable);
    conformance::idempotency::all(&durable, &|| flush(&master)).await;
}
