//! The connection under Sentinel: a master is used while the sentinels confirm it, and not longer.

use std::{net::SocketAddr, time::Duration};

use resilience_redis::{CommandError, Redis, Status};
use resilience_tests::{
    fake_redis::FakeRedis,
    proxy::{Proxy, Weather},
    redis::Flavour,
    redis_scene::{SOON, events, writes},
    redis_sentinel::{RedisSentinels, SERVICE},
    torture::{How, switch},
    until::eventually,
};
use tokio::{task::spawn_blocking, time::Instant};

const LEASE: Duration = Duration::from_secs(1);
const BUDGET: Duration = Duration::from_millis(250);
/// What a busy machine adds.
const SLACK: Duration = Duration::from_millis(500);

async fn group() -> RedisSentinels {
    spawn_blocking(RedisSentinels::start).await.expect("starts")
}

async fn connected(url: &str) -> Redis {
    let builder = Redis::builder(url).budget(BUDGET).master_lease(LEASE);
    let redis = builder.connect().expect("good settings");
    redis.ready(SOON).await.expect("connects");
    redis
}

/// Without waiting for replicas: what is forgotten then is a figure (`make torture`), of which the most is bounded here.
#[tokio::test(flavor = "multi_thread")]
async fn a_planned_failover_is_followed_at_once_and_nothing_is_written_to_the_former_master() {
    let (_group, switch) = switch(group().await, 0, How::Planned).await;
    println!("{switch:?}");
    assert!(switch.accepted > 0, "{switch:?}");
    assert!(switch.in_use < Duration::from_secs(1), "{switch:?}");
    assert!(switch.twice * 100 <= switch.accepted, "{switch:?}");
}

/// On Valkey and on Redis 6.2, whose sentinels and errors are older, where they are installed.
#[tokio::test(flavor = "multi_thread")]
async fn completions_that_waited_for_all_replicas_survive_a_planned_failover() {
    let mut flavours = Flavour::installed();
    if flavours.len() > 1 {
        // The test above has it.
        flavours.retain(|flavour| *flavour != Flavour::Redis);
    }
    for flavour in flavours {
        let start = spawn_blocking(move || RedisSentinels::start_flavour(flavour));
        let (_group, switch) = switch(start.await.expect("starts"), 2, How::Planned).await;
        println!("{flavour:?}: {switch:?}");
        assert!(switch.accepted > 0 && switch.twice == 0, "{switch:?}");
        // Usually at once. What is promised is the lease (3 s).
        let most = match flavour {
            Flavour::Valkey => Duration::from_secs(3),
            Flavour::Redis | Flavour::Redis62 | Flavour::Redis8 => Duration::from_secs(1),
        };
        assert!(switch.in_use < most, "{switch:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_without_the_word_of_a_majority_is_not_written_to_beyond_the_lease() {
    let mut group = group().await;
    let redis = connected(&group.url()).await;
    assert!(writes(&redis, "before").await);
    for sentinel in 0..2 {
        group.sentinel_mut(sentinel).pause();
    }
    let start = Instant::now();
    let down = |why: &str| matches!(redis.status(), Status::Down(is) if is.contains(why));
    eventually("it leaves", SOON, async || down("no majority")).await;
    assert!(start.elapsed() <= LEASE + SLACK, "{:?}", start.elapsed());
    assert_eq!(redis.ping().await, Err(CommandError::Down));
    group.sentinel_mut(1).unpause();
    eventually("it is back", SOON, async || writes(&redis, "after").await).await;
    group.sentinel_mut(0).unpause();
}

/// The client sees one sentinel that has not heard of anything, and the former master; the others have another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_cut_off_with_the_former_master_stops_writing_to_it() {
    let group = group().await;
    let former = group.master();
    let address = group.server(former).addr().parse().expect("an address");
    let ignorant = FakeRedis::sentinel(address).await;
    let mut lines = Vec::new();
    for number in 0..2 {
        let sentinel: SocketAddr = group.sentinel(number).addr().parse().expect("an address");
        lines.push(Proxy::to(sentinel).await.expect("a port"));
    }
    let hosts: Vec<_> = lines
        .iter()
        .map(|line| line.address().to_string())
        .collect();
    let url = format!(
        "redis-sentinel://{},{}/{SERVICE}",
        ignorant.address(),
        hosts.join(",")
    );
    let redis = connected(&url).await;
    assert!(writes(&redis, "before").await);
    for line in &mut lines {
        line.set(Weather::Blackhole).await;
    }
    let (cut, mut last) = (Instant::now(), Instant::now());
    let switching = spawn_blocking(move || {
        group.fail_over();
        group.has_another_master(former);
        group
    });
    let mut number = 0;
    while cut.elapsed() < LEASE + BUDGET + 2 * SLACK || !switching.is_finished() {
        number += 1;
        if writes(&redis, &format!("cut-off-{number}")).await {
            last = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(last - cut <= LEASE + BUDGET + SLACK, "{:?}", last - cut);
    let group = switching.await.expect("another master");
    for line in &mut lines {
        line.set(Weather::Fine).await;
    }
    eventually("it is back", SOON, async || writes(&redis, "after").await).await;
    let master = group.master();
    let record = "{resilience:idempotency:writes:after}:record";
    assert_eq!(
        group
            .server(master)
            .try_words(&["EXISTS", record])
            .expect("an answer"),
        "1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_accepts_writes_without_replicas_is_told_of() {
    let told = || {
        let events = events("resilience.redis");
        let of = events
            .iter()
            .filter(|(told, _)| told.contains("min-replicas-to-write"));
        of.map(|(_, times)| times).sum::<usize>()
    };
    let group = group().await;
    let before = told();
    let _careless = connected(&group.url()).await;
    eventually("it is told", SOON, async || told() > before).await;
}
