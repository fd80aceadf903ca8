//! Every store of write-behinds, held to one suite, and what only Redis' has.

use std::{path::Path, sync::Arc, time::Duration};

use resilience_core::{
    WriteBehind, conformance,
    write_behind::{Batch, InProcessWriteBehind, WriteBehindStore, WriteError},
};
use resilience_redis::Redis;
use resilience_tests::{
    redis::{Flavour, RedisServer},
    redis_clock::Clock,
    redis_cluster::RedisCluster,
    redis_scene::SOON,
    torture::{WriteBehindPlan, write_behind},
    until::eventually,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_this_process_conforms() {
    let store = InProcessWriteBehind::new();
    let shared: Arc<dyn WriteBehindStore> = Arc::new(store.clone());
    conformance::write_behind::all(&shared, &|| store.flush()).await;
}

const HOUR: Duration = Duration::from_secs(3_600);

async fn connect(url: &str) -> Redis {
    let redis = Redis::builder(url).budget(SOON / 6).connect();
    let redis = redis.expect("good settings");
    redis.ready(SOON).await.expect("connects");
    redis
}

async fn conforms(url: &str, flush: &(dyn Fn() + Sync)) {
    let store: Arc<dyn WriteBehindStore> = Arc::new(connect(url).await.write_behind());
    conformance::write_behind::all(&store, flush).await;
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
async fn as_a_user_of_few_rights_it_conforms() {
    let server = RedisServer::start();
    // What the README tells operators to grant.
    let grant = "ACL SETUSER app on >right ~{resilience:* &{resilience:* +@connection +@scripting +@pubsub \
                 +@read +@write +@fast +time";
    assert_eq!(server.command(grant), "OK");
    let url = format!("redis://app:right@{}", server.addr());
    conforms(&url, &|| flush(&server)).await;
}

/// A handle that only writes.
fn writer(store: impl WriteBehindStore) -> WriteBehind<u64> {
    let builder = WriteBehind::<u64>::builder("carts", store).shards(2);
    // Nothing is sunk, and a clock that steps ahead makes it older.
    let builder = builder.max_age(24 * HOUR);
    builder.build().expect("good settings")
}

async fn version(carts: &WriteBehind<u64>, key: &str) -> u64 {
    carts.write(key, &1).await.expect("written").version
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_has_an_end() {
    let server = RedisServer::start();
    let carts = writer(connect(&server.url()).await.write_behind());
    for key in ["a", "b", "c", "d"] {
        version(&carts, key).await;
    }
    let count = "return (function() local n = 0 for _, key in ipairs(redis.call('KEYS', '{resilience:write_behind:carts:*')) do \
                 if redis.call('PTTL', key) < 1000 then return key end n = n + 1 end return n end)()";
    let found = server.try_words(&["EVAL", count, "0"]).expect("an answer");
    let found = found.trim_start_matches(':').trim().parse::<u64>();
    assert!(found.as_ref().is_ok_and(|found| *found >= 5), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_rise_over_flushes_and_a_clock_that_is_set_back() {
    let clock = Clock::new();
    let server = clock.start(&[]);
    let carts = writer(connect(&server.url()).await.write_behind());
    let mut last = version(&carts, "a").await;
    for round in 0..4 {
        match round {
            0 => clock.set_back(HOUR),
            1 => flush(&server),
            2 => clock.set_ahead(HOUR),
            _ => {
                clock.set_back(HOUR);
                flush(&server);
            }
        }
        let next = version(&carts, "a").await;
        assert!(next > last, "round {round}: {next} after {last}");
        last = next;
    }
    assert!(carts.snapshot().totals.losses >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_refuses_writes_and_lets_what_it_has_be_sunk() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let carts = WriteBehind::<u64>::builder("carts", redis.write_behind());
    let carts = carts
        .timeout(Duration::from_millis(300))
        .build()
        .expect("good settings");
    version(&carts, "a").await;
    assert_eq!(server.command("CONFIG SET maxmemory 1"), "OK");
    let refused = carts.write("b", &1).await.expect_err("refused");
    assert!(matches!(refused, WriteError::Refused(_)), "{refused}");
    // Of the first one it may say that the store is unavailable: it was refused several times.
    let other = WriteBehind::<u64>::builder("carts", redis.write_behind());
    let other = other.build().expect("good settings");
    let pending = other.pending().await.expect("an answer");
    assert_eq!(pending.entries, 1, "nothing of it is stored");
    let sinker = WriteBehind::<u64>::builder("carts", redis.write_behind());
    let sinker = sinker.sink(|_: Batch<u64>| async { Ok::<_, String>(()) });
    let sinker = sinker.build().expect("good settings");
    sinker.flush(SOON).await.expect("sunk");
    assert_eq!(sinker.snapshot().totals.sunk, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_key_is_an_error_and_left_as_it_is() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    for part in ["state", "entries", "due", "since", "dead", "dead:keys"] {
        flush(&server);
        let carts = WriteBehind::<u64>::builder("carts", redis.write_behind());
        let carts = carts
            .shards(1)
            .timeout(Duration::from_millis(300))
            .build()
            .expect("good settings");
        let key = format!("{{resilience:write_behind:carts:0}}:{part}");
        let set = if part == "state" { "LPUSH" } else { "SET" };
        let _ = server.command(&format!("{set} {key} foreign"));
        let refused = carts.write("a", &1).await.expect_err("refused");
        assert!(
            matches!(refused, WriteError::Refused(_)),
            "{part}: {refused}"
        );
        let keys = server.command("KEYS {resilience:write_behind:carts:*");
        assert_eq!(keys.trim(), key, "nothing was written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_a_write_waits_for_the_replica() {
    let (server, replica) = (
        RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]),
        RedisServer::start(),
    );
    let store = connect(&server.url()).await.write_behind();
    let store = store
        .durable(1, Duration::from_millis(500))
        .expect("good settings");
    store.ready(SOON).await.expect("connects");
    let builder = WriteBehind::<u64>::builder("carts", store);
    let carts = builder.timeout(SOON).build().expect("good settings");
    let short = WriteBehind::<u64>::builder(
        "others",
        connect(&server.url())
            .await
            .write_behind()
            .durable(1, Duration::from_millis(50))
            .expect("good settings"),
    );
    let short = short
        .timeout(Duration::from_millis(300))
        .build()
        .expect("good settings");
    eventually("no replica has it", SOON, async || {
        matches!(short.write("a", &1).await, Err(WriteError::Unknown(_)))
    })
    .await;
    let addr = server.addr().replace(':', " ");
    assert_eq!(replica.command(&format!("REPLICAOF {addr}")), "OK");
    version(&carts, "a").await;
    let keys = replica.command("DBSIZE");
    assert!(
        keys.trim_start_matches(':')
            .parse::<u64>()
            .is_ok_and(|it| it > 0),
        "{keys}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn its_name_is_listed() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await.write_behind();
    let _carts = writer(store.clone());
    eventually("it is listed", SOON, async || {
        store.names().await.is_ok_and(|names| names == ["carts"])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_killed_writers_sinkers_and_a_killed_redis() {
    let plan = WriteBehindPlan {
        writes: 3_000,
        processes: 2,
        fsync: "always",
        calm: Duration::from_millis(200),
        limit: SOON * 4,
    };
    let came = write_behind(Path::new(env!("CARGO_BIN_EXE_torture")), plan).await;
    println!("{came:?}");
    assert_eq!((came.lost, came.reordered), (0, 0), "{came:?}");
    assert!(came.kills > 0 && came.redis_kills == 1, "{came:?}");
    assert!(
        came.acknowledged >= plan.writes && came.given > 0,
        "{came:?}"
    );
}
