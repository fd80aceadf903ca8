//! The layer over services that misbehave.

use std::{future::ready, time::Duration};

use tokio::time::{advance, timeout};
use tower::{BoxError, ServiceBuilder, buffer::Buffer, limit::ConcurrencyLimit, service_fn};
use tower_test::mock;

use super::*;
use crate::{
    Pattern, ServiceError, breaker::State, classify, completion::Completion, deadline::Timeout,
};

#[tokio::test(start_paused = true)]
async fn opens_rejects_probes_and_closes() {
    let breaker = builder().build().unwrap();
    let (mut service, dependency) = guarded(&breaker);
    for _ in 0..4 {
        assert_eq!(
            call(&mut service, Do::Fail).await,
            Err(Error::Service(Failure("failed")))
        );
    }
    assert_eq!(breaker.state(), State::Open);
    let rejected = rejection(call(&mut service, Do::Succeed).await).unwrap();
    assert_eq!(
        (rejected.reason(), rejected.retry_after()),
        (Reason::Open, Some(5 * SECOND))
    );
    assert_eq!(
        (rejected.pattern(), rejected.name()),
        (Pattern::CircuitBreaker, "test")
    );
    assert_eq!(dependency.calls(), 4, "a rejected call is not made");
    advance(5 * SECOND).await;
    assert_eq!(call(&mut service, Do::Succeed).await, Ok(()));
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(call(&mut service, Do::Succeed).await, Ok(()));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_count_window_slides_so_that_old_successes_do_not_hide_an_outage() {
    let breaker = builder().build().unwrap();
    let (mut service, _) = guarded(&breaker);
    for _ in 0..1000 {
        call(&mut service, Do::Succeed).await.unwrap();
    }
    let failures = count_failures_until_open(&breaker, &mut service).await;
    assert_eq!(failures, 5, "half of the last ten calls");
}

#[tokio::test(start_paused = true)]
async fn a_time_window_slides_so_that_old_successes_do_not_hide_an_outage() {
    let breaker = builder().window(Window::time(10 * SECOND)).build().unwrap();
    let (mut service, _) = guarded(&breaker);
    for _ in 0..1000 {
        call(&mut service, Do::Succeed).await.unwrap();
    }
    advance(10 * SECOND).await;
    assert_eq!(
        count_failures_until_open(&breaker, &mut service).await,
        4,
        "the minimum"
    );
}

async fn count_failures_until_open(breaker: &CircuitBreaker, service: &mut Guarded) -> usize {
    for failures in 0..1000 {
        if breaker.state() == State::Open {
            return failures;
        }
        drop(call(service, Do::Fail).await);
    }
    panic!("never opened");
}

#[tokio::test(start_paused = true)]
async fn a_stale_failure_does_not_reopen_and_a_stale_success_does_not_close() {
    let breaker = builder().half_open(HalfOpen::probes(1)).build().unwrap();
    let mut early = [breaker.acquire().unwrap(), breaker.acquire().unwrap()];
    trip(&breaker);
    advance(5 * SECOND).await;
    let probe = breaker.acquire().unwrap();
    assert_eq!(breaker.state(), State::HalfOpen);
    early[0].settle(Verdict::Success);
    early[1].settle(Verdict::transient());
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(breaker.snapshot().totals.stale, 2);
    assert_eq!(breaker.acquire().unwrap_err().reason(), Reason::NoProbeLeft);
    drop(probe);
}

#[tokio::test(start_paused = true)]
async fn a_probe_of_an_earlier_cycle_counts_for_nothing_in_a_later_one() {
    let breaker = builder().half_open(HalfOpen::probes(2)).build().unwrap();
    trip(&breaker);
    advance(5 * SECOND).await;
    let (mut late, mut failing) = (breaker.acquire().unwrap(), breaker.acquire().unwrap());
    failing.settle(Verdict::transient());
    assert_eq!(breaker.state(), State::Open);
    advance(5 * SECOND).await;
    let (_first, _second) = (breaker.acquire().unwrap(), breaker.acquire().unwrap());
    late.settle(Verdict::transient());
    drop(late);
    let probes = breaker.snapshot().probes.unwrap();
    assert_eq!((probes.out, probes.judged), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn failures_at_the_same_time_do_not_lose_the_way_back() {
    let breaker = builder().build().unwrap();
    let all: Vec<_> = (0..20).map(|_| breaker.acquire().unwrap()).collect();
    for mut call in all {
        call.settle(Verdict::transient());
    }
    assert_eq!(breaker.snapshot().totals.trips, 1);
    advance(5 * SECOND).await;
    assert!(
        breaker.acquire().is_ok(),
        "by the time alone: no timer can get lost"
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_wherever_it_happens() {
    let breaker = builder().build().unwrap();
    let (service, _) = guarded(&breaker);
    for what in [Do::PanicInCall, Do::PanicInPoll] {
        let mut service = service.clone();
        let joined = tokio::spawn(async move { call(&mut service, what).await }).await;
        assert!(joined.unwrap_err().is_panic());
    }
    assert_eq!(counts(&breaker.snapshot()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_panic_that_is_caught_before_the_future_is_dropped_is_a_failure() {
    let breaker = builder().build().unwrap();
    let (mut service, _) = guarded(&breaker);
    let mut response = Box::pin(service.ready().await.unwrap().call(Do::PanicInPoll));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        drop(response.as_mut().poll(&mut cx));
    }));
    assert!(caught.is_err());
    drop(response);
    assert_eq!(counts(&breaker.snapshot()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_rejection_from_below_is_no_failure_of_the_dependency_and_a_timeout_is() {
    let breaker = builder().build().unwrap();
    let strict = classify::results(|_: Result<&(), &Error<()>>| Verdict::Permanent);
    let below = service_fn(|reason: Reason| {
        let rejected = Rejected::new(Pattern::Bulkhead, reason, "below");
        ready(Err::<(), Error<()>>(rejected.into()))
    });
    let mut service = breaker.layer().classify(strict).layer(below);
    for _ in 0..10 {
        assert!(
            service
                .ready()
                .await
                .unwrap()
                .call(Reason::Full)
                .await
                .is_err()
        );
    }
    assert_eq!(
        (
            counts(&breaker.snapshot()),
            breaker.snapshot().totals.ignored
        ),
        ((0, 0), 10)
    );
    for _ in 0..4 {
        assert!(
            service
                .ready()
                .await
                .unwrap()
                .call(Reason::TimedOut)
                .await
                .is_err()
        );
    }
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn layers_and_clones_share_one_breaker() {
    let breaker = builder().build().unwrap();
    let (mut first, _) = guarded(&breaker);
    let (mut second, _) = guarded(&breaker);
    let mut third = second.clone();
    for service in [&mut first, &mut second, &mut third] {
        drop(call(service, Do::Fail).await);
    }
    assert_eq!(counts(&breaker.snapshot()), (3, 3));
    drop(call(&mut first, Do::Fail).await);
    assert!(is_rejected(
        call(&mut third, Do::Succeed).await,
        Reason::Open
    ));
}

#[tokio::test(start_paused = true)]
async fn never_calls_what_is_not_ready_and_works_over_a_limit_of_one() {
    let breaker = builder().build().unwrap();
    let dependency = Dependency::default();
    let limited = ConcurrencyLimit::new(dependency.clone(), 1);
    let service = breaker.layer().classify(Judge).layer(limited);
    // Half of them fail: it opens, and probes, with calls of many clones under way.
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let mut service = service.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    let what = if n % 2 == 0 { Do::Take(1) } else { Do::Fail };
                    drop(call(&mut service, what).await);
                    tokio::time::sleep(SECOND).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await
            .expect("ConcurrencyLimit panics when it is called without being ready");
    }
    assert!(breaker.snapshot().totals.trips > 0);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_caller_that_stays_idle_keeps_no_place_below() {
    let breaker = builder().build().unwrap();
    let limited = ConcurrencyLimit::new(Dependency::default(), 1);
    let service = breaker.layer().classify(Judge).layer(limited);
    let (mut idle, mut other) = (service.clone(), service);
    // Made ready while closed, called while open.
    idle.ready().await.unwrap();
    trip(&breaker);
    assert!(is_rejected(idle.call(Do::Succeed).await, Reason::Open));
    advance(5 * SECOND).await;
    let probe = timeout(SECOND, call(&mut other, Do::Succeed));
    assert_eq!(probe.await.expect("the only place is free"), Ok(()));
    // Made ready while closed, and made ready again, in vain, while open.
    idle.ready().await.unwrap();
    breaker.reset("test");
    trip(&breaker);
    idle.ready().await.unwrap();
    advance(5 * SECOND).await;
    let probe = timeout(SECOND, call(&mut other, Do::Succeed));
    assert_eq!(probe.await.expect("the only place is free"), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_is_ready_at_once_over_a_service_that_is_not() {
    let breaker = builder().build().unwrap();
    let (mut never, mut handle) =
        mock::spawn_with(|mock: mock::Mock<(), ()>| breaker.layer().layer(mock));
    handle.allow(0);
    tokio_test::assert_pending!(never.poll_ready());
    trip(&breaker);
    tokio_test::assert_ready_ok!(never.poll_ready());
    let error = never.call(()).await.unwrap_err();
    assert_eq!(error.as_rejected().unwrap().reason(), Reason::Open);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_made_ready_while_open_is_rejected_though_it_has_closed_meanwhile() {
    let breaker = builder().build().unwrap();
    let (mut service, dependency) = guarded(&breaker);
    trip(&breaker);
    service.ready().await.unwrap();
    breaker.reset("test");
    let mut fresh = service.clone();
    assert!(is_rejected(service.call(Do::Succeed).await, Reason::Open));
    assert_eq!(
        dependency.calls(),
        0,
        "the inner service was never asked whether it is ready"
    );
    assert_eq!(call(&mut fresh, Do::Succeed).await, Ok(()));
    assert_eq!(call(&mut service, Do::Succeed).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_does_not_kill_the_worker_of_a_buffer() {
    let breaker = builder().build().unwrap();
    let (service, _) = guarded(&breaker);
    let mut buffered = ServiceBuilder::new()
        .layer_fn(|inner| Buffer::new(inner, 4))
        .map_err(BoxError::from)
        .service(service);
    for _ in 0..4 {
        drop(buffered.ready().await.unwrap().call(Do::Fail).await);
    }
    for _ in 0..10 {
        let error = buffered
            .ready()
            .await
            .unwrap()
            .call(Do::Succeed)
            .await
            .unwrap_err();
        assert_eq!(error.as_rejected().unwrap().reason(), Reason::Open);
    }
    advance(5 * SECOND).await;
    buffered
        .ready()
        .await
        .unwrap()
        .call(Do::Succeed)
        .await
        .expect("the worker lives");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_inner_readiness_is_a_failure_and_passed_on() {
    #[derive(Clone, Debug)]
    struct Unready;
    impl Service<()> for Unready {
        type Response = ();
        type Error = Error<Failure>;
        type Future = std::future::Ready<Answer>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Answer> {
            Poll::Ready(Err(Error::Service(Failure("no connection"))))
        }
        fn call(&mut self, (): ()) -> Self::Future {
            unreachable!("it is never ready")
        }
    }
    let breaker = builder().build().unwrap();
    let mut service = breaker.layer().layer(Unready);
    for _ in 0..4 {
        let error = ServiceExt::<()>::ready(&mut service).await.unwrap_err();
        assert_eq!(error, Error::Service(Failure("no connection")));
    }
    assert_eq!(breaker.state(), State::Open);
    assert!(
        ServiceExt::<()>::ready(&mut service).await.is_ok(),
        "open: the inner one is not asked"
    );
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_noticed_with_the_timeout_outside_of_the_breaker() {
    let breaker = builder()
        .dropped(super::super::Dropped::Ignored)
        .build()
        .unwrap();
    let limit = Timeout::new("test", Duration::from_millis(50)).unwrap();
    let (service, _) = guarded(&breaker);
    let mut service = limit.layer().layer(service);
    for _ in 0..4 {
        assert!(is_rejected(
            call(&mut service, Do::Hang).await,
            Reason::TimedOut
        ));
    }
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_noticed_with_a_foreign_timeout_outside_of_the_breaker() {
    let breaker = builder().build().unwrap();
    let (mut service, _) = guarded(&breaker);
    for _ in 0..4 {
        assert!(
            timeout(2 * SECOND, call(&mut service, Do::Hang))
                .await
                .is_err()
        );
    }
    assert_eq!(breaker.state(), State::Open);
}

/// Keeps the guard inside the answer, as a body does.
#[derive(Clone)]
struct Inside;

struct Body<G: Guard>(G, Verdict);

impl<G: Guard> Body<G> {
    fn finish(mut self, verdict: Verdict) {
        self.1 = verdict;
        self.0.settle(self.1);
    }
}

impl<Res, G: Guard> Completion<Res, G> for Inside {
    type Response = Body<G>;

    fn hold(&self, _: Res, verdict: Verdict, guard: G) -> Self::Response {
        Body(guard, verdict)
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_judged_at_its_end_and_not_at_its_beginning() {
    let breaker = builder().build().unwrap();
    let answer = service_fn(|(): ()| ready(Ok::<_, Error<()>>(())));
    let mut service = breaker.layer().complete_on(Inside).layer(answer);
    for _ in 0..3 {
        let body = service.ready().await.unwrap().call(()).await.unwrap();
        assert_eq!(
            breaker.snapshot().counts.calls,
            breaker.snapshot().counts.failures
        );
        body.finish(Verdict::transient());
    }
    // An answer that was there at once, and then dragged on until the reader gave up.
    let body = service.ready().await.unwrap().call(()).await.unwrap();
    advance(SECOND).await;
    drop(body);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn slow_calls_trip_though_they_succeed() {
    let breaker = builder().slow_calls(SECOND, 0.5).build().unwrap();
    let (mut service, _) = guarded(&breaker);
    for _ in 0..4 {
        call(&mut service, Do::Take(1)).await.unwrap();
    }
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.snapshot().totals.slow_successes, 4);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_of_the_tripping_failure_lengthens_the_open_interval_up_to_a_cap() {
    let open_for = OpenFor::fixed(5 * SECOND).honour_retry_after(60 * SECOND);
    for (asked, open) in [(1, 5), (30, 30), (3600, 60)] {
        let breaker = builder()
            .open_for(open_for)
            .consecutive_failures(1)
            .build()
            .unwrap();
        breaker
            .acquire()
            .unwrap()
            .settle(Verdict::retry_after(asked * SECOND));
        assert_eq!(
            breaker.acquire().unwrap_err().retry_after(),
            Some(open * SECOND)
        );
    }
}

#[test]
fn the_future_is_send_where_the_inner_one_is_and_small() {
    fn is_send<T: Send + 'static>(_: &T) {}
    let breaker = CircuitBreaker::builder("small").build().unwrap();
    let mut service = breaker
        .layer()
        .layer(service_fn(|()| ready(Ok::<u64, Error<()>>(1))));
    is_send(&service.call(()));
    is_send(&breaker.acquire().unwrap());
    assert!(size_of::<crate::breaker::Permit>() <= 24);
}
