//! Consumers: delivery, order, concurrency, pauses.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use tower::{ServiceBuilder, service_fn};

use super::{
    GROUP, Log, STREAM, consumer, dead_letters, group, ms, publish, secs, spawn, until,
    until_settled,
};
use crate::{
    CircuitBreaker, Error,
    breaker::{OpenFor, State},
    stream::{ConsumeError, InProcessStreams, Message, Pause, Start, StreamBroker},
};

#[tokio::test(start_paused = true)]
async fn every_message_is_handled_and_acknowledged() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1", "2", "3"]).await;
    let (log, seen) = (Log::default(), Log::default());
    let billing = Arc::new(consumer(&streams).build().unwrap());
    let (log_, seen_) = (log.clone(), seen.clone());
    let running = spawn(&billing, move |message| {
        log_.add(message.event());
        seen_.add(format!(
            "{} {} {:?}",
            message.delivery(),
            message.attempt(),
            message.fence()
        ));
        async { Ok::<_, String>(()) }
    });
    until("all are handled", async || log.len() == 3).await;
    publish(&streams, &["4"]).await;
    until("a later one too", async || log.len() == 4).await;
    until_settled(&streams).await;
    assert_eq!(log.entries(), ["1", "2", "3", "4"]);
    assert_eq!(seen.entries(), ["1 1 None"; 4]);
    let snapshot = billing.snapshot();
    let totals = snapshot.totals;
    assert_eq!((totals.delivered, totals.acknowledged), (4, 4));
    assert_eq!((totals.redelivered, totals.lost, totals.running), (0, 0, 0));
    assert!(snapshot.available && snapshot.consuming);
    let view = billing.fleet_view().await.unwrap().expect("a group");
    assert_eq!(view.consumers.len(), 1);
    assert_eq!(&*view.consumers[0].consumer, billing.consumer());
    billing.shutdown(secs(5)).await.unwrap();
    assert_eq!(running.await.unwrap(), Ok(()));
    assert_eq!(group(&streams).await.consumers, [], "it has left");
    let again = billing.run(|_| async { Ok::<_, String>(()) }).await;
    assert_eq!(again, Err(ConsumeError::ServedBefore));
}

#[tokio::test(start_paused = true)]
async fn messages_of_one_key_are_handled_in_order_and_keys_side_by_side() {
    let streams = InProcessStreams::new();
    let events: Vec<_> = (0..60).map(|it| format!("{}:{it}", it % 3)).collect();
    let events: Vec<_> = events.iter().map(String::as_str).collect();
    publish(&streams, &events).await;
    let (log, most) = (Log::default(), Arc::new(AtomicUsize::new(0)));
    let (seen, at_once, highest) = (
        log.clone(),
        Arc::new(AtomicUsize::new(0)),
        Arc::clone(&most),
    );
    let billing = consumer(&streams)
        .lanes(|it| it.key.clone())
        .build()
        .unwrap();
    let _running = spawn(&Arc::new(billing), move |message| {
        let (seen, at_once, highest) = (seen.clone(), Arc::clone(&at_once), Arc::clone(&highest));
        async move {
            highest.fetch_max(at_once.fetch_add(1, SeqCst) + 1, SeqCst);
            // Later ones are quicker.
            let (_, number) = message.event().split_once(':').unwrap();
            tokio::time::sleep(ms(100 - number.parse::<u64>().unwrap())).await;
            at_once.fetch_sub(1, SeqCst);
            seen.add(message.event());
            Ok::<_, String>(())
        }
    });
    until("all are handled", async || log.len() == 60).await;
    let mut last = HashMap::new();
    for event in log.entries() {
        let (key, number) = event.split_once(':').unwrap();
        let number: u32 = number.parse().unwrap();
        let before = last.insert(key.to_owned(), number);
        assert!(before < Some(number), "{event} after {before:?}");
    }
    assert_eq!(most.load(SeqCst), 3, "one of each key");
}

