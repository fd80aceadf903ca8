//! A fleet's bulkhead on a real Redis: instances in processes of their own that are killed and stopped, and a server that
//! forgets, hangs and comes back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use resilience_core::{
    Reason,
    bulkhead::fleet::{BulkheadStore, BulkheadView, FleetBulkhead, FleetBulkheadBuilder},
    fleet::{FleetOptions, OnOutage},
};
use resilience_redis::Redis;
use resilience_tests::{
    process_control::Process,
    redis::RedisServer,
    redis_scene::{SOON, connect, told},
    until::eventually,
};
use rustix::process::Signal;
use tokio::{io::AsyncWriteExt, net::TcpListener, time::Instant};

const NAME: &str = "reports";
const PLACES: u64 = 8;

/// A dependency that counts whom it serves at once.
#[derive(Clone, Default)]
struct Dependency {
    now: Arc<AtomicU64>,
    most: Arc<AtomicU64>,
    served: Arc<AtomicU64>,
}

impl Dependency {
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        let counts = self.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let counts = counts.clone();
                tokio::spawn(async move {
                    let now = counts.now.fetch_add(1, SeqCst) + 1;
                    counts.most.fetch_max(now, SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    // Before the answer: the caller gives its place back when it has it.
                    counts.now.fetch_sub(1, SeqCst);
                    counts.served.fetch_add(1, SeqCst);
                    let _ = stream.write_u8(0).await;
                });
            }
        });
        addr
    }
}

async fn holder(server: &RedisServer, limit: u64, lease_ms: u64, dependency: &str) -> Process {
    let (limit, lease_ms) = (limit.to_string(), lease_ms.to_string());
    let args = [&*server.url(), NAME, &*limit, &*lease_ms, dependency];
    Process::start(env!("CARGO_BIN_EXE_holder"), &args).await
}

async fn view(redis: &Redis) -> BulkheadView {
    redis.bulkheads().view(NAME).await.expect("a view")
}

