//! Outages of a dependency while Redis freezes: fleets that protect no instance afterwards.

use std::{sync::Arc, time::Duration};

use resilience_core::{
    breaker::{
        CircuitBreaker, HalfOpen, OpenFor, State, Window,
        fleet::{FleetRules, FleetState},
    },
    error::Error,
    fleet::FleetOptions,
};
use tower::{Layer, ServiceExt};

use crate::{
    fleet::{ms, store},
    redis::RedisServer,
    report::{Target, figure},
};

const SERVERS: usize = 5;
const FLEETS: u64 = 20;
const SIZE: usize = 3;
const STORM: Duration = ms(6_000);
const AGREE: Duration = ms(15_000);

pub(crate) async fn run() {
    let mut stuck = 0;
    for round in 0..SERVERS as u64 {
        stuck += storm(round).await;
    }
    figure(
        "shared_breaker_stuck_after_outage",
        stuck as f64,
        "count",
        Target::Exactly(0.0),
    );
}

/// Fleets with outages at random, on one server that freezes at random; how many stay unprotected.
async fn storm(round: u64) -> u64 {
    let server = Arc::new(RedisServer::start());
    let mut fleets = Vec::new();
    for n in 0..FLEETS {
        fleets.push(fleet(&server.url(), &format!("storm-{n}")).await);
    }
    let freezer = tokio::spawn(freeze(Arc::clone(&server), round));
    let storms = fleets.iter().enumerate().map(|(n, fleet)| {
        let fleet = fleet.clone();
        let random = fastrand::Rng::with_seed(round * FLEETS + n as u64);
        tokio::spawn(outages(fleet, random))
    });
    for storm in storms.collect::<Vec<_>>() {
        storm.await.expect("it ends");
    }
    freezer.await.expect("it ends");
    let ends = fleets
        .into_iter()
        .map(|fleet| tokio::spawn(is_stuck(fleet)));
    let mut stuck = 0;
    for end in ends.collect::<Vec<_>>() {
        stuck += u64::from(end.await.expect("it ends"));
    }
    stuck
}

async fn fleet(url: &str, name: &str) -> Vec<CircuitBreaker> {
    let options = FleetOptions::new().heartbeat(ms(200));
    let rules = FleetRules::new().alert(ms(50)).probe_lease(ms(1_000));
    let store = store(url).await;
    let make = || {
        CircuitBreaker::builder(name)
            .window(Window::time(ms(1_000)))
            .minimum_calls(10)
            .open_for(OpenFor::fixed(ms(300)))
            .half_open(HalfOpen::probes(3).max_wait(ms(1_000)))
            .store(store.clone())
            .fleet(options.clone())
            .fleet_rules(rules.clone())
            .build()
            .expect("a good breaker")
    };
    (0..SIZE).map(|_| make()).collect()
}

async fn freeze(server: Arc<RedisServer>, round: u64) {
    let mut random = fastrand::Rng::with_seed(round);
    let end = tokio::time::Instant::now() + STORM;
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(ms(random.u64(100..1_500))).await;
        server.pause();
        tokio::time::sleep(ms(random.u64(100..2_500))).await;
        server.unpause();
    }
}

async fn outages(fleet: Vec<CircuitBreaker>, mut random: fastrand::Rng) {
    let end = tokio::time::Instant::now() + STORM;
    let mut up = true;
    while tokio::time::Instant::now() < end {
        let turn = tokio::time::Instant::now() + ms(random.u64(100..2_000));
        while tokio::time::Instant::now() < turn {
            calls(&fleet, up).await;
        }
        up = !up;
    }
}

/// One call of each instance.
async fn calls(fleet: &[CircuitBreaker], ok: bool) {
    for breaker in fleet {
        let answer = move |()| async move { if ok { Ok(()) } else { Err(Error::Service(())) } };
        let service = breaker.layer().layer(tower::service_fn(answer));
        let _ = service.oneshot(()).await;
    }
    tokio::time::sleep(ms(20)).await;
}

/// With dependency and Redis back and calls flowing: does the next outage open no breaker?
async fn is_stuck(fleet: Vec<CircuitBreaker>) -> bool {
    let recorded = async || fleet[0].fleet_view().await.map(|view| view.state).ok();
    for (ok, state, local) in [
        (true, FleetState::Closed, State::Closed),
        (false, FleetState::Open, State::Open),
    ] {
        let end = tokio::time::Instant::now() + AGREE;
        loop {
            calls(&fleet, ok).await;
            let agreed = fleet.iter().all(|breaker| breaker.state() == local);
            if agreed && recorded().await == Some(state) {
                break;
            }
            if tokio::time::Instant::now() > end {
                return true;
            }
        }
    }
    false
}
