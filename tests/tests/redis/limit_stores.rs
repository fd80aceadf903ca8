//! Every store of shared rate limits, held to one suite; and the scripts held to the machine.

use std::{sync::Arc, time::Duration};

use resilience_core::{
    conformance,
    limit::{
        Quota,
        store::{Demand, InProcessLimits, LimitStore, ShardedLimits, StoreDecision, StoreFuture},
    },
};
use resilience_redis::Redis;
use resilience_tests::{
    limit_script,
    redis::{Flavour, RedisServer},
    redis_cluster::RedisCluster,
    redis_scene,
    redis_sentinel::RedisSentinels,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_this_process_conforms() {
    let store: Arc<dyn LimitStore> = Arc::new(InProcessLimits::new());
    conformance::limit::all(&store).await;
}

/// Redis, and Valkey where the machine has it.
#[tokio::test(flavor = "multi_thread")]
async fn redis_conforms() {
    for flavour in Flavour::installed() {
        println!("{flavour:?}");
        let server = RedisServer::start_flavour(flavour, &[]);
        let store: Arc<dyn LimitStore> = Arc::new(connect(&server).await.limits());
        conformance::limit::all(&store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_conforms() {
    let cluster = RedisCluster::start();
    let store: Arc<dyn LimitStore> = Arc::new(redis_scene::connect(&cluster.url()).await.limits());
    conformance::limit::all(&store).await;
    split_conforms(redis_scene::connect(&cluster.url()).await.limits()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_found_through_sentinels_conforms() {
    let group = RedisSentinels::start();
    let limits = redis_scene::connect(&group.url()).await.limits();
    let store: Arc<dyn LimitStore> = Arc::new(limits.clone());
    conformance::limit::all(&store).await;
    split_conforms(limits).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sub_buckets_conform_in_this_process_and_in_redis() {
    split_conforms(InProcessLimits::new()).await;
    let server = RedisServer::start();
    let limits = connect(&server).await.limits();
    split_conforms(limits.clone()).await;
    let one: Arc<dyn LimitStore> = Arc::new(ShardedLimits::new(limits, 1).unwrap());
    conformance::limit::all(&one).await;
}

async fn split_conforms(store: impl LimitStore + Clone) {
    for parts in [2, 8] {
        let split = ShardedLimits::new(Named(store.clone(), parts), parts).unwrap();
        let split: Arc<dyn LimitStore> = Arc::new(split);
        conformance::limit::split(&split).await;
    }
}

/// A store whose names are its own, so that one server can be used twice.
#[derive(Debug)]
struct Named<S>(S, u32);

impl<S: LimitStore> LimitStore for Named<S> {
    fn decide<'a>(
        &'a self,
        name: &'a str,
        subject: &'a str,
        demands: &'a [Demand<'a>],
    ) -> StoreFuture<'a, StoreDecision> {
        Box::pin(async move {
            let name = format!("{name}-{}", self.1);
            self.0.decide(&name, subject, demands).await
        })
    }

    fn heartbeat<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        ttl: Duration,
    ) -> StoreFuture<'a, u64> {
        self.0.heartbeat(name, instance, ttl)
    }
}

async fn connect(server: &RedisServer) -> Redis {
    let redis = Redis::builder(&server.url())
        .budget(Duration::from_secs(5))
        .connect()
        .expect("good settings");
    redis.ready(Duration::from_secs(5)).await.expect("connects");
    redis
}

fn second(permits: u64) -> Quota {
    Quota::per(permits, Duration::from_secs(1)).unwrap()
}

/// A counter without an expiry stays forever; one whose expiry is rounded down vanishes too early.
#[tokio::test(flavor = "multi_thread")]
async fn every_key_lives_until_its_bucket_is_full_and_no_longer() {
    let server = RedisServer::start();
    let store = connect(&server).await.limits();
    let quota = Quota::per(1000, Duration::from_secs(3600)).unwrap();
    let demands = [
        Demand {
            limit: "a",
            quota,
            cost: 1,
        },
        Demand {
            limit: "b",
            quota: second(1).burst(50).unwrap(),
            cost: 50,
        },
    ];
    let decision = store.decide("api", "tenant", &demands).await.unwrap();
    let ttl = || integer(&server.command(&format!("PTTL {}", store.key("api", "tenant"))));
    let lives_until = |micros: u64| {
        let full = i64::try_from(micros / 1000).unwrap();
        let ttl = ttl();
        assert!(
            (full - 5_000..=full + 1).contains(&ttl),
            "{ttl} ms, full in {full} ms"
        );
    };
    let slowest = decision.limits.iter().map(|limit| limit.full_in).max();
    lives_until(slowest.unwrap());
    // A request for one limit alone does not shorten the life of the key below what the other needs, nor does one that fills it.
    let alone = |demand: Demand<'static>, cost| [Demand { cost, ..demand }];
    let only = alone(demands[0], 1);
    assert!(store.decide("api", "tenant", &only).await.is_ok());
    lives_until(slowest.unwrap());
    let only = alone(demands[0], -5);
    assert!(store.decide("api", "tenant", &only).await.is_ok());
    lives_until(slowest.unwrap());
    let only = alone(demands[0], 1000);
    let decision = store.decide("api", "tenant", &only).await.unwrap();
    lives_until(decision.limits[0].full_in);
    let put_back = demands.map(|demand| Demand {
        cost: -1000,
        ..demand
    });
    store.decide("api", "tenant", &put_back).await.unwrap();
    assert_eq!(
        integer(&server.command("DBSIZE")),
        0,
        "a full bucket has no key"
    );
}

/// Writing on a refusal doubles its price, replicates it, and lets a flood keep itself out forever.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_looks_write_nothing() {
    let server = RedisServer::start();
    let store = connect(&server).await.limits();
    let quota = Quota::per(2, Duration::from_secs(3600)).unwrap();
    let ask = async |cost| {
        let limit = "l";
        let demands = [Demand { limit, quota, cost }];
        store
            .decide("api", "tenant", &demands)
            .await
            .unwrap()
            .outcome
    };
    assert!(ask(2).await.is_admitted());
    let changes = || {
        integer(
            server
                .command("INFO persistence")
                .split("rdb_changes_since_last_save")
                .nth(1)
                .unwrap(),
        )
    };
    let before = changes();
    for _ in 0..50 {
        assert!(!ask(1).await.is_admitted());
        assert!(!ask(3).await.is_admitted());
        assert!(ask(0).await.is_admitted());
    }
    assert_eq!(changes(), before);
}

/// What one decision does not ask about is another's: limits come and go with the versions of a service.
#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_subject_share_a_key_and_what_is_forgotten_is_the_oldest_of_many() {
    let server = RedisServer::start();
    let store = connect(&server).await.limits();
    let quota = Quota::per(10, Duration::from_secs(3600)).unwrap();
    let take = async |limit: usize, cost| {
        let limit = &format!("limit-{limit}");
        let demands = [Demand { limit, quota, cost }];
        let decision = store.decide("api", "tenant", &demands).await.unwrap();
        decision.limits[0].remaining
    };
    for limit in 0..33 {
        assert_eq!(take(limit, 3).await, 7);
    }
    for limit in 0..33 {
        assert_eq!(take(limit, 0).await, 7);
    }
    let size = || integer(&server.command(&format!("STRLEN {}", store.key("api", "tenant"))));
    assert_eq!((size(), integer(&server.command("DBSIZE"))), (33 * 28, 1));
    assert_eq!(take(33, 3).await, 7);
    assert_eq!(size(), 33 * 28);
    assert_eq!(take(0, 0).await, 10, "the oldest was forgotten");
    assert_eq!(take(1, 0).await, 7);
}

