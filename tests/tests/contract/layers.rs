//! Every layer of the toolkit, held to every contract. Exemptions are listed with their reasons.

use std::time::Duration;

use resilience_core::{
    Error,
    bulkhead::Bulkhead,
    deadline::Timeout,
    keyed::Keyed,
    lift::LiftLayer,
    retry::{Backoff, Retry, RetryBudget},
};
use resilience_tests::contract::{Ask, Instance, Plan, Stack, Subject};
use tower::{BoxError, Layer, layer::layer_fn, util::MapErr};

const SECOND: Duration = Duration::from_secs(1);
/// Permits, probes: fewer than the offences that the checks commit.
const PLACES: usize = 4;

#[test]
fn timeout() {
    let make = || async {
        let timeout = Timeout::new("contract", 60 * SECOND).unwrap();
        Instance::new(move || timeout.layer())
    };
    Subject::new("timeout", make).keeps_every_contract();
}

#[test]
fn timeout_as_gate() {
    let make = || async {
        let timeout = Timeout::new("contract", 60 * SECOND).unwrap();
        Instance::new(move || timeout.layer().gate())
    };
    Subject::new("timeout as gate", make).keeps_every_contract();
}

#[test]
fn timeout_per_request() {
    let make = || async {
        let timeout = Timeout::new("contract", SECOND).unwrap();
        Instance::new(move || timeout.layer().per_request(|_: &Ask| Some(60 * SECOND)))
    };
    Subject::new("timeout per request", make).keeps_every_contract();
}

#[test]
fn retry() {
    Subject::new("retry", || retrying(Backoff::fixed(SECOND / 100)))
        .makes_further_attempts()
        .keeps_every_contract();
}

#[test]
fn retry_with_jitter() {
    let backoff = || Backoff::decorrelated_jitter(SECOND / 100, SECOND).seed(7);
    Subject::new("retry with jitter", move || retrying(backoff()))
        .makes_further_attempts()
        .keeps_every_contract();
}

#[test]
fn retry_without_a_pause() {
    Subject::new("retry without a pause", || {
        retrying(Backoff::fixed(Duration::ZERO))
    })
    .makes_further_attempts()
    .keeps_every_contract();
}

async fn retrying(backoff: Backoff) -> Instance {
    let retry = Retry::builder("contract")
        .max_attempts(3)
        .backoff(backoff)
        .budget(RetryBudget::unlimited())
        .build()
        .unwrap();
    Instance::new(move || retry.layer())
}

#[test]
fn bulkhead() {
    let make = || async {
        let bulkhead = Bulkhead::builder("contract")
            .max_concurrent(PLACES)
            .build()
            .unwrap();
        of_bulkhead(bulkhead)
    };
    Subject::new("bulkhead", make)
        .rejects_after(PLACES, Plan::Hang)
        .keeps_every_contract();
}

#[test]
fn bulkhead_whose_queue_is_full() {
    Subject::new("bulkhead with a full queue", queueing)
        .rejects_after(2 * PLACES, Plan::Hang)
        .keeps_every_contract();
}

#[test]
fn bulkhead_whose_queue_is_empty() {
    Subject::new("bulkhead with an empty queue", queueing)
        .rejects_after(PLACES, Plan::Hang)
        .keeps_every_contract();
}

#[test]
fn keyed_bulkhead() {
    let make = || async {
        let bulkheads = Bulkhead::builder("contract")
            .max_concurrent(PLACES)
            .keyed(Keyed::new())
            .unwrap();
        let counted = bulkheads.clone();
        Instance::new(move || bulkheads.layer(|_: &Ask| "key")).held(move || {
            let snapshot = counted.snapshot();
            (snapshot.in_flight + snapshot.queued) as u64
        })
    };
    Subject::new("keyed bulkhead", make)
        .rejects_after(PLACES, Plan::Hang)
        .keeps_every_contract();
}

async fn queueing() -> Instance {
    let bulkhead = Bulkhead::builder("contract")
        .max_concurrent(PLACES)
        .queue(PLACES, 10 * SECOND);
    of_bulkhead(bulkhead.build().unwrap())
}

fn of_bulkhead(bulkhead: Bulkhead) -> Instance {
    let counted = bulkhead.clone();
    Instance::new(move || bulkhead.layer()).held(move || {
        let snapshot = counted.snapshot();
        (snapshot.in_flight + snapshot.queued) as u64
    })
}

#[test]
fn lift() {
    let lower = |error: Error<BoxError>| match error {
        Error::Rejected(rejected) => rejected.into(),
        Error::Service(error) => error,
    };
    let lift =
        move || layer_fn(move |inner: Stack| MapErr::new(LiftLayer::new().layer(inner), lower));
    Subject::new("lift", move || async move { Instance::new(lift) }).keeps_every_contract();
}
