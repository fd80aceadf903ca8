//! Tower's own layers.

use std::{future::Ready, sync::Arc, time::Duration};

use tower::{
    BoxError, ServiceBuilder,
    limit::{ConcurrencyLimitLayer, RateLimitLayer},
    load_shed::LoadShedLayer,
    retry::{
        Policy, RetryLayer,
        budget::{Budget, TpsBudget},
    },
    service_fn,
    timeout::TimeoutLayer,
};

use crate::subject::{Request, Response, Subject, answer};

pub(super) fn subjects() -> Vec<Subject> {
    let bare = service_fn(answer::<BoxError>);
    let builder = ServiceBuilder::new();
    let concurrency = builder.clone().layer(ConcurrencyLimitLayer::new(LIMIT));
    let timeout = builder.clone().layer(TimeoutLayer::new(PATIENCE));
    let retry = builder.clone().layer(RetryLayer::new(Attempts(2)));
    let budgeted = builder.clone().layer(RetryLayer::new(Budgeted::new()));
    let shed = builder.clone().layer(LoadShedLayer::new());
    vec![
        Subject::new(CONCURRENCY_LIMIT, concurrency.service(bare)).on_two_cores(),
        Subject::new(TIMEOUT, timeout.service(bare)),
        Subject::new("tower retry", retry.service(bare)),
        Subject::new("tower retry, TPS budget", budgeted.service(bare)).on_two_cores(),
        Subject::new(LOAD_SHED, shed.service(bare)),
        Subject::made("tower rate limit", move || {
            ServiceBuilder::new().layer(rate_limit()).service(bare)
        }),
        Subject::made(FIVE, move || {
            ServiceBuilder::new()
                .layer(LoadShedLayer::new())
                .layer(rate_limit())
                .layer(ConcurrencyLimitLayer::new(LIMIT))
                .layer(RetryLayer::new(Attempts(2)))
                .layer(TimeoutLayer::new(PATIENCE))
                .service(bare)
        }),
    ]
}

pub(crate) const CONCURRENCY_LIMIT: &str = "tower concurrency limit";
pub(crate) const TIMEOUT: &str = "tower timeout";
pub(crate) const LOAD_SHED: &str = "tower load shed";
pub(crate) const FIVE: &str = "tower five (shed, rate, limit, retry, timeout)";

pub(super) const LIMIT: usize = 32;
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// More than can be reached: a call that has to wait is not what is measured.
const fn rate_limit() -> RateLimitLayer {
    RateLimitLayer::new(u32::MAX as u64, Duration::from_secs(1))
}

/// The policy of tower's own examples: a number of further attempts, on any error, at once. Tower brings no policy; this one
/// has neither a budget nor a backoff, which makes it the cheapest there can be.
#[derive(Clone, Copy)]
struct Attempts(u32);

impl<E> Policy<Request, Response, E> for Attempts {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Request, result: &mut Result<Response, E>) -> Option<Ready<()>> {
        (result.is_err() && self.0 > 0).then(|| {
            self.0 -= 1;
            std::future::ready(())
        })
    }

    fn clone_request(&mut self, request: &Request) -> Option<Request> {
        Some(*request)
    }
}

/// The same with tower's own budget, as the documentation of `tower::retry::budget` shows it.
#[derive(Clone)]
struct Budgeted {
    attempts: Attempts,
    budget: Arc<TpsBudget>,
}

impl Budgeted {
    fn new() -> Self {
        Self {
            attempts: Attempts(2),
            budget: Arc::new(TpsBudget::new(Duration::from_secs(10), 10, 0.2)),
        }
    }
}

impl<E> Policy<Request, Response, E> for Budgeted {
    type Future = Ready<()>;

    fn retry(&mut self, req: &mut Request, result: &mut Result<Response, E>) -> Option<Ready<()>> {
        if result.is_ok() {
            self.budget.deposit();
            return None;
        }
        self.budget
            .withdraw()
            .then(|| self.attempts.retry(req, result))?
    }

    fn clone_request(&mut self, request: &Request) -> Option<Request> {
        Some(*request)
    }
}
