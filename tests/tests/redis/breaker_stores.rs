//! Every store of shared breakers, held to one suite.

use resilience_core::{breaker::fleet::InProcessBreakers, conformance};
use resilience_tests::{
    redis::{Flavour, RedisServer},
    redis_cluster::RedisCluster,
    redis_scene::connect,
    redis_sentinel::RedisSentinels,
};

async fn conforms(url: &str) {
    conformance::breaker::all(&connect(url).await.breakers()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_this_process_conforms() {
    conformance::breaker::all(&InProcessBreakers::new()).await;
}

/// Redis, and Valkey where the machine has it.
#[tokio::test(flavor = "multi_thread")]
async fn every_server_that_is_installed_conforms() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        conforms(&server.url()).await;
        conforms(&format!("{}/3", server.url())).await;
        let keys = |database: &str| {
            let info = server.command("INFO keyspace");
            info.contains(&format!("{database}:keys="))
        };
        assert!(keys("db0") && keys("db3") && !keys("db1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_conforms() {
    let cluster = RedisCluster::start();
    conforms(&cluster.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_found_through_sentinels_conforms() {
    let group = RedisSentinels::start();
    conforms(&group.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_password_and_as_a_user_of_few_rights_it_conforms() {
    let server = RedisServer::start_with(&["--requirepass", "s@t"]);
    conforms(&format!("redis://:s%40t@{}", server.addr())).await;
    let server = RedisServer::start();
    // What the README tells operators to grant.
    let grant = "ACL SETUSER app on >right ~{resilience:* &{resilience:* +@connection +@scripting +@pubsub \
                 +@read +@write +@fast +time";
    assert_eq!(server.command(grant), "OK");
    conforms(&format!("redis://app:right@{}", server.addr())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_unix_socket_it_conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("redis.sock").display().to_string();
    let _server = RedisServer::start_with(&["--unixsocket", &socket]);
    conforms(&format!("unix://{socket}")).await;
}
