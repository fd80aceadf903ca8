//! Instances, and what a server says of itself.

use std::time::Duration;

use resilience_core::{
    Verdict,
    breaker::{CircuitBreaker, CircuitBreakerBuilder, OpenFor, State},
    completion::Guard,
    fleet::FleetOptions,
};
use resilience_redis::{Redis, RedisBreakers};

use crate::redis::RedisServer;

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A connection of its own.
pub(crate) async fn connect(url: &str) -> Redis {
    let redis = Redis::builder(url)
        .budget(ms(1_000))
        .connect()
        .expect("good settings");
    redis.ready(ms(10_000)).await.expect("Redis answers");
    redis
}

pub(crate) async fn store(url: &str) -> RedisBreakers {
    connect(url).await.breakers()
}

/// As users have it, but for an open time without luck in it.
pub(crate) fn breaker(name: &str) -> CircuitBreakerBuilder {
    CircuitBreaker::builder(name).open_for(OpenFor::fixed(ms(60_000)))
}

/// Each with its own connection.
pub(crate) async fn fleet(
    url: &str,
    size: usize,
    make: impl Fn() -> CircuitBreakerBuilder,
    options: &FleetOptions,
) -> Vec<CircuitBreaker> {
    let mut fleet = Vec::new();
    for _ in 0..size {
        let built = make()
            .store(store(url).await)
            .fleet(options.clone())
            .build();
        fleet.push(built.expect("a good breaker"));
    }
    fleet
}

pub(crate) fn call(breaker: &CircuitBreaker, ok: bool) -> bool {
    let Ok(mut call) = breaker.acquire() else {
        return false;
    };
    call.settle(if ok {
        Verdict::Success
    } else {
        Verdict::transient()
    });
    true
}

pub(crate) fn fail(breaker: &CircuitBreaker, times: u32) {
    for _ in 0..times {
        call(breaker, false);
    }
}

/// Waits until all are in this state.
pub(crate) async fn all(fleet: &[CircuitBreaker], state: State) {
    let wait = async {
        while fleet.iter().any(|breaker| breaker.state() != state) {
            tokio::time::sleep(ms(1)).await;
        }
    };
    tokio::time::timeout(ms(30_000), wait)
        .await
        .unwrap_or_else(|_| panic!("not every instance was {state:?} within 30 s"));
}

/// Fails calls on the first two until the whole fleet is open.
pub(crate) async fn open(fleet: &[CircuitBreaker]) {
    for breaker in &fleet[..2] {
        fail(breaker, 15);
    }
    all(fleet, State::Open).await;
}

/// Commands that clients sent since the server started: scripts, and the commands that no script of ours calls.
pub(crate) fn commands(server: &RedisServer) -> u64 {
    command_stats(server, "calls")
}

/// Microseconds that those commands took on the server, that of scripts with the commands in them.
pub(crate) fn server_us(server: &RedisServer) -> u64 {
    command_stats(server, "usec")
}

fn command_stats(server: &RedisServer, field: &str) -> u64 {
    let inside = [
        "hset", "hget", "hdel", "del", "time", "hmget", "hgetall", "hlen", "hincrby", "z",
        "pexpire", "pttl", "publish",
    ];
    let text = server.command("INFO commandstats");
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("cmdstat_")?.split_once(':'))
        .filter(|(name, _)| {
            !inside
                .iter()
                .any(|own| name == own || (*own == "z" && name.starts_with('z')))
        })
        .filter(|(name, _)| *name != "info")
        .filter_map(|(_, rest)| {
            let mut fields = rest.split(',').filter_map(|pair| pair.split_once('='));
            let (_, value) = fields.find(|(name, _)| *name == field)?;
            value.parse::<u64>().ok()
        })
        .sum()
}

/// A number out of a section of INFO.
pub(crate) fn info(server: &RedisServer, section: &str, field: &str) -> f64 {
    let text = server.command(&format!("INFO {section}"));
    text.lines()
        .find_map(|line| {
            line.trim()
                .strip_prefix(field)?
                .strip_prefix(':')?
                .parse()
                .ok()
        })
        .unwrap_or(f64::NAN)
}
