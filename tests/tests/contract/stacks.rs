//! Layers on top of each other: in any order, an outage is noticed, and a rejection is no evidence for any layer.

use std::{future::Future, time::Duration};

use resilience_core::conformance::layer::{Answer, Ask, Plan, Probe, Readiness, Stack};
use resilience_core::{
    Pattern, Reason, Rejected, ServiceError,
    breaker::{CircuitBreaker, OpenFor, State, Window},
    bulkhead::Bulkhead,
    deadline::{self, Deadline, Timeout},
    retry::{Backoff, Retry, RetryBudget},
};
use tower::{BoxError, Layer, Service, ServiceExt, limit::ConcurrencyLimit};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Deadline,
    Retry,
    Bulkhead,
    Breaker,
}

const PARTS: [Part; 4] = [Part::Deadline, Part::Retry, Part::Bulkhead, Part::Breaker];

/// One handle of each kind, and the means to stack them.
struct Handles {
    deadline: Timeout,
    retry: Retry,
    bulkhead: Bulkhead,
    breaker: CircuitBreaker,
}

impl Handles {
    fn new() -> Self {
        // Below the second after which a dropped call counts as failed by its age alone.
        let deadline = Timeout::new("stack", SECOND / 2).unwrap();
        let retry = Retry::builder("stack")
            .max_attempts(3)
            .backoff(Backoff::fixed(SECOND / 100))
            .build()
            .unwrap();
        let bulkhead = Bulkhead::builder("stack")
            .max_concurrent(64)
            .build()
            .unwrap();
        let breaker = CircuitBreaker::builder("stack")
            .window(Window::count(100))
            .minimum_calls(20)
            .open_for(OpenFor::fixed(5 * SECOND))
            .build()
            .unwrap();
        Self {
            deadline,
            retry,
            bulkhead,
            breaker,
        }
    }

    /// `order` is outermost first.
    fn stack(&self, order: &[Part], probe: &Probe) -> Stack {
        let around = |inner: Stack, part: &Part| match part {
            Part::Deadline => Stack::new(self.deadline.layer().layer(inner)),
            Part::Retry => Stack::new(self.retry.layer().layer(inner)),
            Part::Bulkhead => Stack::new(self.bulkhead.layer().layer(inner)),
            Part::Breaker => Stack::new(self.breaker.layer().layer(inner)),
        };
        order.iter().rev().fold(Stack::new(probe.clone()), around)
    }

    fn assert_nothing_is_held(&self, order: &[Part], probe: &Probe) {
        let held = self.bulkhead.snapshot();
        assert_eq!((held.in_flight, held.queued), (0, 0), "{order:?}");
        assert_eq!(probe.seen().in_flight, 0, "{order:?}");
    }
}

fn orders() -> Vec<Vec<Part>> {
    fn extend(begun: &[Part], all: &mut Vec<Vec<Part>>) {
        if begun.len() == PARTS.len() {
            all.push(begun.to_vec());
        }
        for part in PARTS {
            if !begun.contains(&part) {
                extend(&[begun, &[part]].concat(), all);
            }
        }
    }
    let mut all = Vec::new();
    extend(&[], &mut all);
    assert_eq!(all.len(), 24);
    all
}

async fn once(service: &Stack, plan: Plan) -> Result<Answer, BoxError> {
    service.clone().oneshot(Ask::from(plan)).await
}

fn rejection(result: &Result<Answer, BoxError>) -> Option<(Pattern, Reason)> {
    let rejected: &Rejected = result.as_ref().err()?.as_rejected()?;
    Some((rejected.pattern(), rejected.reason()))
}

const OPEN: Option<(Pattern, Reason)> = Some((Pattern::CircuitBreaker, Reason::Open));
const TIMED_OUT: Option<(Pattern, Reason)> = Some((Pattern::Deadline, Reason::TimedOut));

/// The trap that a peer fell into: with the time limit outside the breaker, 200 timeouts left it closed.
#[tokio::test(start_paused = true)]
async fn a_hanging_dependency_is_noticed_whatever_the_order_of_the_layers() {
    for order in orders() {
        let (handles, probe) = (Handles::new(), Probe::default());
        let service = handles.stack(&order, &probe);
        for _ in 0..200 {
            let result = once(&service, Plan::Hang).await;
            assert!(
                [TIMED_OUT, OPEN].contains(&rejection(&result)),
                "{order:?}: {result:?}"
            );
        }
        assert_eq!(
            handles.breaker.state(),
            State::Open,
            "{order:?} after 200 calls that hung"
        );
        let calls = probe.seen().calls;
        assert!(calls < 200, "{order:?}: all {calls} calls were sent");
        handles.assert_nothing_is_held(&order, &probe);
    }
}

