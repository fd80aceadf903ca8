use std::{fmt::Write as _, fs, path::Path, sync::Arc, time::Duration};

use super::{Kind, Metric, TABLE, prometheus::label, series};
use crate::{
    Verdict,
    breaker::{CircuitBreaker, OpenFor},
    bulkhead::Bulkhead,
    completion::Guard as _,
    keyed::Keyed,
    limit::RateLimit,
};

/// The lines of `METRICS.md`: dashboards and alerts are built on these names. A rename ships both names for one minor
/// version, and has a line in the changelog.
fn document() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
        Generated from `resilience_core::telemetry::TABLE`; after a change run\n\
        `UPDATE_METRICS=1 cargo test -p resilience-core --lib telemetry`.\n\n\
        The names, units, attributes and attribute values are an API: a rename ships both names for one minor version,\n\
        and has a line in CHANGELOG.md. Every metric has the attribute `resilience.name` (in Prometheus the label\n\
        `resilience_name`): the name that the handle was built with. Handles of one name are one series, their sum.\n\
        Counters keep what handles that are gone have counted.\n\n\
        | OpenTelemetry | Prometheus | kind, unit | attribute (label): values | what it counts |\n\
        |---|---|---|---|---|\n",
    );
    for row in TABLE {
        let attribute = row.attribute.map_or_else(String::new, |own| {
            let values = match own.values {
                [] if own.key.ends_with(".key") => "keys, a capped number, `other`".to_owned(),
                [] => "names of limits, `other`".to_owned(),
                values => values.join(", "),
            };
            format!("`{}` (`{}`): {values}", own.key, label(own.key))
        });
        let Metric {
            name,
            unit,
            description,
            ..
        } = row;
        let (prometheus, kind) = (row.prometheus_name(), row.kind.as_str());
        writeln!(
            text,
            "| `{name}` | `{prometheus}` | {kind}, `{unit}` | {attribute} | {description} |"
        )
        .unwrap();
    }
    text
}

#[test]
fn the_document_of_the_metrics_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("METRICS.md");
    let expected = document();
    if std::env::var_os("UPDATE_METRICS").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "METRICS.md is stale: run this test with UPDATE_METRICS=1, and see whether the change is meant"
    );
}

#[test]
fn names_units_and_attributes_follow_the_conventions() {
    for row in TABLE {
        let twice = TABLE.iter().filter(|other| other.name == row.name);
        assert_eq!(twice.count(), 1, "{}", row.name);
        assert!(row.name.starts_with("resilience."), "{}", row.name);
        assert_ne!(row.unit, "1", "{}: a count takes an annotation", row.name);
        let words = row.name.split(['.', '_']);
        for word in words {
            let unit = ["bytes", "seconds", "total", "ratio", "ms"].contains(&word);
            assert!(!unit, "{}: a name holds no unit", row.name);
        }
        if let Some(own) = row.attribute {
            assert!(own.key.starts_with("resilience."), "{}", own.key);
            assert!(own.values.len() <= 12, "{}: too many series", row.name);
            let word = |value: &&str| value.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            assert!(own.values.iter().all(word), "{:?}", own.values);
        }
    }
}

#[test]
fn prometheus_names_have_the_unit_in_words_once_and_total_for_counters() {
    let name = |kind, name, unit| {
        let row = Metric {
            name,
            kind,
            unit,
            description: "",
            attribute: None,
        };
        row.prometheus_name()
    };
    for (kind, from, unit, to) in [
        (Kind::Counter, "a.b", "{call}", "a_b_total"),
        (Kind::Counter, "a.total", "{call}", "a_total"),
        (Kind::Counter, "a.size", "By", "a_size_bytes_total"),
        (Kind::Counter, "a.bytes", "By", "a_bytes_total"),
        (Kind::Counter, "a", "1", "a_total"),
        (Kind::Gauge, "a", "1", "a_ratio"),
        (Kind::UpDownCounter, "a", "1", "a"),
        (Kind::Gauge, "a.age", "s", "a_age_seconds"),
        (Kind::Gauge, "a", "By/s", "a_bytes_per_second"),
        (Kind::Gauge, "a--b__c", "{x}", "a_b_c"),
        (Kind::Gauge, "9.lives", "", "_9_lives"),
    ] {
        assert_eq!(name(kind, from, unit), to, "{from} {unit}");
    }
}

/// The value of a series of handles called `name`; zero if there is none.
fn value(metric: &Metric, name: &str, attribute: &str) -> u64 {
    let all = series().into_iter();
    let mut mine =
        all.filter(|one| one.metric == metric && &*one.name == name && one.attribute == attribute);
    mine.next().map_or(0, |one| one.value)
}

#[test]
fn what_a_family_has_counted_stays_when_the_family_goes_and_when_its_members_stay_longer() {
    let name = "telemetry.families";
    let build = || {
        let breakers = CircuitBreaker::builder(name)
            .consecutive_failures(1)
            .open_for(OpenFor::fixed(Duration::from_secs(60)))
            .keyed::<u32>(Keyed::new())
            .unwrap();
        let bulkheads = Bulkhead::builder(name)
            .max_concurrent(1)
            .keyed::<u32>(Keyed::new())
            .unwrap();
        let limits = RateLimit::builder(name)
            .permits(1, Duration::from_secs(60))
            .keyed::<u32>(Keyed::new())
            .unwrap();
        for key in 0..3 {
            breakers
                .get(&key)
                .acquire()
                .unwrap()
                .settle(Verdict::transient());
            assert!(breakers.get(&key).acquire().is_err());
            let held = bulkheads.get(&key);
            let _permit = held.try_acquire().unwrap();
            assert!(held.try_acquire().is_err());
            limits.check(&key, 1).unwrap();
            assert!(limits.check(&key, 1).is_err());
        }
        (breakers, bulkheads, limits)
    };
    let counted = || {
        [
            value(&super::BREAKER_CALLS, name, "failure"),
            value(&super::BREAKER_REJECTIONS, name, "open"),
            value(&super::BREAKER_TRANSITIONS, name, "open"),
            value(&super::BULKHEAD_REJECTIONS, name, "full"),
            value(&super::LIMIT_REJECTIONS, name, "rate_limited"),
        ]
    };
    let first = build();
    assert_eq!(counted(), [3; 5]);
    let second = build();
    assert_eq!(counted(), [6; 5]);
    let member = first.0.get(&1);
    drop(first);
    assert_eq!(counted(), [6; 5]);
    drop(member);
    drop(second);
    assert_eq!(counted(), [6; 5]);
    assert_eq!(
        value(&super::BREAKER_STATE, name, "open"),
        0,
        "levels vanish"
    );
    let third = build();
    assert_eq!(counted(), [9; 5]);
    drop(third);
}

#[test]
fn a_scrape_between_two_threads_that_build_and_drop_never_sees_a_counter_fall() {
    let name: Arc<str> = "telemetry.race".into();
    let turns = 300;
    let builder = std::thread::spawn({
        let name = Arc::clone(&name);
        move || {
            for _ in 0..turns {
                let bulkhead = Bulkhead::builder(Arc::clone(&name))
                    .max_concurrent(1)
                    .build()
                    .unwrap();
                let _held = bulkhead.try_acquire().unwrap();
                assert!(bulkhead.try_acquire().is_err());
            }
        }
    });
    let mut before = 0;
    while !builder.is_finished() {
        let now = value(&super::BULKHEAD_REJECTIONS, &name, "full");
        assert!(before <= now, "{before} {now}");
        before = now;
    }
    builder.join().unwrap();
    assert_eq!(value(&super::BULKHEAD_REJECTIONS, &name, "full"), turns);
}
