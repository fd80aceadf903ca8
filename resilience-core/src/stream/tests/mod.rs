#[cfg(feature = "testing")]
mod conformance;
mod consumer;
mod effects;
mod faults;
mod faulty;
mod losses;
mod producer;
mod retries;
mod shutdown;

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinHandle;

use super::{
    ConsumeError, Consumer, ConsumerBuilder, GroupState, InProcessStreams, Message, Position,
    Producer, StreamBroker,
};

const STREAM: &str = "orders";
const GROUP: &str = "billing";

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

async fn producer(streams: &InProcessStreams) -> Producer<String> {
    Producer::builder(STREAM, streams.clone()).build().unwrap()
}

fn consumer(streams: &InProcessStreams) -> ConsumerBuilder<String> {
    Consumer::builder(STREAM, streams.clone()).group(GROUP)
}

/// Publishes events `key:event`, or without a key.
async fn publish(streams: &InProcessStreams, events: &[&str]) {
    let producer = producer(streams).await;
    for event in events {
        let key = event.split_once(':').map_or("", |(key, _)| key);
        producer.publish(key, &(*event).to_owned()).await.unwrap();
    }
}

/// What handlers did, in order.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, entry: impl Into<String>) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push(entry.into());
    }

    fn entries(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn len(&self) -> usize {
        self.entries().len()
    }

    fn sorted(&self) -> Vec<String> {
        let mut entries = self.entries();
        entries.sort();
        entries
    }
}

/// Runs a consumer in the background.
fn spawn<F, Fut, E>(
    consumer: &Arc<Consumer<String>>,
    handler: F,
) -> JoinHandle<Result<(), ConsumeError>>
where
    F: Fn(Message<String>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    let consumer = Arc::clone(consumer);
    tokio::spawn(async move { consumer.run(handler).await })
}

/// Polls until `condition` holds, for up to an hour of the paused clock.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let polling = async {
        while !condition().await {
            tokio::time::sleep(ms(5)).await;
        }
    };
    let in_time = tokio::time::timeout(secs(3_600), polling).await;
    assert!(in_time.is_ok(), "never: {what}");
}

async fn group(streams: &InProcessStreams) -> GroupState {
    let state = streams.state(STREAM).await.unwrap().expect("a stream");
    let mut groups = state.groups.into_iter();
    groups.find(|it| &*it.group == GROUP).unwrap_or_default()
}

/// Until the group has settled everything.
async fn until_settled(streams: &InProcessStreams) {
    until("everything is settled", async || {
        let group = group(streams).await;
        !group.group.is_empty() && group.lag + group.held + group.waiting == 0
    })
    .await;
}

async fn dead_letters(streams: &InProcessStreams) -> Vec<super::DeadLetter> {
    let letters = streams
        .dead_letters(STREAM, GROUP, Position::START, 100)
        .await;
    letters.unwrap()
}

#[tokio::test]
async fn senseless_settings_are_refused_by_name() {
    let streams = InProcessStreams::new();
    let none = || Consumer::<String>::builder(STREAM, streams.clone());
    let some = || consumer(&streams);
    for (builder, field) in [
        (none(), "group"),
        (none().group(""), "group"),
        (some().concurrency(0), "concurrency"),
        (some().concurrency(9).prefetch(8), "prefetch"),
        (some().lease(ms(99)), "lease"),
        (some().longest_lease(secs(29)), "longest_lease"),
        (some().deadline(Duration::ZERO), "deadline"),
        (some().deadline(secs(3_601)), "deadline"),
        (some().max_deliveries(0), "max_deliveries"),
        (some().poll(ms(9)), "poll"),
        (some().keep(secs(59)), "keep"),
        (some().effect_once().keep_effects(secs(1)), "keep_effects"),
        #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
        (some().schemas(2..=1), "schemas"),
        (
            some().fleet(crate::FleetOptions::new().heartbeat(secs(1))),
            "heartbeat",
        ),
    ] {
        let refused = builder.build().unwrap_err();
        assert_eq!(refused.field(), field, "{refused}");
    }
    let some = || Producer::<String>::builder(STREAM, streams.clone());
    for (builder, field) in [
        (Producer::builder("", streams.clone()), "stream"),
        (some().timeout(Duration::ZERO), "timeout"),
        (some().remember(secs(9)), "remember"),
        (some().max_age(ms(999)), "max_age"),
        (some().drop_settled(Duration::ZERO), "drop_settled"),
        (some().max_backlog(0), "max_backlog"),
    ] {
        let refused = builder.build().unwrap_err();
        assert_eq!(refused.field(), field, "{refused}");
    }
}

#[test]
fn without_a_runtime_a_handle_is_refused() {
    let streams = InProcessStreams::new();
    assert!(consumer(&streams).build().is_err());
    let producer = Producer::<String>::builder(STREAM, streams).build();
    assert!(producer.is_err());
}