#[tokio::test(start_paused = true)]
async fn many_calls_that_hang_at_once_are_noticed_whatever_the_order_of_the_layers() {
    for order in orders() {
        let (handles, probe) = (Handles::new(), Probe::default());
        let service = handles.stack(&order, &probe);
        let calls: Vec<_> = (0..60)
            .map(|_| tokio::spawn(service.clone().oneshot(Ask::from(Plan::Hang))))
            .collect();
        for call in calls {
            let result = call.await.unwrap();
            assert!(
                [TIMED_OUT, OPEN].contains(&rejection(&result)),
                "{order:?}: {result:?}"
            );
        }
        assert_eq!(handles.breaker.state(), State::Open, "{order:?}");
        handles.assert_nothing_is_held(&order, &probe);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_dependency_is_noticed_whatever_the_order_and_so_is_its_recovery() {
    for order in orders() {
        let (handles, probe) = (Handles::new(), Probe::default());
        let service = handles.stack(&order, &probe);
        for _ in 0..60 {
            assert!(once(&service, Plan::Fail).await.is_err());
        }
        assert_eq!(handles.breaker.state(), State::Open, "{order:?}");
        tokio::time::advance(6 * SECOND).await;
        for _ in 0..10 {
            let result = once(&service, Plan::Answer).await;
            assert!(result.is_ok(), "{order:?}: {result:?}");
        }
        assert_eq!(handles.breaker.state(), State::Closed, "{order:?}");
        handles.assert_nothing_is_held(&order, &probe);
    }
}

/// A timeout of each attempt below, one of the whole call above.
#[tokio::test(start_paused = true)]
async fn an_inner_timeout_never_outlives_an_outer_deadline() {
    let (handles, probe) = (Handles::new(), Probe::default());
    let inner = Timeout::new("attempt", 60 * SECOND).unwrap();
    let below = Stack::new(inner.layer().layer(probe.clone()));
    let service = Stack::new(handles.deadline.layer().layer(below));
    let start = tokio::time::Instant::now();
    assert_eq!(rejection(&once(&service, Plan::Hang).await), TIMED_OUT);
    assert!(
        start.elapsed() <= SECOND / 2 + SECOND / 100,
        "{:?}",
        start.elapsed()
    );
}

/// Every layer that can say no, brought to where it does.
fn layers_that_reject(probe: &Probe) -> Vec<(&'static str, Stack, Box<dyn std::any::Any>)> {
    let full = Bulkhead::builder("below")
        .max_concurrent(1)
        .build()
        .unwrap();
    let permit = full.try_acquire().unwrap();
    let slow = Bulkhead::builder("below")
        .max_concurrent(1)
        .queue(500, SECOND / 1000)
        .build()
        .unwrap();
    let slow_permit = slow.try_acquire().unwrap();
    let open = CircuitBreaker::builder("below")
        .consecutive_failures(1)
        .open_for(OpenFor::fixed(3600 * SECOND));
    let open = open.build().unwrap();
    let mut call = open.acquire().unwrap();
    resilience_core::completion::Guard::settle(&mut call, resilience_core::Verdict::transient());
    drop(call);
    assert_eq!(open.state(), State::Open);
    let no_time = Timeout::new("below", SECOND).unwrap();
    let no_time = no_time.layer().per_request(|_: &Ask| Some(Duration::ZERO));
    let probe = || probe.clone();
    vec![
        (
            "a full bulkhead",
            Stack::new(full.layer().layer(probe())),
            Box::new(permit),
        ),
        (
            "a queue that is too slow",
            Stack::new(slow.layer().layer(probe())),
            Box::new(slow_permit),
        ),
        (
            "an open breaker",
            Stack::new(open.layer().layer(probe())),
            Box::new(()),
        ),
        (
            "a deadline that has passed",
            Stack::new(no_time.layer(probe())),
            Box::new(()),
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_rejection_below_is_no_evidence_for_a_breaker_above() {
    let probe = Probe::default();
    for (below, stack, _held) in layers_that_reject(&probe) {
        let handles = Handles::new();
        let service = Stack::new(handles.breaker.layer().layer(stack));
        for _ in 0..200 {
            assert!(
                rejection(&once(&service, Plan::Answer).await).is_some(),
                "{below}"
            );
        }
        assert_eq!(handles.breaker.state(), State::Closed, "{below}");
        let totals = handles.breaker.snapshot().totals;
        assert_eq!(
            totals.failures + totals.slow_failures,
            0,
            "{below}: {totals:?}"
        );
    }
    assert_eq!(probe.seen().calls, 0);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_below_is_neither_retried_nor_paid_for() {
    let probe = Probe::default();
    for (below, stack, _held) in layers_that_reject(&probe) {
        let budget = RetryBudget::builder().build().unwrap();
        let before = budget.balance();
        let retry = Retry::builder("above")
            .budget(budget.clone())
            .build()
            .unwrap();
        let service = Stack::new(retry.layer().layer(stack));
        for _ in 0..200 {
            assert!(
                rejection(&once(&service, Plan::Answer).await).is_some(),
                "{below}"
            );
        }
        assert_eq!(retry.snapshot().retries, 0, "{below}");
        assert_eq!(budget.balance(), before, "{below}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_below_is_evidence_for_a_breaker_above_and_is_retried() {
    let (handles, probe) = (Handles::new(), Probe::default());
    let limited = Stack::new(handles.deadline.layer().layer(probe.clone()));
    let watched = Stack::new(handles.breaker.layer().layer(limited));
    let service = Stack::new(handles.retry.layer().layer(watched));
    assert_eq!(rejection(&once(&service, Plan::Hang).await), TIMED_OUT);
    assert_eq!(probe.seen().calls, 3);
    assert_eq!(handles.breaker.snapshot().totals.failures, 3);
}

/// Overloaded: tower's load shed below, through an error that ours can read.
#[tokio::test(start_paused = true)]
async fn an_open_breaker_burns_no_retry_budget() {
    let (handles, probe) = (Handles::new(), Probe::default());
    let service = handles.stack(&[Part::Retry, Part::Breaker], &probe);
    for _ in 0..40 {
        let _ = once(&service, Plan::Fail).await;
    }
    assert_eq!(handles.breaker.state(), State::Open);
    let (retries, balance) = (
        handles.retry.snapshot().retries,
        handles.retry.budget().balance(),
    );
    for _ in 0..1000 {
        assert_eq!(rejection(&once(&service, Plan::Answer).await), OPEN);
    }
    assert_eq!(
        (
            handles.retry.snapshot().retries,
            handles.retry.budget().balance()
        ),
        (retries, balance)
    );
}

/// A service that is not ready, below a deadline that an outer scope has set.
#[tokio::test(start_paused = true)]
async fn a_dependency_that_is_never_ready_does_not_hold_callers_beyond_their_deadline() {
    for order in orders() {
        let (handles, probe) = (Handles::new(), Probe::default());
        let service = handles.stack(&order, &probe);
        probe.set(Readiness::Closed);
        let start = tokio::time::Instant::now();
        let result = within(SECOND / 2, once(&service, Plan::Answer)).await;
        assert!(rejection(&result).is_some(), "{order:?}: {result:?}");
        assert!(
            start.elapsed() <= SECOND,
            "{order:?}: {:?}",
            start.elapsed()
        );
        handles.assert_nothing_is_held(&order, &probe);
    }
}

async fn within<F: Future>(time: Duration, future: F) -> F::Output {
    deadline::scope(Deadline::after(time), future).await
}

/// A rejected call must not stay in the queue below: its slot would come up unused.
#[tokio::test(start_paused = true)]
async fn a_caller_refused_for_lack_of_time_leaves_the_line_below() {
    let probe = Probe::default();
    let below = ConcurrencyLimit::new(probe.clone(), 1);
    let (mut holder, mut beside) = (below.clone(), below.clone());
    let timeout = Timeout::new("above", SECOND).unwrap();
    let mut refused = timeout.layer().layer(Stack::new(below));
    let call = holder.ready().await.unwrap().call(Ask::from(Plan::Hang));
    let result = refused
        .ready()
        .await
        .unwrap()
        .call(Plan::Answer.into())
        .await;
    assert_eq!(
        rejection(&result),
        Some((Pattern::Deadline, Reason::NoTimeLeft))
    );
    drop(call);
    let ready = tokio::time::timeout(SECOND, beside.ready()).await;
    assert!(ready.is_ok(), "the place went to a caller that was refused");
}

/// A call that is out of time before it begins has readied what is below in vain.
#[tokio::test(start_paused = true)]
async fn a_call_without_time_gives_back_the_readiness_below() {
    let probe = Probe::default();
    let below = ConcurrencyLimit::new(probe.clone(), 1);
    let mut beside = below.clone();
    let timeout = Timeout::new("above", SECOND).unwrap();
    let mut refused = timeout.layer().layer(Stack::new(below));
    let call = async {
        refused
            .ready()
            .await
            .unwrap()
            .call(Plan::Answer.into())
            .await
    };
    let result = within(Duration::ZERO, call).await;
    assert_eq!(
        rejection(&result),
        Some((Pattern::Deadline, Reason::NoTimeLeft))
    );
    let ready = tokio::time::timeout(SECOND, beside.ready()).await;
    assert!(
        ready.is_ok(),
        "the place stays with a service whose call was refused"
    );
}
