//! The table of metrics is an API.

use std::collections::BTreeMap;

use resilience_core::telemetry::{self, Kind, TABLE};

use super::metrics::everything_happens;

/// A name with more series than this costs more than it tells.
#[tokio::test]
async fn a_name_has_at_most_sixty_series_per_pattern() {
    let name = "telemetry.sixty";
    let _kept = everything_happens(name).await;
    let mut counts = BTreeMap::<String, usize>::new();
    for one in telemetry::series().iter().filter(|one| &*one.name == name) {
        let pattern = one.metric.name.rsplit_once('.').unwrap().0.to_owned();
        *counts.entry(pattern).or_default() += 1;
    }
    assert!(counts.len() >= 8, "{counts:?}");
    assert!(counts.values().all(|count| *count <= 60), "{counts:?}");
}

/// A change of these lines breaks the dashboards and alerts of users: it needs a line in the changelog, and both names for
/// one minor version.
#[test]
fn the_names_of_the_table_are_stable() {
    let row = |row: &telemetry::Metric| {
        let kind = match row.kind {
            Kind::Counter => "C",
            Kind::UpDownCounter => "U",
            _ => "G",
        };
        let attribute = row.attribute.map_or("", |own| own.key);
        let name = row.name.strip_prefix("resilience.").unwrap();
        let attribute = attribute.strip_prefix("resilience.").unwrap_or_default();
        format!("{name} {kind} {} {attribute}", row.unit)
            .trim_end()
            .to_owned()
    };
    let rows: Vec<String> = TABLE.iter().map(row).collect();
    let expected = "\
circuit_breaker.calls C {call} outcome
circuit_breaker.rejections C {call} reason
circuit_breaker.shadow_rejections C {call}
circuit_breaker.transitions C {transition} state
circuit_breaker.state U {breaker} state
circuit_breaker.override U {breaker} override
circuit_breaker.probes U {call}
fleet.degraded U {handle} pattern
bulkhead.in_flight U {call}
bulkhead.queued U {call}
bulkhead.limit U {call}
bulkhead.rejections C {call} reason
bulkhead.leases_lost C {lease}
rate_limit.admissions C {call} decider
rate_limit.rejections C {call} reason
rate_limit.waiting U {call}
rate_limit.exhaustions C {call} limit.name
rate_limit.shadow_exhaustions C {call} limit.name
rate_limit.near C {call} limit.name
rate_limit.leased U {token} limit.name
rate_limit.store_calls C {call} outcome
retry.calls C {call}
retry.retries C {attempt}
retry.given_up C {call} reason
retry.budget G {attempt}
deadline.timeouts C {call}
deadline.rejections C {call}
fallback.fallbacks C {call}
load_shed.rejections C {call}
cache.requests C {request} cache.result
cache.loads C {load} outcome
cache.refreshes C {load}
cache.fills C {value} outcome
cache.waits C {wait}
cache.invalidations C {invalidation}
cache.unusable C {value}
cache.store_errors C {step}
cache.evictions C {value}
cache.entries U {value}
cache.coherent U {handle}
cache.hot_key.requests U {request} cache.key
coalesce.calls C {call} coalesce.role
coalesce.reruns C {call}
coalesce.rejections C {call}
coalesce.in_progress U {call}
coalesce.waiting U {call}
idempotency.claims C {claim} claim.answer
idempotency.endings C {attempt} outcome
idempotency.leases C {lease} lease.event
idempotency.store_errors C {error}
idempotency.outcome.size C By
idempotency.running U {attempt}
idempotency.waiting U {call}
stream.published C {event} outcome
stream.rejections C {publish}
stream.trimmed C {message}
stream.deliveries C {message} delivery
stream.settlements C {message} outcome
stream.replays C {message}
stream.skipped G {message}
stream.leases_lost C {lease}
stream.pauses C {pause}
stream.losses C {loss}
stream.store_errors C {step}
stream.running U {message}
stream.buffered U {message}
write_behind.writes C {change} outcome
write_behind.batches C {batch}
write_behind.sinks C {change} outcome
write_behind.pauses C {pause}
write_behind.leases_lost C {lease}
write_behind.losses C {loss}
write_behind.store_errors C {step}
write_behind.sinking U {change}
write_behind.entries G {key}
write_behind.oldest G s
write_behind.dead_letters G {change}
inbox.claims C {claim} claim.answer
inbox.retries C {transaction}
inbox.front_errors C {error}
outbox.written C {event}
outbox.published C {event} outcome
outbox.errors C {step} part
outbox.takeovers C {lease}
outbox.leases_lost C {lease}
outbox.leading U {relay}
outbox.waiting U {event}
outbox.oldest G s
outbox.dead_letters U {event}";
    assert_eq!(rows, expected.lines().collect::<Vec<_>>());
}
