//! Every layer of the toolkit, held to every contract. Exemptions are listed with their reasons.

mod admission;
mod breakers;
mod coalesce;
mod limits;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::conformance::layer::{Answer, Ask, Instance, Plan, Probe, Stack, Subject};
use resilience_core::{
    Error,
    bulkhead::{
        Bulkhead,
        fleet::{FleetBulkhead, InProcessBulkheads, WhenLost},
    },
    deadline::Timeout,
    error::wrap::WrapErrorLayer,
    fallback::{Fallback, FallbackLayer},
    idempotency::{Effect, Idempotency, IdempotencyBuilder, Key},
    keyed::Keyed,
    retry::{Backoff, Retry, RetryBudget},
    shed::LoadShed,
};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, layer::layer_fn, limit::ConcurrencyLimit,
    util::MapErr,
};

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

#[test]
fn bulkhead_of_a_fleet() {
    Subject::new("bulkhead of a fleet", || async { of_fleet(None) })
        .rejects_after(PLACES, Plan::Hang)
        .keeps_every_contract();
}

#[test]
fn bulkhead_of_a_fleet_that_lets_calls_wait() {
    let make = || async { of_fleet(Some((PLACES, 10 * SECOND))) };
    Subject::new("bulkhead of a fleet with a full queue", make)
        .rejects_after(2 * PLACES, Plan::Hang)
        .keeps_every_contract();
}

#[test]
fn bulkhead_of_a_fleet_whose_queue_is_empty() {
    let make = || async { of_fleet(Some((PLACES, 10 * SECOND))) };
    Subject::new("bulkhead of a fleet with an empty queue", make)
        .rejects_after(PLACES, Plan::Hang)
        .keeps_every_contract();
}

fn of_fleet(queue: Option<(usize, Duration)>) -> Instance {
    let builder = FleetBulkhead::builder("contract")
        .store(InProcessBulkheads::new())
        .max_concurrent(PLACES)
        .when_lost(WhenLost::Abort);
    let builder = match queue {
        Some((length, max_wait)) => builder.queue(length, max_wait),
        None => builder,
    };
    let bulkhead = builder.build().unwrap();
    let counted = bulkhead.clone();
    Instance::new(move || bulkhead.layer()).held(move || {
        let snapshot = counted.snapshot();
        snapshot.in_flight + snapshot.waiting as u64
    })
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
    let lift = move || {
        layer_fn(move |inner: Stack| MapErr::new(WrapErrorLayer::new().layer(inner), lower))
    };
    Subject::new("lift", move || async move { Instance::new(lift) }).keeps_every_contract();
}

const GOES_ON: &str = "work that has begun goes on without its caller: that is what it is for";

/// Each request has a key of its own.
#[test]
fn idempotency() {
    let make = || async {
        let keys = Arc::new(AtomicU64::new(0));
        of_keys(Idempotency::builder("contract"), move |_| {
            Some(Key::new(keys.fetch_add(1, Relaxed).to_string()))
        })
    };
    Subject::new("idempotency", make)
        .exempt("a_dropped_call_gives_back_what_it_held", GOES_ON)
        .keeps_every_contract();
}

#[test]
fn idempotency_of_requests_without_a_key() {
    let make = || async { of_keys(Idempotency::builder("contract"), |_| None) };
    Subject::new("idempotency without keys", make).keeps_every_contract();
}

/// Requests that hang have one key, so that the second is refused, or waits.
#[test]
fn idempotency_of_a_key_in_flight() {
    Subject::new("idempotency of a key in flight", || async {
        of_keys(Idempotency::builder("contract").without_wait(), one_key())
    })
    .rejects_after(1, Plan::Hang)
    .exempt("a_dropped_call_gives_back_what_it_held", GOES_ON)
    .keeps_every_contract();
}

fn one_key() -> impl Fn(&Ask) -> Option<Key> + Clone + Send + Sync + 'static {
    |_| Some(Key::new("one"))
}

fn of_keys(
    builder: IdempotencyBuilder,
    key: impl Fn(&Ask) -> Option<Key> + Clone + Send + Sync + 'static,
) -> Instance {
    let handle = builder
        .effect(Effect::Idempotent)
        .ttl(SECOND)
        .build()
        .unwrap();
    let counted = handle.clone();
    Instance::new(move || handle.layer(key.clone())).held(move || {
        let snapshot = counted.snapshot();
        snapshot.running + snapshot.waiting
    })
}

const ANSWERED: &str = "it answers in place of the service: that is what it is for";

