//! What the layers do when it matters, ours beside the peers'. Ours is held to the answer; a peer's is printed as it is,
//! so that the README's table can be made again with newer versions:
//!
//! ```text
//! cargo test -p resilience-benches --test peers -- --nocapture
//! ```

use std::{
    fmt::Display,
    future::{Future, pending, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use resilience_core::{
    Error,
    breaker::{CircuitBreaker, Window},
    deadline::Timeout,
    retry::{Always, Backoff, Retry},
};
use seatbelt::{RecoveryInfo, ResilienceContext};
use tick::Clock;
use tokio::runtime::{Builder, Runtime};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn,
};
use tower_resilience::{
    circuitbreaker::CircuitBreakerLayer, retry::RetryLayer, timelimiter::TimeLimiterLayer,
};

const MS: Duration = Duration::from_millis(1);

fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build();
        runtime.expect("a runtime")
    });
    &RUNTIME
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

/// seatbelt's clock runs on the runtime that it is made in.
fn context() -> ResilienceContext<u8, Result<(), Failed>> {
    let _inside = runtime().enter();
    ResilienceContext::new(Clock::new_tokio())
}

fn say(row: &str, who: &str, what: impl Display) {
    println!("| {row} | {who} | {what} |");
}

/// A dependency that does as it is told: 0 succeeds, 1 fails, 2 hangs, 3 panics. Counts the calls that reach it.
fn dependency<E: 'static>(
    reached: &Arc<AtomicUsize>,
    error: fn() -> E,
) -> impl Service<u8, Response = (), Error = E, Future: Send> + Clone + use<E> {
    let reached = Arc::clone(reached);
    service_fn(move |order: u8| {
        reached.fetch_add(1, Relaxed);
        async move {
            match order {
                0 => Ok(()),
                1 => Err(error()),
                2 => pending().await,
                _ => panic!("as ordered"),
            }
        }
    })
}

async fn send<S: Service<u8>>(service: &mut S, order: u8) {
    if let Ok(service) = service.ready().await {
        // The panic that was ordered is caught where the call is polled.
        let _ = service.call(order).await;
    }
}

fn our_error() -> Error<()> {
    Error::Service(())
}

#[derive(Clone, Debug)]
struct Failed;

fn ours() -> CircuitBreaker {
    let breaker = CircuitBreaker::builder("peers")
        .window(Window::count(10))
        .minimum_calls(10);
    breaker.failure_rate(0.5).build().expect("good settings")
}

fn theirs() -> CircuitBreakerLayer {
    CircuitBreakerLayer::builder()
        .name("peers")
        .failure_rate_threshold(0.5)
        .sliding_window_size(10)
        .minimum_number_of_calls(10)
        .build()
        .expect("good settings")
}

/// How many of 2,000 failures reach the dependency after 1,000 successes.
async fn failures_after_successes<S: Service<u8>>(mut service: S, reached: &AtomicUsize) -> usize {
    for _ in 0..1000 {
        send(&mut service, 0).await;
    }
    let before = reached.load(Relaxed);
    for _ in 0..2000 {
        send(&mut service, 1).await;
    }
    reached.load(Relaxed) - before
}

#[test]
fn a_count_window_of_ten_opens_within_ten_failures_whatever_came_before() {
    let row = "calls that reach a dependency that fails after 1,000 successes (window of 10, 50 %)";
    let reached = Arc::default();
    let service = ours().layer().layer(dependency(&reached, our_error));
    let our = block_on(failures_after_successes(service, &reached));
    say(row, "this toolkit", our);
    assert!(our <= 10, "{our}");

    let reached = Arc::default();
    let service = theirs().layer(dependency(&reached, || Failed));
    say(
        row,
        "tower-resilience 0.13",
        block_on(failures_after_successes(service, &reached)),
    );
}

/// How many of 50 calls that hang, each cut short after 10 ms, reach the dependency.
async fn hanging_calls<S: Service<u8>>(mut service: S, reached: &AtomicUsize) -> usize {
    for _ in 0..50 {
        send(&mut service, 2).await;
    }
    reached.load(Relaxed)
}

