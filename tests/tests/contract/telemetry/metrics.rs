//! The table of metrics, as an SDK exports it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use opentelemetry::KeyValue;
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, PeriodicReader, SdkMeterProvider,
    data::{AggregatedMetrics, MetricData},
};
use resilience_core::{
    Verdict,
    breaker::{CircuitBreaker, OpenFor, Override, State},
    bulkhead::{
        Bulkhead,
        fleet::{FleetBulkhead, InProcessBulkheads},
    },
    completion::Guard,
    conformance::layer::{Ask, Driven, Plan, Probe, Readiness},
    deadline::Timeout,
    fallback::Fallback,
    keyed::Keyed,
    limit::{
        Quota, RateLimit,
        fleet::{self, FleetRateLimit},
        store::InProcessLimits,
    },
    retry::{Backoff, Retry, RetryBudget},
    shed::LoadShed,
    telemetry::{self, Kind, TABLE},
};
use resilience_http::{Client, client::Host};
use resilience_redis::Redis;
use resilience_tests::{
    fault_server::{Behaviour, FaultServer},
    redis::free_port,
    until::eventually,
};
use tower::Layer;

use super::{
    LONG, MOMENT, caches::everything_happens_to_a_cache, inbox::everything_happens_to_an_inbox,
    keys::everything_happens_to_keys, limits::shared_limits, once,
    outboxes::everything_happens_to_an_outbox, shared_calls::everything_happens_to_shared_calls,
    streams::everything_happens_to_a_stream, write_behinds::everything_happens_to_a_write_behind,
};

/// What one metric was exported as.
#[derive(Debug)]
struct Exported {
    kind: Kind,
    unit: String,
    description: String,
    points: Vec<(BTreeMap<String, String>, i64)>,
}

/// An SDK with a reader that keeps what it is given.
struct Sdk {
    provider: SdkMeterProvider,
    exporter: InMemoryMetricExporter,
}

impl Sdk {
    fn new() -> Self {
        let exporter = InMemoryMetricExporter::default();
        let reader = PeriodicReader::builder(exporter.clone())
            .with_interval(LONG)
            .build();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        telemetry::export(&provider);
        Self { provider, exporter }
    }

    /// All metrics of this moment.
    fn read(&self) -> BTreeMap<String, Exported> {
        self.exporter.reset();
        self.provider.force_flush().unwrap();
        let batches = self.exporter.get_finished_metrics().unwrap();
        let scopes = batches.iter().flat_map(|batch| batch.scope_metrics());
        let metrics = scopes.flat_map(|scope| scope.metrics());
        let exported = |metric: &opentelemetry_sdk::metrics::data::Metric| {
            let (kind, points) = match metric.data() {
                AggregatedMetrics::U64(data) => points(data),
                AggregatedMetrics::I64(data) => points(data),
                AggregatedMetrics::F64(_) => panic!("{} is no integer", metric.name()),
            };
            Exported {
                kind,
                unit: metric.unit().to_owned(),
                description: metric.description().to_owned(),
                points,
            }
        };
        metrics
            .map(|metric| (metric.name().to_owned(), exported(metric)))
            .collect()
    }
}

type Points = Vec<(BTreeMap<String, String>, i64)>;

fn points<T: Copy + TryInto<i64, Error: fmt::Debug> + fmt::Debug>(
    data: &MetricData<T>,
) -> (Kind, Points) {
    match data {
        MetricData::Gauge(gauge) => {
            let points = gauge.data_points().map(|point| {
                (
                    attributes(point.attributes()),
                    point.value().try_into().unwrap(),
                )
            });
            (Kind::Gauge, points.collect())
        }
        MetricData::Sum(sum) => {
            let kind = if sum.is_monotonic() {
                Kind::Counter
            } else {
                Kind::UpDownCounter
            };
            let points = sum.data_points().map(|point| {
                (
                    attributes(point.attributes()),
                    point.value().try_into().unwrap(),
                )
            });
            (kind, points.collect())
        }
        other => panic!("neither gauge nor sum: {other:?}"),
    }
}

fn attributes<'a>(all: impl Iterator<Item = &'a KeyValue>) -> BTreeMap<String, String> {
    all.map(|pair| (pair.key.to_string(), pair.value.to_string()))
        .collect()
}

