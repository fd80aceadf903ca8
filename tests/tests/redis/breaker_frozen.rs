//! A fleet whose Redis stops answering in the middle of an outage of the dependency.

use std::time::Duration;

use resilience_core::{
    Verdict,
    breaker::{
        CircuitBreaker, CircuitBreakerBuilder, HalfOpen, OpenFor, State, Window, fleet::FleetState,
    },
};
use resilience_tests::{
    redis::RedisServer,
    redis_scene::{Instance, SOON, all_are, open, options, rules},
    until::eventually,
};

const OPEN: Duration = Duration::from_millis(500);
const LEASE: Duration = Duration::from_secs(1);

fn payments() -> CircuitBreakerBuilder {
    CircuitBreaker::builder("payments")
        .window(Window::time(Duration::from_secs(2)))
        .minimum_calls(10)
        .open_for(OpenFor::fixed(OPEN))
        .half_open(HalfOpen::probes(3))
        .fleet(options())
        .fleet_rules(rules().probe_lease(LEASE))
}

/// Each instance makes a call that ends so, until `done`.
async fn calls_until<F: Future<Output = bool>>(
    what: &str,
    fleet: &[Instance],
    verdict: Verdict,
    done: impl Fn() -> F,
) {
    eventually(what, SOON, || async {
        for one in fleet {
            one.call(verdict).await;
        }
        done().await
    })
    .await;
}

async fn recorded(one: &Instance) -> Option<FleetState> {
    one.view().await.map(|view| view.state)
}

fn all_closed(fleet: &[Instance]) -> bool {
    fleet.iter().all(|one| one.breaker.state() == State::Closed)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_redis_was_frozen_during_an_outage_the_next_outage_opens_the_fleet() {
    let server = RedisServer::start();
    let fleet = Instance::fleet(&server.url(), 4, payments).await;
    open(&fleet).await;
    server.pause();
    let recovered = || async { all_closed(&fleet) };
    let what = "every instance recovers by its own probes";
    calls_until(what, &fleet, Verdict::Success, recovered).await;
    server.unpause();
    let agreed =
        || async { recorded(&fleet[0]).await == Some(FleetState::Closed) && all_closed(&fleet) };
    let what = "record and instances agree";
    calls_until(what, &fleet, Verdict::Success, agreed).await;
    let opened = || async { recorded(&fleet[0]).await == Some(FleetState::Open) };
    let what = "the next outage opens the fleet";
    calls_until(what, &fleet, Verdict::transient(), opened).await;
    all_are(&fleet, State::Open).await;
}
