//! Producers.
#![allow(clippy::disallowed_types)]

use std::time::SystemTime;

use super::{
    STREAM, consumer,
    faulty::{Fault, Faulty},
    group, ms, producer, secs, until,
};
use crate::{
    Reason, Rejected, ServiceError,
    stream::{
        Event, InProcessStreams, Position, Producer, PublishError, Published, RawMessage,
        StreamBroker, TraceContext,
    },
    test_log,
};

async fn messages(streams: &InProcessStreams) -> Vec<RawMessage> {
    let messages = streams.peek(STREAM, Position::START, 1000).await.unwrap();
    messages.into_iter().map(|(_, message)| message).collect()
}

async fn bodies(streams: &InProcessStreams) -> Vec<String> {
    let messages = messages(streams).await;
    let body = |it: &RawMessage| serde_json::from_slice(&it.body).unwrap();
    messages.iter().map(body).collect()
}

fn text(event: &str) -> String {
    event.to_owned()
}

#[tokio::test(start_paused = true)]
async fn an_event_is_published_with_its_envelope() {
    let streams = InProcessStreams::new();
    let trace = TraceContext {
        parent: Some("00-a-b-01".into()),
        state: None,
    };
    let orders = Producer::<String>::builder(STREAM, streams.clone())
        .source("/shop")
        .event_type("placed")
        .schema(3)
        .trace_with(move || trace.clone())
        .build()
        .unwrap();
    orders.publish("k", &text("1")).await.unwrap();
    let second = text("2");
    let second = Event::new(&second)
        .id("event-2")
        .event_type("paid")
        .attribute("tenant", "acme");
    orders.publish_event(second).await.unwrap();

    let messages = messages(&streams).await;
    let first = &messages[0].envelope;
    assert_eq!((&*first.source, &*first.event_type), ("/shop", "placed"));
    assert_eq!((first.key.as_deref(), first.schema), (Some("k"), 3));
    assert_eq!(&*first.content_type, "application/json");
    assert_eq!(first.trace_parent.as_deref(), Some("00-a-b-01"));
    assert!(first.time_ms > 1_700_000_000_000);
    assert_eq!(first.id.len(), 32);
    let second = &messages[1].envelope;
    assert_eq!((&*second.id, &*second.event_type), ("event-2", "paid"));
    assert_eq!(second.key, None);
    assert_eq!(&*second.attributes, &[("tenant".into(), "acme".into())]);
    assert_eq!(&*messages[1].body, b"\"2\"");
    assert_eq!(orders.snapshot().totals.stored, 2);
}

