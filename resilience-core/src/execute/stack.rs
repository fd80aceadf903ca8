//! The usual stack around closures, of a type that is short to write.

use std::{
    fmt,
    task::{Context, Poll},
};

use tower_service::Service;

use super::{Execute, Guarded, Optional};
use crate::{
    breaker::{CircuitBreaker, CircuitBreakerService},
    bulkhead::{Bulkhead, BulkheadService},
    classify::Standard,
    deadline::{Timeout, TimeoutService},
    limit::{RateLimit, RateLimitService, Whole},
    order,
    retry::{Retry, RetryService},
};

/// The usual stack around closures: whichever of the patterns are wanted, in the documented
/// [order](crate#the-order-of-layers), judged by one classification. A type that fits in a struct; it serves closures of
/// every output and error type.
///
/// For other layers or another order, compose them by `tower::ServiceBuilder` and [`guard`](super::guard).
///
/// **Cost**: that of the layers, and a branch for each of the six.
///
/// ```
/// use std::{io, time::Duration};
/// use resilience_core::{Error, breaker::CircuitBreaker, deadline::Timeout, execute::Stack, retry::Retry};
///
/// struct Stock {
///     calls: Stack,
///     breaker: CircuitBreaker,
/// }
///
/// impl Stock {
///     fn new() -> Result<Self, resilience_core::InvalidConfig> {
///         let breaker = CircuitBreaker::builder("stock").build()?;
///         let calls = Stack::builder()
///             .timeout(&Timeout::new("stock", Duration::from_secs(2))?)
///             .retry(&Retry::builder("stock").max_attempts(3).build()?)
///             .breaker(&breaker)
///             .build();
///         Ok(Self { calls, breaker })
///     }
///
///     async fn left(&self, item: u64) -> Result<u64, Error<io::Error>> {
///         self.calls.call_idempotent(|| async { Ok(item + 1) }).await
///     }
///
///     async fn is_known(&self, item: &str) -> Result<bool, Error<&'static str>> {
///         self.calls.call_idempotent(|| async { Ok(item == "tea") }).await
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stock = Stock::new()?;
/// assert_eq!(stock.left(6).await?, 7);
/// assert!(stock.is_known("tea").await.unwrap());
/// assert_eq!(stock.breaker.snapshot().totals.successes, 2);
/// # Ok(()) }
/// ```
pub type Stack<C = Standard> = Guarded<StackService<C>>;

// Outermost first.
type Layers<C> = Optional<TimeoutService<Retried<C>>, Retried<C>>;
type Retried<C> = Optional<RetryService<Limited<C>, C>, Limited<C>>;
type Limited<C> = Optional<RateLimitService<Bounded<C>, Whole>, Bounded<C>>;
type Bounded<C> = Optional<BulkheadService<Broken<C>>, Broken<C>>;
type Broken<C> = Optional<CircuitBreakerService<Attempt, C>, Attempt>;
type Attempt = Optional<TimeoutService<Execute>, Execute>;

/// The service of a [`Stack`]. Made by [`StackBuilder::build`].
pub struct StackService<C = Standard> {
    layers: Layers<C>,
}

impl Stack {
    /// A builder of a stack without any layer.
    pub const fn builder() -> StackBuilder {
        StackBuilder {
            timeout: None,
            retry: None,
            rate_limit: None,
            bulkhead: None,
            breaker: None,
            attempt_timeout: None,
            classifier: Standard,
        }
    }
}

/// Builds a [`Stack`]. Each pattern is optional; the order of the calls does not matter. Handles are shared, not copied:
/// the same breaker may be in many stacks.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct StackBuilder<C = Standard> {
    timeout: Option<Timeout>,
    retry: Option<Retry>,
    rate_limit: Option<RateLimit>,
    bulkhead: Option<Bulkhead>,
    breaker: Option<CircuitBreaker>,
    attempt_timeout: Option<Timeout>,
    classifier: C,
}

impl<C> StackBuilder<C> {
    /// Bounds the whole call, retries and waits included.
    pub fn timeout(mut self, timeout: &Timeout) -> Self {
        self.timeout = Some(timeout.clone());
        self
    }

    /// Retries calls made by [`call_idempotent`](Guarded::call_idempotent).
    pub fn retry(mut self, retry: &Retry) -> Self {
        self.retry = Some(retry.clone());
        self
    }

    /// Bounds attempts per time, one token each.
    pub fn rate_limit(mut self, limit: &RateLimit) -> Self {
        self.rate_limit = Some(limit.clone());
        self
    }

    /// Bounds attempts in flight.
    pub fn bulkhead(mut self, bulkhead: &Bulkhead) -> Self {
        self.bulkhead = Some(bulkhead.clone());
        self
    }

    /// Stops calling while the dependency fails. The breaker may be one of a fleet.
    pub fn breaker(mut self, breaker: &CircuitBreaker) -> Self {
        self.breaker = Some(breaker.clone());
        self
    }

    /// Bounds one attempt.
    pub fn attempt_timeout(mut self, timeout: &Timeout) -> Self {
        self.attempt_timeout = Some(timeout.clone());
        self
    }

    /// Judges results by `classifier`, for the retry and the breaker. Default: [`Standard`].
    pub fn classify<D>(self, classifier: D) -> StackBuilder<D> {
        StackBuilder {
            timeout: self.timeout,
            retry: self.retry,
            rate_limit: self.rate_limit,
            bulkhead: self.bulkhead,
            breaker: self.breaker,
            attempt_timeout: self.attempt_timeout,
            classifier,
        }
    }
}

impl<C: Clone> StackBuilder<C> {
    /// The stack. Emits a warning for a timeout of an attempt that is not shorter than that of the call ([`order`]).
    #[must_use]
    pub fn build(self) -> Stack<C> {
        let classify = || self.classifier.clone();
        let attempt = self.attempt_timeout;
        let attempt = attempt.map(|timeout| timeout.layer().per_attempt());
        let attempt = Optional::new(attempt, Execute);
        let breaker = self
            .breaker
            .map(|breaker| breaker.layer().classify(classify()));
        let broken = Optional::new(breaker, attempt);
        let bounded = Optional::new(self.bulkhead.map(|bulkhead| bulkhead.layer()), broken);
        let limited = Optional::new(self.rate_limit.map(|limit| limit.layer()), bounded);
        let retry = self.retry.map(|retry| retry.layer().classify(classify()));
        let retried = Optional::new(retry, limited);
        let layers = Optional::new(self.timeout.map(|timeout| timeout.layer()), retried);
        order::check(&layers);
        Guarded::new(StackService { layers })
    }
}

impl<C, Req> Service<Req> for StackService<C>
where
    Layers<C>: Service<Req>,
{
    type Response = <Layers<C> as Service<Req>>::Response;
    type Error = <Layers<C> as Service<Req>>::Error;
    type Future = <Layers<C> as Service<Req>>::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.layers.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        self.layers.call(request)
    }
}

impl<C: Clone> Clone for StackService<C> {
    fn clone(&self) -> Self {
        Self {
            layers: self.layers.clone(),
        }
    }
}

impl<C> fmt::Debug for StackService<C>
where
    Layers<C>: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StackService").field(&self.layers).finish()
    }
}
