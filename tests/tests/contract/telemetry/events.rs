//! The events, with their levels and fields.

use std::{
    collections::BTreeMap,
    fmt, io,
    panic::AssertUnwindSafe,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use resilience_core::{
    breaker::{CircuitBreaker, HalfOpen, OpenFor, Override},
    bulkhead::Bulkhead,
    conformance::layer::{Ask, Driven, Plan, Probe, Readiness},
    deadline::Timeout,
    fallback::Fallback,
    idempotency::{
        self, Disposition, Fingerprint, IdempotencyStore, Json, Key,
        record::{Claim, Takeover},
    },
    retry::{Backoff, Retry, RetryBudget},
    shed::LoadShed,
    sql::inbox::SqliteInbox,
};
use resilience_redis::Redis;
use resilience_tests::redis::free_port;
use tower::Layer;
use tracing::{
    Dispatch, Event, Level, Subscriber,
    field::{Field, Visit},
    subscriber::{DefaultGuard, NoSubscriber},
};
use tracing_subscriber::{
    layer::{Context, SubscriberExt},
    registry::Registry,
};

use super::{LONG, MOMENT, inbox::fails_first, once};

/// One event of the target `resilience`.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) level: Level,
    pub(super) fields: BTreeMap<&'static str, String>,
}

#[derive(Clone, Default)]
pub(super) struct Recorder(Arc<Mutex<Vec<Seen>>>);

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

/// What this thread says, until the guard is dropped. There is always a second subscriber: with a single one, `tracing` may
/// remember for all threads that a test which does not listen has no use for an event.
pub(super) fn listen() -> (Recorder, DefaultGuard) {
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));
    LazyLock::force(&SECOND);
    let recorder = Recorder::default();
    let subscriber = Registry::default().with(recorder.clone());
    (recorder, tracing::subscriber::set_default(subscriber))
}

