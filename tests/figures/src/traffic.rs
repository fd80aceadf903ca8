//! What sharing does to calls: nothing while all is well, and few reach a dead upstream.

use std::time::{Duration, Instant};

use resilience_core::{
    Verdict,
    breaker::{CircuitBreaker, State},
    completion::Guard,
    fleet::FleetOptions,
};

use crate::{
    fleet::{all, breaker, call, fleet, ms},
    redis::RedisServer,
    report::{Target, figure},
};

pub(crate) async fn run() {
    let server = RedisServer::start();
    together(&server).await;
    dead_upstream(&server).await;
}

/// Eight instances make one call of 100 ms each, at once.
async fn together(server: &RedisServer) {
    let options = FleetOptions::new().heartbeat(ms(200));
    let fleet = fleet(&server.url(), 8, || breaker("together"), &options).await;
    let shared = &fleet[0];
    while shared.fleet_view().await.expect("an answer").live < 8 {
        tokio::time::sleep(ms(5)).await;
    }
    let start = Instant::now();
    let calls = fleet.iter().cloned().map(|breaker| {
        tokio::spawn(async move {
            let mut call = breaker.acquire().expect("closed");
            tokio::time::sleep(ms(100)).await;
            call.settle(Verdict::Success);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("no panic");
    }
    let took = start.elapsed().as_secs_f64() * 1e3;
    figure(
        "eight_calls_of_100_ms_together_ms",
        took,
        "ms",
        Target::AtMost(150.0),
    );
    let deadline = Instant::now() + ms(2_000);
    let mut counted = 0;
    while counted < 8 && Instant::now() < deadline {
        tokio::time::sleep(ms(10)).await;
        counted = shared.fleet_view().await.expect("an answer").window.total();
    }
    let target = Target::Exactly(8.0);
    figure("eight_calls_counted", counted as f64, "calls", target);
}

/// Fifty instances, each with four calls per second, and an upstream that is dead.
async fn dead_upstream(server: &RedisServer) {
    let local: Vec<_> = (0..50)
        .map(|_| breaker("dead").build().expect("a good breaker"))
        .collect();
    let (alone, alone_ms) = until_all_open(&local).await;
    let options = FleetOptions::new();
    let shared = fleet(&server.url(), 50, || breaker("dead"), &options).await;
    all(&shared, State::Closed).await;
    tokio::time::sleep(ms(2_500)).await;
    let (together, together_ms) = until_all_open(&shared).await;
    figure(
        "dead_upstream_requests_local",
        alone as f64,
        "requests",
        Target::Open,
    );
    figure(
        "dead_upstream_requests_shared",
        together as f64,
        "requests",
        Target::Open,
    );
    let fewer = alone as f64 / together as f64;
    figure(
        "dead_upstream_times_fewer",
        fewer,
        "x",
        Target::AtLeast(3.0),
    );
    figure(
        "dead_upstream_all_open_local_ms",
        alone_ms,
        "ms",
        Target::Open,
    );
    figure(
        "dead_upstream_all_open_shared_ms",
        together_ms,
        "ms",
        Target::Open,
    );
}

/// How many requests reach the upstream until every instance is open, and how long that takes.
async fn until_all_open(fleet: &[CircuitBreaker]) -> (u64, f64) {
    let (start, mut reached) = (Instant::now(), 0);
    let gap = Duration::from_secs_f64(0.25 / fleet.len() as f64);
    for turn in 0u32.. {
        tokio::time::sleep_until((start + gap * turn).into()).await;
        let one = &fleet[turn as usize % fleet.len()];
        reached += u64::from(call(one, false));
        if fleet.iter().all(|one| one.state() == State::Open) {
            break;
        }
        assert!(start.elapsed() < ms(30_000), "it never opened");
    }
    (reached, start.elapsed().as_secs_f64() * 1e3)
}
