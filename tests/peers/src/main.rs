//! Idempotency records in Redis: the same work through this toolkit and through another crate, on one real server, in
//! turns, one connection each; one JSON line for each figure. The server shares the machine with them: the last line
//! says how loaded it was.
//!
//! The peer comes in two versions (see Cargo.toml), each twice: as it connects by itself, and with the setting that ours
//! has, with which small packets go out at once. Without it, busy connections send larger batches, and idle ones can wait
//! for 40 ms on a real network.
//!
//! ```text
//! cargo run --release --ignore-rust-version -p resilience-peers
//! ```

// What is measured here is real time, which is what std's clock is for.
#![allow(clippy::disallowed_types)]

#[path = "../../figures/src/bare.rs"]
#[allow(dead_code)]
mod bare;
#[path = "../../src/child_process.rs"]
#[allow(dead_code, unreachable_pub)]
mod child_process;
mod newest;
mod ours;
#[path = "../../src/redis.rs"]
#[allow(dead_code, unreachable_pub)]
mod redis;
#[path = "../../src/redis_connection.rs"]
#[allow(dead_code, unreachable_pub)]
mod redis_connection;
#[path = "../../figures/src/report.rs"]
#[allow(dead_code)]
mod report;
mod theirs;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;

use crate::{
    bare::per_second, newest::Newest, ours::Ours, redis::RedisServer, report::quantile,
    theirs::Theirs,
};

const TURNS: usize = 9;
/// Callers at once.
const TASKS: usize = 64;
/// How long a claim holds, and for how long an outcome is kept.
const LEASE: Duration = Duration::from_secs(30);
const KEPT: Duration = Duration::from_secs(86_400);
/// An answer of some size, as a payment service gives.
const OUTCOME: &[u8] = &[b'o'; 1024];

/// Calls per second, and what one costs the server, in microseconds of its processor.
#[derive(Default)]
struct Rounds {
    per_second: Vec<f64>,
    server_us: Vec<f64>,
}

/// What all who are compared do.
trait Records: Clone + Send + Sync + 'static {
    /// A claim and a completion.
    fn first_call(&self, number: u64) -> impl Future<Output = ()> + Send;
    /// A call that is done already.
    fn replay(&self, number: u64) -> impl Future<Output = ()> + Send;
}

/// Who is compared to ours.
const PEERS: [&str; 4] = [
    "idempotent 0.3",
    "idempotent 0.3 with TCP_NODELAY",
    "idempotent 2.0",
    "idempotent 2.0 with TCP_NODELAY",
];

/// Does the same with all of them, one after the other: into `$rounds`, ours first.
macro_rules! with_each {
    ($rounds:ident, $all:ident, $do:ident($($with:expr),*)) => {
        $rounds[0].$do($($with,)* &$all.0).await;
        $rounds[1].$do($($with,)* &$all.1).await;
        $rounds[2].$do($($with,)* &$all.2).await;
        $rounds[3].$do($($with,)* &$all.3).await;
        $rounds[4].$do($($with,)* &$all.4).await;
    };
}

#[tokio::main]
async fn main() {
    let server = RedisServer::start();
    let all = (
        Ours::new(&server).await,
        Theirs::new(&server, false).await,
        Theirs::new(&server, true).await,
        Newest::new(&server, false).await,
        Newest::new(&server, true).await,
    );
    let next = Arc::new(AtomicU64::new(0));
    let mut rounds = <[Rounds; 5]>::default();
    for _ in 0..TURNS {
        with_each!(rounds, all, first_calls(&server, &next));
        // Memory that is full of records is slower for the one that runs second.
        assert_eq!(server.command("FLUSHALL"), "OK");
    }
    tell("record_first_calls", rounds);

    all.0.first_call(0).await;
    all.1.first_call(0).await;
    all.3.first_call(0).await;
    let mut rounds = <[Rounds; 5]>::default();
    for _ in 0..TURNS {
        with_each!(rounds, all, replays(&server));
    }
    tell("record_replays", rounds);
    report::load();
}

impl Rounds {
    async fn first_calls(
        &mut self,
        server: &RedisServer,
        next: &Arc<AtomicU64>,
        records: &impl Records,
    ) {
        let (records, numbers) = (records.clone(), Arc::clone(next));
        let call = move || {
            let (records, number) = (records.clone(), numbers.fetch_add(1, Relaxed));
            async move { records.first_call(number).await }
        };
        self.take(server, call).await;
    }

    async fn replays(&mut self, server: &RedisServer, records: &impl Records) {
        let records = records.clone();
        let call = move || {
            let records = records.clone();
            async move { records.replay(0).await }
        };
        self.take(server, call).await;
    }

    async fn take<F: Future<Output = ()> + Send>(
        &mut self,
        server: &RedisServer,
        call: impl Fn() -> F + Clone + Send + 'static,
    ) {
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let before = processor(server);
        let per_second = per_second(TASKS, move || {
            counted.fetch_add(1, Relaxed);
            call()
        });
        self.per_second.push(per_second.await);
        let spent = processor(server) - before;
        self.server_us
            .push(spent * 1e6 / calls.load(Relaxed) as f64);
    }
}

/// Seconds of a processor that the server has used.
fn processor(server: &RedisServer) -> f64 {
    let text = server.command("INFO cpu");
    let seconds = |field: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let seconds = line.and_then(|line| line.trim().parse().ok());
        seconds.expect("INFO says what the server has used")
    };
    seconds("used_cpu_sys:") + seconds("used_cpu_user:")
}

/// The medians, ours beside theirs.
fn tell(name: &str, rounds: [Rounds; 5]) {
    let medians = rounds.map(|mut rounds| {
        let per_second = quantile(&mut rounds.per_second, 0.5).round();
        let server_us = quantile(&mut rounds.server_us, 0.5);
        (per_second, (server_us * 100.0).round() / 100.0)
    });
    let our = medians[0];
    for (peer, their) in PEERS.into_iter().zip(&medians[1..]) {
        let line = json!({
            "figure": format!("{name}_per_second_beside_a_peer"),
            "value": our.0,
            "unit": "calls/s",
            "peer": peer,
            "peer_value": their.0,
            "target": ">= the peer's",
            "met": our.0 >= their.0,
        });
        println!("{line}");
        let line = json!({
            "figure": format!("{name}_server_us_beside_a_peer"),
            "value": our.1,
            "unit": "us of the server's processor per call",
            "peer": peer,
            "peer_value": their.1,
        });
        println!("{line}");
    }
}
