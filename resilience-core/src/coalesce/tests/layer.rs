use std::time::Duration;

use tokio::time::timeout;
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{Layer as _, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer};

use super::{Response, Upstream, digit};
use crate::{
    CircuitBreaker, Coalesce, Rejected, Timeout,
    error::{Error, Reason},
};

const MILLIS: Duration = Duration::from_millis(1);

fn coalesce() -> Coalesce<u32, u32, Error<&'static str>> {
    Coalesce::builder("test").build().unwrap()
}

#[test]
fn requests_of_one_key_share_one_call_and_others_are_called_by_themselves() {
    let (upstream, coalesce) = (Upstream::new(|number| Ok(number as u32)), coalesce());
    let service = coalesce.layer(digit).layer(upstream.clone());
    let requests = [1, 1, 1, 2, 77, 77];
    let mut calls = requests.map(|request| task::spawn(service.clone().oneshot(request)));
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    let snapshot = coalesce.snapshot();
    assert_eq!((snapshot.started, snapshot.joined), (2, 2));
    assert_eq!((snapshot.in_progress, snapshot.waiting), (2, 4));
    upstream.let_end(4);
    let answers = calls.map(|mut call| assert_ready_ok!(call.poll()));
    assert_eq!(answers, [1, 1, 1, 2, 3, 4]);
    let snapshot = coalesce.snapshot();
    assert_eq!((snapshot.in_progress, snapshot.waiting), (0, 0));
}

#[test]
fn identities_in_the_key_never_share() {
    let upstream = Upstream::new(|number| Ok(number as u32));
    let coalesce: Coalesce<(u32, &str), _, _> = Coalesce::builder("test").build().unwrap();
    let layer = |user: &'static str| coalesce.layer(move |page: &u32| Some((*page, user)));
    let mut of_ann = task::spawn(layer("ann").layer(upstream.clone()).oneshot(1));
    let mut of_bob = task::spawn(layer("bob").layer(upstream.clone()).oneshot(1));
    assert_pending!(of_ann.poll());
    assert_pending!(of_bob.poll());
    upstream.let_end(2);
    assert_eq!(assert_ready_ok!(of_ann.poll()), 1);
    assert_eq!(assert_ready_ok!(of_bob.poll()), 2);
}

#[test]
fn a_leader_that_is_dropped_leaves_its_call_to_those_that_joined_it() {
    let (upstream, coalesce) = (Upstream::new(|number| Ok(number as u32)), coalesce());
    let service = coalesce.layer(digit).layer(upstream.clone());
    let mut calls = [1; 3].map(|request| Some(task::spawn(service.clone().oneshot(request))));
    for call in calls.iter_mut().flatten() {
        assert_pending!(call.poll());
    }
    calls[0] = None;
    calls[1] = None;
    upstream.let_end(1);
    let last = calls[2].as_mut().unwrap();
    assert!(last.is_woken());
    assert_eq!((assert_ready_ok!(last.poll()), upstream.calls()), (1, 1));
}