/// Two processes are killed in the middle of it, one is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn six_processes_never_have_more_in_flight_than_there_are_places() {
    let server = RedisServer::start();
    let dependency = Dependency::default();
    let addr = dependency.start().await;
    let fleet = join_all((0..6).map(|_| holder(&server, PLACES, 1_000, &addr))).await;
    let (stay, die) = fleet.split_at(4);
    let killed = async {
        let working = join_all(die.iter().map(|one| one.ask("run 60000 10")));
        let _ = tokio::time::timeout(Duration::from_millis(700), working).await;
        die.iter().for_each(|one| one.signal(Signal::KILL));
        let late = holder(&server, PLACES, 1_000, &addr).await;
        late.number("run 2000 10").await
    };
    let working = join_all(stay.iter().map(|one| one.number("run 3500 10")));
    let (answered, late) = tokio::join!(working, killed);
    let (most, served) = (dependency.most.load(SeqCst), dependency.served.load(SeqCst));
    println!("{served} calls, {most} at once at most; {answered:?} and {late} by who lived");
    assert_eq!(most, PLACES, "the limit, and all of it");
    assert!(answered.iter().all(|calls| *calls > 0) && late > 0);
    let redis = connect(&server.url()).await;
    eventually("all places are free in the end", SOON, || async {
        view(&redis).await.in_flight == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_a_holder_frees_its_places_within_their_lease() {
    let server = RedisServer::start();
    let (holds, waits) = (
        holder(&server, 2, 1_500, "").await,
        holder(&server, 2, 1_500, "").await,
    );
    let fences = [holds.number("hold").await, holds.number("hold").await];
    let killed = Instant::now();
    holds.signal(Signal::KILL);
    let next = waits.number("hold").await;
    let took = killed.elapsed();
    println!("free {took:?} after the kill");
    assert!(took < Duration::from_millis(2_500), "{took:?}");
    assert!(next > fences[1] && fences[1] > fences[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_was_stopped_past_its_lease_learns_it_and_releases_nothing() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let (stops, goes_on) = (
        holder(&server, 1, 500, "").await,
        holder(&server, 1, 500, "").await,
    );
    let old = stops.number("hold").await;
    stops.signal(Signal::STOP);
    let new = goes_on.number("hold").await;
    assert!(new > old);
    stops.signal(Signal::CONT);
    assert_eq!(stops.ask("lost").await, "1");
    assert_eq!(stops.ask("drop").await, "dropped");
    // What it had to release went ahead of this, or along with it.
    let next = stops.number("hold");
    let others = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let seen = view(&redis).await;
        assert_eq!((seen.in_flight, seen.waiting, seen.fence), (1, 1, new));
        goes_on.ask("drop").await
    };
    let (next, _) = tokio::join!(next, others);
    assert!(next > new);
}

fn bulkhead(redis: &Redis, name: &str) -> FleetBulkheadBuilder {
    FleetBulkhead::builder(name)
        .store(redis.bulkheads())
        .max_concurrent(4)
        .lease(Duration::from_millis(1_500))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_flushed_is_told_what_is_in_flight_and_fences_go_on() {
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let (one, other) = (
        bulkhead(&redis, NAME).build().unwrap(),
        bulkhead(&redis, NAME).build().unwrap(),
    );
    let permit = one.acquire(3).await.unwrap();
    let _ = server.command("FLUSHALL");
    let _ = server.command("SCRIPT FLUSH");
    eventually("what is in flight is entered again", SOON, || async {
        view(&redis).await.in_flight == 3
    })
    .await;
    assert_eq!(
        other.acquire(2).await.err().map(|no| no.reason()),
        Some(Reason::Full)
    );
    let next = other.acquire(1).await.unwrap();
    assert!(next.fence() > permit.fence());
    assert!(!permit.is_lost());
    drop((permit, next));
    eventually("all is given back", SOON, || async {
        view(&redis).await.in_flight == 0
    })
    .await;
}

/// The lease is lost before Redis could have given it away; when it is back, all is as before.
#[tokio::test(flavor = "multi_thread")]
async fn while_redis_hangs_the_policy_decides_and_what_was_in_doubt_is_given_back() {
    let name = "hangs";
    assert_eq!(told(name), (0, 0), "the name is this test's alone");
    let server = RedisServer::start();
    let redis = connect(&server.url()).await;
    let share = bulkhead(&redis, name).build().unwrap();
    let closed = bulkhead(&redis, name)
        .fleet(FleetOptions::new().on_outage(OnOutage::FailClosed))
        .build()
        .unwrap();
    eventually("both are known", SOON, || async {
        share.fleet_view().await.is_ok_and(|seen| seen.live == 2)
            && share.snapshot().local_parts == Some(2)
    })
    .await;
    let before = share.acquire(1).await.unwrap();
    server.pause();
    let begun = Instant::now();
    let alone = share.acquire(1).await.unwrap();
    assert_eq!(alone.fence(), None);
    let refused = closed.acquire(1).await.err().map(|no| no.reason());
    assert_eq!(refused, Some(Reason::StoreUnreachable));
    assert_eq!(
        share.acquire(1).await.err().map(|no| no.reason()),
        Some(Reason::Full),
        "two of four are its share"
    );
    assert!(begun.elapsed() < Duration::from_secs(5));
    tokio::time::timeout(SOON, before.lost())
        .await
        .expect("it is told");
    server.unpause();
    drop((before, alone));
    eventually(
        "all is given back, the wishes in doubt too",
        SOON,
        || async {
            share
                .fleet_view()
                .await
                .is_ok_and(|seen| seen.in_flight == 0 && seen.live == 2)
        },
    )
    .await;
    eventually("it is over for both", SOON, || async {
        !share.snapshot().degraded && !closed.snapshot().degraded
    })
    .await;
    eventually("the store decides again", SOON, || async {
        let all = share.acquire(4).await;
        all.is_ok_and(|permit| permit.fence().is_some())
    })
    .await;
    let (lost, back) = told(name);
    assert!(lost >= 2 && lost == back, "{lost} and {back}");
}
