//! Probes of a whole fleet, and those of a holder that dies.

use std::{
    env,
    io::Write,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use resilience_core::{
    Error,
    breaker::{
        HalfOpen, OpenFor,
        fleet::{BreakerStore, Change, FleetState, LeaseAnswer},
    },
    fleet::FleetOptions,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    sync::Notify,
};
use tower::{ServiceBuilder, ServiceExt};

use crate::{
    fleet::{breaker, fleet, ms, open, store},
    redis::RedisServer,
    report::{Target, figure},
};

/// The argument that makes this program a holder of a probe.
pub(crate) const HOLD: &str = "hold-probe";
const PROBES: u32 = 3;
const LEASE: Duration = ms(1_000);

pub(crate) async fn run() {
    let server = RedisServer::start();
    let sent = f64::from(half_open(&server).await);
    let target = Target::Exactly(PROBES.into());
    figure(
        "probes_sent_by_20_instances_in_half_open",
        sent,
        "probes",
        target,
    );
    let freed = killed_holder(&server).await.as_secs_f64() * 1e3;
    // Asked for every two milliseconds.
    let target = Target::AtMost(LEASE.as_secs_f64() * 1e3 + 20.0);
    figure(
        "lease_of_a_killed_holder_freed_ms",
        freed,
        "ms after it was granted",
        target,
    );
}

/// Connections to Redis are cut again and again while fleets are half-open.
pub(crate) async fn cuts() {
    const ROUNDS: u32 = 8;
    let server = RedisServer::start();
    let (mut worst, mut sent) = (0, 0);
    for round in 0..ROUNDS {
        let reached = half_open_under_cuts(&server, &format!("cuts-{round}")).await;
        worst = worst.max(reached.saturating_sub(PROBES));
        sent += reached;
    }
    let unit = format!("probes; {sent} were sent in {ROUNDS} half-open states of 12 instances");
    let target = Target::Exactly(0.0);
    figure(
        "probes_above_budget_under_cuts",
        worst.into(),
        &unit,
        target,
    );
}

/// How many calls get through that hang, so that there is no verdict meanwhile.
async fn half_open_under_cuts(server: &RedisServer, name: &str) -> u32 {
    let make = || {
        breaker(name)
            .open_for(OpenFor::fixed(ms(2_000)))
            .half_open(HalfOpen::probes(PROBES))
    };
    let fleet = fleet(&server.url(), 12, make, &FleetOptions::new()).await;
    open(&fleet).await;
    // Meanwhile the two that have opened by themselves hear of the fleet's verdict.
    tokio::time::sleep(ms(2_100)).await;
    let reached = Arc::new(AtomicU32::new(0));
    let mut calls = Vec::new();
    // A probe that hangs has failed after eight seconds: then there is a verdict, and other probes follow.
    let start = Instant::now();
    for round in 0.. {
        if start.elapsed() > ms(5_000) {
            break;
        }
        // More often, and an instance has no connection for as long as lets it probe alone.
        if round % 12 == 0 {
            let _ = server.command("CLIENT KILL TYPE normal SKIPME yes");
        }
        for breaker in &fleet {
            let reached = Arc::clone(&reached);
            let service = ServiceBuilder::new()
                .layer(breaker.layer())
                .service_fn(move |()| {
                    reached.fetch_add(1, SeqCst);
                    std::future::pending::<Result<(), Error<()>>>()
                });
            calls.push(tokio::spawn(service.oneshot(())));
        }
        tokio::time::sleep(ms(70)).await;
    }
    let reached = reached.load(SeqCst);
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    reached
}

/// How many of a hundred calls on twenty instances get through.
async fn half_open(server: &RedisServer) -> u32 {
    let make = || {
        breaker("probes")
            .open_for(OpenFor::fixed(ms(300)))
            .half_open(HalfOpen::probes(PROBES))
    };
    let fleet = fleet(&server.url(), 20, make, &FleetOptions::new()).await;
    open(&fleet).await;
    tokio::time::sleep(ms(400)).await;
    let (reached, go_on) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
    let mut calls = Vec::new();
    // Again and again over a second, as callers do.
    for _ in 0..20 {
        for breaker in &fleet {
            let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
            let service = ServiceBuilder::new()
                .layer(breaker.layer())
                .service_fn(move |()| {
                    let (reached, go_on) = (Arc::clone(&reached), Arc::clone(&go_on));
                    async move {
                        reached.fetch_add(1, SeqCst);
                        go_on.notified().await;
                        Ok::<_, Error<()>>(())
                    }
                });
            calls.push(tokio::spawn(service.oneshot(())));
        }
        tokio::time::sleep(ms(50)).await;
    }
    let reached = reached.load(SeqCst);
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    reached
}

/// From the grant of a probe to a process that is then killed, to the next grant.
async fn killed_holder(server: &RedisServer) -> Duration {
    let (store, name) = (store(&server.url()).await, "killed");
    let change = Change {
        expected: 0,
        to: FleetState::Open,
        lasting_ms: 1,
        trips: 1,
        by: "figures".into(),
        cause: String::new(),
    };
    assert!(store.change(name, &change).await.expect("an answer").0);
    tokio::time::sleep(ms(5)).await;
    let mut holder = Command::new(env::current_exe().expect("this program"))
        .args([HOLD, &server.url(), name])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("a process");
    let mut lines = BufReader::new(holder.stdout.take().expect("its output")).lines();
    let line = lines.next_line().await.expect("readable").expect("a line");
    assert_eq!(line, "granted");
    let granted = Instant::now();
    holder.kill().await.expect("kill -9");
    let next: Arc<str> = "next".into();
    loop {
        let (answer, _) = store.lease(name, &next, 1, 1_000).await.expect("an answer");
        if matches!(answer, LeaseAnswer::Granted { .. }) {
            return granted.elapsed();
        }
        tokio::time::sleep(ms(2)).await;
    }
}

/// Takes the only probe, says so, and hangs.
pub(crate) async fn hold(url: &str, name: &str) {
    let lease: Arc<str> = "holder".into();
    let time = LEASE.as_millis() as u64;
    let (answer, _) = store(url)
        .await
        .lease(name, &lease, 1, time)
        .await
        .expect("an answer");
    assert!(matches!(answer, LeaseAnswer::Granted { .. }), "{answer:?}");
    println!("granted");
    std::io::stdout().flush().expect("flushed");
    std::future::pending::<()>().await;
}