#[test]
fn a_fresh_request_joins_no_call_in_progress_and_is_joined_by_later_ones() {
    let (upstream, coalesce) = (Upstream::new(|number| Ok(number as u32)), coalesce());
    // Requests above five are fresh reads of what five less is.
    let layer = coalesce.layer(|request: &u32| Some(request % 5));
    let layer = layer.fresh(|request: &u32| *request >= 5);
    let service = layer.layer(upstream.clone());
    let mut calls = [1, 6, 1].map(|request| task::spawn(service.clone().oneshot(request)));
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    upstream.let_end(2);
    let answers = calls.map(|mut call| assert_ready_ok!(call.poll()));
    assert_eq!(answers, [1, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn callers_that_wait_hold_nothing_of_the_inner_service() {
    let (upstream, coalesce) = (Upstream::new(|number| Ok(number as u32)), coalesce());
    let limited = ServiceBuilder::new()
        .layer(coalesce.layer(digit))
        .layer(ConcurrencyLimitLayer::new(2))
        .service(upstream.clone());
    let mut shared = [1; 10].map(|request| task::spawn(limited.clone().oneshot(request)));
    for call in &mut shared {
        assert_pending!(call.poll());
    }
    // One place is left, and the ten leave it to another key.
    let mut other = task::spawn(limited.clone().oneshot(2));
    assert_pending!(other.poll());
    assert_eq!(upstream.calls(), 2);
    // A third one waits for a place, and is driven to readiness by its callers.
    let mut third = [3; 2].map(|request| task::spawn(limited.clone().oneshot(request)));
    let mut without = task::spawn(limited.clone().oneshot(77));
    for call in third.iter_mut().chain([&mut without]) {
        assert_pending!(call.poll());
    }
    assert_eq!(upstream.calls(), 2);
    upstream.let_end(4);
    for mut call in shared {
        assert_eq!(timeout(MILLIS, &mut *call).await, Ok(Ok(1)));
    }
    assert_eq!(timeout(MILLIS, &mut *other).await, Ok(Ok(2)));
    assert_eq!(timeout(MILLIS, &mut *without).await, Ok(Ok(3)));
    for mut call in third {
        assert_eq!(timeout(MILLIS, &mut *call).await, Ok(Ok(4)));
    }
    assert_eq!(coalesce.snapshot().in_progress, 0);
}

#[tokio::test(start_paused = true)]
async fn each_caller_leaves_at_its_own_deadline_and_the_others_are_answered() {
    let (upstream, coalesce) = (Upstream::new(|number| Ok(number as u32)), coalesce());
    let around = |after| {
        ServiceBuilder::new()
            .layer(Timeout::new("caller", after).unwrap().layer())
            .layer(coalesce.layer(digit))
            .service(upstream.clone())
    };
    let short = tokio::spawn(around(10 * MILLIS).oneshot(1));
    tokio::task::yield_now().await;
    let long = tokio::spawn(around(1000 * MILLIS).oneshot(1));
    let began = tokio::time::Instant::now();
    let ended = short.await.unwrap().unwrap_err();
    assert_eq!(
        ended.rejected().map(Rejected::reason),
        Some(Reason::TimedOut)
    );
    assert_eq!(began.elapsed(), 10 * MILLIS);
    upstream.let_end(1);
    assert_eq!(long.await.unwrap(), Ok(1));
    assert_eq!(upstream.calls(), 1);
}

/// The calls of a short and of a long caller, with a timeout inside that reads the deadline when it is called.
async fn short_and_long(coalesce: Coalesce<u32, u32, Error<&'static str>>) -> (Response, usize) {
    let upstream = Upstream::new(|number| Ok(number as u32));
    let around = |after| {
        ServiceBuilder::new()
            .layer(Timeout::new("caller", after).unwrap().layer())
            .layer(coalesce.layer(digit))
            .layer(Timeout::new("attempt", 1000 * MILLIS).unwrap().layer())
            .service(upstream.clone())
    };
    let short = tokio::spawn(around(10 * MILLIS).oneshot(1));
    tokio::task::yield_now().await;
    let long = tokio::spawn(around(1000 * MILLIS).oneshot(1));
    assert!(short.await.unwrap().is_err());
    tokio::time::advance(10 * MILLIS).await;
    upstream.let_end(2);
    (long.await.unwrap(), upstream.calls())
}

#[tokio::test(start_paused = true)]
async fn a_timeout_below_that_was_another_callers_does_not_fail_those_with_more_time() {
    let (answer, calls) = short_and_long(coalesce()).await;
    assert_eq!((answer, calls), (Ok(2), 2));
}

#[tokio::test(start_paused = true)]
async fn with_a_minimum_of_time_the_first_call_answers_them() {
    let coalesce = Coalesce::builder("test").min_time(1000 * MILLIS);
    let (answer, calls) = short_and_long(coalesce.build().unwrap()).await;
    assert_eq!((answer, calls), (Ok(1), 1));
}

#[test]
fn layers_below_see_one_call_of_many_callers() {
    let (upstream, coalesce) = (Upstream::new(|number| Ok(number as u32)), coalesce());
    let breaker = CircuitBreaker::builder("below").build().unwrap();
    let service = ServiceBuilder::new()
        .layer(coalesce.layer(digit))
        .layer(breaker.layer())
        .service(upstream.clone());
    let mut calls: Vec<_> = (0..100)
        .map(|_| task::spawn(service.clone().oneshot(1)))
        .collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    upstream.let_end(1);
    for call in &mut calls {
        assert_ready_ok!(call.poll());
    }
    assert_eq!(breaker.snapshot().totals.successes, 1);
}

#[tokio::test(start_paused = true)]
async fn closures_share_as_requests_do() {
    let coalesce: Coalesce<&str, u32, &str> = Coalesce::builder("test").build().unwrap();
    let slow = |result| async move {
        tokio::time::sleep(MILLIS).await;
        Ok(result)
    };
    let one = coalesce.run("a", || slow(1));
    let joins = coalesce.run("a", || slow(2));
    let fresh = coalesce.run_fresh("a", || slow(3));
    let (one, joins, fresh) = tokio::join!(one, joins, fresh);
    assert_eq!((one, joins, fresh), (Ok(1), Ok(1), Ok(3)));

    let mut before = task::spawn(coalesce.run("a", || slow(4)));
    assert_pending!(before.poll());
    coalesce.forget(&"a");
    assert_eq!(coalesce.run("a", || slow(5)).await, Ok(5));
    assert_eq!(assert_ready!(before.poll()), Ok(4));
}

#[test]
fn limits_of_zero_are_refused() {
    type Builder = super::super::CoalesceBuilder<u32, u32, ()>;
    type Change = fn(Builder) -> Builder;
    let refused: [(&str, Change); 3] = [
        ("max_age", |it| it.max_age(Duration::ZERO)),
        ("max_waiters", |it| it.max_waiters(0)),
        ("min_time", |it| it.min_time(Duration::ZERO)),
    ];
    for (field, set) in refused {
        let builder = set(Coalesce::builder("test"));
        let error = builder.build().unwrap_err();
        assert_eq!(error.field(), field);
    }
}