#[test]
fn fallback_to_a_value() {
    Subject::new("fallback to a value", || {
        fallback(Fallback::value("contract", 99))
    })
    .exempt("an_error_of_readiness_is_passed_on", ANSWERED)
    .exempt("an_error_of_the_service_is_passed_on_as_it_is", ANSWERED)
    .keeps_every_contract();
}

#[test]
fn fallback_to_a_value_when_it_does_not_apply() {
    let never = |_: &BoxError| false;
    Subject::new("fallback to nothing", move || {
        fallback(Fallback::value("contract", 99).when(never))
    })
    .keeps_every_contract();
}

#[test]
fn fallback_by_a_function() {
    Subject::new("fallback by function", || {
        fallback(Fallback::by("contract", Err::<Answer, BoxError>))
    })
    .keeps_every_contract();
}

#[test]
fn fallback_by_a_function_that_takes_time() {
    let late = |error: BoxError| async {
        tokio::time::sleep(SECOND / 100).await;
        Err::<Answer, _>(error)
    };
    Subject::new("fallback by async function", move || {
        fallback(Fallback::by_async("contract", late))
    })
    .keeps_every_contract();
}

#[test]
fn fallback_by_a_function_of_the_result() {
    let same = |result: Result<Answer, BoxError>| result;
    Subject::new("fallback by result", move || {
        fallback(Fallback::by_result("contract", same))
    })
    .keeps_every_contract();
}

/// The other service is as particular about readiness as the first.
#[test]
fn fallback_to_another_service() {
    let make = || async {
        let other = ConcurrencyLimit::new(Probe::default(), 1);
        fallback(Fallback::service("contract", other, |ask: &Ask| {
            Some(ask.clone())
        }))
        .await
    };
    Subject::new("fallback to a service", make)
        .makes_further_attempts()
        .exempt("an_error_of_readiness_is_passed_on", ANSWERED)
        .exempt(
            "waiting_for_the_next_attempt_takes_few_polls",
            "the other service is not the one that is closed",
        )
        .keeps_every_contract();
}

async fn fallback<A, W>(fallback: Fallback<A, W>) -> Instance
where
    W: Clone,
    FallbackLayer<A, W>: Layer<Stack> + Clone + Send + Sync + 'static,
    <FallbackLayer<A, W> as Layer<Stack>>::Service:
        Service<Ask, Response = Answer, Error = BoxError> + Clone + Send + Sync + 'static,
    <<FallbackLayer<A, W> as Layer<Stack>>::Service as Service<Ask>>::Future: Send + 'static,
{
    let layer = fallback.layer();
    Instance::new(move || layer.clone())
}

#[test]
fn load_shed() {
    let make = || async {
        let shed = LoadShed::new("contract");
        Instance::new(move || shed.layer())
    };
    Subject::new("load shed", make)
        .exempt(
            "readiness_wakes_all_who_wait_for_it",
            "it is always ready: no caller waits",
        )
        .keeps_every_contract();
}

/// All of them on top of each other, as the guides say.
#[test]
fn five_layers() {
    Subject::new("five layers", || five_layers_outermost_first(false))
        .rejects_after(PLACES, Plan::Hang)
        .makes_further_attempts()
        .keeps_every_contract();
}

#[test]
fn five_layers_under_a_load_shed() {
    Subject::new("five layers under a load shed", || {
        five_layers_outermost_first(true)
    })
    .rejects_after(PLACES, Plan::Hang)
    .makes_further_attempts()
    .exempt(
        "readiness_wakes_all_who_wait_for_it",
        "it is always ready: no caller waits",
    )
    .keeps_every_contract();
}

async fn five_layers_outermost_first(shed: bool) -> Instance {
    let deadline = Timeout::new("whole call", 60 * SECOND).unwrap();
    let retry = Retry::builder("contract")
        .backoff(Backoff::fixed(SECOND / 100))
        .budget(RetryBudget::unlimited())
        .build()
        .unwrap();
    let bulkhead = Bulkhead::builder("contract")
        .max_concurrent(PLACES)
        .build()
        .unwrap();
    let (breaker, attempt) = (
        breakers::breaker(),
        Timeout::new("attempt", 50 * SECOND).unwrap(),
    );
    let (counted, load) = (bulkhead.clone(), LoadShed::new("contract"));
    let stack = move || {
        ServiceBuilder::new()
            .option_layer(shed.then(|| load.layer()))
            .layer(deadline.layer())
            .layer(retry.layer())
            .layer(bulkhead.layer())
            .layer(breaker.layer())
            .layer(attempt.layer())
            .into_inner()
    };
    Instance::new(stack).held(move || {
        let snapshot = counted.snapshot();
        (snapshot.in_flight + snapshot.queued) as u64
    })
}
