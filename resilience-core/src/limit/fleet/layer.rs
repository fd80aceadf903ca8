//! The shared rate limit as a tower layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    FleetRateLimit,
    costs::{Costs, Prices},
    decision::{DecidedBy, Decision},
    limiter::Limiter,
};
use crate::{
    cost::Each,
    error::{Rejected, ServiceError},
};

/// What a request costs: a closure that returns [`Costs`] or what can be made into them, or [`Each`].
pub trait Pricing<Req> {
    /// On each limit.
    fn costs(&self, request: &Req) -> Costs<'static>;
}

impl<Req> Pricing<Req> for Each {
    #[inline]
    fn costs(&self, _: &Req) -> Costs<'static> {
        Costs::each(self.0)
    }
}

impl<F, Req, R> Pricing<Req> for F
where
    F: Fn(&Req) -> R,
    R: Into<Costs<'static>>,
{
    #[inline]
    fn costs(&self, request: &Req) -> Costs<'static> {
        self(request).into()
    }
}

/// Makes [`FleetRateLimitService`]s. See [`FleetRateLimit::layer`].
///
/// A request that cannot be decided on the spot (out of a lease, or from memory) is decided by the store, and waits
/// for its tokens if the handle has a [queue](super::FleetRateLimitBuilder::queue). It then takes a clone of the
/// inner service, which it drives to readiness when it may go on. This is why the inner service has to be `Clone`.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Rejected, limit::{Quota, fleet::FleetRateLimit, store::InProcessLimits}};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// struct Upload { tenant: String, bytes: u64 }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limit = FleetRateLimit::builder("uploads", InProcessLimits::new())
///     .limit("uploads", Quota::per(10, Duration::from_secs(1))?)
///     .limit("bytes", Quota::per(1_000_000, Duration::from_secs(3600))?)
///     .build()?;
/// let service = ServiceBuilder::new()
///     .layer(
///         limit
///             .layer(|upload: &Upload| upload.tenant.clone())
///             .costs(|upload: &Upload| [("uploads", 1), ("bytes", upload.bytes)]),
///     )
///     .service(service_fn(|upload: Upload| async move { Ok::<_, Rejected>(upload.bytes) }));
/// service.oneshot(Upload { tenant: "t".into(), bytes: 999_999 }).await?;
/// assert_eq!(limit.peek("t").await?.limits().last().unwrap().remaining, 1);
/// # Ok(()) }
/// ```
///
/// # Cancellation
/// A request that is dropped after it was admitted and before the inner service was called puts its tokens back, in
/// the background. One that is dropped while the store is asked may have been charged.
#[derive(Clone, Debug)]
#[must_use]
pub struct FleetRateLimitLayer<F, P = Each> {
    limit: FleetRateLimit,
    subject: F,
    pricing: P,
}

impl<F, P> FleetRateLimitLayer<F, P> {
    pub(super) const fn new(limit: FleetRateLimit, subject: F, pricing: P) -> Self {
        Self {
            limit,
            subject,
            pricing,
        }
    }

    /// What a request costs. The default is one token of each limit.
    pub fn costs<Q>(self, pricing: Q) -> FleetRateLimitLayer<F, Q> {
        FleetRateLimitLayer::new(self.limit, self.subject, pricing)
    }
}

impl<S, F: Clone, P: Clone> Layer<S> for FleetRateLimitLayer<F, P> {
    type Service = FleetRateLimitService<S, F, P>;