#[tokio::test(start_paused = true)]
async fn a_publish_whose_answer_is_lost_is_stored_once() {
    let streams = InProcessStreams::new();
    let faulty = Faulty::new(&streams, |step, number| match (step, number) {
        ("publish", 1 | 2) => Fault::LoseAnswer,
        ("publish", 3) => Fault::Refuse,
        _ => Fault::None,
    });
    let orders = Producer::<String>::builder(STREAM, faulty).build().unwrap();
    let published = orders.publish("k", &text("1")).await.unwrap();
    assert_eq!(published, Published::Duplicate, "by the repetition");
    orders.publish("k", &text("2")).await.unwrap();
    assert_eq!(bodies(&streams).await, ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_publish_without_numbers_is_not_repeated_when_it_may_be_stored() {
    let streams = InProcessStreams::new();
    let faulty = Faulty::new(&streams, |step, number| match (step, number) {
        ("publish", 1) => Fault::Refuse,
        ("publish", 2) => Fault::LoseAnswer,
        _ => Fault::None,
    });
    let orders = Producer::<String>::builder(STREAM, faulty)
        .idempotent(false)
        .build()
        .unwrap();
    let unknown = orders.publish("k", &text("1")).await;
    assert!(
        matches!(unknown, Err(PublishError::Unknown(_))),
        "{unknown:?}"
    );
    assert_eq!(
        bodies(&streams).await,
        ["1"],
        "repeated until it may be stored"
    );
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_never_answers_holds_no_caller_and_is_then_rejected_at_once() {
    let streams = InProcessStreams::new();
    let faulty = Faulty::new(&streams, |step, _| match step {
        "publish" | "other" => Fault::Hang,
        _ => Fault::None,
    });
    let orders = Producer::<String>::builder(STREAM, faulty).build().unwrap();
    let began = tokio::time::Instant::now();
    let unknown = orders.publish("k", &text("1")).await;
    assert!(
        matches!(unknown, Err(PublishError::Unknown(_))),
        "{unknown:?}"
    );
    assert!(began.elapsed() <= secs(7), "{:?}", began.elapsed());
    let began = tokio::time::Instant::now();
    let rejected = orders.publish("k", &text("2")).await.unwrap_err();
    let reason = rejected.as_rejected().map(Rejected::reason);
    assert_eq!(reason, Some(Reason::StoreUnreachable));
    assert_eq!(began.elapsed(), ms(0));
    let totals = orders.snapshot().totals;
    assert_eq!((totals.failed, totals.rejected), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_publish_ends_with_the_deadline_of_its_caller() {
    let streams = InProcessStreams::new();
    let faulty = Faulty::new(&streams, |_, _| Fault::Refuse);
    let orders = Producer::<String>::builder(STREAM, faulty).build().unwrap();
    let began = tokio::time::Instant::now();
    let deadline = crate::Deadline::after(ms(300));
    let event = text("1");
    let published = crate::deadline::scope(deadline, orders.publish("k", &event)).await;
    assert!(
        matches!(published, Err(PublishError::Rejected(_))),
        "{published:?}"
    );
    assert!(began.elapsed() <= ms(300), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn numbers_of_the_caller_outlive_the_producer() {
    let streams = InProcessStreams::new();
    let (one, two) = (text("1"), text("2"));
    let events = || [Event::new(&one), Event::new(&two)];
    let first = producer(&streams).await;
    let published = first.publish_numbered("table", 7, events()).await.unwrap();
    assert!(matches!(
        published[..],
        [Published::Stored(_), Published::Stored(_)]
    ));
    drop(first);
    let second = producer(&streams).await;
    let again = second.publish_numbered("table", 7, events()).await.unwrap();
    assert_eq!(again, [Published::Duplicate; 2]);
    let next = second
        .publish_numbered("table", 9, [Event::new(&one)])
        .await
        .unwrap();
    assert!(matches!(next[..], [Published::Stored(_)]));
    assert_eq!(bodies(&streams).await, ["1", "2", "1"]);
    assert_eq!(second.snapshot().totals.duplicates, 2);
}

#[tokio::test(start_paused = true)]
async fn publishes_side_by_side_are_all_stored() {
    let streams = InProcessStreams::new();
    let orders = producer(&streams).await;
    let publishing = (0..50).map(|number| {
        let orders = orders.clone();
        async move { orders.publish("k", &number.to_string()).await }
    });
    for published in futures_util::future::join_all(publishing).await {
        assert!(
            matches!(published, Ok(Published::Stored(_))),
            "{published:?}"
        );
    }
    assert_eq!(messages(&streams).await.len(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_event_is_handled_when_it_is_due() {
    let streams = InProcessStreams::new();
    let orders = producer(&streams).await;
    let began = tokio::time::Instant::now();
    let published = orders.after(secs(60), "k", &text("later")).await.unwrap();
    assert_eq!(published, Published::Delayed);
    let at = SystemTime::now() + secs(120);
    orders.at(at, "k", &text("at")).await.unwrap();
    orders
        .at(SystemTime::now() - secs(9), "k", &text("past"))
        .await
        .unwrap();

    let log = super::Log::default();
    let billing = std::sync::Arc::new(consumer(&streams).build().unwrap());
    let seen = log.clone();
    let running = super::spawn(&billing, move |message| {
        seen.add(format!("{} {}", message.event(), began.elapsed().as_secs()));
        async { Ok::<_, String>(()) }
    });
    until("all are handled", async || log.len() == 3).await;
    let entries = log.entries();
    assert_eq!(&entries[..2], ["past 0", "later 60"]);
    assert!(["at 119", "at 120"].contains(&&*entries[2]), "{entries:?}");
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_published_is_not_and_says_why() {
    let streams = InProcessStreams::new();
    let orders = producer(&streams).await;
    let event = text("1");
    for senseless in [
        Event::new(&event).id(""),
        Event::new(&event).attribute("data", "x"),
        Event::new(&event).key("k".repeat(1025)),
    ] {
        let refused = orders.publish_event(senseless).await;
        assert!(
            matches!(refused, Err(PublishError::Invalid(_))),
            "{refused:?}"
        );
    }
    let none: [Event<'_, String>; 0] = [];
    assert_eq!(orders.publish_all(none).await.unwrap(), []);
    let numbers =
        Producer::<std::collections::BTreeMap<Vec<u8>, u8>>::builder(STREAM, streams.clone());
    let numbers = numbers.build().unwrap();
    let unencodable = [(vec![1], 1)].into();
    let refused = numbers.publish("k", &unencodable).await;
    assert!(
        matches!(refused, Err(PublishError::Encode(_))),
        "{refused:?}"
    );
    assert_eq!(bodies(&streams).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn old_messages_are_removed_and_what_nobody_was_given_is_reported() {
    let streams = InProcessStreams::new();
    let log = test_log::listen();
    let orders = Producer::<String>::builder(STREAM, streams.clone())
        .max_length(2)
        .build()
        .unwrap();
    for number in 0..5 {
        orders.publish("k", &number.to_string()).await.unwrap();
    }
    streams
        .seek(STREAM, "g", crate::stream::Start::Oldest)
        .await
        .unwrap();
    until("the stream is trimmed", async || {
        messages(&streams).await.len() == 2
    })
    .await;
    assert_eq!(bodies(&streams).await, ["3", "4"]);
    let told = log.events();
    let told: Vec<_> = told.iter().filter(|it| it.contains("trimmed")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("messages=3"), "{told:?}");
    assert_eq!(orders.snapshot().totals.trimmed, 3);
}

#[tokio::test(start_paused = true)]
async fn a_backlog_rejects_publishes_until_it_is_gone() {
    let streams = InProcessStreams::new();
    streams.publish(STREAM, &one_message()).await.unwrap();
    streams
        .seek(STREAM, super::GROUP, crate::stream::Start::Oldest)
        .await
        .unwrap();
    let orders = Producer::<String>::builder(STREAM, streams.clone())
        .max_backlog(3)
        .build()
        .unwrap();
    until("the backlog is noticed", async || {
        match orders.publish("k", &text("1")).await {
            Ok(_) => false,
            Err(error) => {
                let rejected = error.as_rejected().expect("a rejection");
                assert_eq!(rejected.reason(), Reason::Full);
                assert!(rejected.retry_after().is_some());
                true
            }
        }
    })
    .await;
    assert!(group(&streams).await.lag >= 3);
    assert!(orders.snapshot().backlog >= 3);
    streams
        .seek(STREAM, super::GROUP, crate::stream::Start::Next)
        .await
        .unwrap();
    until("publishing goes on", async || {
        orders.publish("k", &text("2")).await.is_ok()
    })
    .await;
}

fn one_message() -> crate::stream::Publish {
    let mut message = RawMessage::default();
    message.envelope.id = "first".into();
    crate::stream::Publish {
        messages: vec![crate::stream::Outgoing {
            message,
            delay_ms: 0,
        }],
        sequence: None,
    }
}
