//! Brokers that fail, and leases that are lost.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use super::{
    GROUP, Log, STREAM, consumer, dead_letters,
    faulty::{Fault, Faulty},
    group, ms, publish, secs, spawn, until, until_settled,
};
use crate::{
    stream::{Consumer, InProcessStreams},
    test_log,
};

#[tokio::test(start_paused = true)]
async fn a_settlement_whose_answer_is_lost_is_done_once() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1", "2"]).await;
    let faulty = Faulty::new(&streams, |step, number| match (step, number) {
        ("settle", 1) => Fault::Refuse,
        ("settle", 2) => Fault::LoseAnswer,
        _ => Fault::None,
    });
    let log = Log::default();
    let seen = log.clone();
    let billing = Consumer::<String>::builder(STREAM, faulty)
        .group(GROUP)
        .build()
        .unwrap();
    let billing = Arc::new(billing);
    let _running = spawn(&billing, move |message| {
        seen.add(message.event());
        async { Ok::<_, String>(()) }
    });
    until("both are counted", async || {
        billing.snapshot().totals.acknowledged == 2
    })
    .await;
    until_settled(&streams).await;
    assert_eq!(log.sorted(), ["1", "2"]);
    assert_eq!(billing.snapshot().totals.lost, 0);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_for_a_while_loses_nothing() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let down = Arc::new(AtomicBool::new(false));
    let is_down = Arc::clone(&down);
    let faulty = Faulty::new(&streams, move |_, number| match number % 2 {
        _ if !is_down.load(SeqCst) => Fault::None,
        0 => Fault::Hang,
        _ => Fault::Refuse,
    });
    let log = Log::default();
    let seen = log.clone();
    let billing = Consumer::<String>::builder(STREAM, faulty)
        .group(GROUP)
        .build()
        .unwrap();
    let billing = Arc::new(billing);
    let _running = spawn(&billing, move |message| {
        seen.add(message.event());
        async { Ok::<_, String>(()) }
    });
    until("it runs", async || log.len() == 1).await;
    let listening = test_log::listen();
    down.store(true, SeqCst);
    publish(&streams, &["2"]).await;
    until("the outage is noticed", async || {
        !billing.snapshot().available
    })
    .await;
    tokio::time::sleep(secs(300)).await;
    down.store(false, SeqCst);
    until("it goes on", async || log.len() >= 2).await;
    until_settled(&streams).await;
    // The second one may have been given to it just before.
    assert_eq!(log.entries()[..2], ["1", "2"]);
    let told = listening.events();
    let of_store = |what: &str| told.iter().filter(|it| it.starts_with(what)).count();
    assert_eq!(
        (of_store("store unavailable"), of_store("store available")),
        (1, 1),
        "{told:?}"
    );
}

/// A consumer that is cut off while it handles a message: another one takes over, and what the first one says is refused.
#[tokio::test(start_paused = true)]
async fn a_zombie_is_told_and_changes_nothing() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let cut_off = Arc::new(AtomicBool::new(false));
    let is_cut_off = Arc::clone(&cut_off);
    let faulty = Faulty::new(&streams, move |_, _| {
        if is_cut_off.load(SeqCst) {
            Fault::Hang
        } else {
            Fault::None
        }
    });
    let listening = test_log::listen();
    let log = Log::default();
    let zombie = Consumer::<String>::builder(STREAM, faulty)
        .group(GROUP)
        .lease(secs(5))
        .build()
        .unwrap();
    let zombie = Arc::new(zombie);
    let (seen, cut) = (log.clone(), Arc::clone(&cut_off));
    let _running = spawn(&zombie, move |message| {
        let (seen, cut) = (seen.clone(), Arc::clone(&cut));
        async move {
            cut.store(true, SeqCst);
            assert!(!message.is_lost());
            while !message.is_lost() {
                tokio::time::sleep(ms(5)).await;
            }
            seen.add("the zombie knows");
            while seen.len() < 2 {
                tokio::time::sleep(ms(5)).await;
            }
            cut.store(false, SeqCst);
            Ok::<_, String>(())
        }
    });
    until("it is held", async || group(&streams).await.held == 1).await;
    until("it is cut off", async || cut_off.load(SeqCst)).await;
    let (seen, other) = (log.clone(), Arc::new(consumer(&streams).build().unwrap()));
    let _other = spawn(&other, move |message| {
        seen.add(format!("delivery {}", message.delivery()));
        async { Ok::<_, String>(()) }
    });
    until_settled(&streams).await;
    until("the zombie is back", async || {
        zombie.snapshot().totals.running == 0
    })
    .await;
    assert_eq!(log.sorted(), ["delivery 2", "the zombie knows"]);
    assert_eq!(zombie.snapshot().totals.leases_lost, 1);
    assert_eq!(zombie.snapshot().totals.acknowledged, 0);
    assert_eq!(other.snapshot().totals.acknowledged, 1);
    let told = listening.events();
    assert!(
        told.iter().any(|it| it.starts_with("leases lost")),
        "{told:?}"
    );
}

