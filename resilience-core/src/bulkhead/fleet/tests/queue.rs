//! Calls that wait.

use std::sync::atomic::AtomicUsize;

use tokio::time::{Instant, timeout};

use super::*;
use crate::deadline;

fn queueing(store: &Faulty, places: usize, length: usize) -> FleetBulkhead {
    of(store, places).queue(length, LEASE / 2).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_served_in_order_and_called_up_rather_than_asking() {
    let store = Faulty::default();
    let bulkhead = queueing(&store, 1, 10);
    let mut held = bulkhead.acquire(1).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..5 {
        let (bulkhead, order) = (bulkhead.clone(), Arc::clone(&order));
        tasks.push(tokio::spawn(async move {
            let permit = bulkhead.acquire(1).await.unwrap();
            order.lock().unwrap().push(number);
            permit
        }));
        settle().await;
    }
    assert_eq!(bulkhead.snapshot().waiting, 5);
    for task in tasks {
        drop(held);
        held = task.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
    let took = begun.elapsed();
    assert!(took < ms(60), "{took:?}: no call had to wait for a poll");
}

#[tokio::test(start_paused = true)]
async fn instances_take_turns_however_many_wait_in_each() {
    let store = Faulty::default();
    let (busy, idle) = (queueing(&store, 1, 100), queueing(&store, 1, 100));
    let held = busy.acquire(1).await.unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    for _ in 0..50 {
        let (busy, served) = (busy.clone(), Arc::clone(&served));
        tokio::spawn(async move {
            let _permit = busy.acquire(1).await.unwrap();
            tokio::time::sleep(ms(20)).await;
            served.fetch_add(1, SeqCst);
        });
    }
    settle().await;
    let waits = tokio::spawn({
        let idle = idle.clone();
        async move { idle.acquire(1).await.unwrap() }
    });
    settle().await;
    drop(held);
    drop(waits.await.unwrap());
    let before = served.load(SeqCst);
    assert!(before <= 2, "{before} of the crowd came first");
}

#[tokio::test(start_paused = true)]
async fn a_queue_has_two_bounds_and_leaves_nothing_behind() {
    let store = Faulty::default();
    let bulkhead = queueing(&store, 1, 2);
    let _held = bulkhead.acquire(1).await.unwrap();
    let begun = Instant::now();
    let wait = || {
        let bulkhead = bulkhead.clone();
        tokio::spawn(async move { bulkhead.acquire(1).await })
    };
    let (first, second) = (wait(), wait());
    settle().await;
    let asked = store.asked()[0];
    assert_eq!(reason(bulkhead.acquire(1).await), Reason::Full);
    assert_eq!(store.asked()[0], asked, "turned away without a round trip");
    assert_eq!(reason(first.await.unwrap()), Reason::QueueTimedOut);
    assert_eq!(reason(second.await.unwrap()), Reason::QueueTimedOut);
    assert!(begun.elapsed() < LEASE / 2 + ms(10));
    settle().await;
    assert_eq!(store.view("reports").await.unwrap().waiting, 0);
    assert_eq!(bulkhead.snapshot().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_just_before_the_deadline_and_says_why() {
    let store = Faulty::default();
    let bulkhead = queueing(&store, 1, 2);
    let _held = bulkhead.acquire(1).await.unwrap();
    let deadline = deadline::Deadline::after(ms(50));
    let begun = Instant::now();
    let result = deadline::scope(deadline, bulkhead.acquire(1)).await;
    assert_eq!(reason(result), Reason::QueueTimedOut);
    assert!(begun.elapsed() < ms(50));
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_in_the_queue_lets_those_behind_move_up() {
    let store = Faulty::default();
    let (one, other) = (queueing(&store, 2, 4), queueing(&store, 2, 4));
    let _held = one.acquire(1).await.unwrap();
    assert!(timeout(ms(50), one.acquire(2)).await.is_err());
    assert!(timeout(ms(50), other.acquire(1)).await.unwrap().is_ok());
    assert_eq!(one.snapshot().waiting, 0);
}

/// Pushes get lost: then it takes a poll, not forever.
#[tokio::test(start_paused = true)]
async fn places_of_a_holder_that_died_come_to_who_waits() {
    let store = Faulty::default();
    let dead = FleetBulkhead::builder("reports")
        .store(store.clone())
        .max_concurrent(1)
        .lease(ms(1_000))
        .build()
        .unwrap();
    settle().await;
    let request = AcquireRequest {
        lease: "dead".into(),
        cost: 1,
        limit: 1,
        lease_ms: 1_000,
        ticket_ms: 0,
        releases: Vec::new(),
    };
    store.acquire("reports", &request).await.unwrap();
    drop(dead);
    let bulkhead = queueing(&store, 1, 2);
    let begun = Instant::now();
    let permit = bulkhead.acquire(1).await.unwrap();
    let took = begun.elapsed();
    assert!((ms(900)..ms(1_100)).contains(&took), "{took:?}");
    drop(permit);
}

#[tokio::test(start_paused = true)]
async fn the_policy_for_an_outage_holds_for_those_who_wait_too() {
    for (policy, expected) in [
        (OnOutage::FailOpen, None),
        (OnOutage::FailClosed, Some(Reason::StoreUnreachable)),
        (OnOutage::Local, Some(Reason::QueueTimedOut)),
    ] {
        let store = Faulty::default();
        let bulkhead = of(&store, 1)
            .queue(4, LEASE / 2)
            .fleet(on_outage(policy))
            .build()
            .unwrap();
        // So that its share is known.
        tokio::time::sleep(2 * LEASE).await;
        let held = bulkhead.acquire(1).await.unwrap();
        let waits = tokio::spawn({
            let bulkhead = bulkhead.clone();
            async move { bulkhead.acquire(1).await }
        });
        settle().await;
        store.set(Mode::Down);
        let result = waits.await.unwrap();
        assert_eq!(result.err().map(|no| no.reason()), expected, "{policy:?}");
        drop(held);
    }
}
