//! Every store of shared bulkheads, held to one suite; what is particular to Redis; and the scripts held to the record.

use std::{sync::Arc, time::Duration};

use resilience_core::{
    bulkhead::fleet::{
        AcquireRequest, Admission, BulkheadStore, Heartbeat, InProcessBulkheads, Release,
    },
    conformance,
};
use resilience_redis::RedisBulkheads;
use resilience_tests::{
    redis::{Flavour, RedisServer},
    redis_cluster::RedisCluster,
    redis_scene::connect,
    redis_sentinel::RedisSentinels,
};

async fn conforms(url: &str) {
    let store: Arc<dyn BulkheadStore> = Arc::new(connect(url).await.bulkheads());
    conformance::bulkhead::all(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bulkheads_of_this_process_conform() {
    let store: Arc<dyn BulkheadStore> = Arc::new(InProcessBulkheads::new());
    conformance::bulkhead::all(&store).await;
}

/// Redis, and Valkey where the machine has it.
#[tokio::test(flavor = "multi_thread")]
async fn the_bulkheads_of_every_server_that_is_installed_conform() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        conforms(&server.url()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bulkheads_of_a_cluster_conform() {
    let cluster = RedisCluster::start();
    conforms(&cluster.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bulkheads_of_a_master_found_through_sentinels_conform() {
    let group = RedisSentinels::start();
    conforms(&group.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bulkheads_of_a_user_of_few_rights_conform() {
    let server = RedisServer::start();
    // What the README tells operators to grant.
    let grant = "ACL SETUSER app on >right ~{resilience:* &{resilience:* +@connection +@scripting +@pubsub \
                 +@read +@write +@fast +time";
    assert_eq!(server.command(grant), "OK");
    conforms(&format!("redis://app:right@{}", server.addr())).await;
}

async fn store(server: &RedisServer) -> RedisBulkheads {
    connect(&server.url()).await.bulkheads()
}

fn request(lease: &str, ticket_ms: u64) -> AcquireRequest {
    AcquireRequest {
        lease: lease.into(),
        cost: 1,
        limit: 1,
        lease_ms: 60_000,
        ticket_ms,
        releases: Vec::new(),
    }
}

const KEY: &str = "{resilience:bulkhead:reports}";

/// A key without an end stays forever when its last user is gone.
#[tokio::test(flavor = "multi_thread")]
async fn every_key_of_a_bulkhead_has_an_end_that_lies_beyond_its_leases() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let first = store.acquire("reports", &request("a", 0)).await.unwrap();
    assert!(matches!(first, Admission::Granted { .. }));
    let second = store
        .acquire("reports", &request("b", 1_000))
        .await
        .unwrap();
    assert!(matches!(second, Admission::Full { .. }));
    let beat = Heartbeat {
        instance: "i".into(),
        live_ms: 120_000,
        lease_ms: 60_000,
        holdings: Vec::new(),
    };
    store.renew("reports", &beat).await.unwrap();
    for (part, least, most) in [
        ("state", 59_000, 121_000),
        ("leases", 59_000, 121_000),
        ("held", 59_000, 121_000),
        ("queue", 500, 3_000),
        ("tickets", 500, 3_000),
        ("live", 119_000, 241_000),
    ] {
        let ttl: i64 = server
            .command(&format!("PTTL {KEY}:{part}"))
            .parse()
            .unwrap();
        assert!((least..=most).contains(&ttl), "{part}: {ttl} ms");
    }
    assert_eq!(server.command("DBSIZE"), "6");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_script_cache_costs_a_bulkhead_a_round_trip_and_no_answer() {
    let server = RedisServer::start();
    let store = store(&server).await;
    for _ in 0..3 {
        assert!(store.acquire("reports", &request("a", 0)).await.is_ok());
        let _ = server.command("SCRIPT FLUSH");
        let releases = [Release {
            lease: "a".into(),
            fence: None,
        }];
        assert_eq!(store.release("reports", &releases).await, Ok(vec![true]));
        let _ = server.command("SCRIPT FLUSH");
    }
}

/// Lua does not roll back: half a step is what a foreign key leaves behind, unless all is read before.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_key_ends_a_step_on_a_bulkhead_before_it_wrote_anything() {
    let server = RedisServer::start();
    let store = store(&server).await;
    for part in ["state", "leases", "held", "queue", "tickets"] {
        let _ = server.command(&format!("SET {KEY}:{part} foreign"));
        let failure = store.acquire("reports", &request("a", 1_000)).await;
        assert!(!failure.expect_err(part).ambiguous);
        assert_eq!(server.command("DBSIZE"), "1", "{part}");
        let _ = server.command("FLUSHALL");
    }
}

/// Fences must not restart where a holder remembers a higher one.
#[tokio::test(flavor = "multi_thread")]
async fn fences_go_on_upwards_when_the_server_has_lost_everything() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let mut last = 0;
    for round in 0..5 {
        for lease in 0..200 {
            let request = AcquireRequest {
                limit: 1_000,
                ..request(&format!("{round}-{lease}"), 0)
            };
            let Ok(Admission::Granted { fence }) = store.acquire("reports", &request).await else {
                panic!("there is room");
            };
            assert!(fence > last, "{fence} after {last}");
            last = fence;
        }
        let _ = server.command("FLUSHALL");
    }
}

/// An argument that no caller of ours sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_years_is_refused() {
    let server = RedisServer::start();
    let store = store(&server).await;
    let request = AcquireRequest {
        lease_ms: Duration::from_secs(86_400 * 365).as_millis() as u64,
        ..request("a", 0)
    };
    assert!(store.acquire("reports", &request).await.is_err());
    assert_eq!(server.command("DBSIZE"), "0");
}
