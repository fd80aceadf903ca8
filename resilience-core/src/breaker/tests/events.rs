//! Events, logs and metrics.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::time::advance;
use tracing_subscriber::{Layer as _, layer::SubscriberExt};

use super::*;
use crate::{
    breaker::{Cause, Event, Override, State},
    telemetry::Source,
    test_log,
};

fn rest(events: &mut super::super::Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_next())
        .map(Result::unwrap)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn every_change_is_told_in_order_with_its_cause() {
    let breaker = builder().half_open(HalfOpen::probes(1)).build().unwrap();
    let mut events = breaker.events();
    trip(&breaker);
    advance(5 * SECOND).await;
    breaker.acquire().unwrap().settle(Verdict::transient());
    advance(5 * SECOND).await;
    breaker.acquire().unwrap().settle(Verdict::Success);
    breaker.set_override(Override::force_open("maintenance").by("ops"));
    breaker.clear_override("done");
    breaker.reset("to be sure");
    let first = events.next().await.unwrap().unwrap();
    assert_eq!((&*first.name, first.generation), ("test", 1));
    assert_eq!(
        (first.from, first.to, &first.cause),
        (State::Closed, State::Open, &Cause::FailureRate)
    );
    assert_eq!(first.counts.failure_rate(), Some(1.0));
    assert_eq!(first.counts.calls, 4);
    let rest = rest(&mut events);
    let told: Vec<_> = rest
        .iter()
        .map(|event| (event.generation, event.to, event.cause.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (2, State::HalfOpen, "interval_over"),
            (3, State::Open, "probes_failed"),
            (4, State::HalfOpen, "interval_over"),
            (5, State::Closed, "probes_passed"),
            (6, State::ForcedOpen, "ordered"),
            (7, State::Closed, "order_cleared"),
            (8, State::Closed, "reset"),
        ]
    );
    let active_override = rest[4].active_override.as_ref().unwrap();
    assert_eq!(
        (&*active_override.reason, active_override.by.as_deref()),
        ("maintenance", Some("ops"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_falls_behind_is_told_how_much_it_missed() {
    let breaker = builder().event_capacity(4).build().unwrap();
    let mut events = breaker.events();
    for _ in 0..10 {
        breaker.reset("again");
    }
    let missed = events.next().await.unwrap().unwrap_err();
    assert_eq!(
        (missed.0, missed.to_string()),
        (6, "missed 6 events".to_owned())
    );
    assert_eq!(rest(&mut events).len(), 4);
    drop(breaker);
    assert!(events.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_hears_what_comes_after_it_only() {
    let breaker = builder().build().unwrap();
    breaker.reset("before");
    let mut events = breaker.events();
    breaker.reset("after");
    assert_eq!(rest(&mut events).len(), 1);
}

/// Notes the fields of each event, and looks at the breaker from inside of the subscriber, as a log formatter may.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    breaker: Arc<Mutex<Option<CircuitBreaker>>>,
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Fields(HashMap<&'static str, String>);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0
                    .insert(field.name(), format!("{value:?}").replace('"', ""));
            }
        }
        let mut fields = Fields(HashMap::new());
        event.record(&mut fields);
        let get = |name| fields.0.get(name).map_or("-", String::as_str).to_owned();
        let breaker = self
            .breaker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(breaker) = breaker {
            drop(breaker.snapshot());
        }
        let line = format!(
            "{} {} {} {} {}>{} {}",
            event.metadata().level(),
            event.metadata().target(),
            get("pattern"),
            get("name"),
            get("from"),
            get("to"),
            get("reason")
        );
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line);
    }
}

#[tokio::test(start_paused = true)]
async fn changes_and_rejections_are_logged_and_the_subscriber_may_look_at_the_breaker() {
    let log = Log::default();
    let subscriber = tracing_subscriber::registry().with(log.clone().with_filter(
        tracing_subscriber::filter::filter_fn(|metadata| metadata.target() == "resilience"),
    ));
    let _default = test_log::set_default(subscriber);
    let breaker = builder().half_open(HalfOpen::probes(1)).build().unwrap();
    *log.breaker.lock().unwrap() = Some(breaker.clone());
    trip(&breaker);
    advance(5 * SECOND).await;
    breaker.acquire().unwrap().settle(Verdict::Success);
    let lines = log.lines.lock().unwrap().clone();
    assert_eq!(
        lines,
        [
            "WARN resilience circuit_breaker test closed>open failure_rate",
            "DEBUG resilience circuit_breaker test ->- open",
            "INFO resilience circuit_breaker test open>half_open interval_over",
            "INFO resilience circuit_breaker test half_open>closed probes_passed",
        ]
    );
    *log.breaker.lock().unwrap() = None;
}

fn read(source: &dyn Source) -> HashMap<(&'static str, &'static str), u64> {
    let mut all = HashMap::new();
    source.read(&mut |reading| {
        let short = reading.metric.name.rsplit('.').next().unwrap();
        assert!(
            all.insert((short, reading.attribute), reading.value)
                .is_none()
        );
    });
    all
}

#[tokio::test(start_paused = true)]
async fn metrics_show_one_for_the_present_state_and_zero_for_all_others() {
    let breaker = builder()
        .half_open(HalfOpen::probes(1))
        .window(Window::time(SECOND))
        .build()
        .unwrap();
    let source: &dyn Source = &**breaker.shared.shared();
    trip(&breaker);
    let metrics = read(source);
    assert_eq!(
        (metrics[&("state", "open")], metrics[&("state", "closed")]),
        (1, 0)
    );
    assert_eq!(
        (
            metrics[&("calls", "failure")],
            metrics[&("calls", "success")]
        ),
        (4, 0)
    );
    assert_eq!(
        (
            metrics[&("rejections", "open")],
            metrics[&("transitions", "open")]
        ),
        (1, 1)
    );
    advance(5 * SECOND).await;
    breaker.acquire().unwrap().settle(Verdict::Success);
    breaker.acquire().unwrap().settle(Verdict::Success);
    let metrics = read(source);
    assert_eq!(
        (metrics[&("state", "open")], metrics[&("state", "closed")]),
        (0, 1)
    );
    let calls = (
        metrics[&("calls", "failure")],
        metrics[&("calls", "success")],
    );
    assert_eq!(
        calls,
        (4, 2),
        "the probe and the windows of all generations"
    );
}
