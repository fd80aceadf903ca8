//! The events, with their levels and fields.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use resilience_core::{
    breaker::{CircuitBreaker, HalfOpen, OpenFor, Order},
    bulkhead::Bulkhead,
    deadline::Timeout,
    fallback::Fallback,
    retry::{Backoff, Retry, RetryBudget},
    shed::LoadShed,
};
use resilience_tests::contract::{Ask, Driven, Plan, Probe, Readiness};
use tower::Layer;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    layer::{Context, SubscriberExt},
    registry::Registry,
};

use crate::{LONG, MOMENT, once};

/// One event of the target `resilience`.
#[derive(Clone, Debug)]
struct Seen {
    level: Level,
    fields: BTreeMap<&'static str, String>,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Seen>>>);

impl<S: Subscriber> tracing_subscriber::Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != "resilience" {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let seen = Seen {
            level: *event.metadata().level(),
            fields: fields.0,
        };
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(seen);
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl Recorder {
    /// Takes the events out that were seen so far.
    fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The one event with these fields.
    #[track_caller]
    fn has(&self, level: Level, fields: &[(&'static str, &str)]) -> Seen {
        let seen = self.take();
        let fits = |event: &&Seen| {
            event.level == level
                && fields
                    .iter()
                    .all(|(key, value)| event.fields.get(key).is_some_and(|it| it == value))
        };
        let fitting: Vec<_> = seen.iter().filter(fits).collect();
        assert_eq!(fitting.len(), 1, "{level} {fields:?} among {seen:#?}");
        fitting[0].clone()
    }
}

#[tokio::test(start_paused = true)]
async fn events_have_stable_names_and_fields() {
    let recorder = Recorder::default();
    let _guard = tracing::subscriber::set_default(Registry::default().with(recorder.clone()));
    let (name, probe) = ("events", Probe::default());

    let breaker = CircuitBreaker::builder(name)
        .consecutive_failures(1)
        .open_for(OpenFor::fixed(5 * MOMENT))
        .half_open(HalfOpen::probes(1))
        .build()
        .unwrap();
    let guarded = breaker.layer().layer(probe.clone());
    let of_breaker = [("pattern", "circuit_breaker"), ("name", name)];
    let changes = |from, to, reason| {
        let change = [
            ("from", from),
            ("to", to),
            ("reason", reason),
            ("message", "state changed"),
        ];
        [&of_breaker[..], &change[..]].concat()
    };
    assert!(!once(guarded.clone(), Plan::Fail).await);
    recorder.has(
        Level::WARN,
        &changes("closed", "open", "consecutive_failures"),
    );
    assert!(!once(guarded.clone(), Plan::Answer).await);
    let rejected = [
        &of_breaker[..],
        &[("reason", "open"), ("message", "rejected")],
    ]
    .concat();
    let event = recorder.has(Level::DEBUG, &rejected);
    assert!(event.fields.contains_key("retry_after"), "{event:?}");
    tokio::time::advance(10 * MOMENT).await;
    assert!(once(guarded, Plan::Answer).await);
    let both = recorder.take();
    let levels: Vec<_> = both
        .iter()
        .map(|event| (event.level, &*event.fields["from"], &*event.fields["to"]))
        .collect();
    assert_eq!(
        levels,
        [
            (Level::INFO, "open", "half_open"),
            (Level::INFO, "half_open", "closed")
        ]
    );
    breaker.order(Order::force_open("maintenance").by("ops"));
    let ordered = [
        ("to", "forced_open"),
        ("order_reason", "maintenance"),
        ("order_by", "ops"),
    ];
    recorder.has(Level::WARN, &[&of_breaker[..], &ordered].concat());

    let bulkhead = Bulkhead::builder(name)
        .max_concurrent(1)
        .queue(1, MOMENT)
        .build()
        .unwrap();
    let permit = bulkhead.try_acquire().unwrap();
    assert!(!once(bulkhead.layer().layer(probe.clone()), Plan::Answer).await);
    let waited = [
        ("pattern", "bulkhead"),
        ("name", name),
        ("reason", "queue_timed_out"),
        ("message", "rejected"),
    ];
    recorder.has(Level::DEBUG, &waited);
    let mut queued = Driven::new(bulkhead.acquire());
    queued.poll();
    assert!(!once(bulkhead.layer().layer(probe.clone()), Plan::Answer).await);
    recorder.has(
        Level::DEBUG,
        &[
            ("pattern", "bulkhead"),
            ("name", name),
            ("reason", "full"),
            ("message", "rejected"),
        ],
    );
    drop((permit, queued));

    let retry = Retry::builder(name)
        .max_attempts(2)
        .backoff(Backoff::fixed(MOMENT))
        .budget(RetryBudget::unlimited());
    let retry = retry.build().unwrap();
    assert!(once(retry.layer().layer(probe.clone()), Plan::FailFirst(1)).await);
    let again = [
        ("pattern", "retry"),
        ("name", name),
        ("attempt", "1"),
        ("wait", "1ms"),
        ("message", "retrying"),
    ];
    recorder.has(Level::DEBUG, &again);
    assert!(!once(retry.layer().layer(probe.clone()), Plan::Fail).await);
    let enough = [
        ("pattern", "retry"),
        ("name", name),
        ("attempt", "2"),
        ("reason", "attempts"),
        ("message", "giving up"),
    ];
    recorder.has(Level::DEBUG, &enough);

    let timeout = Timeout::new(name, MOMENT).unwrap();
    assert!(!once(timeout.layer().layer(probe.clone()), Plan::Hang).await);
    recorder.has(
        Level::DEBUG,
        &[
            ("pattern", "deadline"),
            ("name", name),
            ("reason", "timed_out"),
        ],
    );
    let without = timeout.layer().per_request(|_: &Ask| Some(Duration::ZERO));
    assert!(!once(without.layer(probe.clone()), Plan::Answer).await);
    recorder.has(
        Level::DEBUG,
        &[
            ("pattern", "deadline"),
            ("name", name),
            ("reason", "no_time_left"),
        ],
    );

    assert!(once(Fallback::value(name, 7).layer(probe.clone()), Plan::Fail).await);
    recorder.has(
        Level::DEBUG,
        &[
            ("pattern", "fallback"),
            ("name", name),
            ("message", "fell back"),
        ],
    );

    probe.set(Readiness::Closed);
    assert!(!once(LoadShed::new(name).layer().layer(probe), Plan::Answer).await);
    let shed = [
        ("pattern", "load_shed"),
        ("name", name),
        ("reason", "overloaded"),
        ("message", "rejected"),
    ];
    recorder.has(Level::DEBUG, &shed);
}

/// A call that passes says nothing: at some thousands a second, even a debug line is too much.
#[tokio::test(start_paused = true)]
async fn a_call_that_passes_is_silent() {
    let recorder = Recorder::default();
    let _guard = tracing::subscriber::set_default(Registry::default().with(recorder.clone()));
    let probe = Probe::default();
    let timeout = Timeout::new("silent", LONG).unwrap();
    let retry = Retry::builder("silent").build().unwrap();
    let bulkhead = Bulkhead::builder("silent").build().unwrap();
    let breaker = CircuitBreaker::builder("silent").build().unwrap();
    let stack = breaker.layer().layer(probe);
    let stack = timeout
        .layer()
        .layer(retry.layer().layer(bulkhead.layer().layer(stack)));
    for _ in 0..100 {
        assert!(once(stack.clone(), Plan::Answer).await);
    }
    assert!(recorder.take().is_empty());
}
