//! Counters only go up, whatever becomes of the handles.

use std::collections::{BTreeMap, BTreeSet};

use resilience_core::telemetry::{self, Kind, TABLE};
use tokio::runtime::{Builder, Runtime};

use super::metrics::everything_happens;

/// The values of all counters of handles called `name`.
fn counters(name: &str) -> BTreeMap<(&'static str, String), u64> {
    let all = telemetry::series().into_iter();
    let mine = all.filter(|one| &*one.name == name && one.metric.kind == Kind::Counter);
    mine.map(|one| ((one.metric.name, one.attribute.into_owned()), one.value))
        .collect()
}

/// Handles in a runtime of their own, so that they are gone with everything they have spawned.
struct Generation(Runtime, Box<dyn std::any::Any>);

impl Generation {
    fn new(name: &'static str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap();
        let kept = runtime.block_on(everything_happens(name));
        Self(runtime, kept)
    }

    fn end(self) {
        let Self(runtime, kept) = self;
        let inside = runtime.enter();
        drop(kept);
        drop(inside);
        runtime.shutdown_background();
    }
}

/// Prometheus takes a fall for a restart, and counts what is left once more.
#[test]
fn no_counter_falls_when_one_of_two_handles_of_a_name_goes_or_both() {
    let name = "telemetry.one-goes";
    let mut before = BTreeMap::new();
    let mut not_lower = |when: &str| {
        let now = counters(name);
        for (series, value) in &before {
            assert!(
                now.get(series) >= Some(value),
                "{when}, {series:?}: {before:?} {now:?}"
            );
        }
        before.clone_from(&now);
        now
    };
    let first = Generation::new(name);
    let once = not_lower("one");
    let counted: BTreeSet<_> = once.iter().filter(|(_, value)| **value > 0).collect();
    for row in TABLE.iter().filter(|row| row.kind == Kind::Counter) {
        let counts = counted.iter().any(|((metric, _), _)| *metric == row.name);
        assert!(counts, "{}", row.name);
    }
    let second = Generation::new(name);
    not_lower("two");
    first.end();
    not_lower("one is gone");
    second.end();
    not_lower("both are gone");
    let levels: Vec<_> = telemetry::series()
        .into_iter()
        .filter(|one| &*one.name == name && one.metric.kind != Kind::Counter)
        .collect();
    assert!(levels.is_empty(), "levels vanish: {levels:?}");
    let third = Generation::new(name);
    let thrice = not_lower("a third");
    third.end();
    for (metric, attribute) in [
        ("resilience.circuit_breaker.rejections", "open"),
        ("resilience.circuit_breaker.shadow_rejections", ""),
        ("resilience.bulkhead.rejections", "full"),
        ("resilience.bulkhead.leases_lost", ""),
        ("resilience.rate_limit.rejections", "rate_limited"),
        ("resilience.rate_limit.exhaustions", "per-long"),
        ("resilience.retry.calls", ""),
        ("resilience.retry.given_up", "attempts"),
        ("resilience.deadline.timeouts", ""),
        ("resilience.fallback.fallbacks", ""),
        ("resilience.load_shed.rejections", ""),
        ("resilience.coalesce.calls", "joined"),
        ("resilience.coalesce.reruns", ""),
        ("resilience.coalesce.rejections", ""),
        ("resilience.idempotency.claims", "replayed"),
        ("resilience.inbox.claims", "replayed"),
    ] {
        let series = (metric, attribute.to_owned());
        assert_eq!(thrice[&series], 3 * once[&series], "{series:?}");
    }
}