/// The values of `metric` for handles called `name`, by the metric's own attribute.
fn values(all: &BTreeMap<String, Exported>, metric: &str, name: &str) -> BTreeMap<String, i64> {
    let points = all.get(metric).map_or(&[][..], |metric| &metric.points);
    let mine = points
        .iter()
        .filter(|(attributes, _)| attributes["resilience.name"] == name);
    mine.map(|(attributes, value)| {
        let own = attributes.iter().find(|(key, _)| *key != "resilience.name");
        (
            own.map_or_else(String::new, |(_, value)| value.clone()),
            *value,
        )
    })
    .collect()
}

/// A breaker that only measures what it would reject, and one with a probe in progress.
async fn everything_happens_half_open_and_by_order(name: &'static str) -> impl std::any::Any {
    let trip = |open_for| {
        let breaker = CircuitBreaker::builder(name)
            .consecutive_failures(1)
            .open_for(OpenFor::fixed(open_for))
            .build()
            .unwrap();
        breaker.acquire().unwrap().settle(Verdict::transient());
        breaker
    };
    let measuring = trip(LONG);
    measuring.set_override(Override::metrics_only("trial"));
    assert!(measuring.acquire().is_ok());
    let probed = trip(MOMENT);
    eventually("the interval is over", LONG, || async {
        probed.state() == State::HalfOpen
    })
    .await;
    let probe = probed.acquire().unwrap();
    (measuring, probed, probe)
}

/// Makes each layer do each thing that is counted, under the name `name`; what it returns keeps it so.
pub(crate) async fn everything_happens(name: &'static str) -> Box<dyn std::any::Any> {
    let probe = Probe::default();
    let breaker = CircuitBreaker::builder(name)
        .consecutive_failures(1)
        .open_for(OpenFor::fixed(LONG))
        .build()
        .unwrap();
    let guarded = breaker.layer().layer(probe.clone());
    assert!(once(guarded.clone(), Plan::Answer).await);
    assert!(!once(guarded.clone(), Plan::Fail).await);
    assert!(!once(guarded, Plan::Answer).await);

    let active_override = everything_happens_half_open_and_by_order(name).await;

    let nobody = format!("redis://127.0.0.1:{}", free_port());
    let redis = Redis::connect(&nobody).unwrap();
    let shared = CircuitBreaker::builder(name)
        .store(redis.breakers())
        .build()
        .unwrap();
    eventually("the store is found missing", LONG, || async {
        shared.snapshot().degraded
    })
    .await;

    let bulkhead = Bulkhead::builder(name)
        .max_concurrent(1)
        .queue(1, LONG)
        .build()
        .unwrap();
    let permit = bulkhead.try_acquire().unwrap();
    let acquire = bulkhead.clone();
    let mut queued = Driven::new(async move { acquire.acquire().await });
    assert!(!queued.poll());
    assert!(bulkhead.try_acquire().is_err());
    assert!(!once(bulkhead.layer().layer(probe.clone()), Plan::Answer).await);

    let shared_places = FleetBulkhead::builder(name)
        .store(InProcessBulkheads::new())
        .max_concurrent(1)
        .lease(100 * MOMENT)
        .build()
        .unwrap();
    let stopped = shared_places.acquire(1).await.unwrap();
    // As a process that was stopped for longer than its lease.
    std::thread::sleep(150 * MOMENT);
    stopped.lost().await;
    let away = FleetBulkhead::builder(name)
        .store(redis.bulkheads())
        .max_concurrent(1)
        .build()
        .unwrap();
    eventually("the store of the bulkhead is missing", LONG, || async {
        away.snapshot().degraded
    })
    .await;

    let limit = RateLimit::builder(name)
        .permits(1, LONG)
        .queue(1, LONG)
        .build()
        .unwrap();
    assert!(once(limit.layer().layer(probe.clone()), Plan::Answer).await);
    let acquire = limit.clone();
    let mut waiting = Driven::new(async move { acquire.acquire(1).await });
    assert!(!waiting.poll());
    assert!(!once(limit.layer().layer(probe.clone()), Plan::Answer).await);
    assert!(limit.try_acquire(2).is_err());

    let fleet = shared_limits(name, &redis).await;

    let budget = RetryBudget::builder()
        .floor_per_second(1)
        .max_balance(50)
        .build()
        .unwrap();
    let retry = Retry::builder(name)
        .max_attempts(2)
        .backoff(Backoff::fixed(MOMENT))
        .budget(budget)
        .build()
        .unwrap();
    let retrying = retry.layer().layer(probe.clone());
    assert!(!once(retrying.clone(), Plan::Fail).await);
    assert!(once(retrying, Plan::FailFirst(1)).await);

    let timeout = Timeout::new(name, MOMENT).unwrap();
    assert!(!once(timeout.layer().layer(probe.clone()), Plan::Hang).await);
    let without = timeout.layer().per_request(|_: &Ask| Some(Duration::ZERO));
    assert!(!once(without.layer(probe.clone()), Plan::Answer).await);

    let fallback = Fallback::value(name, 7);
    assert!(once(fallback.layer().layer(probe.clone()), Plan::Fail).await);

    let (shed, closed) = (LoadShed::new(name), Probe::default());
    closed.set(Readiness::Closed);
    assert!(!once(shed.layer().layer(closed), Plan::Answer).await);

    let keys = everything_happens_to_keys(name).await;
    let inboxes = everything_happens_to_an_inbox(name).await;
    let calls = everything_happens_to_shared_calls(name).await;
    let cache = everything_happens_to_a_cache(name).await;
    let stream = everything_happens_to_a_stream(name).await;
    let outbox = everything_happens_to_an_outbox(name).await;
    let behind = everything_happens_to_a_write_behind(name).await;
    Box::new((
        (breaker, active_override, shared, bulkhead, permit, queued),
        (stopped, away),
        (limit, waiting, fleet, keys, inboxes),
        (retry, timeout, fallback, shed, calls, cache),
        (stream, outbox, behind),
    ))
}

