//! The end of consumers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use super::{
    GROUP, Log, STREAM, consumer, dead_letters,
    faulty::{Fault, Faulty},
    group, publish, secs, spawn, until, until_settled,
};
use crate::{
    fleet::StillRunning,
    stream::{Consumer, InProcessStreams, Position, StreamBroker},
};

/// A consumer that handles one message for 20 seconds, and holds others.
async fn busy(streams: &InProcessStreams) -> (Arc<Consumer<String>>, Log) {
    publish(streams, &["1", "2", "3", "4"]).await;
    let log = Log::default();
    let seen = log.clone();
    let billing = consumer(streams).concurrency(1).prefetch(4);
    let billing = Arc::new(billing.build().unwrap());
    let running = spawn(&billing, move |message| {
        let seen = seen.clone();
        async move {
            tokio::time::sleep(secs(20)).await;
            seen.add(format!("{} {}", message.event(), message.delivery()));
            Ok::<_, String>(())
        }
    });
    until("all are held", async || group(streams).await.held == 4).await;
    until("one runs", async || billing.snapshot().totals.running == 1).await;
    drop(running);
    (billing, log)
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_gives_back_what_waits_and_ends_what_runs() {
    let streams = InProcessStreams::new();
    let (first, log) = busy(&streams).await;
    let shutdown = tokio::spawn({
        let first = Arc::clone(&first);
        async move { first.shutdown(secs(60)).await }
    });
    until("what waited is back", async || {
        group(&streams).await.waiting == 3
    })
    .await;
    // At once for the next one, and not counted.
    let second = Log::default();
    let seen = second.clone();
    let other = Arc::new(consumer(&streams).build().unwrap());
    let _running = spawn(&other, move |message| {
        seen.add(format!("{} {}", message.event(), message.delivery()));
        async { Ok::<_, String>(()) }
    });
    until("the others are handled", async || second.len() == 3).await;
    assert_eq!(log.len(), 0, "long before the first one is");
    assert_eq!(shutdown.await.unwrap(), Ok(()));
    until_settled(&streams).await;
    assert_eq!(log.entries(), ["1 1"]);
    assert_eq!(second.sorted(), ["2 1", "3 1", "4 1"]);
    let totals = first.snapshot().totals;
    assert_eq!((totals.acknowledged, totals.given_back), (1, 3));
    let consumers = group(&streams).await.consumers;
    assert_eq!(consumers.len(), 1, "the first one has left");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_in_time_is_cancelled_and_comes_again() {
    let streams = InProcessStreams::new();
    let (first, log) = busy(&streams).await;
    assert_eq!(first.shutdown(secs(10)).await, Ok(()));
    assert_eq!(log.len(), 0);
    let group = group(&streams).await;
    assert_eq!((group.held, group.waiting), (0, 4));
    let pending = streams
        .pending(STREAM, GROUP, Position::START, 10)
        .await
        .unwrap();
    assert_eq!(pending[0].deliveries, 1, "it was tried");
    assert_eq!(pending[1].deliveries, 0, "it was not");
    assert!(pending.iter().all(|it| it.left_ms == 0), "{pending:?}");
    assert!(dead_letters(&streams).await.is_empty());
}

/// Dropping the future of `run` is a shutdown too, in the background.
#[tokio::test(start_paused = true)]
async fn a_dropped_run_gives_back_what_waits_and_ends_what_runs() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1", "2", "3"]).await;
    let log = Log::default();
    let seen = log.clone();
    let billing = consumer(&streams)
        .concurrency(1)
        .prefetch(3)
        .build()
        .unwrap();
    let run = billing.run(move |message| {
        let seen = seen.clone();
        async move {
            tokio::time::sleep(secs(20)).await;
            seen.add(message.event());
            Ok::<_, String>(())
        }
    });
    let dropped = tokio::time::timeout(secs(3), run).await;
    assert!(dropped.is_err());
    until("what waited is back", async || {
        group(&streams).await.waiting == 2
    })
    .await;
    until("what ran has ended", async || log.len() == 1).await;
    until("it is settled", async || group(&streams).await.held == 0).await;
    assert_eq!(group(&streams).await.waiting, 2);
}

#[tokio::test(start_paused = true)]
async fn consumers_shut_down_side_by_side() {
    let streams = InProcessStreams::new();
    let (first, log) = busy(&streams).await;
    // One of two consumers; the other one has nothing to do.
    let idle = Arc::new(consumer(&streams).build().unwrap());
    let running = spawn(&idle, |_| async { Ok::<_, String>(()) });
    until("it has joined", async || {
        group(&streams).await.consumers.len() == 2
    })
    .await;
    let within = secs(60);
    let (one, other) = tokio::join!(first.shutdown(within), idle.shutdown(within));
    assert_eq!((one, other), (Ok(()), Ok(())));
    assert_eq!(running.await.unwrap(), Ok(()));
    assert_eq!(log.entries(), ["1 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_does_not_keep_a_shutdown_waiting() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let down = Arc::new(AtomicBool::new(false));
    let is_down = Arc::clone(&down);
    let faulty = Faulty::new(&streams, move |_, _| {
        if is_down.load(SeqCst) {
            Fault::Hang
        } else {
            Fault::None
        }
    });
    let billing = Consumer::<String>::builder(STREAM, faulty)
        .group(GROUP)
        .build()
        .unwrap();
    let billing = Arc::new(billing);
    let running = spawn(&billing, |_| async {
        tokio::time::sleep(secs(5)).await;
        Ok::<_, String>(())
    });
    until("it is held", async || group(&streams).await.held == 1).await;
    down.store(true, SeqCst);
    let began = tokio::time::Instant::now();
    let ended = billing.shutdown(secs(20)).await;
    assert_eq!(ended, Ok::<(), StillRunning>(()));
    assert!(began.elapsed() <= secs(20), "{:?}", began.elapsed());
    assert_eq!(running.await.unwrap(), Ok(()));
}
