//! What callers of a stack of closures can rely on.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    io,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use tokio_test::{assert_pending, assert_ready, task};
use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer};

use super::*;
use crate::{
    Rejected, ServiceError,
    bulkhead::Bulkhead,
    deadline::Timeout,
    retry::{self, Retry},
};

#[tokio::test]
async fn one_stack_serves_closures_of_any_output_and_error_type() {
    let stack = guard(ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(2)));
    let local = String::from("borrowed");
    let text: Result<&str, Error<Infallible>> = stack.call(|| async { Ok(&*local) }).await;
    let number: Result<u64, Error<io::Error>> = stack.call_idempotent(|| async { Ok(7) }).await;
    let failed: Result<(), Error<&str>> = stack.call(|| async { Err("no") }).await;
    assert_eq!(text, Ok("borrowed"));
    assert_eq!(number.unwrap(), 7);
    assert_eq!(failed, Err(Error::Service("no")));
}

#[tokio::test(start_paused = true)]
async fn idempotent_work_is_repeated_and_knows_it_and_other_work_is_not() {
    let timeout = Timeout::new("db", Duration::from_secs(2)).unwrap();
    let retry = Retry::builder("db").max_attempts(3).build().unwrap();
    let bulkhead = Bulkhead::builder("db").build().unwrap();
    let layers = ServiceBuilder::new()
        .layer(timeout.layer())
        .layer(retry.layer())
        .layer(bulkhead.layer());
    let stack = guard(layers);

    let attempts = RefCell::new(Vec::new());
    let flaky = async || {
        attempts.borrow_mut().push(retry::attempt());
        match retry::attempt() {
            1 | 2 => Err("flaky"),
            attempt => Ok(attempt),
        }
    };
    assert_eq!(stack.call_idempotent(flaky).await, Ok(3));
    assert_eq!(attempts.take(), [1, 2, 3]);
    assert_eq!(stack.call(flaky).await, Err(Error::Service("flaky")));
    assert_eq!(attempts.take(), [1]);

    // One stack, other types.
    let name = String::from("no such row");
    let text: Result<(), Error<&str>> = stack.call_idempotent(|| async { Err(&*name) }).await;
    assert_eq!(text, Err(Error::Service("no such row")));
    let number: Result<u64, Error<io::Error>> = stack.call(|| async { Ok(7) }).await;
    assert_eq!(number.unwrap(), 7);
    assert_eq!(bulkhead.snapshot().in_flight, 0);
}

#[tokio::test]
async fn work_that_cannot_be_shared_between_threads_runs_too() {
    let stack = guard(ServiceBuilder::new());
    let count = Cell::new(0);
    let add = async || {
        count.set(count.get() + 1);
        Ok::<_, ()>(())
    };
    stack.call(add).await.unwrap();
    assert_eq!(count.get(), 1);
}

#[tokio::test]
async fn a_call_can_be_spawned() {
    let stack = guard(ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(2)));
    let task = tokio::spawn(stack.call(|| async { Ok::<_, io::Error>(1) }));
    assert_eq!(task.await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn nothing_happens_before_the_call_is_polled_and_the_stack_is_ready() {
    let stack = guard(ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(1)));
    let runs = AtomicU32::new(0);
    let count = || async {
        runs.fetch_add(1, Relaxed);
        std::future::pending::<Result<(), Infallible>>().await
    };
    let mut first = task::spawn(stack.call(count));
    assert_eq!(runs.load(Relaxed), 0);
    assert_pending!(first.poll());
    let mut second = task::spawn(stack.call(count));
    assert_pending!(second.poll());
    assert_eq!(runs.load(Relaxed), 1, "the limit has one place");
    drop(first);
    assert!(second.is_woken());
    assert_pending!(second.poll());
    assert_eq!(runs.load(Relaxed), 2);
}

#[test]
fn a_stack_that_is_never_ready_fails_the_call_with_its_error() {
    #[derive(Clone)]
    struct Closed;
    impl<R> Service<R> for Closed {
        type Response = ();
        type Error = Error<()>;
        type Future = std::future::Ready<Result<(), Error<()>>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            let full = Rejected::new(crate::Pattern::LoadShed, crate::Reason::Overloaded, "x");
            Poll::Ready(Err(full.into()))
        }
        fn call(&mut self, _: R) -> Self::Future {
            unreachable!("never ready")
        }
    }
    let stack = Guarded::new(Closed);
    let mut call = task::spawn(stack.call(|| async { Ok(()) }));
    assert!(
        assert_ready!(call.poll())
            .unwrap_err()
            .as_rejected()
            .is_some()
    );
}

