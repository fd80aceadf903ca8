use std::{
    future::pending,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use tokio::time::{Instant, advance, sleep};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, buffer::BufferLayer,
    limit::ConcurrencyLimitLayer, service_fn,
};
use tower_test::{assert_request_eq, mock};

use super::*;
use crate::{
    classify::{self, Verdict},
    deadline::{self, Deadline, Timeout},
    error::{Error, Pattern, Reason, Rejected},
};

mod budgets;
mod contract;
mod deadlines;
mod decisions;
mod handle;
mod rejections;

type Outcome<T> = Result<T, Error<&'static str>>;

const DOWN: Outcome<u32> = Err(Error::Service("down"));

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn builder() -> RetryBuilder {
    Retry::builder("api").backoff(Backoff::fixed(ms(100)))
}

fn retry() -> Retry {
    builder().build().unwrap()
}

fn budget(fraction: f64, most: u32) -> RetryBudget {
    let builder = RetryBudget::builder().fraction(fraction);
    builder
        .floor_per_second(0)
        .max_balance(most)
        .build()
        .unwrap()
}

fn rejected(retry_after: Option<Duration>) -> Error<&'static str> {
    let open = Rejected::new(Pattern::CircuitBreaker, Reason::Open, "api");
    Error::Rejected(match retry_after {
        Some(wait) => open.with_retry_after(wait),
        None => open,
    })
}

/// Answers from a list, the last one forever, and records when it was called and what `attempt()` was.
#[derive(Clone)]
struct Script {
    answers: Arc<Vec<Outcome<u32>>>,
    calls: Arc<Mutex<Vec<(Duration, u32)>>>,
    start: Instant,
}

impl Script {
    fn new(answers: impl Into<Vec<Outcome<u32>>>) -> Self {
        Self {
            answers: Arc::new(answers.into()),
            calls: Arc::default(),
            start: Instant::now(),
        }
    }

    fn times(&self) -> Vec<u64> {
        let calls = self.calls.lock().unwrap();
        calls.iter().map(|(at, _)| at.as_millis() as u64).collect()
    }

    fn attempts(&self) -> Vec<u32> {
        self.calls
            .lock()
            .unwrap()
            .iter()
            .map(|(_, attempt)| *attempt)
            .collect()
    }
}

impl<Req> Service<Req> for Script {
    type Response = u32;
    type Error = Error<&'static str>;
    type Future = std::future::Ready<Outcome<u32>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Req) -> Self::Future {
        let mut calls = self.calls.lock().unwrap();
        let answer = &self.answers[calls.len().min(self.answers.len() - 1)];
        calls.push((self.start.elapsed(), attempt()));
        std::future::ready(answer.clone())
    }
}

async fn run(retry: &Retry, script: &Script) -> Outcome<u32> {
    retry
        .layer()
        .replay(Always)
        .layer(script.clone())
        .oneshot(())
        .await
}
