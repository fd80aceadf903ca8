//! The connection to Redis under faults: a call never hangs, and the connection always comes back.

use std::time::Duration;

use futures_util::future::join_all;
use resilience_core::{breaker::CircuitBreaker, fleet::FleetOptions};
use resilience_redis::{CommandError, Redis, Status};
use resilience_tests::{
    proxy::Proxy,
    redis::{Flavour, RedisServer, free_port},
    redis_scene::{events, writes},
    until::eventually,
};
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(5);

async fn connected(server: &RedisServer) -> Redis {
    let redis = Redis::connect(&server.url()).expect("a good URL");
    redis.ready(SOON).await.expect("connects");
    redis
}

fn is_down(redis: &Redis) -> bool {
    matches!(redis.status(), Status::Down(_))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_starts_while_redis_is_away_and_finds_it_later() {
    let port = free_port();
    let redis = Redis::connect(&format!("redis://127.0.0.1:{port}")).expect("a good URL");
    assert!(redis.ready(Duration::from_millis(50)).await.is_err());
    assert_eq!(redis.ping().await, Err(CommandError::Down));
    let _server = RedisServer::launch(port, &[]);
    redis.ready(SOON).await.expect("found it");
    assert_eq!(redis.ping().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_calls_fail_at_once_until_redis_is_back() {
    let mut server = RedisServer::start();
    let redis = connected(&server).await;
    server.kill();
    eventually("the loss is noticed", SOON, || async { is_down(&redis) }).await;
    let start = Instant::now();
    for _ in 0..1000 {
        assert_eq!(redis.ping().await, Err(CommandError::Down));
    }
    assert!(
        start.elapsed() < SOON,
        "1,000 failing calls took {:?}",
        start.elapsed()
    );
    server.restart();
    eventually("pings are answered again", SOON, || async {
        redis.ping().await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_server_costs_the_budget_then_nothing_and_is_found_again() {
    let server = RedisServer::start();
    let redis = Redis::builder(&server.url())
        .budget(Duration::from_millis(30))
        .connect()
        .expect("good settings");
    redis.ready(SOON).await.expect("connects");
    server.pause();
    assert_eq!(redis.ping().await, Err(CommandError::TimedOut));
    eventually("the hung peer is given up", SOON, || async {
        redis.ping().await == Err(CommandError::Down)
    })
    .await;
    server.unpause();
    eventually("pings are answered again", SOON, || async {
        redis.ping().await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_killed_by_the_server_is_remade() {
    let server = RedisServer::start();
    let redis = connected(&server).await;
    for _ in 0..5 {
        let _killed = server.command("CLIENT KILL TYPE normal SKIPME yes");
        eventually("pings are answered again", SOON, || async {
            redis.ping().await.is_ok()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_reported_and_nothing_hangs() {
    let server = RedisServer::start_with(&["--requirepass", "right"]);
    let wrong = Redis::connect(&format!("redis://:wrong@{}", server.addr())).expect("a good URL");
    let Err(Status::Down(why)) = wrong.ready(Duration::from_millis(300)).await else {
        panic!("must not connect")
    };
    assert!(
        why.contains("WRONGPASS") || why.to_lowercase().contains("auth"),
        "{why}"
    );
    assert!(!why.contains("wrong@"), "{why}");
    assert_eq!(wrong.ping().await, Err(CommandError::Down));
    let right = Redis::connect(&format!("redis://:right@{}", server.addr())).expect("a good URL");
    right.ready(SOON).await.expect("connects");
}

/// As behind one address of a provider. The sockets of the former master stay open, and before Redis 7.0 what it refuses in a
/// script comes as a text.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_was_demoted_behind_its_address_is_left_for_its_successor() {
    join_all(Flavour::installed().into_iter().map(async |flavour| {
        let servers = [(); 2].map(|()| RedisServer::start_flavour(flavour, &[]));
        let [former, successor] = servers.each_ref();
        let address = |server: &RedisServer| server.addr().parse().expect("an address");
        let line = Proxy::to(address(former)).await.expect("a port");
        let redis = Redis::connect(&format!("redis://{}", line.address())).expect("a good URL");
        redis.ready(SOON).await.expect("connects");
        assert!(writes(&redis, "before").await, "{flavour:?}");
        line.lead_to(address(successor));
        let demote = format!("REPLICAOF 127.0.0.1 {}", successor.port());
        assert_eq!(former.command(&demote), "OK");
        eventually("it is refused", SOON, async || {
            !writes(&redis, "refused").await
        })
        .await;
        eventually("its successor is found", SOON, async || {
            writes(&redis, "after").await
        })
        .await;
        let record = ["EXISTS", "{resilience:idempotency:writes:after}:record"];
        assert_eq!(successor.try_words(&record).expect("an answer"), "1");
    }))
    .await;
}

/// A Redis that evicts loses counters and records silently: limits start again, work is done twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_evicts_keys_is_told_of_and_one_that_does_not_is_not() {
    let told = || {
        let events = events("resilience.redis");
        let of = events
            .iter()
            .filter(|(told, _)| told.contains("evicts keys"));
        of.map(|(_, times)| times).sum::<usize>()
    };
    let memory = ["--maxmemory", "100mb", "--maxmemory-policy"];
    let args = |policy| [memory[0], memory[1], memory[2], policy];
    let keeps = RedisServer::start_with(&args("noeviction"));
    let unbounded = RedisServer::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    let evicts = RedisServer::start_with(&args("allkeys-lru"));
    assert_eq!(told(), 0);
    let _harmless = (connected(&keeps).await, connected(&unbounded).await);
    let _forgetful = connected(&evicts).await;
    eventually("it is told", SOON, || async { told() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_goes_with_the_last_handle() {
    let server = RedisServer::start();
    let redis = connected(&server).await;
    let clients = || {
        let list = server.command("CLIENT LIST");
        list.lines().filter(|line| line.contains("id=")).count()
    };
    assert_eq!(clients(), 2, "ours and the one that asks");
    drop(redis.clone());
    assert_eq!(redis.ping().await, Ok(()));
    drop(redis);
    eventually("the server sees it close", SOON, || async {
        clients() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_closes_all_connections_although_handles_and_stores_remain() {
    let server = RedisServer::start();
    let redis = connected(&server).await;
    let durable = redis.idempotency().durable(1, Duration::from_millis(10));
    let durable = durable.expect("good settings");
    durable.ready(SOON).await.expect("connects");
    let clients = || {
        let list = server.command("CLIENT LIST");
        list.lines().filter(|line| line.contains("id=")).count()
    };
    assert_eq!(clients(), 3, "two of ours and the one that asks");
    redis.shutdown(SOON).await.expect("ends in time");
    assert_eq!(redis.status(), Status::Down("shut down".into()));
    assert_eq!(redis.ping().await, Err(CommandError::Down));
    assert!(durable.ready(Duration::from_millis(1)).await.is_err());
    eventually("the server sees them close", SOON, || async {
        clients() == 1
    })
    .await;
    redis.shutdown(SOON).await.expect("ends in time again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_for_a_hung_server_no_longer_than_the_budget_of_a_command() {
    let server = RedisServer::start();
    let redis = connected(&server).await;
    server.pause();
    let (ping, shutdown) = tokio::join!(redis.ping(), redis.shutdown(SOON));
    assert_eq!(ping, Err(CommandError::TimedOut));
    assert_eq!(shutdown, Ok(()));
    assert_eq!(redis.ping().await, Err(CommandError::Down));
    server.unpause();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_connection_is_one_member_of_the_fleet_until_its_shutdown() {
    let server = RedisServer::start();
    let (one, other) = (connected(&server).await, connected(&server).await);
    let breaker = |redis: &Redis, name: &str| {
        let options = FleetOptions::new().heartbeat(Duration::from_millis(100));
        let builder = CircuitBreaker::builder(name).store(redis.clone().breakers());
        builder.fleet(options).build().expect("good settings")
    };
    let _breakers = [
        breaker(&one, "payments"),
        breaker(&one, "reports"),
        breaker(&other, "payments"),
    ];
    eventually("both know of each other", SOON, || async {
        [&one, &other].map(Redis::live_instances) == [Some(2), Some(2)]
    })
    .await;
    let left = server.command("PTTL {resilience:members}");
    assert!(left.parse::<i64>().is_ok_and(|left| left > 0), "{left}");
    other.shutdown(SOON).await.expect("ends in time");
    let members = server.command("ZCARD {resilience:members}");
    assert_eq!(members, "1", "a shutdown leaves at once");
    eventually("the other one notices", SOON, || async {
        one.live_instances() == Some(1)
    })
    .await;
}
