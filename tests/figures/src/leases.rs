//! Leases: decisions of one instance, and the commands that they cost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use resilience_core::{
    fleet::{FleetOptions, OnOutage},
    limit::{
        Quota,
        fleet::{FleetRateLimit, LeaseRules, Mode},
    },
};

use crate::{
    fleet::{commands, connect, ms},
    redis::RedisServer,
    report::{Target, figure},
};

const LASTING: Duration = ms(3_000);

pub(crate) async fn run() {
    // More than can be asked for, and then a tenth of what is.
    let plenty = hot_subject(50_000_000, 2).await;
    let scarce = hot_subject(100_000, 2).await;
    for (name, run) in [("leased", plenty), ("leased_at_the_limit", scarce)] {
        figure(
            &format!("{name}_decisions_per_second"),
            run.decisions,
            "decisions/s of one instance, one subject",
            Target::AtLeast(1_000_000.0),
        );
        figure(
            &format!("{name}_commands_percent"),
            run.commands,
            "% of the decisions",
            Target::AtMost(1.0),
        );
        figure(
            &format!("{name}_admitted_percent"),
            run.admitted,
            "% of what the limit allows, or of the calls",
            Target::AtLeast(95.0),
        );
    }
}

struct Run {
    decisions: f64,
    commands: f64,
    admitted: f64,
}

async fn hot_subject(rate: u64, tasks: u64) -> Run {
    let server = RedisServer::start();
    let quota = Quota::per(rate, ms(1_000)).expect("a good quota");
    let limit = FleetRateLimit::builder("leased")
        .store(connect(&server.url()).await.limits())
        .limit("calls", quota)
        .mode(Mode::Leased(LeaseRules::new()))
        .fleet(FleetOptions::new().on_outage(OnOutage::FailClosed))
        .build()
        .expect("a good limit");
    let (decided, admitted) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    let (before, start) = (commands(&server), Instant::now());
    let workers: Vec<_> = (0..tasks)
        .map(|_| {
            let (limit, over) = (limit.clone(), Arc::clone(&over));
            let (decided, admitted) = (Arc::clone(&decided), Arc::clone(&admitted));
            tokio::spawn(async move {
                const BATCH: u64 = 256;
                while !over.load(Relaxed) {
                    let mut yes = 0;
                    for _ in 0..BATCH {
                        yes += u64::from(limit.ask("hot", 1).await.is_admitted());
                    }
                    decided.fetch_add(BATCH, Relaxed);
                    admitted.fetch_add(yes, Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    tokio::time::sleep(LASTING).await;
    over.store(true, Relaxed);
    for worker in workers {
        worker.await.expect("no panic");
    }
    let seconds = start.elapsed().as_secs_f64();
    let sent = (commands(&server) - before) as f64;
    let decided = decided.load(Relaxed) as f64;
    let allowed = (rate as f64).mul_add(seconds, rate as f64).min(decided);
    Run {
        decisions: decided / seconds,
        commands: sent / decided * 100.0,
        admitted: admitted.load(Relaxed) as f64 / allowed * 100.0,
    }
}
