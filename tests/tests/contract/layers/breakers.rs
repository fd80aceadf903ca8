//! Circuit breakers: closed, half-open, under orders, as a gate, by key.

use resilience_core::conformance::layer::{Answer, Ask, Instance, Plan, Stack, Subject};
use resilience_core::{
    Verdict,
    breaker::{self, CircuitBreaker, HalfOpen, OpenFor, Override, State, Window},
    completion::Guard,
    keyed::Keyed,
};
use tower::{BoxError, Layer, Service};

use super::{PLACES, SECOND};

/// More failures than the checks cause beside the point, fewer than they cause when they mean to.
const TRIPS: usize = 80;

#[test]
fn circuit_breaker() {
    Subject::new("circuit breaker", || async {
        of_breaker(&breaker(), CircuitBreaker::layer)
    })
    .rejects_after(TRIPS, Plan::Fail)
    .keeps_every_contract();
}

#[test]
fn circuit_breaker_over_a_time_window() {
    let make = || async {
        let breaker = settings()
            .window(Window::time(600 * SECOND))
            .build()
            .unwrap();
        of_breaker(&breaker, CircuitBreaker::layer)
    };
    Subject::new("circuit breaker over time", make)
        .rejects_after(TRIPS, Plan::Fail)
        .keeps_every_contract();
}

/// Its probes are what it hands out, and what must come back.
#[test]
fn circuit_breaker_half_open() {
    let make = || async {
        let breaker = breaker();
        trip(&breaker);
        tokio::time::advance(6 * SECOND).await;
        of_breaker(&breaker, CircuitBreaker::layer)
    };
    let failed =
        "a panic is a failed probe, and the breaker opens again: see the breaker's own tests";
    Subject::new("half-open circuit breaker", make)
        .rejects_after(PLACES, Plan::Hang)
        .exempt("a_panic_in_the_inner_call_leaks_nothing", failed)
        .exempt("a_panic_in_the_inner_future_leaks_nothing", failed)
        .keeps_every_contract();
}

#[test]
fn circuit_breaker_as_gate() {
    let waits = "it lets callers wait instead of rejecting them";
    let layer = |breaker: &CircuitBreaker| breaker.layer().gate();
    Subject::new("circuit breaker as gate", move || async move {
        of_breaker(&breaker(), layer)
    })
    .rejects_after(TRIPS, Plan::Fail)
    .exempt("a_rejection_can_be_told_from_a_failure", waits)
    .exempt("a_rejection_does_not_reach_the_service", waits)
    .exempt("a_rejection_does_not_kill_a_buffer_above", waits)
    .exempt(
        "the_state_is_shared_by_clones_and_by_layers_of_one_handle",
        waits,
    )
    .exempt("it_takes_calls_again_after_rejecting", waits)
    .exempt(
        "a_rejected_caller_does_not_keep_what_it_readied_below",
        "it takes services that cannot be cloned, and so cannot be renewed",
    )
    .keeps_every_contract();
}

#[test]
fn circuit_breaker_with_orders() {
    let make = || async {
        let breaker = breaker();
        trip(&breaker);
        breaker.set_override(Override::force_closed("the contract"));
        of_breaker(&breaker, CircuitBreaker::layer)
    };
    Subject::new("circuit breaker forced closed", make).keeps_every_contract();
}

#[test]
fn keyed_circuit_breaker() {
    let make = || async {
        let breakers = settings().keyed(Keyed::new()).unwrap();
        Instance::new(move || breakers.layer(|_: &Ask| "key"))
    };
    Subject::new("keyed circuit breaker", make)
        .rejects_after(TRIPS, Plan::Fail)
        .keeps_every_contract();
}

fn settings() -> breaker::CircuitBreakerBuilder {
    CircuitBreaker::builder("contract")
        .window(Window::count(2 * TRIPS))
        .minimum_calls(TRIPS as u32)
        .failure_rate(0.9)
        .open_for(OpenFor::fixed(5 * SECOND))
        .half_open(HalfOpen::probes(PLACES as u32).failure_rate(1.0))
}

pub(super) fn breaker() -> CircuitBreaker {
    settings().build().unwrap()
}

fn trip(breaker: &CircuitBreaker) {
    for _ in 0..TRIPS {
        breaker.acquire().unwrap().settle(Verdict::transient());
    }
    assert_eq!(breaker.state(), State::Open);
}

fn of_breaker<L>(
    breaker: &CircuitBreaker,
    layer: impl Fn(&CircuitBreaker) -> L + Send + Sync + 'static,
) -> Instance
where
    L: Layer<Stack>,
    L::Service: Service<Ask, Response = Answer, Error = BoxError> + Clone + Send + Sync + 'static,
    <L::Service as Service<Ask>>::Future: Send + 'static,
{
    let (breaker, counted) = (breaker.clone(), breaker.clone());
    Instance::new(move || layer(&breaker)).held(move || {
        counted
            .snapshot()
            .probes
            .map_or(0, |probes| probes.out.into())
    })
}
