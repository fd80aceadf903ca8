//! Effects that take place once.

use std::{collections::HashMap, sync::Arc};

use super::{
    GROUP, Log, STREAM, consumer, dead_letters,
    faulty::{Fault, Faulty},
    producer, publish, secs, spawn, until, until_settled,
};
use crate::{
    retry::Backoff,
    stream::{Consumer, Event, InProcessStreams, Start},
};

#[tokio::test(start_paused = true)]
async fn copies_of_an_event_take_effect_once() {
    let streams = InProcessStreams::new();
    let orders = producer(&streams).await;
    let event = "1".to_owned();
    for _ in 0..5 {
        orders
            .publish_event(Event::new(&event).id("one"))
            .await
            .unwrap();
    }
    let log = Log::default();
    let seen = log.clone();
    let billing = Arc::new(consumer(&streams).effect_once().build().unwrap());
    let _running = spawn(&billing, move |message| {
        let seen = seen.clone();
        async move {
            tokio::time::sleep(secs(1)).await;
            seen.add(format!("{} {}", message.event(), message.attempt()));
            assert!(message.fence().is_some());
            message.record("billed");
            Ok::<_, String>(())
        }
    });
    until_settled(&streams).await;
    assert_eq!(log.entries(), ["1 1"]);
    let totals = billing.snapshot().totals;
    assert_eq!((totals.replayed, totals.acknowledged), (4, 5));
    assert!(totals.given_back >= 4, "they waited for the first one");
}

#[tokio::test(start_paused = true)]
async fn a_replay_of_the_stream_finds_what_took_effect() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1", "fails", "2"]).await;
    let log = Log::default();
    let seen = log.clone();
    let billing = consumer(&streams).effect_once().max_deliveries(1);
    let billing = Arc::new(billing.build().unwrap());
    let _running = spawn(&billing, move |message| {
        seen.add(message.event());
        let fails = message.event() == "fails";
        async move { if fails { Err("no") } else { Ok(()) } }
    });
    until_settled(&streams).await;
    assert_eq!(log.sorted(), ["1", "2", "fails"]);
    billing.seek(Start::Oldest).await.unwrap();
    until("the failed one is tried again", async || log.len() == 4).await;
    until_settled(&streams).await;
    assert_eq!(log.sorted(), ["1", "2", "fails", "fails"]);
    assert_eq!(billing.snapshot().totals.replayed, 2);
}

#[tokio::test(start_paused = true)]
async fn each_attempt_at_an_effect_has_a_higher_fence() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let log = Log::default();
    let seen = log.clone();
    let billing = consumer(&streams)
        .effect_once()
        .max_deliveries(4)
        .retry(Backoff::fixed(secs(1)));
    let _running = spawn(&Arc::new(billing.build().unwrap()), move |message| {
        seen.add(message.fence().expect("a fence").to_string());
        async { Err::<(), _>("no") }
    });
    until("it is dead", async || {
        dead_letters(&streams).await.len() == 1
    })
    .await;
    let fences: Vec<u64> = log.entries().iter().map(|it| it.parse().unwrap()).collect();
    assert_eq!(fences.len(), 4);
    assert!(fences.is_sorted_by(|one, next| one < next), "{fences:?}");
}

/// What a resource with a fence sees of two consumers, one of which is cut off from the broker: each event once.
#[tokio::test(start_paused = true)]
async fn a_fenced_effect_takes_place_once_although_a_consumer_is_cut_off() {
    let streams = InProcessStreams::new();
    let events: Vec<_> = (0..40).map(|it| it.to_string()).collect();
    let events: Vec<_> = events.iter().map(String::as_str).collect();
    publish(&streams, &events).await;
    // The resource: the highest fence, and how often its writes were accepted, by event.
    let resource = Arc::new(std::sync::Mutex::new(HashMap::<String, (u64, bool)>::new()));
    let (twice, recorded) = (Log::default(), Log::default());
    let mut running = Vec::new();
    for number in 0..3_u64 {
        let faulty = Faulty::new(&streams, move |step, nth| match (step, number, nth % 7) {
            // One loses answers, one is cut off again and again.
            ("settle" | "begin", 1, 2 | 5) => Fault::LoseAnswer,
            ("settle" | "extend", 2, 1 | 3) => Fault::Refuse,
            ("extend", 1, _) => Fault::Hang,
            _ => Fault::None,
        });
        let billing = Consumer::<String>::builder(STREAM, faulty)
            .group(GROUP)
            .effect_once()
            .concurrency(4)
            .lease(secs(2))
            .max_deliveries(100)
            .build()
            .unwrap();
        let (resource, twice, recorded) = (Arc::clone(&resource), twice.clone(), recorded.clone());
        running.push(spawn(&Arc::new(billing), move |message| {
            let (resource, twice) = (Arc::clone(&resource), twice.clone());
            let recorded = recorded.clone();
            async move {
                let fence = message.fence().expect("a fence");
                // First the fence is raised, then there is a long pause, in which the lease may end.
                {
                    let mut resource = resource.lock().unwrap();
                    let (highest, _) = resource.entry(message.event().clone()).or_default();
                    if *highest > fence {
                        return Err("fenced off");
                    }
                    *highest = fence;
                }
                let number: u64 = message.event().parse().unwrap();
                tokio::time::sleep(super::ms(number * 97 % 5_000)).await;
                let mut resource = resource.lock().unwrap();
                let (highest, done) = resource.get_mut(message.event()).expect("raised above");
                if *highest != fence {
                    return Err("fenced off");
                }
                if !*done {
                    *done = true;
                    recorded.add(message.event());
                } else if message.attempt() == 1 {
                    twice.add(message.event());
                }
                Ok(())
            }
        }));
    }
    until_settled(&streams).await;
    assert_eq!(recorded.len(), 40, "none is lost");
    assert_eq!(twice.len(), 0);
    assert!(dead_letters(&streams).await.is_empty());
    drop(running);
}