#[tokio::test]
async fn every_row_of_the_table_is_exported_as_it_says() {
    let sdk = Sdk::new();
    let name = "telemetry.every-row";
    let _kept = everything_happens(name).await;
    let exported = sdk.read();
    for row in TABLE {
        let metric = exported
            .get(row.name)
            .unwrap_or_else(|| panic!("{} is not exported", row.name));
        assert_eq!(metric.kind, row.kind, "{}", row.name);
        assert_eq!(
            (&*metric.unit, &*metric.description),
            (row.unit, row.description),
            "{}",
            row.name
        );
        let own = [Some("resilience.name"), row.attribute.map(|own| own.key)];
        let expected: BTreeSet<&str> = own.into_iter().flatten().collect();
        for (attributes, _) in &metric.points {
            let keys: BTreeSet<&str> = attributes.keys().map(String::as_str).collect();
            assert_eq!(keys, expected, "{}", row.name);
            if let Some(own) = row.attribute.filter(|own| !own.values.is_empty()) {
                let value = &*attributes[own.key];
                assert!(own.values.contains(&value), "{}: {value}", row.name);
            }
        }
        let values = values(&exported, row.name, name);
        assert!(
            values.values().any(|value| *value > 0),
            "{}: nothing but zeros: {values:?}",
            row.name
        );
    }
    let rows: BTreeSet<&str> = TABLE.iter().map(|row| row.name).collect();
    let foreign: Vec<_> = exported
        .keys()
        .filter(|name| !rows.contains(name.as_str()))
        .collect();
    assert!(foreign.is_empty(), "not in the table: {foreign:?}");
}

