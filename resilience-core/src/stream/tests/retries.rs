//! Failed messages: retries, dead letters, poison.

use std::sync::Arc;

use super::{
    GROUP, Log, STREAM, consumer, dead_letters, ms, publish, secs, spawn, until, until_settled,
};
use crate::{
    Error, Verdict, classify,
    retry::Backoff,
    stream::{Event, InProcessStreams, Producer, StreamBroker},
    test_log,
};

#[tokio::test(start_paused = true)]
async fn a_failed_message_comes_again_after_its_backoff_and_others_do_not_wait() {
    let streams = InProcessStreams::new();
    publish(&streams, &["bad", "good"]).await;
    let began = tokio::time::Instant::now();
    let log = Log::default();
    let seen = log.clone();
    let billing = consumer(&streams)
        .concurrency(1)
        .retry(Backoff::exponential(secs(10), secs(60)));
    let _running = spawn(&Arc::new(billing.build().unwrap()), move |message| {
        let (event, delivery) = (message.event().clone(), message.delivery());
        seen.add(format!("{event} {delivery} {}", began.elapsed().as_secs()));
        async move {
            if event == "bad" && delivery < 3 {
                return Err("not yet");
            }
            Ok(())
        }
    });
    until_settled(&streams).await;
    assert_eq!(
        log.entries(),
        ["bad 1 0", "good 1 0", "bad 2 10", "bad 3 30"]
    );
    assert!(dead_letters(&streams).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_backoff_survives_a_restart() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let began = tokio::time::Instant::now();
    let log = Log::default();
    for life in 1..=2 {
        let seen = log.clone();
        let billing = consumer(&streams).retry(Backoff::fixed(secs(100)));
        let billing = Arc::new(billing.build().unwrap());
        let running = spawn(&billing, move |message| {
            seen.add(format!(
                "{} {}",
                message.delivery(),
                began.elapsed().as_secs()
            ));
            async { Err::<(), _>("no") }
        });
        until("it was tried", async || log.len() == life).await;
        until("it is settled", async || {
            billing.snapshot().totals.retried == 1
        })
        .await;
        billing.shutdown(secs(1)).await.unwrap();
        assert_eq!(running.await.unwrap(), Ok(()));
    }
    assert_eq!(log.entries(), ["1 0", "2 100"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_always_fails_is_a_dead_letter_with_its_history() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let listening = test_log::listen();
    let billing = consumer(&streams)
        .max_deliveries(3)
        .retry(Backoff::fixed(secs(1)));
    let billing = Arc::new(billing.build().unwrap());
    let _running = spawn(&billing, |message| async move {
        Err::<(), _>(format!("failure {}", message.delivery()))
    });
    until_settled(&streams).await;
    let letters = dead_letters(&streams).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (&*letters[0].reason, letters[0].deliveries),
        ("failure 3", 3)
    );
    let reasons = letters[0].failures.iter();
    let reasons: Vec<_> = reasons.map(|it| it.reason.as_deref().unwrap()).collect();
    assert_eq!(reasons, ["failure 1", "failure 2", "failure 3"]);
    until("it is counted", async || {
        billing.snapshot().totals.dead == 1
    })
    .await;
    assert_eq!(billing.snapshot().totals.retried, 2);
    let told = listening.events();
    let told: Vec<_> = told
        .iter()
        .filter(|it| it.starts_with("dead letter"))
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("reason=\"failure 3\""), "{told:?}");

    // And back again.
    let redriven = streams.redrive(STREAM, GROUP, &[letters[0].position]).await;
    assert_eq!(redriven, Ok(vec![true]));
    until("it is dead again", async || {
        dead_letters(&streams).await.len() == 1
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_verdict_decides_what_becomes_of_a_message() {
    let streams = InProcessStreams::new();
    publish(&streams, &["permanent", "ignored", "later", "fine"]).await;
    let began = tokio::time::Instant::now();
    let log = Log::default();
    let seen = log.clone();
    let verdict = |error: &String| match error.as_str() {
        "permanent" => Verdict::Permanent,
        "ignored" => Verdict::Ignored,
        _ => Verdict::retry_after(secs(50)),
    };
    let billing = consumer(&streams)
        .retry(Backoff::fixed(ms(1)))
        .classify(classify::errors(verdict))
        .build()
        .unwrap();
    let billing = Arc::new(billing);
    let running = tokio::spawn(async move {
        let run = billing.run(move |message| {
            seen.add(format!("{} {}", message.event(), began.elapsed().as_secs()));
            let event = message.event().clone();
            let fails = event != "fine" && message.delivery() == 1;
            async move { if fails { Err(event) } else { Ok(()) } }
        });
        run.await
    });
    until_settled(&streams).await;
    assert_eq!(
        log.sorted(),
        ["fine 0", "ignored 0", "later 0", "later 50", "permanent 0"]
    );
    let letters = dead_letters(&streams).await;
    let reasons: Vec<_> = letters.iter().map(|it| &*it.reason).collect();
    assert_eq!(reasons, ["permanent", "ignored"]);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_response_can_be_a_failure() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let billing = consumer(&streams)
        .classify(classify::results(|_: Result<&(), &Error<String>>| {
            Verdict::Permanent
        }))
        .build()
        .unwrap();
    let running = tokio::spawn(async move { billing.run(|_| async { Ok(()) }).await });
    until_settled(&streams).await;
    let letters = dead_letters(&streams).await;
    assert!(letters[0].reason.contains("classified as a failure"));
    running.abort();
}

/// A payload that cannot be read, a schema from the future, and a handler that panics, among good ones.
#[tokio::test(start_paused = true)]
async fn poison_is_one_message_s_problem() {
    let streams = InProcessStreams::new();
    let numbers = Producer::<u64>::builder(STREAM, streams.clone())
        .build()
        .unwrap();
    numbers.publish("", &7).await.unwrap();
    let future = Producer::<String>::builder(STREAM, streams.clone())
        .schema(9)
        .build()
        .unwrap();
    future.publish("", &"future".to_owned()).await.unwrap();
    publish(&streams, &["panic", "good"]).await;
    let log = Log::default();
    let seen = log.clone();
    let billing = consumer(&streams)
        .concurrency(1)
        .schemas(0..=8)
        .max_deliveries(2)
        .retry(Backoff::fixed(secs(1)));
    let _running = spawn(&Arc::new(billing.build().unwrap()), move |message| {
        let seen = seen.clone();
        async move {
            assert_ne!(message.event(), "panic");
            seen.add(message.event());
            Ok::<_, String>(())
        }
    });
    until_settled(&streams).await;
    assert_eq!(log.entries(), ["good"]);
    let letters = dead_letters(&streams).await;
    let reasons: Vec<_> = letters.iter().map(|it| &*it.reason).collect();
    assert!(reasons[0].starts_with("unreadable: "), "{reasons:?}");
    assert_eq!(reasons[1], "of schema 9; this consumer reads 0 to 8");
    assert_eq!(reasons[2], "the handler panicked");
    let deliveries: Vec<_> = letters.iter().map(|it| it.deliveries).collect();
    assert_eq!(deliveries, [1, 1, 2]);
}

/// A lane, a part of the application, panics too.
#[tokio::test(start_paused = true)]
async fn a_lane_that_panics_does_not_end_the_consumer() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1", "2"]).await;
    let log = Log::default();
    let seen = log.clone();
    let billing = consumer(&streams).lanes(|_| panic!("a lane"));
    let _running = spawn(&Arc::new(billing.build().unwrap()), move |message| {
        seen.add(message.event());
        async { Ok::<_, String>(()) }
    });
    until("both are handled", async || log.len() == 2).await;
}

/// A message that kills its process each time is not delivered forever.
#[tokio::test(start_paused = true)]
async fn a_message_whose_consumers_die_ends_as_a_dead_letter() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    for number in 1..=3 {
        let join = crate::stream::Join {
            consumer: format!("dies-{number}").into(),
            lease_ms: 1_000,
            start: crate::stream::Start::Oldest,
            resume: None,
            keep_ms: 3_600_000,
        };
        streams.join(STREAM, GROUP, &join).await.unwrap();
        let consumer = &*join.consumer;
        let read = crate::stream::Read {
            streams: &[STREAM],
            consumer,
            max: 1,
            block_ms: 0,
        };
        let claim = crate::stream::Claim { consumer, max: 1 };
        let read = streams.read(GROUP, read).await.unwrap().deliveries.len();
        let claimed = streams.claim(STREAM, GROUP, claim).await.unwrap();
        assert_eq!(read + claimed.deliveries.len(), 1);
        tokio::time::advance(secs(2)).await;
    }
    let log = Log::default();
    let seen = log.clone();
    let billing = consumer(&streams).max_deliveries(3);
    let _running = spawn(&Arc::new(billing.build().unwrap()), move |message| {
        seen.add(message.event());
        async { Ok::<_, String>(()) }
    });
    until("it is dead", async || {
        dead_letters(&streams).await.len() == 1
    })
    .await;
    assert_eq!(log.len(), 0);
    let letter = dead_letters(&streams).await.remove(0);
    assert!(
        letter.reason.contains("not settled in 3 deliveries"),
        "{letter:?}"
    );
    let ended = letter.failures.iter().filter(|it| it.reason.is_none());
    assert_eq!(ended.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_trimmed_while_it_waited_is_a_dead_letter_without_its_event() {
    let streams = InProcessStreams::new();
    let orders = super::producer(&streams).await;
    let event = "1".to_owned();
    orders.publish_event(Event::new(&event)).await.unwrap();
    let billing = consumer(&streams).retry(Backoff::fixed(secs(60)));
    let billing = Arc::new(billing.build().unwrap());
    let _running = spawn(&billing, |_| async { Err::<(), _>("no") });
    until("it waits", async || {
        super::group(&streams).await.waiting == 1
    })
    .await;
    let nothing = crate::stream::Retention {
        max_age_ms: None,
        max_length: Some(0),
        settled: None,
        keep_ms: 1,
    };
    streams.trim(STREAM, &nothing).await.unwrap();
    until("it is dead", async || {
        dead_letters(&streams).await.len() == 1
    })
    .await;
    let letter = dead_letters(&streams).await.remove(0);
    assert_eq!(letter.message, None);
    assert!(
        letter.reason.starts_with("no longer in the stream"),
        "{letter:?}"
    );
}
