//! Groups and streams that are lost.

use std::sync::Arc;

use super::{GROUP, Log, STREAM, consumer, group, publish, secs, spawn, until, until_settled};
use crate::{
    stream::{ConsumeError, InProcessStreams, OnLoss, StreamBroker},
    test_log,
};

#[tokio::test(start_paused = true)]
async fn a_group_that_was_lost_goes_on_where_it_was() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1", "2"]).await;
    let listening = test_log::listen();
    let log = Log::default();
    let seen = log.clone();
    let billing = Arc::new(consumer(&streams).build().unwrap());
    let _running = spawn(&billing, move |message| {
        seen.add(message.event());
        async { Ok::<_, String>(()) }
    });
    until_settled(&streams).await;
    assert_eq!(streams.remove_group(STREAM, GROUP).await, Ok(true));
    publish(&streams, &["3"]).await;
    until("it goes on", async || log.len() == 3).await;
    until_settled(&streams).await;
    assert_eq!(
        log.entries(),
        ["1", "2", "3"],
        "neither from the start nor with a gap"
    );
    assert_eq!(billing.snapshot().totals.losses, 1);
    let told = listening.events();
    let told: Vec<_> = told
        .iter()
        .filter(|it| it.starts_with("group lost"))
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("resumed=\"after "), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_lost_is_read_from_its_new_beginning() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let log = Log::default();
    let seen = log.clone();
    let billing = consumer(&streams).start(crate::stream::Start::Next);
    let billing = Arc::new(billing.build().unwrap());
    let _running = spawn(&billing, move |message| {
        seen.add(message.event());
        async { Ok::<_, String>(()) }
    });
    until("it has joined", async || {
        !group(&streams).await.group.is_empty()
    })
    .await;
    streams.flush();
    // Before the consumer notices.
    publish(&streams, &["2", "3"]).await;
    until("it goes on", async || log.len() == 2).await;
    assert_eq!(log.entries(), ["2", "3"]);
    until("it is counted", async || {
        billing.snapshot().totals.losses == 1
    })
    .await;
}

/// Another consumer has created the group again, in a new stream.
#[tokio::test(start_paused = true)]
async fn each_consumer_notices_a_stream_that_was_lost() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let log = Log::default();
    let consumers: Vec<_> = (0..3)
        .map(|_| Arc::new(consumer(&streams).build().unwrap()))
        .collect();
    let mut running = Vec::new();
    for billing in &consumers {
        let seen = log.clone();
        running.push(spawn(billing, move |message| {
            let seen = seen.clone();
            async move {
                tokio::time::sleep(secs(1)).await;
                seen.add(message.event());
                Ok::<_, String>(())
            }
        }));
    }
    until_settled(&streams).await;
    streams.flush();
    publish(&streams, &["2", "3"]).await;
    until("they go on", async || log.len() == 3).await;
    until("all have noticed", async || {
        consumers.iter().all(|it| it.snapshot().totals.losses == 1)
    })
    .await;
    until_settled(&streams).await;
    assert_eq!(log.sorted(), ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn a_consumer_stops_at_a_loss_if_it_is_to() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let billing = Arc::new(consumer(&streams).on_loss(OnLoss::Stop).build().unwrap());
    let running = spawn(&billing, |_| async { Ok::<_, String>(()) });
    until_settled(&streams).await;
    streams.flush();
    publish(&streams, &["2"]).await;
    assert_eq!(running.await.unwrap(), Err(ConsumeError::Lost));
}

#[tokio::test(start_paused = true)]
async fn what_was_trimmed_before_it_was_delivered_is_told() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1", "2", "3"]).await;
    streams
        .seek(STREAM, GROUP, crate::stream::Start::Oldest)
        .await
        .unwrap();
    let one = crate::stream::Retention {
        max_age_ms: None,
        max_length: Some(1),
        settled: None,
        keep_ms: 1,
    };
    streams.trim(STREAM, &one).await.unwrap();
    let billing = Arc::new(consumer(&streams).build().unwrap());
    let _running = spawn(&billing, |_| async { Ok::<_, String>(()) });
    until("it is known", async || {
        billing.snapshot().totals.skipped == 2
    })
    .await;
    until_settled(&streams).await;
    assert_eq!(billing.snapshot().totals.acknowledged, 1);
}
