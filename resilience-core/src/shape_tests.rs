//! The one shape of all handles: where they can be built, and what they show.

use std::{sync::LazyLock, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::{
    Bulkhead, CircuitBreaker, Coalesce, Fallback, FleetBulkhead, FleetRateLimit, Idempotency,
    InvalidConfig, Keyed, LoadShed, RateLimit, RegionalLimits, Retry, RetryBudget, Timeout,
    UpstreamLimits,
    breaker::{KeyedCircuitBreaker, fleet::InProcessBreakers},
    bulkhead::fleet::InProcessBulkheads,
    limit::{Quota, regions::InProcessRegion, store::InProcessLimits},
};

const SECOND: Duration = Duration::from_secs(1);

fn quota() -> Quota {
    Quota::per(10, SECOND).unwrap()
}

fn fleet_breaker() -> Result<CircuitBreaker, InvalidConfig> {
    CircuitBreaker::builder("a")
        .store(InProcessBreakers::new())
        .build()
}

fn fleet_family() -> Result<KeyedCircuitBreaker<u32>, InvalidConfig> {
    CircuitBreaker::builder("a")
        .store(InProcessBreakers::new())
        .keyed(Keyed::new())
}

fn fleet_bulkhead() -> Result<FleetBulkhead, InvalidConfig> {
    FleetBulkhead::builder("a")
        .store(InProcessBulkheads::new())
        .build()
}

fn fleet_limit() -> Result<FleetRateLimit, InvalidConfig> {
    FleetRateLimit::builder("a")
        .store(InProcessLimits::new())
        .limit("b", quota())
        .build()
}

fn fleet_upstreams() -> Result<UpstreamLimits, InvalidConfig> {
    UpstreamLimits::builder("a")
        .store(InProcessLimits::new())
        .build()
}

fn regions() -> Result<RegionalLimits, InvalidConfig> {
    RegionalLimits::builder("a")
        .store(InProcessLimits::new())
        .here("eu", 1, InProcessRegion::new())
        .build()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

#[test]
fn a_handle_that_starts_a_task_is_refused_outside_of_a_runtime_with_the_remedy() {
    let within = runtime();
    type Build = fn() -> Result<(), InvalidConfig>;
    let all: [(&str, Build); 6] = [
        ("breaker", || fleet_breaker().map(drop)),
        ("family of breakers", || fleet_family().map(drop)),
        ("bulkhead", || fleet_bulkhead().map(drop)),
        ("limit", || fleet_limit().map(drop)),
        ("upstreams", || fleet_upstreams().map(drop)),
        ("regions", || regions().map(drop)),
    ];
    for (which, build) in all {
        let refused = build().expect_err(which);
        assert_eq!(refused.field(), "store", "{which}");
        let text = refused.to_string();
        assert!(text.contains("outside of a tokio runtime"), "{text}");
        assert!(text.contains("Handle::enter"), "the remedy: {text}");
        let _entered = within.enter();
        assert_eq!(build(), Ok(()), "{which}");
    }
}

#[test]
fn a_fleet_handle_without_a_store_is_refused() {
    let _entered = runtime();
    let bulkhead = FleetBulkhead::builder("a").build().map(drop);
    let limit = FleetRateLimit::builder("a").limit("b", quota()).build();
    let regions = RegionalLimits::builder("a").here("eu", 1, InProcessRegion::new());
    for refused in [bulkhead, limit.map(drop), regions.build().map(drop)] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.field(), "store");
        assert!(refused.to_string().contains("not set"), "{refused}");
    }
}

/// The calls of a program are not all made on threads of its runtime.
#[test]
fn a_breaker_of_a_fleet_s_family_is_made_on_any_thread() {
    let runtime = runtime();
    let entered = runtime.enter();
    let family = fleet_family().unwrap();
    drop(entered);
    let breaker = family.get(&7);
    assert!(breaker.acquire().is_ok());
    let view = runtime.block_on(async { breaker.fleet_view().await });
    assert_eq!(view.unwrap().trips, 0);
}

