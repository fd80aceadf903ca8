//! A Cluster of which a shard is away, or a slot on the move: what callers of the others, and of the slot, notice.

use std::time::Duration;

use futures_util::future::join_all;
use resilience_core::{
    idempotency::{
        IdempotencyStore,
        record::{Claim, Claimed, Takeover},
    },
    limit::{
        Quota,
        store::{Demand, LimitStore},
    },
};
use resilience_redis::Redis;
use resilience_tests::{
    redis_cluster::RedisCluster, redis_scene::SOON, torture::one_master_frozen,
};
use tokio::task::spawn_blocking;

async fn cluster() -> RedisCluster {
    spawn_blocking(RedisCluster::start).await.expect("starts")
}

/// `torture only shards` is the long run.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_master_leaves_the_keys_of_other_shards_served() {
    let (_cluster, shards) = one_master_frozen(cluster().await, Duration::from_secs(3)).await;
    println!("{shards:?}");
    for healthy in [shards.limit, shards.idempotency] {
        assert!(healthy.calls > 100, "{shards:?}");
        // A busy machine may exceed the budget of a command once in a while.
        assert!(healthy.percent() <= 5.0, "{shards:?}");
    }
}

/// All keys of the slot are asked for at the other master, by many callers at once, with other commands between theirs.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_is_followed_under_load() {
    let cluster = cluster().await;
    // Redirections are the subject, not a busy machine.
    let redis = Redis::builder(&cluster.url()).budget(Duration::from_secs(5));
    let redis = redis.connect().expect("good settings");
    redis.ready(SOON).await.expect("connects");
    let limits = redis.limits();
    let durable = redis.idempotency().durable(1, Duration::from_millis(200));
    let durable = durable.expect("good settings");
    durable.ready(SOON).await.expect("connects");
    let moving = [
        redis.limits().key("moves", "moving"),
        "{resilience:idempotency:moves:moving}:record".to_owned(),
    ];
    let (cluster, moving) = spawn_blocking(move || {
        let moving = moving.each_ref().map(|key| cluster.begin_move(key));
        (cluster, moving)
    })
    .await
    .expect("the slots begin to move");
    for round in 0..4 {
        let calls = (0..64).map(|call| {
            let limits = limits.clone();
            let subject = if call % 2 == 0 {
                "moving".into()
            } else {
                format!("{round}-{call}")
            };
            async move {
                let demand = Demand {
                    limit: "per-second",
                    quota: Quota::per(1_000_000, Duration::from_secs(1)).expect("a quota"),
                    cost: 1,
                };
                limits.decide("moves", &subject, &[demand]).await.map(drop)
            }
        });
        for answer in join_all(calls).await {
            assert_eq!(answer, Ok(()));
        }
        let claims = (0..16).map(|call| {
            let durable = &durable;
            let claim = Claim {
                owner: format!("{round}-{call}").into(),
                fingerprint: "moves".into(),
                lease_ms: 60_000,
                retention_ms: 600_000,
                takeover: Takeover::Any,
            };
            async move { durable.claim("moves", "moving", &claim).await }
        });
        let claims = join_all(claims).await;
        let granted = claims
            .iter()
            .filter(|claim| matches!(claim, Ok(Claimed::New(_))));
        assert_eq!(granted.count(), usize::from(round == 0), "{claims:?}");
        for claim in &claims {
            assert!(
                matches!(claim, Ok(Claimed::New(_) | Claimed::Busy { .. })),
                "{claim:?}"
            );
        }
    }
    spawn_blocking(move || moving.each_ref().map(|moving| cluster.end_move(moving)))
        .await
        .expect("the slots are moved");
}