/// The script is sent whole again when the server has lost it.
#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_script_cache_costs_a_round_trip_and_no_answer() {
    let server = RedisServer::start();
    let store = connect(&server).await.limits();
    let demands = [Demand {
        limit: "l",
        quota: second(10),
        cost: 1,
    }];
    for _ in 0..3 {
        assert!(store.decide("api", "t", &demands).await.is_ok());
        let _ = server.command("SCRIPT FLUSH");
    }
}

/// A foreign key is refused, whatever it holds.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_key_is_an_error_and_nothing_is_written() {
    let server = RedisServer::start();
    let store = connect(&server).await.limits();
    let demands = ["one", "other"].map(|limit| Demand {
        limit,
        quota: second(10),
        cost: 1,
    });
    let key = store.key("api", "t");
    for (command, look) in [("SET", "GET"), ("LPUSH", "LPOP")] {
        let _ = server.command(&format!("{command} {key} 5"));
        for demands in [&demands[..], &demands[..1]] {
            assert!(store.decide("api", "t", demands).await.is_err());
        }
        assert_eq!(server.command(&format!("{look} {key}")), "5");
        let _ = server.command("FLUSHALL");
    }
}

/// An instance that died is forgotten, and with the last one its key.
#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_instances_lives_as_long_as_the_last_of_them() {
    let server = RedisServer::start();
    let store = connect(&server).await.limits();
    let hour = Duration::from_secs(3600);
    store.heartbeat("api", "long", hour).await.unwrap();
    store.heartbeat("api", "short", hour / 60).await.unwrap();
    let ttl = || integer(&server.command("PTTL {resilience:limit:api}:live"));
    assert!((3_590_000..=3_600_000).contains(&ttl()), "{}", ttl());
    store
        .heartbeat("api", "long", Duration::ZERO)
        .await
        .unwrap();
    assert!((50_000..=60_000).contains(&ttl()), "{}", ttl());
    store
        .heartbeat("api", "short", Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(integer(&server.command("DBSIZE")), 0);
    let forever = store.heartbeat("api", "long", Duration::MAX).await;
    assert!(forever.is_err(), "no number for a script");
    assert_eq!(integer(&server.command("DBSIZE")), 0);
}