#[tokio::test]
async fn the_figures_are_those_of_what_happened() {
    let sdk = Sdk::new();
    let name = "telemetry.figures";
    let _kept = everything_happens(name).await;
    let exported = sdk.read();
    let of = |metric: &str| {
        let values = values(&exported, metric, name).into_iter();
        values.filter(|(_, value)| *value != 0).collect::<Vec<_>>()
    };
    let is = |metric: &str, expected: &[(&str, i64)]| {
        let expected: Vec<_> = expected
            .iter()
            .map(|(key, value)| ((*key).to_owned(), *value))
            .collect();
        assert_eq!(of(metric), expected, "{metric}");
    };
    is(
        "resilience.circuit_breaker.calls",
        &[("failure", 3), ("success", 1)],
    );
    is("resilience.circuit_breaker.shadow_rejections", &[("", 1)]);
    is(
        "resilience.circuit_breaker.override",
        &[("metrics_only", 1)],
    );
    is("resilience.circuit_breaker.probes", &[("", 1)]);
    is("resilience.circuit_breaker.rejections", &[("open", 1)]);
    is(
        "resilience.circuit_breaker.state",
        &[("closed", 1), ("half_open", 1), ("open", 2)],
    );
    is(
        "resilience.circuit_breaker.transitions",
        &[("half_open", 1), ("open", 3)],
    );
    is("resilience.bulkhead.in_flight", &[("", 2)]);
    is("resilience.bulkhead.queued", &[("", 1)]);
    is("resilience.bulkhead.limit", &[("", 3)]);
    is("resilience.bulkhead.leases_lost", &[("", 1)]);
    let degraded = of("resilience.fleet.degraded");
    let known: Vec<_> = degraded
        .iter()
        .map(|(key, value)| (&**key, *value))
        .collect();
    assert!(
        matches!(
            known[..],
            [
                ("bulkhead", 1),
                ("circuit_breaker", 1),
                ..,
                ("rate_limit", 1),
                // The broker of an outbox.
                ("stream", 1),
                ("write_behind", 1)
            ]
        ),
        "{known:?}"
    );
    let rejected = of("resilience.rate_limit.rejections");
    let known: Vec<_> = rejected
        .iter()
        .map(|(key, value)| (&**key, *value))
        .collect();
    assert!(
        matches!(
            known[..],
            [
                ("rate_limited", 2),
                ("store_unreachable", 1..),
                ("too_costly", 1)
            ]
        ),
        "{known:?}"
    );
    let admitted = of("resilience.rate_limit.admissions");
    let known: Vec<_> = admitted
        .iter()
        .map(|(key, value)| (&**key, *value))
        .collect();
    assert!(
        matches!(known[..], [("lease", 1..), ("memory", 1), ("store", 1)]),
        "{known:?}"
    );
    is("resilience.rate_limit.exhaustions", &[("per-long", 2)]);
    is(
        "resilience.rate_limit.shadow_exhaustions",
        &[("per-long", 1)],
    );
    is("resilience.rate_limit.near", &[("per-long", 1)]);
    is("resilience.rate_limit.waiting", &[("", 1)]);
    is("resilience.retry.calls", &[("", 2)]);
    is("resilience.retry.retries", &[("", 2)]);
    is("resilience.retry.given_up", &[("attempts", 1)]);
    is("resilience.deadline.timeouts", &[("", 1)]);
    is("resilience.deadline.rejections", &[("", 1)]);
    is("resilience.fallback.fallbacks", &[("", 1)]);
    is("resilience.load_shed.rejections", &[("", 1)]);
    is("resilience.idempotency.running", &[("", 1)]);
    is("resilience.idempotency.waiting", &[("", 1)]);
    let of_keys = |metric: &str| of(metric).into_iter().collect::<BTreeMap<_, _>>();
    let claims = of_keys("resilience.idempotency.claims");
    for answer in ["in_flight", "mismatched", "replayed", "unknown"] {
        assert_eq!(claims[answer], 1, "{claims:?}");
    }
    // Done, failed, of unknown outcome, lost, hung; and what fitted into a store that is full now.
    assert!(claims["granted"] >= 6, "{claims:?}");
    let ended = of_keys("resilience.idempotency.endings");
    for outcome in ["lost", "released", "unguarded", "unknown"] {
        assert_eq!(ended[outcome], 1, "{ended:?}");
    }
    let leases = of_keys("resilience.idempotency.leases");
    assert!(leases["lost"] == 1 && leases["renewed"] >= 1, "{leases:?}");
    let inbox = of_keys("resilience.inbox.claims");
    for answer in ["mismatched", "replayed", "replayed_in_front"] {
        assert_eq!(inbox[answer], 1, "{inbox:?}");
    }
    assert!(inbox["fresh"] >= 5, "{inbox:?}");
    is("resilience.inbox.retries", &[("", 1)]);
    let full = of("resilience.bulkhead.rejections");
    assert_eq!(full, [("full".to_owned(), 2)]);
}

