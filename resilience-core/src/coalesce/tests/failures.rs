use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio_test::{assert_pending, assert_ready, assert_ready_eq, assert_ready_err, task};
use tower::{Layer as _, ServiceBuilder, ServiceExt};

use super::{Response, Upstream, digit};
use crate::{
    CircuitBreaker, Coalesce, Rejected,
    error::{Error, Pattern, Reason},
};

const CALLERS: usize = 100;

type Service =
    super::super::CoalesceService<Upstream, u32, u32, Error<&'static str>, fn(&u32) -> Option<u32>>;

type Calls = Vec<task::Spawn<tower::util::Oneshot<Service, u32>>>;

/// Callers of one key that wait for the first call.
fn callers(coalesce: &Coalesce<u32, u32, Error<&'static str>>, upstream: &Upstream) -> Calls {
    let layer = coalesce.layer(digit as fn(&u32) -> Option<u32>);
    let service = layer.layer(upstream.clone());
    let mut calls: Calls = (0..CALLERS)
        .map(|_| task::spawn(service.clone().oneshot(1)))
        .collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    calls
}

fn failing_first(number: usize) -> Response {
    if number == 1 {
        Err(Error::Service("unlucky"))
    } else {
        Ok(number as u32)
    }
}

fn always_failing(number: usize) -> Response {
    Err(Error::Service(if number == 1 { "first" } else { "second" }))
}

#[test]
fn after_a_failure_those_that_joined_begin_again_together_once() {
    let upstream = Upstream::new(failing_first);
    let coalesce = Coalesce::builder("test").build().unwrap();
    let mut calls = callers(&coalesce, &upstream);
    upstream.let_end(1);
    assert_ready_eq!(calls[0].poll(), Err(Error::Service("unlucky")));
    for call in &mut calls[1..] {
        assert!(call.is_woken());
        assert_pending!(call.poll());
    }
    assert_eq!((upstream.calls(), coalesce.snapshot().in_progress), (2, 1));
    upstream.let_end(1);
    for call in &mut calls[1..] {
        assert_ready_eq!(call.poll(), Ok(2));
    }
    let snapshot = coalesce.snapshot();
    assert_eq!((upstream.calls(), snapshot.reruns), (2, 99));
    assert_eq!((snapshot.in_progress, snapshot.rejected), (0, 0));
}

#[test]
fn a_second_failure_is_final_and_each_error_goes_to_one_caller() {
    let upstream = Upstream::new(always_failing);
    let coalesce = Coalesce::builder("test").build().unwrap();
    let mut calls = callers(&coalesce, &upstream);
    upstream.let_end(1);
    assert_ready_eq!(calls[0].poll(), Err(Error::Service("first")));
    for call in &mut calls[1..] {
        assert_pending!(call.poll());
    }
    upstream.let_end(1);
    assert_ready_eq!(calls[1].poll(), Err(Error::Service("second")));
    for call in &mut calls[2..] {
        let error = assert_ready_err!(call.poll());
        let rejected = error.rejected().unwrap();
        assert_eq!(rejected.pattern(), Pattern::Coalesce);
        assert_eq!(rejected.reason(), Reason::SharedCallFailed);
    }
    let snapshot = coalesce.snapshot();
    assert_eq!((upstream.calls(), snapshot.rejected), (2, 98));
}

#[test]
fn shared_errors_reach_all_callers_by_one_call() {
    let upstream = Upstream::new(always_failing);
    let coalesce = Coalesce::builder("test").share_errors(Error::clone);
    let mut calls = callers(&coalesce.build().unwrap(), &upstream);
    upstream.let_end(1);
    for call in &mut calls {
        assert_ready_eq!(call.poll(), Err(Error::Service("first")));
    }
    assert_eq!(upstream.calls(), 1);
}

#[test]
fn when_the_leader_is_gone_the_error_goes_to_the_one_that_drove() {
    let upstream = Upstream::new(failing_first);
    let coalesce = Coalesce::builder("test").build().unwrap();
    let mut calls = callers(&coalesce, &upstream);
    drop(calls.remove(0));
    upstream.let_end(2);
    assert_ready_eq!(calls[0].poll(), Err(Error::Service("unlucky")));
    assert_ready_eq!(calls[1].poll(), Ok(2));
}

#[test]
fn a_leader_whose_call_another_one_drove_gets_the_error() {
    let upstream = Upstream::new(failing_first);
    let coalesce = Coalesce::builder("test").build().unwrap();
    let mut calls = callers(&coalesce, &upstream);
    upstream.let_end(2);
    // Polled before the leader, which was woken.
    assert_ready_eq!(calls[5].poll(), Ok(2));
    assert_ready_eq!(calls[0].poll(), Err(Error::Service("unlucky")));
}

#[test]
fn a_rejection_below_is_passed_on_to_all_without_another_call() {
    let upstream = Upstream::new(|_| {
        let full = Rejected::new(Pattern::Bulkhead, Reason::Full, "below");
        Err(full.into())
    });
    let coalesce = Coalesce::builder("test").build().unwrap();
    let mut calls = callers(&coalesce, &upstream);
    upstream.let_end(1);
    for call in &mut calls {
        let error = assert_ready_err!(call.poll());
        assert_eq!(error.rejected().map(Rejected::reason), Some(Reason::Full));
    }
    assert_eq!((upstream.calls(), coalesce.snapshot().reruns), (1, 0));
}

#[test]
fn after_a_panic_the_others_begin_again() {
    let upstream = Upstream::new(|number| match number {
        1 => panic!("of the call"),
        _ => Ok(number as u32),
    });
    let coalesce = Coalesce::builder("test").build().unwrap();
    let mut calls = callers(&coalesce, &upstream);
    upstream.let_end(1);
    let panic = catch_unwind(AssertUnwindSafe(|| calls[0].poll())).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"of the call"));
    for call in &mut calls[1..] {
        assert_pending!(call.poll());
    }
    upstream.let_end(1);
    for call in &mut calls[1..] {
        assert_ready_eq!(call.poll(), Ok(2));
    }
    assert_eq!(upstream.calls(), 2);
    assert_eq!(coalesce.snapshot().in_progress, 0);
}

/// Above a breaker, a rejected follower is no evidence; the failed call itself was counted where it was made.
#[test]
fn what_followers_are_told_is_no_evidence_against_the_dependency() {
    let upstream = Upstream::new(always_failing);
    let coalesce: Coalesce<u32, u32, _> = Coalesce::builder("test").build().unwrap();
    let breaker = CircuitBreaker::builder("above").build().unwrap();
    let service = ServiceBuilder::new()
        .layer(breaker.layer())
        .layer(coalesce.layer(digit))
        .service(upstream.clone());
    let mut calls: Vec<_> = (0..CALLERS)
        .map(|_| task::spawn(service.clone().oneshot(1)))
        .collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    upstream.let_end(1);
    let _ = assert_ready!(calls[0].poll());
    for call in &mut calls[1..] {
        assert_pending!(call.poll());
    }
    upstream.let_end(1);
    for call in &mut calls[1..] {
        let _ = assert_ready!(call.poll());
    }
    assert_eq!(breaker.snapshot().totals.failures, 2);
    assert_eq!(coalesce.snapshot().rejected, 98);
}
