//! The gate: waiting in `poll_ready`, without spinning.

use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready_ok, task::spawn};

use super::*;
use crate::breaker::{Override, State};

/// Counts how often a future is polled.
struct Counted<F> {
    future: Pin<Box<F>>,
    polls: Arc<AtomicUsize>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.fetch_add(1, Relaxed);
        self.future.as_mut().poll(cx)
    }
}

fn gated(breaker: &CircuitBreaker) -> Guarded {
    breaker
        .layer()
        .classify(Judge)
        .gate()
        .layer(Dependency::default())
}

#[tokio::test(start_paused = true)]
async fn a_gate_waits_until_the_interval_is_over_with_a_handful_of_polls() {
    let breaker = builder().build().unwrap();
    let mut service = gated(&breaker);
    trip(&breaker);
    let polls = Arc::new(AtomicUsize::new(0));
    let started = tokio::time::Instant::now();
    let waiting = Counted {
        future: Box::pin(call(&mut service, Do::Succeed)),
        polls: Arc::clone(&polls),
    };
    assert_eq!(waiting.await, Ok(()));
    let waited = started.elapsed();
    assert!(waited >= 5 * SECOND && waited < 6 * SECOND, "{waited:?}");
    assert!(polls.load(Relaxed) <= 5, "{polls:?} polls");
}

#[tokio::test(start_paused = true)]
async fn a_gate_is_woken_when_the_state_changes() {
    let breaker = builder().build().unwrap();
    let mut service = gated(&breaker);
    breaker.set_override(Override::force_open("test"));
    let mut ready = spawn(service.ready());
    assert_pending!(ready.poll());
    advance(3600 * SECOND).await;
    assert_pending!(ready.poll());
    assert!(!ready.is_woken());
    breaker.clear_override("test");
    assert!(ready.is_woken());
    assert_ready_ok!(ready.poll());
}

#[tokio::test(start_paused = true)]
async fn a_gate_is_woken_when_a_probe_is_given_back() {
    let breaker = builder().half_open(HalfOpen::probes(1)).build().unwrap();
    let mut service = gated(&breaker);
    trip(&breaker);
    advance(5 * SECOND).await;
    let mut probe = breaker.acquire().unwrap();
    let mut ready = spawn(service.ready());
    assert_pending!(ready.poll());
    probe.settle(Verdict::Ignored);
    assert!(ready.is_woken());
    assert_ready_ok!(ready.poll());
}

#[tokio::test(start_paused = true)]
async fn a_gate_opens_at_the_end_of_the_wait_for_a_hung_probe() {
    let breaker = builder()
        .half_open(HalfOpen::probes(1).max_wait(SECOND))
        .build()
        .unwrap();
    let mut service = gated(&breaker);
    trip(&breaker);
    advance(5 * SECOND).await;
    let hung = breaker.acquire().unwrap();
    let started = tokio::time::Instant::now();
    // A second for the probe, five for the open interval that follows.
    service.ready().await.unwrap();
    assert!(started.elapsed() >= 6 * SECOND && started.elapsed() < 7 * SECOND);
    drop(hung);
}

#[tokio::test(start_paused = true)]
async fn of_many_woken_for_one_probe_those_too_late_are_rejected() {
    let breaker = builder().half_open(HalfOpen::probes(1)).build().unwrap();
    let service = gated(&breaker);
    trip(&breaker);
    let mut services: Vec<_> = (0..5).map(|_| service.clone()).collect();
    for service in &mut services {
        service.ready().await.unwrap();
    }
    let mut responses: Vec<_> = services
        .iter_mut()
        .map(|service| spawn(service.call(Do::Take(1))))
        .collect();
    assert_pending!(responses[0].poll());
    for late in &mut responses[1..] {
        let Poll::Ready(answer) = late.poll() else {
            panic!("a rejection is there at once");
        };
        let rejected = rejection(answer).unwrap();
        assert_eq!(rejected.reason(), Reason::NoProbeLeft);
        assert!(rejected.retry_after().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_nobody_waits_at_any_more_leaves_nothing_behind() {
    let breaker = builder().build().unwrap();
    let mut service = gated(&breaker);
    trip(&breaker);
    {
        let mut ready = spawn(service.ready());
        assert_pending!(ready.poll());
    }
    drop(service);
    advance(5 * SECOND).await;
    let mut other = gated(&breaker);
    assert_eq!(call(&mut other, Do::Succeed).await, Ok(()));
    assert_eq!(breaker.state(), State::HalfOpen);
}