/// A peer sets the gauge of the new state to 1 and leaves the old one there.
#[tokio::test]
async fn the_gauge_of_a_state_that_was_left_is_zero() {
    let sdk = Sdk::new();
    let name = "telemetry.gauge";
    let breaker = CircuitBreaker::builder(name).build().unwrap();
    let states = || values(&sdk.read(), "resilience.circuit_breaker.state", name);
    let all: BTreeSet<String> = states().into_keys().collect();
    assert!(all.len() >= 3, "{all:?}");
    let is_only = |state: &str| {
        let now = states();
        assert_eq!(
            now.keys().cloned().collect::<BTreeSet<_>>(),
            all,
            "a state is missing"
        );
        for (each, value) in now {
            assert_eq!(
                value,
                i64::from(each == state),
                "{each}, when the breaker is {state}"
            );
        }
    };
    is_only("closed");
    breaker.set_override(Override::force_open("maintenance"));
    is_only("forced_open");
    breaker.set_override(Override::disable("test"));
    is_only("disabled");
    breaker.clear_override("done");
    is_only("closed");
    drop(breaker);
    assert!(
        states().is_empty(),
        "a handle that is gone is still exported"
    );
}

/// Keys come from requests: a metric per key would be a way to fill the memory of the metrics' store.
#[tokio::test]
async fn keys_never_become_attributes() {
    let sdk = Sdk::new();
    let name = "telemetry.keys";
    let breakers = CircuitBreaker::builder(name)
        .consecutive_failures(1)
        .keyed(Keyed::new())
        .unwrap();
    let bulkheads = Bulkhead::builder(name)
        .max_concurrent(3)
        .keyed(Keyed::new())
        .unwrap();
    let mut permits = Vec::new();
    for number in 0..100 {
        let key = format!("customer-{number}");
        let breaker = breakers.get(&key);
        if number < 40 {
            breaker.acquire().unwrap().settle(Verdict::transient());
        }
        permits.push(bulkheads.get(&key).try_acquire().unwrap());
    }
    let shared = FleetRateLimit::builder(name)
        .store(InProcessLimits::new())
        .plan_of(|tenant| {
            let of_tenant = fleet::Plan::new().limit(tenant, Quota::per(1, LONG).unwrap());
            Some(of_tenant.unwrap())
        })
        .build()
        .unwrap();
    for number in 0..100 {
        let key = format!("customer-{number}");
        assert!(shared.check(&key, 1).await.is_ok());
        assert!(shared.check(&key, 1).await.is_err());
    }
    let server = FaultServer::start(Behaviour::ok()).await;
    let client = Client::new(name).unwrap();
    client
        .get(server.url("/secret-path"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let host = Host::of(&server.url("/").parse().unwrap());
    assert_eq!(
        client
            .breakers()
            .unwrap()
            .get(&host)
            .snapshot()
            .totals
            .successes,
        1
    );

    let exported = sdk.read();
    for (metric, exported) in &exported {
        for (attributes, _) in &exported.points {
            let text = format!("{attributes:?}");
            for secret in ["customer-", "127.0.0.1", "secret-path"] {
                assert!(!text.contains(secret), "{metric}: {text}");
            }
        }
        let of_name = |point: &&(BTreeMap<String, String>, i64)| point.0["resilience.name"] == name;
        let series = exported.points.iter().filter(of_name).count();
        assert!(series <= 12, "{metric}: {series} series for one family");
    }
    let states = values(&exported, "resilience.circuit_breaker.state", name);
    assert_eq!(
        states["open"], 40,
        "the family says how many of its members are open: {states:?}"
    );
    assert_eq!(
        values(&exported, "resilience.bulkhead.in_flight", name)[""],
        100
    );
}

/// The order of "install the SDK" and "build the breaker" does not matter.
#[tokio::test]
async fn handles_built_before_and_after_the_sdk_are_exported_and_equal_names_add_up() {
    let name = "telemetry.order";
    let before = Bulkhead::builder(name).max_concurrent(3).build().unwrap();
    let sdk = Sdk::new();
    let after = Bulkhead::builder(name).max_concurrent(4).build().unwrap();
    assert_eq!(
        values(&sdk.read(), "resilience.bulkhead.limit", name)[""],
        7
    );
    drop(before);
    assert_eq!(
        values(&sdk.read(), "resilience.bulkhead.limit", name)[""],
        4
    );
    drop(after);
}
