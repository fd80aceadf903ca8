//! tower-resilience 0.13, the peer nearest to this toolkit. Default features: neither its metrics nor its tracing.

use std::time::Duration;

use tower::{ServiceBuilder, service_fn};
use tower_resilience::{
    bulkhead::BulkheadLayer,
    circuitbreaker::{CircuitBreakerLayer, SlidingWindowType},
    ratelimiter::RateLimiterLayer,
    retry::{RetryBudgetBuilder, RetryLayer},
    timelimiter::TimeLimiterLayer,
};

use super::tower_own::{LIMIT, PATIENCE};
use crate::subject::{Failure, Request, Response, Subject, answer};

pub(crate) const BREAKER: &str = "tower-resilience breaker, count window";
pub(crate) const TIME_WINDOW: &str = "tower-resilience breaker, time window, ~1,000 in it";
pub(crate) const BULKHEAD: &str = "tower-resilience bulkhead, rejects";
pub(crate) const RETRY: &str = "tower-resilience retry, budget";
pub(crate) const FIVE: &str = "tower-resilience five";

pub(super) fn subjects() -> Vec<Subject> {
    let bare = service_fn(answer::<Failure>);
    let stack = || ServiceBuilder::new();
    vec![
        Subject::new(BREAKER, stack().layer(count_window()).service(bare)).on_two_cores(),
        Subject::new(TIME_WINDOW, stack().layer(time_window()).service(bare)),
        Subject::new(
            "tower-resilience bulkhead, waits",
            stack().layer(bulkhead()).service(bare),
        )
        .on_two_cores(),
        Subject::new(BULKHEAD, stack().layer(rejecting_bulkhead()).service(bare)),
        Subject::new(RETRY, stack().layer(retry()).service(bare)).on_two_cores(),
        Subject::new(
            "tower-resilience time limiter",
            stack().layer(time_limiter()).service(bare),
        ),
        Subject::new(
            "tower-resilience rate limiter",
            stack().layer(rate_limiter()).service(bare),
        ),
        Subject::new(
            FIVE,
            stack()
                .layer(time_limiter())
                .layer(retry())
                .layer(count_window())
                .layer(rate_limiter())
                .layer(bulkhead())
                .service(bare),
        )
        .on_two_cores(),
    ]
}

/// Its default window, over as many calls as ours in the count-window row. It is also its cheapest: the counters never
/// forget a call.
fn count_window() -> CircuitBreakerLayer {
    CircuitBreakerLayer::builder()
        .name("bench")
        .failure_rate_threshold(0.5)
        .sliding_window_size(100)
        .minimum_number_of_calls(20)
        .build()
        .expect("a valid breaker")
}

/// Its time window keeps one record per call and walks over all of them on every call, so its cost depends on how many
/// calls the window holds. At the bench's pace one millisecond holds about 1,000, as ten seconds do at 100 calls per
/// second.
fn time_window() -> CircuitBreakerLayer {
    CircuitBreakerLayer::builder()
        .name("bench")
        .failure_rate_threshold(0.5)
        .sliding_window_type(SlidingWindowType::TimeBased)
        .sliding_window_duration(Duration::from_millis(1))
        .minimum_number_of_calls(20)
        .build()
        .expect("a valid breaker")
}

/// Its default waits for a permit without bound, and is cheaper than rejecting; the five have this one.
fn bulkhead() -> BulkheadLayer {
    BulkheadLayer::builder()
        .name("bench")
        .max_concurrent_calls(LIMIT)
        .build()
        .expect("a valid bulkhead")
}

/// The semantics of our bulkhead without a queue.
fn rejecting_bulkhead() -> BulkheadLayer {
    BulkheadLayer::builder()
        .name("bench")
        .max_concurrent_calls(LIMIT)
        .reject_when_full()
        .build()
        .expect("a valid bulkhead")
}

fn retry<E>() -> RetryLayer<Request, Response, E> {
    let budget = RetryBudgetBuilder::new().token_bucket().build();
    RetryLayer::builder()
        .name("bench")
        .max_attempts(3)
        .exponential_backoff(Duration::from_millis(50))
        .budget(budget.expect("a valid budget"))
        .build()
}

fn time_limiter() -> TimeLimiterLayer {
    TimeLimiterLayer::builder()
        .name("bench")
        .timeout_duration(PATIENCE)
        .build()
}

/// More than can be reached, in its default window.
fn rate_limiter() -> RateLimiterLayer {
    RateLimiterLayer::builder()
        .name("bench")
        .limit_for_period(u32::MAX as usize)
        .refresh_period(Duration::from_secs(1))
        .build()
        .expect("a valid limit")
}
