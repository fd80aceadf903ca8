//! Calls that are dropped before they end.

use tokio::time::advance;

use super::*;
use crate::{
    breaker::{Dropped, State},
    deadline::{self, Deadline},
};

async fn drop_after(service: &mut Guarded, time: Duration) {
    let response = service.ready().await.unwrap().call(Do::Hang);
    drop(tokio::time::timeout(time, response).await);
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_young_says_nothing_and_one_dropped_old_has_failed() {
    let breaker = builder().build().unwrap();
    let (mut service, _) = guarded(&breaker);
    drop_after(&mut service, SECOND / 2).await;
    assert_eq!(counts(&breaker.snapshot()), (0, 0));
    drop_after(&mut service, SECOND).await;
    assert_eq!(counts(&breaker.snapshot()), (1, 1));
    assert_eq!(breaker.snapshot().totals.ignored, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_before_it_was_ever_waited_for_says_nothing() {
    let breaker = builder().build().unwrap();
    let (mut service, _) = guarded(&breaker);
    let response = service.ready().await.unwrap().call(Do::Hang);
    advance(60 * SECOND).await;
    drop(response);
    assert_eq!(counts(&breaker.snapshot()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn dropped_calls_can_be_ignored_or_count_as_slow() {
    let breaker = builder().dropped(Dropped::Ignored).build().unwrap();
    let (mut service, _) = guarded(&breaker);
    drop_after(&mut service, 60 * SECOND).await;
    assert_eq!(counts(&breaker.snapshot()), (0, 0));

    let slow = builder()
        .slow_calls(10 * SECOND, 1.0)
        .dropped(Dropped::SlowAfter(SECOND));
    let breaker = slow.build().unwrap();
    let (mut service, _) = guarded(&breaker);
    drop_after(&mut service, SECOND / 2).await;
    drop_after(&mut service, SECOND).await;
    let snapshot = breaker.snapshot();
    assert_eq!((counts(&snapshot), snapshot.counts.slow), ((1, 0), 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_past_its_deadline_has_failed_whatever_the_policy() {
    let breaker = builder().dropped(Dropped::Ignored).build().unwrap();
    let (mut service, _) = guarded(&breaker);
    let response = service.ready().await.unwrap().call(Do::Hang);
    let soon = Deadline::after(SECOND / 10);
    deadline::scope(soon, async move {
        drop(tokio::time::timeout(SECOND / 10, response).await);
    })
    .await;
    assert_eq!(counts(&breaker.snapshot()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_acquired_by_hand_has_its_age_from_then_on() {
    let breaker = builder().build().unwrap();
    let young = breaker.acquire().unwrap();
    drop(young);
    let old = breaker.acquire().unwrap();
    advance(SECOND).await;
    drop(old);
    assert_eq!(counts(&breaker.snapshot()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_first_word_on_a_call_counts() {
    let breaker = builder().build().unwrap();
    let mut call = breaker.acquire().unwrap();
    call.settle(Verdict::Success);
    call.settle(Verdict::transient());
    advance(60 * SECOND).await;
    drop(call);
    assert_eq!(counts(&breaker.snapshot()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_probe_dropped_young_is_given_back_and_one_dropped_old_has_failed() {
    let breaker = builder().half_open(HalfOpen::probes(1)).build().unwrap();
    let (mut service, _) = guarded(&breaker);
    trip(&breaker);
    advance(5 * SECOND).await;
    drop_after(&mut service, SECOND / 2).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    drop_after(&mut service, SECOND).await;
    assert_eq!(breaker.state(), State::Open);
}