    fn layer(&self, inner: S) -> Self::Service {
        FleetRateLimitService {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service whose requests are charged to their subjects. Made by [`FleetRateLimitLayer`].
#[derive(Clone, Debug)]
pub struct FleetRateLimitService<S, F, P = Each> {
    inner: S,
    layer: FleetRateLimitLayer<F, P>,
}

impl<S, F, P, K, Req> Service<Req> for FleetRateLimitService<S, F, P>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    F: Fn(&Req) -> K,
    K: AsRef<str>,
    P: Pricing<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let subject = (self.layer.subject)(&request);
        let costs = self.layer.pricing.costs(&request);
        let core = self.layer.limit.core();
        match try_local(core, subject.as_ref(), &costs) {
            Some(Ok(())) => ResponseFuture {
                state: State::Calling {
                    future: self.inner.call(request),
                },
            },
            Some(Err(rejected)) => {
                self.renew();
                ResponseFuture {
                    state: State::Rejected { rejected },
                }
            }
            None => {
                let deciding = decide(Arc::clone(core), subject.as_ref().into(), costs);
                let inner = self.renew();
                ResponseFuture {
                    state: State::Undecided {
                        undecided: Box::pin(Undecided {
                            deciding: Box::pin(deciding),
                            inner,
                            request: Some(request),
                            admitted: None,
                        }),
                    },
                }
            }
        }
    }
}

impl<S: Clone, F, P> FleetRateLimitService<S, F, P> {
    /// A service that was polled ready and is not called at once makes room for one that holds nothing.
    fn renew(&mut self) -> S {
        let fresh = self.inner.clone();
        self.inner = fresh.clone();
        fresh
    }
}

/// What can be decided without waiting for anybody, and counted.
fn try_local(
    core: &Arc<Limiter>,
    subject: &str,
    costs: &Costs<'_>,
) -> Option<Result<(), Rejected>> {
    // Whoever waits comes first.
    if core.lets_wait() && core.queues.waiting() > 0 {
        return None;
    }
    let plan = core.plan_of(subject);
    let prices = core.prices(&plan, costs);
    let decision = core.try_local(subject, &plan, &prices)?;
    if !decision.would_admit() && core.lets_wait() {
        return None;
    }
    let decision = core.finish(decision);
    Some(decision.into_result().map(drop))
}

async fn decide(
    core: Arc<Limiter>,
    subject: Box<str>,
    costs: Costs<'static>,
) -> Result<Admitted, Rejected> {
    let decision = core.acquire(&subject, costs).await.into_result()?;
    let prices = core.prices(&decision.plan, &costs);
    Ok(Admitted {
        paid: Some((core, subject, decision, prices)),
    })
}

/// Tokens of a request that was not made yet: dropped before it is, they go back.
struct Admitted {
    paid: Option<(Arc<Limiter>, Box<str>, Decision, Prices)>,
}

impl Admitted {
    /// The request is made.
    fn spend(mut self) {
        self.paid = None;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some((core, subject, decision, prices)) = self.paid.take() else {
            return;
        };
        let nobody_counted = matches!(decision.by, DecidedBy::Unlimited | DecidedBy::Policy);
        if nobody_counted || decision.shadowed {
            return;
        }
        let runtime = core.settings.runtime.clone();
        runtime.spawn(async move { core.undo(&subject, &decision, &prices).await });
    }
}

type Deciding = Pin<Box<dyn Future<Output = Result<Admitted, Rejected>> + Send>>;

pin_project! {
    /// The future of [`FleetRateLimitService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateReplaced]
    enum State<S, Req, Fut> {
        Calling { #[pin] future: Fut },
        // Boxed, so that a call that passes does not carry the space around.
        Undecided { undecided: Pin<Box<Undecided<S, Req>>> },
        Rejected { rejected: Rejected },
        Done,
    }
}

pin_project! {
    // Waiting for the decision, then for the inner service.
    struct Undecided<S, Req> {
        deciding: Deciding,
        inner: S,
        request: Option<Req>,
        admitted: Option<Admitted>,
    }
}

impl<S, Req> Future for ResponseFuture<S, Req>
where
    S: Service<Req>,
    S::Error: ServiceError,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Calling { future } => {
                    let result = ready!(future.poll(cx));
                    state.set(State::Done);
                    return Poll::Ready(result);
                }
                StateProj::Undecided { undecided } => {
                    let called = ready!(undecided.as_mut().poll_call(cx));
                    state.set(State::Done);
                    let future = called?;
                    state.set(State::Calling { future });
                }
                StateProj::Rejected { .. } => {
                    let StateReplaced::Rejected { rejected } = state.project_replace(State::Done)
                    else {
                        unreachable!("the state was matched above")
                    };
                    return Poll::Ready(Err(rejected.into()));
                }
                StateProj::Done => panic!("polled after it was done"),
            }
        }
    }
}

impl<S, Req> Undecided<S, Req>
where
    S: Service<Req>,
    S::Error: ServiceError,
{
    /// Waits for the decision, then for the inner service, then calls it.
    fn poll_call(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<S::Future, S::Error>> {
        let this = self.project();
        if this.admitted.is_none() {
            *this.admitted = Some(ready!(this.deciding.as_mut().poll(cx))?);
        }
        ready!(this.inner.poll_ready(cx))?;
        let request = this.request.take().expect("polled after it was called");
        if let Some(admitted) = this.admitted.take() {
            admitted.spend();
        }
        Poll::Ready(Ok(this.inner.call(request)))
    }
}

impl<S: Service<Req>, Req> fmt::Debug for ResponseFuture<S, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Calling { .. } => "calling",
            State::Undecided { .. } => "undecided",
            State::Rejected { .. } => "rejected",
            State::Done => "done",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