impl Recorder {
    /// Takes the events out that were seen so far.
    pub(super) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The one event with these fields.
    #[track_caller]
    pub(super) fn has(&self, level: Level, fields: &[(&'static str, &str)]) -> Seen {
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
    let (recorder, _default) = listen();
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
    breaker.set_override(Override::force_open("maintenance").by("ops"));
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

    assert!(
        once(
            Fallback::value(name, 7).layer().layer(probe.clone()),
            Plan::Fail
        )
        .await
    );
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
    let (recorder, _default) = listen();
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

/// What callers see of a key, and what only operators do.
#[tokio::test(start_paused = true)]
async fn events_of_idempotency_keys_have_stable_names_and_fields() {
    let (recorder, _default) = listen();
    let store = idempotency::InProcessIdempotency::new();
    let keys = idempotency::Idempotency::builder("keys");
    let keys = keys.store(store.clone()).max_outcome(8).without_wait();
    let keys = keys.build().unwrap();
    let is = |level, message: &str, more: &[(&'static str, &str)]| {
        let of_keys = [("pattern", "idempotency"), ("name", "keys")];
        let mut fields = [&of_keys[..], more].concat();
        fields.push(("message", message));
        recorder.has(level, &fields)
    };
    let seven = |_| async { Ok::<_, io::Error>(7_u32) };
    assert!(keys.run("done", seven).await.is_ok());
    assert!(keys.run("done", seven).await.is_ok());
    assert!(recorder.take().is_empty(), "nothing to tell");

    let other = Key::new("done").fingerprint(Fingerprint::of([b"other".as_slice()]));
    assert!(keys.run(other, seven).await.is_err());
    is(Level::DEBUG, "rejected", &[("reason", "key_reused")]);
    let text = keys.run("done", |_| async { Ok::<_, io::Error>(String::new()) });
    assert!(text.await.is_err());
    let why = is(Level::ERROR, "a recorded outcome cannot be read", &[]);
    assert!(why.fields.contains_key("why"), "{why:?}");

    let unknown = Json::new().on_error(|_: &io::Error| Disposition::Unknown);
    let fail = |_| async { Err::<u32, _>(io::Error::other("failed")) };
    assert!(keys.run_with("unknown", unknown, fail).await.is_ok());
    let left = is(Level::WARN, "the outcome is left unknown", &[]);
    assert!(left.fields.contains_key("fence"), "{left:?}");
    assert!(keys.run("unknown", seven).await.is_err());
    is(Level::DEBUG, "rejected", &[("reason", "outcome_unknown")]);

    let mut at_work = Driven::new(keys.run("busy", |_| async {
        tokio::time::sleep(LONG).await;
        Ok::<_, io::Error>(7_u32)
    }));
    at_work.poll();
    tokio::time::sleep(MOMENT).await;
    assert!(keys.run("busy", seven).await.is_err());
    let busy = is(Level::DEBUG, "rejected", &[("reason", "in_flight")]);
    assert!(busy.fields.contains_key("retry_after"), "{busy:?}");
    drop(at_work);

    let large = keys.run("large", |_| async { Ok::<_, io::Error>("x".repeat(9)) });
    assert!(large.await.is_ok());
    let message = "the work counts as done, but its outcome is not kept";
    is(Level::WARN, message, &[("why", "11 bytes are more than 8")]);
    let panics = |_| async { panic!("as asked for") };
    let panicked = keys.run::<u32, io::Error, _, _>("panics", panics);
    assert!(AssertUnwindSafe(panicked).catch_unwind().await.is_err());
    is(
        Level::ERROR,
        "the work was broken off",
        &[("panicked", "true")],
    );
}

/// A lease that is lost is told as soon as it is, and once more when the work has ended.
#[tokio::test(start_paused = true)]
async fn the_loss_of_a_lease_is_told() {
    let (recorder, _default) = listen();
    let store = idempotency::InProcessIdempotency::new();
    let keys = idempotency::Idempotency::builder("lost");
    let keys = keys.store(store.clone()).build().unwrap();
    let told = recorder.clone();
    let run = keys.run("k", |attempt| async move {
        store.flush();
        let rival = Claim {
            owner: "rival".into(),
            fingerprint: Fingerprint::default().bytes().clone(),
            lease_ms: 3_600_000,
            retention_ms: 3_600_000,
            takeover: Takeover::Ended,
        };
        assert!(store.claim("lost", "/k", &rival).await.is_ok());
        attempt.lost().await;
        let why = ("why", "another attempt holds the key");
        let lost = told.has(Level::WARN, &[why, ("message", "lease lost")]);
        assert_eq!(lost.fields["fence"], attempt.fence().to_string());
        Ok::<_, io::Error>(7_u32)
    });
    assert!(run.await.is_err());
    let message = ("message", "the end of the work is not recorded");
    recorder.has(Level::WARN, &[("name", "lost"), ("why", "Taken"), message]);
}

/// Once, however many calls there are meanwhile.
#[tokio::test(start_paused = true)]
async fn a_store_that_falls_silent_is_told_and_that_it_is_back() {
    let (recorder, _default) = listen();
    let seven = |_| async { Ok::<_, io::Error>(7_u32) };
    let redis = Redis::connect(&format!("redis://127.0.0.1:{}", free_port())).unwrap();
    let keys = idempotency::Idempotency::builder("silent").store(redis.idempotency());
    let keys = keys.build().unwrap();
    for key in ["a", "b", "c"] {
        assert!(keys.run(key, seven).await.is_err());
    }
    let of = |name| [("pattern", "idempotency"), ("name", name)];
    let silent = [
        &of("silent")[..],
        &[("message", "store unavailable"), ("policy", "fail_closed")],
    ]
    .concat();
    let silent = recorder.has(Level::WARN, &silent);
    assert!(silent.fields.contains_key("reason"), "{silent:?}");

    // A store that is full gives no answer to new keys.
    let store = idempotency::InProcessIdempotency::bounded(1, 1);
    let keys = idempotency::Idempotency::builder("full").store(store.clone());
    let keys = keys.build().unwrap();
    let (mut number, mut in_a_row) = (0_u32, 0);
    while in_a_row < 50 {
        number += 1;
        let ran = keys.run(number.to_string(), seven).await;
        in_a_row = if ran.is_ok() { 0 } else { in_a_row + 1 };
    }
    recorder.take();
    store.flush();
    // Noticed by the task that asks the store meanwhile.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(keys.run("a", seven).await.is_ok());
    assert!(keys.run("a", seven).await.is_ok());
    let back = [&of("full")[..], &[("message", "store available")]].concat();
    recorder.has(Level::INFO, &back);
}

#[tokio::test]
async fn a_transaction_of_an_inbox_that_begins_again_is_told() {
    let (recorder, _default) = listen();
    let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    let pool = pool.connect("sqlite::memory:").await.unwrap();
    let inbox = SqliteInbox::builder("inbox").build().unwrap();
    inbox.migrate(&pool).await.unwrap();
    fails_first(&inbox, &pool).await;
    let again = [
        ("pattern", "idempotency"),
        ("name", "inbox"),
        ("left", "4"),
        ("message", "transaction of the inbox begins again"),
    ];
    recorder.has(Level::DEBUG, &again);
}