#[test]
fn what_shares_nothing_can_be_built_anywhere() {
    static BREAKER: LazyLock<CircuitBreaker> =
        LazyLock::new(|| CircuitBreaker::builder("a").build().unwrap());
    static BREAKERS: LazyLock<KeyedCircuitBreaker<u32>> = LazyLock::new(|| {
        let builder = CircuitBreaker::builder("a");
        builder.keyed(Keyed::new()).unwrap()
    });
    static BULKHEAD: LazyLock<Bulkhead> = LazyLock::new(|| Bulkhead::builder("a").build().unwrap());
    static LIMIT: LazyLock<RateLimit> = LazyLock::new(|| RateLimit::builder("a").build().unwrap());
    static UPSTREAMS: LazyLock<UpstreamLimits> =
        LazyLock::new(|| UpstreamLimits::builder("a").build().unwrap());
    static BUDGET: LazyLock<RetryBudget> = LazyLock::new(RetryBudget::default);
    static RETRY: LazyLock<Retry> =
        LazyLock::new(|| Retry::builder("a").budget(BUDGET.clone()).build().unwrap());
    static TIMEOUT: LazyLock<Timeout> = LazyLock::new(|| Timeout::new("a", SECOND).unwrap());
    static SHED: LazyLock<LoadShed> = LazyLock::new(|| LoadShed::new("a"));
    static CALLS: LazyLock<Coalesce<u32, (), ()>> =
        LazyLock::new(|| Coalesce::builder("a").build().unwrap());
    static WORK: LazyLock<Idempotency> =
        LazyLock::new(|| Idempotency::builder("a").build().unwrap());

    assert!(tokio::runtime::Handle::try_current().is_err());
    let fallback = Fallback::value("a", 7);
    assert!(BREAKER.acquire().is_ok() && BREAKERS.get(&7).acquire().is_ok());
    assert!(BULKHEAD.try_acquire().is_ok() && LIMIT.try_acquire(1).is_ok());
    assert!(UPSTREAMS.enter("b").is_ok());
    let names = [
        BREAKER.name(),
        BREAKERS.name(),
        BULKHEAD.name(),
        LIMIT.name(),
        UPSTREAMS.name(),
        RETRY.name(),
        TIMEOUT.name(),
        SHED.name(),
        CALLS.name(),
        WORK.name(),
        fallback.name(),
    ];
    assert!(names.iter().all(|name| *name == "a"), "{names:?}");
}

fn keys(snapshot: impl Serialize) -> Vec<String> {
    let Value::Object(fields) = serde_json::to_value(snapshot).unwrap() else {
        panic!("a snapshot is an object");
    };
    fields.into_iter().map(|(key, _)| key).collect()
}

#[test]
fn every_snapshot_is_an_object_of_its_fields() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let fleet = [
        keys(fleet_breaker().unwrap().snapshot()),
        keys(fleet_bulkhead().unwrap().snapshot()),
        keys(fleet_limit().unwrap().snapshot()),
        keys(fleet_upstreams().unwrap().snapshot()),
        keys(regions().unwrap().snapshot()),
    ];
    for keys in &fleet {
        assert!(keys.iter().any(|key| key == "degraded"), "{keys:?}");
    }
    let work = Idempotency::builder("a").build().unwrap().snapshot();
    assert!(keys(work).contains(&"replayed".to_owned()));
    let quota = RateLimit::builder("a").permits(10, SECOND).build().unwrap();
    quota.try_acquire(5).unwrap();
    let seconds = serde_json::to_value(quota.snapshot()).unwrap()["full_in"].as_f64();
    assert!((0.0..=0.5).contains(&seconds.unwrap()), "{seconds:?}");
    let bulkhead = Bulkhead::builder("a").build().unwrap();
    assert_eq!(keys(bulkhead.snapshot()).len(), 6);
    assert_eq!(
        serde_json::to_value(Timeout::new("a", SECOND).unwrap().snapshot()).unwrap(),
        json!({"timed_out": 0, "rejected": 0})
    );
    let shed = serde_json::to_value(LoadShed::new("a").snapshot());
    assert_eq!(shed.unwrap(), json!({"rejected": 0}));
    let fallback = serde_json::to_value(Fallback::value("a", 7).snapshot());
    assert_eq!(fallback.unwrap(), json!({"used": 0}));
}

#[test]
fn a_breaker_s_snapshot_says_state_override_and_time_as_the_logs_do() {
    let breaker = CircuitBreaker::builder("a").build().unwrap();
    let order = crate::breaker::Override::force_open("drill").by("ann");
    breaker.set_override(order.expires_after(2 * SECOND));
    let shown = serde_json::to_value(breaker.snapshot()).unwrap();
    assert_eq!(shown["name"], "a");
    assert_eq!(shown["state"], breaker.state().as_str());
    assert_eq!(shown["active_override"]["kind"], "force_open");
    assert_eq!(shown["active_override"]["by"], "ann");
    let left = shown["active_override"]["expires_in"].as_f64().unwrap();
    assert!((1.0..=2.0).contains(&left), "{left}");
    assert_eq!(shown["probes"], Value::Null);
}

#[test]
fn the_counts_of_a_retry_are_serialized_by_reason() {
    let retry = Retry::builder("a").budget(RetryBudget::unlimited());
    let shown = serde_json::to_value(retry.build().unwrap().snapshot()).unwrap();
    assert_eq!(shown["budget"], Value::Null, "it is unlimited");
    assert_eq!(shown["given_up"]["no_time"], 0);
}
