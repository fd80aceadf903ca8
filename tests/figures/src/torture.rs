//! A thousand instances with ten breakers each, on one Redis; then more, until it ends.
//!
//! Simulated at the store: what a thousand processes would send, through a few connections. Each report runs the
//! same script on the same record as a real one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use resilience_core::breaker::fleet::{BreakerStore, Counts, Report};
use resilience_redis::RedisBreakers;

use crate::{
    fleet::{info, ms, store},
    redis::RedisServer,
    report::{Target, figure, quantile},
};

const INSTANCES: usize = 1_000;
const BREAKERS: usize = 10;
/// The calm interval, as it is by default.
const CALM: Duration = ms(2_000);
const CONNECTIONS: usize = 4;
/// Reports under way at once when as many as possible are sent.
const AT_ONCE: usize = 64;

pub(crate) async fn run() {
    let server = RedisServer::start();
    let mut stores = Vec::new();
    for _ in 0..CONNECTIONS {
        stores.push(store(&server.url()).await);
    }
    let names: Arc<[String]> = (0..BREAKERS).map(|n| format!("b{n}")).collect();
    calm(&server, &stores, &names).await;
    memory(&server, &names);
    flat_out(&server, &stores, &names).await;
}

fn report(instance: usize, sequence: u64) -> Report {
    Report {
        instance: format!("instance-{instance:04}-0123456789abcdef").into(),
        voter: format!("instance-{instance:04}").into(),
        sequence,
        epoch: 0,
        counts: Counts {
            success: 20,
            failure: 0,
            slow: 0,
        },
        failing: false,
        bucket_ms: 1_000,
        live_ms: 6_000,
        state: None,
    }
}

/// Everybody reports at the calm interval, evenly spread.
async fn calm(server: &RedisServer, stores: &[RedisBreakers], names: &Arc<[String]>) {
    const ROUNDS: u64 = 10;
    let (cpu, start) = (cpu(server), Instant::now());
    let workers: Vec<_> = (0..AT_ONCE)
        .map(|worker| {
            let (store, names) = (stores[worker % stores.len()].clone(), Arc::clone(names));
            tokio::spawn(async move {
                let mut took = Vec::new();
                for round in 0..ROUNDS {
                    for at in (worker..INSTANCES * BREAKERS).step_by(AT_ONCE) {
                        let share = at as f64 / (INSTANCES * BREAKERS) as f64;
                        let due = CALM.mul_f64(round as f64 + share);
                        tokio::time::sleep_until((start + due).into()).await;
                        let sent = Instant::now();
                        let report = report(at / BREAKERS, round + 1);
                        let answer = store.report(&names[at % BREAKERS], &report).await;
                        answer.expect("an answer");
                        took.push(sent.elapsed().as_secs_f64() * 1e3);
                    }
                }
                took
            })
        })
        .collect();
    let mut took = Vec::new();
    for worker in workers {
        took.extend(worker.await.expect("no panic"));
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate = took.len() as f64 / seconds;
    let wanted = (INSTANCES * BREAKERS) as f64 / CALM.as_secs_f64();
    figure(
        "torture_reports_per_second",
        rate,
        "commands/s",
        Target::AtLeast(wanted * 0.98),
    );
    let used = (self::cpu(server) - cpu) / seconds * 100.0;
    figure(
        "torture_redis_cpu_percent",
        used,
        "% of a core",
        Target::Open,
    );
    figure(
        "torture_report_median_ms",
        quantile(&mut took, 0.5),
        "ms",
        Target::Open,
    );
    figure(
        "torture_report_p99_ms",
        quantile(&mut took, 0.99),
        "ms",
        Target::Open,
    );
}

/// What one breaker with a thousand instances takes.
fn memory(server: &RedisServer, names: &[String]) {
    let mut bytes = 0;
    for part in ["state", "window", "live", "failing", "sequence", "leases"] {
        let key = format!("{{resilience:breaker:{}}}:{part}", names[0]);
        let answer = server.command(&format!("MEMORY USAGE {key} SAMPLES 0"));
        bytes += answer.trim().trim_start_matches(':').parse().unwrap_or(0);
    }
    figure(
        "torture_memory_per_breaker",
        f64::from(bytes),
        "bytes, of 1,000 instances",
        Target::Open,
    );
    let per_instance = f64::from(bytes) / INSTANCES as f64;
    figure(
        "torture_memory_per_instance_and_breaker",
        per_instance,
        "bytes",
        Target::Open,
    );
}

/// As many reports as go through: where it ends.
async fn flat_out(server: &RedisServer, stores: &[RedisBreakers], names: &Arc<[String]>) {
    const LASTING: Duration = ms(10_000);
    let done = Arc::new(AtomicU64::new(0));
    let (cpu, start) = (cpu(server), Instant::now());
    let workers: Vec<_> = (0..AT_ONCE)
        .map(|worker| {
            let store = stores[worker % stores.len()].clone();
            let (names, done) = (Arc::clone(names), Arc::clone(&done));
            tokio::spawn(async move {
                let mut at = worker;
                while start.elapsed() < LASTING {
                    let report = report(at / BREAKERS % INSTANCES, 1_000 + at as u64);
                    let answer = store.report(&names[at % BREAKERS], &report).await;
                    answer.expect("an answer");
                    done.fetch_add(1, Relaxed);
                    at += AT_ONCE;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("no panic");
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate = done.load(Relaxed) as f64 / seconds;
    figure(
        "torture_end_reports_per_second",
        rate,
        "commands/s",
        Target::Open,
    );
    let used = (self::cpu(server) - cpu) / seconds * 100.0;
    figure(
        "torture_end_redis_cpu_percent",
        used,
        "% of a core",
        Target::Open,
    );
    let instances = rate * CALM.as_secs_f64() / BREAKERS as f64;
    figure(
        "torture_end_instances_of_10_breakers",
        instances,
        "instances",
        Target::Open,
    );
}

fn cpu(server: &RedisServer) -> f64 {
    info(server, "cpu", "used_cpu_user") + info(server, "cpu", "used_cpu_sys")
}