/// The first number in an answer.
fn integer(answer: &str) -> i64 {
    let digits: String = answer
        .chars()
        .skip_while(|c| !c.is_ascii_digit() && *c != '-')
        .take_while(|c| c.is_ascii_digit() || *c == '-')
        .collect();
    digits.parse().unwrap_or_else(|_| panic!("{answer:?}"))
}

/// 40,000 calls a run, from a new seed each time: idle times of months, steps back, changes of plan, primes, costs
/// from beyond every bound, up to three limits at once.
#[test]
fn the_script_gives_the_same_answers_as_the_machine() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let compared = limit_script::compare(&RedisServer::start(), 40_000, seed);
    assert_eq!(compared.wrong, None);
    assert!(compared.calls >= 40_000, "{compared:?}");
    assert!(
        (2_000..40_000).contains(&compared.refused)
            && compared.plans > 1_000
            && compared.steps > 1_000,
        "{compared:?}"
    );
}

/// Lua does not roll back: whatever is wrong with a call is found before anything is written.
#[test]
fn the_script_refuses_numbers_that_it_could_not_keep_exact() {
    const PACK: &str = "ARGV[1] = struct.pack('<I4dddd', 7, loadstring('return ' .. ARGV[1])())\n";
    const GOOD: &str = "ARGV[1] = struct.pack('<I4dddd', 6, 10, 1, 1000, 1) .. ARGV[1]\n";
    let server = RedisServer::start();
    let one = format!("{PACK}{}", limit_script::DECIDE);
    let several = format!("{PACK}{GOOD}{}", limit_script::DECIDE);
    let ask = |numbers: &str| {
        [
            server.try_words(&["EVAL", &one, "1", "one", numbers]),
            server.try_words(&["EVAL", &several, "1", "two", numbers]),
        ]
    };
    for numbers in [
        "0, 1, 1, 1",
        "10.5, 1, 1, 1",
        "10, 0, 1, 1",
        "10, 1.5, 1, 1",
        "10, 1, 0, 1",
        "10, 1, 0.5, 1",
        "10, 1, 1, 0.5",
        "10, 1, 1, 2 ^ 53",
        "10, 1, 1, -2 ^ 53",
        "2 ^ 30, 1, 2 ^ 23, 1",
        "2 ^ 52, 2 ^ 52, 1, 1",
        "0 / 0, 1, 1, 1",
        "1, 1, 1, 0 / 0",
        "1 / 0, 1, 1, 1",
        "-1, 1, -1, 1",
    ] {
        for answer in ask(numbers) {
            let answer = answer.unwrap();
            assert!(answer.contains("out of range"), "{numbers}: {answer}");
        }
    }
    assert_eq!(integer(&server.command("DBSIZE")), 0);
    for answer in ask("10, 1, 1000, 1") {
        assert!(!answer.unwrap().starts_with('-'));
    }
    assert_eq!(integer(&server.command("DBSIZE")), 2, "these are good");
}