#[test]
fn an_outage_by_hanging_is_noticed_with_the_timeout_outside_of_the_breaker() {
    let row = "of 50 hanging calls, with the timeout outside of the breaker, reach the dependency";
    let reached = Arc::default();
    let timeout = Timeout::new("peers", 10 * MS).expect("good settings");
    let breaker = ours();
    let stack = ServiceBuilder::new()
        .layer(timeout.layer())
        .layer(breaker.layer());
    let our = block_on(hanging_calls(
        stack.service(dependency(&reached, our_error)),
        &reached,
    ));
    say(row, "this toolkit", our);
    assert!(our <= 10, "{our}");

    let reached = Arc::default();
    let limiter = TimeLimiterLayer::builder()
        .name("peers")
        .timeout_duration(10 * MS)
        .build();
    let stack = ServiceBuilder::new().layer(limiter).layer(theirs());
    let their = block_on(hanging_calls(
        stack.service(dependency(&reached, || Failed)),
        &reached,
    ));
    say(row, "tower-resilience 0.13", their);

    let reached = Arc::default();
    let context = context();
    let stack = (
        seatbelt::timeout::Timeout::layer("peers", &context)
            .timeout(10 * MS)
            .timeout_error(|_| Failed),
        seatbelt::breaker::Breaker::layer("peers", &context)
            .recovery_with(|result, _| recovery(result))
            .rejected_input_error(|_, _| Failed)
            .failure_threshold(0.5)
            .min_throughput(10),
    );
    let stack = ServiceBuilder::new().layer(stack.0).layer(stack.1);
    let their = block_on(hanging_calls(
        stack.service(dependency(&reached, || Failed)),
        &reached,
    ));
    say(row, "seatbelt 0.11, defaults", their);
}

fn recovery<T>(result: &Result<T, Failed>) -> RecoveryInfo {
    if result.is_ok() {
        RecoveryInfo::never()
    } else {
        RecoveryInfo::retry()
    }
}

/// How many of 30 panicking calls reach the dependency; the panics are caught around each call.
fn panicking_calls<S: Service<u8>>(mut service: S, reached: &AtomicUsize) -> usize {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for _ in 0..30 {
        let _ = catch_unwind(AssertUnwindSafe(|| block_on(send(&mut service, 3))));
    }
    std::panic::set_hook(hook);
    reached.load(Relaxed)
}

#[test]
fn panics_count_as_failures() {
    let row = "of 30 panicking calls reach the dependency";
    let reached = Arc::default();
    let our = panicking_calls(
        ours().layer().layer(dependency(&reached, our_error)),
        &reached,
    );
    say(row, "this toolkit", our);
    assert!(our <= 10, "{our}");

    let reached = Arc::default();
    let their = panicking_calls(theirs().layer(dependency(&reached, || Failed)), &reached);
    say(row, "tower-resilience 0.13", their);
}

/// Two attempts through a `ConcurrencyLimit` of one: what becomes of the call.
fn over_a_limit_of_one<S: Service<u8>>(mut service: S) -> &'static str {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let call = catch_unwind(AssertUnwindSafe(|| {
        block_on(async {
            tokio::time::timeout(Duration::from_secs(5), send(&mut service, 1)).await
        })
    }));
    std::panic::set_hook(hook);
    match call {
        Ok(Ok(())) => "answered",
        Ok(Err(_)) => "hangs",
        Err(_) => "panics",
    }
}

#[test]
fn a_retry_over_a_concurrency_limit_of_one_polls_it_ready_for_each_attempt() {
    let row = "a retry over `ConcurrencyLimit(1)`";
    let reached: Arc<AtomicUsize> = Arc::default();
    let limit = ConcurrencyLimitLayer::new(1);
    let retry = Retry::builder("peers")
        .max_attempts(2)
        .backoff(Backoff::fixed(MS))
        .build();
    let layer = retry.expect("good settings").layer().replay(Always);
    let service = layer.layer(limit.layer(dependency(&reached, our_error)));
    let our = over_a_limit_of_one(service);
    say(row, "this toolkit", our);
    assert_eq!((our, reached.load(Relaxed)), ("answered", 2));

    let layer = RetryLayer::<u8, (), Failed>::builder()
        .max_attempts(2)
        .fixed_backoff(MS)
        .build();
    let service = layer.layer(limit.layer(dependency(&reached, || Failed)));
    say(row, "tower-resilience 0.13", over_a_limit_of_one(service));

    let context = context();
    let layer = seatbelt::retry::Retry::layer("peers", &context)
        .clone_input()
        .max_retry_attempts(1)
        .recovery_with(|result, _| recovery(result));
    let service = layer.layer(limit.layer(dependency(&reached, || Failed)));
    say(row, "seatbelt 0.11", over_a_limit_of_one(service));
}

#[test]
fn a_breaker_over_an_error_of_any_kind_keeps_that_error() {
    let breaker = ours();
    let service = breaker
        .layer()
        .layer(service_fn(|()| ready(Err::<(), BoxError>("gone".into()))));
    let error = block_on(service.oneshot(())).expect_err("fails");
    assert_eq!(error.to_string(), "gone");
}