mod stack {
    use super::*;
    use crate::{
        Pattern, Reason, Verdict,
        breaker::CircuitBreaker,
        classify,
        execute::Stack,
        limit::{Quota, RateLimit},
    };

    fn rejection<T>(result: Result<T, Error<&'static str>>) -> Option<(Pattern, Reason)> {
        let error = result.err()?;
        let rejected = error.as_rejected()?;
        Some((rejected.pattern(), rejected.reason()))
    }

    #[tokio::test]
    async fn without_layers_it_only_calls() {
        let stack = Stack::builder().build();
        assert_eq!(stack.call(|| async { Ok::<_, ()>(1) }).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn each_layer_does_its_part() {
        let second = Duration::from_secs(1);
        let timeout = Timeout::new("call", 3 * second).unwrap();
        let attempt = Timeout::new("attempt", second).unwrap();
        let hang = async || std::future::pending::<Result<(), &str>>().await;

        let stack = Stack::builder().timeout(&timeout).build();
        let pattern = Pattern::Deadline;
        let rejected = rejection(stack.call(hang).await);
        assert_eq!(rejected.map(|(pattern, _)| pattern), Some(pattern));

        let retry = Retry::builder("r").max_attempts(2).build().unwrap();
        let attempts = Cell::new(0);
        let count = async || {
            attempts.set(attempts.get() + 1);
            Err::<(), _>("no")
        };
        let stack = Stack::builder().retry(&retry).build();
        assert_eq!(
            stack.call_idempotent(count).await,
            Err(Error::Service("no"))
        );
        assert_eq!(attempts.get(), 2);

        let limit = RateLimit::builder("l").quota(Quota::per(1, 60 * second).unwrap());
        let limit = limit.build().unwrap();
        let stack = Stack::builder().rate_limit(&limit).build();
        assert_eq!(stack.call(async || Ok::<_, &str>(1)).await, Ok(1));
        let rejected = rejection(stack.call(async || Ok(1)).await);
        assert_eq!(rejected, Some((Pattern::RateLimit, Reason::RateLimited)));

        let bulkhead = Bulkhead::builder("b").max_concurrent(1).build().unwrap();
        let stack = Stack::builder().bulkhead(&bulkhead).build();
        let mut first = task::spawn(stack.call(hang));
        assert_pending!(first.poll());
        let rejected = rejection(stack.call(async || Ok(1)).await);
        assert_eq!(
            rejected.map(|(pattern, _)| pattern),
            Some(Pattern::Bulkhead)
        );

        let breaker = CircuitBreaker::builder("c").consecutive_failures(1);
        let breaker = breaker.build().unwrap();
        let stack = Stack::builder()
            .breaker(&breaker)
            .attempt_timeout(&attempt)
            .build();
        let rejected = rejection(stack.call(hang).await);
        assert_eq!(
            rejected.map(|(pattern, _)| pattern),
            Some(Pattern::Deadline)
        );
        let rejected = rejection(stack.call(async || Ok(1)).await);
        let open = (Pattern::CircuitBreaker, Reason::Open);
        assert_eq!(rejected, Some(open), "a timeout of an attempt counts");
    }

    /// The retry is above the limit and the bulkhead, these are above the breaker, and the classification is of all.
    #[tokio::test(start_paused = true)]
    async fn the_order_is_the_documented_one() {
        let retry = Retry::builder("r").max_attempts(3).build().unwrap();
        let hour = Duration::from_secs(3600);
        let limit = RateLimit::builder("l").quota(Quota::per(10, hour).unwrap());
        let limit = limit.build().unwrap();
        let breaker = CircuitBreaker::builder("c").build().unwrap();
        let bulkhead = Bulkhead::builder("b").build().unwrap();
        let only_busy = |error: &&str| match *error {
            "busy" => Verdict::transient(),
            _ => Verdict::Ignored,
        };
        let stack = Stack::builder()
            .retry(&retry)
            .rate_limit(&limit)
            .bulkhead(&bulkhead)
            .breaker(&breaker)
            .classify(classify::errors(only_busy))
            .build();
        let busy = async || Err::<(), _>("busy");
        assert_eq!(
            stack.call_idempotent(busy).await,
            Err(Error::Service("busy"))
        );
        assert_eq!(breaker.snapshot().totals.failures, 3);
        assert_eq!(limit.snapshot().remaining, 7);
        let wrong = async || Err::<(), _>("wrong");
        let result = stack.call_idempotent(wrong).await;
        assert_eq!(result, Err(Error::Service("wrong")));
        assert_eq!(breaker.snapshot().totals.failures, 3);
        assert_eq!(limit.snapshot().remaining, 6);
    }
}