#[tokio::test(start_paused = true)]
async fn no_more_messages_are_handled_at_a_time_than_configured() {
    let streams = InProcessStreams::new();
    let events: Vec<_> = (0..50).map(|it| it.to_string()).collect();
    let events: Vec<_> = events.iter().map(String::as_str).collect();
    publish(&streams, &events).await;
    let (log, most) = (Log::default(), Arc::new(AtomicUsize::new(0)));
    let (seen, at_once, highest) = (
        log.clone(),
        Arc::new(AtomicUsize::new(0)),
        Arc::clone(&most),
    );
    let billing = consumer(&streams).concurrency(4).build().unwrap();
    let _running = spawn(&Arc::new(billing), move |message| {
        let (seen, at_once, highest) = (seen.clone(), Arc::clone(&at_once), Arc::clone(&highest));
        async move {
            highest.fetch_max(at_once.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::time::sleep(ms(10)).await;
            at_once.fetch_sub(1, SeqCst);
            seen.add(message.event());
            Ok::<_, String>(())
        }
    });
    until("some are handled", async || log.len() >= 8).await;
    let held = group(&streams).await.held;
    assert!(held <= 16, "{held} held: twice the prefetch at most");
    until("all are handled", async || log.len() == 50).await;
    assert_eq!(most.load(SeqCst), 4);
}

/// The dependency is down: the breaker opens, and from then on no message is tried until it closes.
#[tokio::test(start_paused = true)]
async fn an_open_breaker_pauses_the_consumer_and_burns_no_deliveries() {
    let streams = InProcessStreams::new();
    let events: Vec<_> = (0..20).map(|it| it.to_string()).collect();
    let events: Vec<_> = events.iter().map(String::as_str).collect();
    publish(&streams, &events).await;
    let breaker = CircuitBreaker::builder("db")
        .consecutive_failures(1)
        .open_for(OpenFor::fixed(secs(60)))
        .build()
        .unwrap();
    let (log, down) = (Log::default(), Arc::new(AtomicBool::new(true)));
    let (seen, is_down) = (log.clone(), Arc::clone(&down));
    let service = ServiceBuilder::new()
        .layer(breaker.layer())
        .service(service_fn(move |message: Message<String>| {
            let fails = is_down.load(SeqCst);
            seen.add(format!("{} {fails}", message.delivery()));
            async move {
                if fails {
                    return Err(Error::Service("down"));
                }
                Ok(())
            }
        }));
    let billing = consumer(&streams).concurrency(1).max_deliveries(2);
    let billing = Arc::new(billing.build().unwrap());
    let serving = tokio::spawn({
        let billing = Arc::clone(&billing);
        async move { billing.serve(service).await }
    });
    until("it pauses", async || billing.snapshot().totals.pauses > 0).await;
    assert!(!billing.snapshot().consuming);
    tokio::time::sleep(secs(50)).await;
    assert_eq!(log.entries(), ["1 true"], "one was tried");
    assert_eq!(breaker.snapshot().state, State::Open);
    down.store(false, SeqCst);
    until_settled(&streams).await;
    let handled = log.sorted();
    let counted = |entry: &str| handled.iter().filter(|it| *it == entry).count();
    assert_eq!(
        (counted("1 false"), counted("2 false")),
        (19, 1),
        "{handled:?}"
    );
    assert!(dead_letters(&streams).await.is_empty());
    assert!(billing.snapshot().totals.given_back > 0);
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_paused_group_starts_no_messages_until_it_is_resumed() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let log = Log::default();
    let seen = log.clone();
    let billing = Arc::new(consumer(&streams).build().unwrap());
    let _running = spawn(&billing, move |message| {
        seen.add(message.event());
        async { Ok::<_, String>(()) }
    });
    until("it runs", async || log.len() == 1).await;
    let pause = Pause {
        by: "an operator".into(),
        reason: "maintenance".into(),
        for_ms: None,
    };
    assert_eq!(billing.pause(&pause).await, Ok(true));
    until("the pause is known", async || !billing.snapshot().consuming).await;
    publish(&streams, &["2"]).await;
    tokio::time::sleep(secs(120)).await;
    assert_eq!(log.len(), 1);
    assert_eq!(billing.resume().await, Ok(true));
    until("it goes on", async || log.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_seek_replays_the_stream() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1", "2"]).await;
    let log = Log::default();
    let seen = log.clone();
    let billing = Arc::new(consumer(&streams).concurrency(1).build().unwrap());
    let _running = spawn(&billing, move |message| {
        seen.add(message.event());
        async { Ok::<_, String>(()) }
    });
    until_settled(&streams).await;
    assert_eq!(billing.seek(Start::Oldest).await, Ok(true));
    until("again", async || log.len() == 4).await;
    assert_eq!(log.entries(), ["1", "2", "1", "2"]);
    until_settled(&streams).await;
}

/// What waits in the process ages no lease, and neither does what is handled for longer than one.
#[tokio::test(start_paused = true)]
async fn heartbeats_keep_what_runs_and_what_waits() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1", "2", "3", "4"]).await;
    let log = Log::default();
    let mut running = Vec::new();
    for _ in 0..2 {
        let seen = log.clone();
        let billing = consumer(&streams)
            .concurrency(1)
            .prefetch(4)
            .lease(secs(10));
        let billing = Arc::new(billing.build().unwrap());
        running.push(spawn(&billing, move |message| {
            let seen = seen.clone();
            async move {
                // Three leases each, one after the other.
                tokio::time::sleep(secs(30)).await;
                seen.add(format!("{} {}", message.event(), message.delivery()));
                Ok::<_, String>(())
            }
        }));
    }
    until("all are handled", async || log.len() == 4).await;
    until_settled(&streams).await;
    assert_eq!(log.sorted(), ["1 1", "2 1", "3 1", "4 1"]);
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn the_messages_of_a_consumer_that_died_come_within_its_lease() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1", "2"]).await;
    let dead = crate::stream::Join {
        consumer: "dead".into(),
        lease_ms: 10_000,
        start: Start::Oldest,
        resume: None,
        keep_ms: 3_600_000,
    };
    streams.join(STREAM, GROUP, &dead).await.unwrap();
    let read = crate::stream::Read {
        streams: &[STREAM],
        consumer: "dead",
        max: 2,
        block_ms: 0,
    };
    let batch = streams.read(GROUP, read).await.unwrap();
    assert_eq!(batch.deliveries.len(), 2);
    let began = tokio::time::Instant::now();
    let log = Log::default();
    let seen = log.clone();
    let billing = Arc::new(consumer(&streams).build().unwrap());
    let _running = spawn(&billing, move |message| {
        seen.add(format!("{} {}", message.event(), message.delivery()));
        async { Ok::<_, String>(()) }
    });
    until("they are handled", async || log.len() == 2).await;
    let took = began.elapsed();
    assert!(took >= secs(10) && took <= secs(11), "{took:?}");
    assert_eq!(log.sorted(), ["1 2", "2 2"]);
    until_settled(&streams).await;
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_message_is_visible_and_enforced() {
    let streams = InProcessStreams::new();
    publish(&streams, &["quick", "slow"]).await;
    let log = Log::default();
    let seen = log.clone();
    let billing = consumer(&streams).deadline(secs(2)).max_deliveries(1);
    let _running = spawn(&Arc::new(billing.build().unwrap()), move |message| {
        let seen = seen.clone();
        async move {
            let left = crate::deadline::current().expect("a deadline").remaining();
            seen.add(format!("{} {}", message.event(), left.as_secs_f64().ceil()));
            if message.event() == "slow" {
                std::future::pending::<()>().await;
            }
            Ok::<_, String>(())
        }
    });
    until_settled(&streams).await;
    assert_eq!(log.sorted(), ["quick 2", "slow 2"]);
    let letters = dead_letters(&streams).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(&*letters[0].reason, "not handled within 2s");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_ends_does_not_keep_its_message_forever() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let began = tokio::time::Instant::now();
    let billing = consumer(&streams)
        .lease(secs(10))
        .longest_lease(secs(60))
        .max_deliveries(1);
    let _running = spawn(&Arc::new(billing.build().unwrap()), |_| {
        std::future::pending::<Result<(), String>>()
    });
    until_settled(&streams).await;
    let took = began.elapsed();
    assert!(took >= secs(60) && took < secs(62), "{took:?}");
    assert_eq!(dead_letters(&streams).await.len(), 1);
}

#[tokio::test]
async fn consumers_of_one_instance_name_are_told_apart() {
    let streams = InProcessStreams::new();
    let named = || consumer(&streams).fleet(crate::FleetOptions::new().instance("pod-7"));
    let (one, other) = (named().build().unwrap(), named().build().unwrap());
    assert_ne!(one.consumer(), other.consumer());
    assert!(one.consumer().starts_with("pod-7-"));
}