/// Its lease ends, and the message comes back to the same process while it still runs there.
#[tokio::test(start_paused = true)]
async fn a_message_that_comes_back_to_its_own_consumer_is_not_run_twice_at_once() {
    let streams = InProcessStreams::new();
    publish(&streams, &["1"]).await;
    let faulty = Faulty::new(&streams, |step, number| match (step, number) {
        ("extend", 1..=30) => Fault::Refuse,
        _ => Fault::None,
    });
    let billing = Consumer::<String>::builder(STREAM, faulty)
        .group(GROUP)
        .lease(secs(3))
        .effect_once()
        .build()
        .unwrap();
    let billing = Arc::new(billing);
    let (runs, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (at_once, highest) = (Arc::clone(&runs), Arc::clone(&most));
    let _running = spawn(&billing, move |_| {
        let (at_once, highest) = (Arc::clone(&at_once), Arc::clone(&highest));
        async move {
            highest.fetch_max(at_once.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::time::sleep(secs(20)).await;
            at_once.fetch_sub(1, SeqCst);
            Ok::<_, String>(())
        }
    });
    until_settled(&streams).await;
    assert_eq!(most.load(SeqCst), 1);
    assert!(billing.snapshot().totals.leases_lost > 0);
    assert!(billing.snapshot().totals.redelivered > 0);
    assert_eq!(billing.snapshot().totals.acknowledged, 1);
    assert!(dead_letters(&streams).await.is_empty());
}

/// No step that fails once, whichever, loses a message or hangs the consumer.
#[tokio::test(start_paused = true)]
async fn any_step_may_fail_in_any_way_and_every_message_is_handled() {
    for failing in ["join", "read", "claim", "extend", "begin", "settle"] {
        for fault in [Fault::Refuse, Fault::LoseAnswer, Fault::Hang] {
            let streams = InProcessStreams::new();
            publish(&streams, &["a:1", "a:2", "b:3", "4", "5"]).await;
            let faulty = Faulty::new(&streams, move |step, number| {
                if step == failing && number % 3 == 1 {
                    fault
                } else {
                    Fault::None
                }
            });
            let log = Log::default();
            let seen = log.clone();
            let billing = Consumer::<String>::builder(STREAM, faulty)
                .group(GROUP)
                .concurrency(2)
                .lanes(|it| it.key.clone())
                .lease(secs(5))
                .max_deliveries(50)
                .effect_once()
                .build()
                .unwrap();
            let billing = Arc::new(billing);
            let running = spawn(&billing, move |message| {
                let seen = seen.clone();
                async move {
                    tokio::time::sleep(ms(700)).await;
                    seen.add(message.event());
                    Ok::<_, String>(())
                }
            });
            until_settled(&streams).await;
            let mut handled = log.sorted();
            handled.dedup();
            assert_eq!(
                handled,
                ["4", "5", "a:1", "a:2", "b:3"],
                "{failing} {fault:?}"
            );
            assert!(dead_letters(&streams).await.is_empty());
            assert_eq!(
                billing.shutdown(secs(30)).await,
                Ok(()),
                "{failing} {fault:?}"
            );
            assert_eq!(running.await.unwrap(), Ok(()));
        }
    }
}
