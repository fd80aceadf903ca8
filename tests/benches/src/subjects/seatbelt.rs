//! seatbelt 0.11 through its tower services, telemetry off (its default), tokio's clock.

use std::time::Duration;

use seatbelt::{RecoveryInfo, ResilienceContext, breaker::Breaker, retry::Retry, timeout::Timeout};
use tick::Clock;
use tower::{ServiceBuilder, service_fn};

use super::tower_own::PATIENCE;
use crate::subject::{Failure, Request, Response, Subject, answer};

pub(crate) const BREAKER: &str = "seatbelt breaker";

type Context = ResilienceContext<Request, Result<Response, Failure>>;

/// Its layers carry their configuration in type parameters that cannot be named shortly.
macro_rules! layer {
    (breaker $context:expr) => {
        // Its breaker knows time windows only: thirty seconds by default, here as long as ours.
        Breaker::layer("bench", $context)
            .recovery_with(|result, _| recovery(result))
            .rejected_input_error(|_, _| Failure)
            .failure_threshold(0.5)
            .min_throughput(20)
            .sampling_duration(Duration::from_secs(10))
    };
    (retry $context:expr) => {
        // It has no retry budget.
        Retry::layer("bench", $context)
            .clone_input()
            .max_retry_attempts(2)
            .recovery_with(|result, _| recovery(result))
    };
    (timeout $context:expr) => {
        Timeout::layer("bench", $context)
            .timeout(PATIENCE)
            .timeout_error(|_| Failure)
    };
}

pub(super) fn subjects() -> Vec<Subject> {
    let context = Context::new(Clock::new_tokio());
    let bare = service_fn(answer::<Failure>);
    let stack = || ServiceBuilder::new();
    vec![
        Subject::new(
            BREAKER,
            stack().layer(layer!(breaker & context)).service(bare),
        )
        .on_two_cores(),
        Subject::new(
            "seatbelt retry",
            stack().layer(layer!(retry & context)).service(bare),
        ),
        Subject::new(
            "seatbelt timeout",
            stack().layer(layer!(timeout & context)).service(bare),
        ),
        // In the order that its documentation recommends.
        Subject::new(
            "seatbelt three (retry, breaker, timeout)",
            stack()
                .layer(layer!(retry & context))
                .layer(layer!(breaker & context))
                .layer(layer!(timeout & context))
                .service(bare),
        )
        .on_two_cores(),
    ]
}

fn recovery(result: &Result<Response, Failure>) -> RecoveryInfo {
    match result {
        Ok(_) => RecoveryInfo::never(),
        Err(_) => RecoveryInfo::retry(),
    }
}
