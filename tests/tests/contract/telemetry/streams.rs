//! Streams, as metrics tell of them.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use resilience_core::{
    Consumer, Error, Pattern, Producer, Reason, Rejected,
    stream::{Event, InProcessStreams, Join, Message, Pause, Read, Start, StreamBroker},
};
use resilience_tests::until::eventually;
use tower::service_fn;

const HOUR: u64 = 3_600_000;
const SOON: Duration = Duration::from_secs(10);

fn consumer(
    name: &'static str,
    streams: &InProcessStreams,
    group: &'static str,
) -> Arc<Consumer<String>> {
    let builder = Consumer::builder(name, streams.clone())
        .group(group)
        .concurrency(1)
        .prefetch(4)
        .lease(Duration::from_millis(100))
        .poll(Duration::from_millis(10))
        .effect_once();
    Arc::new(builder.build().unwrap())
}

/// Serves: the first message is rejected, `hang` never ends, `bad` fails.
fn serve(consumer: &Arc<Consumer<String>>) -> tokio::task::JoinHandle<()> {
    let (consumer, first) = (Arc::clone(consumer), Arc::new(AtomicBool::new(true)));
    tokio::spawn(async move {
        let service = service_fn(move |message: Message<String>| {
            let is_first = first.swap(false, SeqCst);
            async move {
                if is_first {
                    let rejected = Rejected::new(Pattern::Bulkhead, Reason::Full, "b");
                    return Err(Error::Rejected(rejected));
                }
                if message.event() == "hang" {
                    pending::<()>().await;
                }
                Ok::<(), Error<String>>(())
            }
        });
        consumer.serve(service).await.unwrap();
    })
}

/// Publishes, deliveries, effects, trims, pauses and losses; one message that is handled, and others behind it, for as long as what
/// is returned is kept.
pub(crate) async fn everything_happens_to_a_stream(
    name: &'static str,
) -> impl std::any::Any + use<> {
    let streams = InProcessStreams::new();
    let events = Producer::<String>::builder(name, streams.clone())
        .build()
        .unwrap();
    let publish = async |id: &str, event: &str| {
        let event = event.to_owned();
        events
            .publish_event(Event::new(&event).id(id))
            .await
            .unwrap();
    };
    for number in 0..5 {
        publish(&number.to_string(), "old").await;
    }
    streams.seek(name, "group", Start::Oldest).await.unwrap();
    let bounded = Producer::<String>::builder(name, streams.clone())
        .max_length(3)
        .max_backlog(1)
        .build()
        .unwrap();
    eventually("the stream is trimmed", SOON, || async {
        let snapshot = bounded.snapshot();
        snapshot.totals.trimmed == 2 && snapshot.backlog > 0
    })
    .await;
    assert!(bounded.publish("k", &"x".to_owned()).await.is_err());

    // The last event has a copy.
    publish("4", "copy").await;
    let first = consumer(name, &streams, "group");
    let serving = serve(&first);
    eventually("the copy is found", SOON, || async {
        let totals = first.snapshot().totals;
        totals.replayed > 0 && totals.pauses > 0 && totals.skipped > 0
    })
    .await;
    let senseless = Pause {
        by: "".into(),
        reason: "".into(),
        for_ms: Some(0),
    };
    assert!(first.pause(&senseless).await.is_err());

    // Another group: it is lost, and then one of its messages.
    let second = consumer(name, &streams, "lost");
    let serving_too = serve(&second);
    eventually("it has begun", SOON, || async {
        second.snapshot().totals.acknowledged > 0
    })
    .await;
    streams.remove_group(name, "lost").await.unwrap();
    eventually("the group is there again", SOON, || async {
        second.snapshot().totals.losses > 0
    })
    .await;
    publish("hang", "hang").await;
    publish("behind", "behind").await;
    eventually(
        "both have one that hangs, and one behind it",
        SOON,
        || async {
            [&first, &second].iter().all(|it| {
                let totals = it.snapshot().totals;
                totals.running == 1 && totals.buffered > 0
            })
        },
    )
    .await;
    let join = Join {
        consumer: "other".into(),
        lease_ms: HOUR,
        start: Start::Oldest,
        resume: None,
        keep_ms: HOUR,
    };
    streams.join(name, "lost", &join).await.unwrap();
    streams.seek(name, "lost", Start::Oldest).await.unwrap();
    let read = Read {
        streams: &[name],
        consumer: "other",
        max: 100,
        block_ms: 0,
    };
    streams.read("lost", read).await.unwrap();
    eventually("the lease is lost", SOON, || async {
        second.snapshot().totals.leases_lost > 0
    })
    .await;
    (events, bounded, first, second, serving, serving_too)
}
