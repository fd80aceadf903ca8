//! What a call costs the server, and what a fleet does.

use std::time::{Duration, Instant};

use resilience_core::{breaker::CircuitBreaker, fleet::FleetOptions};

use crate::{
    fleet::{breaker, call, commands, fleet, ms, open, server_us, store},
    redis::RedisServer,
    report::{Target, figure},
};

const INSTANCES: usize = 4;
const BREAKERS: usize = 5;
const CALM: Duration = ms(250);

pub(crate) async fn run() {
    let server = RedisServer::start();
    let options = FleetOptions::new().heartbeat(CALM);
    let mut all = Vec::new();
    for n in 0..BREAKERS {
        let name = format!("b{n}");
        all.extend(fleet(&server.url(), INSTANCES, || breaker(&name), &options).await);
    }
    tokio::time::sleep(ms(1_000)).await;
    // Each breaker has a store handle of its own, which sends a heartbeat.
    let heartbeats = (INSTANCES * BREAKERS) as f64 / CALM.as_secs_f64();
    for (calls, name) in [(1, "slow"), (10_000, "fast")] {
        let per_second = rate(&server, &all, calls).await;
        figure(
            &format!("redis_commands_{calls}_calls_per_second"),
            per_second,
            "commands/s",
            Target::Open,
        );
        // A breaker reports in intervals in which it was called. The connection for pushes sends a PING every two seconds.
        let pings = (INSTANCES * BREAKERS) as f64 / 2.0;
        let formula = heartbeats + heartbeats.min(calls as f64) + pings;
        let off = (per_second / formula - 1.0).abs();
        let target = Target::AtMost(0.1);
        figure(
            &format!("redis_commands_off_formula_{name}"),
            off,
            "share",
            target,
        );
    }
    per_call(&server, &all[..INSTANCES]).await;
    many().await;
}

/// What one instance with many breakers costs the server, by how many of them are called.
async fn many() {
    const BREAKERS: usize = 500;
    const INTERVALS: u32 = 10;
    const HEARTBEAT: Duration = ms(1_000);
    let server = RedisServer::start();
    let store = store(&server.url()).await;
    let make = |number| {
        breaker(&format!("host-{number}"))
            .store(store.clone())
            .fleet(FleetOptions::new().heartbeat(HEARTBEAT))
            .build()
            .expect("a good breaker")
    };
    let all: Vec<_> = (0..BREAKERS).map(make).collect();
    tokio::time::sleep(HEARTBEAT * 4).await;
    for (active, name, most) in [(0, "idle", 2.0), (50, "50_active", 5.0)] {
        let (sent, took) = (commands(&server), server_us(&server));
        for _ in 0..INTERVALS * 10 {
            for breaker in &all[..active] {
                call(breaker, true);
            }
            tokio::time::sleep(HEARTBEAT / 10).await;
        }
        let each = |all: u64| all as f64 / f64::from(INTERVALS);
        figure(
            &format!("agent_commands_per_interval_500_breakers_{name}"),
            each(commands(&server) - sent),
            "commands",
            Target::AtMost(most),
        );
        figure(
            &format!("agent_server_us_per_interval_500_breakers_{name}"),
            each(server_us(&server) - took),
            "us",
            Target::Open,
        );
    }
}

/// Commands per second at a rate of calls per second over all instances.
async fn rate(server: &RedisServer, all: &[CircuitBreaker], calls: u64) -> f64 {
    const SECONDS: u64 = 6;
    let (before, start) = (commands(server), Instant::now());
    let mut made = 0;
    while start.elapsed() < Duration::from_secs(SECONDS) {
        let due = (start.elapsed().as_secs_f64() * calls as f64) as u64;
        while made <= due {
            call(&all[made as usize % all.len()], true);
            made += 1;
        }
        tokio::time::sleep(ms(2)).await;
    }
    (commands(server) - before) as f64 / start.elapsed().as_secs_f64()
}

/// What calls add. Between two reports nothing is sent, so in the quietest of many rounds only calls could be seen.
async fn per_call(server: &RedisServer, one: &[CircuitBreaker]) {
    const ROUNDS: u32 = 50;
    const CALLS: u32 = 50_000;
    for (state, is_open) in [("closed", false), ("open", true)] {
        if is_open {
            let shared = one[0].fleet().expect("a shared breaker");
            shared.reset("figures", "to open").await.expect("an answer");
            // All have heard of it.
            tokio::time::sleep(ms(200)).await;
            open(one).await;
        }
        let mut fewest = u64::MAX;
        for _ in 0..ROUNDS {
            let before = commands(server);
            for _ in 0..CALLS {
                call(&one[0], true);
            }
            fewest = fewest.min(commands(server) - before);
        }
        figure(
            &format!("redis_commands_per_call_{state}"),
            fewest as f64 / f64::from(CALLS),
            "commands/call",
            Target::Exactly(0.0),
        );
    }
}
