//! The fleet rate limit as a policy of the admission layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    FleetRateLimit,
    costs::{Costs, Prices},
    decision::{DecidedBy, Decision},
    limiter::Limiter,
};
use crate::{
    admission::{Admission, AdmissionLayer, AdmissionService, Admit, Refused},
    completion::OnResponse,
    cost::Each,
    error::Rejected,
    limit::held_tokens::HeldTokens,
};

/// The costs of a request: a closure that returns [`Costs`] or a value that converts into them, or [`Each`].
pub trait Pricing<Req> {
    /// The costs of `request` on each limit.
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
/// A request that cannot be decided at once (out of a lease, or from the denial cache) is decided by the store, and waits
/// for its tokens if the handle has a [queue](super::FleetRateLimitBuilder::queue). Readiness is
/// [the admission layer's](crate::admission#readiness).
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{FleetRateLimit, Quota, Rejected, limit::store::InProcessLimits};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// struct Upload { tenant: String, bytes: u64 }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limit = FleetRateLimit::builder("uploads")
///     .store(InProcessLimits::new())
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
/// the background. One that is dropped during its round trip may have been charged.
pub type FleetRateLimitLayer<F, P = Each, C = OnResponse> = AdmissionLayer<BySubject<F, P>, C>;

/// A service whose requests are charged to their subjects. Made by [`FleetRateLimitLayer`].
pub type FleetRateLimitService<S, F, P = Each, C = OnResponse> =
    AdmissionService<S, BySubject<F, P>, C>;

/// The policy of [`FleetRateLimitLayer`]: charges each request to its subject.
#[derive(Clone)]
pub struct BySubject<F, P = Each> {
    limit: FleetRateLimit,
    subject: F,
    pricing: P,
}

impl<F> BySubject<F> {
    pub(super) const fn new(limit: FleetRateLimit, subject: F) -> Self {
        Self {
            limit,
            subject,
            pricing: Each(1),
        }
    }
}

impl<F, P, C> AdmissionLayer<BySubject<F, P>, C> {
    /// Sets the costs of a request. Default: one token of each limit.
    pub fn costs<Q>(self, pricing: Q) -> AdmissionLayer<BySubject<F, Q>, C> {
        let BySubject { limit, subject, .. } = self.policy;
        AdmissionLayer {
            policy: BySubject {
                limit,
                subject,
                pricing,
            },
            completion: self.completion,
        }
    }
}

impl<F, P> fmt::Debug for BySubject<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BySubject").field(&self.limit).finish()
    }
}

impl<Req, F, P, K> Admit<Req> for BySubject<F, P>
where
    F: Fn(&Req) -> K + Clone,
    K: AsRef<str>,
    P: Pricing<Req> + Clone,
{
    type Permit = HeldTokens;
    type Wait = WaitForTokens;

    #[inline]
    fn admit(&self, request: &Req) -> Admission<HeldTokens, WaitForTokens> {
        let subject = (self.subject)(request);
        let costs = self.pricing.costs(request);
        let limiter = self.limit.core();
        match try_local(limiter, subject.as_ref(), &costs) {
            Some(Ok(())) => Ok(HeldTokens::NONE),
            Some(Err(rejected)) => Err(Refused::no(rejected)),
            None => {
                let deciding = decide(Arc::clone(limiter), subject.as_ref().into(), costs);
                Err(Refused::wait(WaitForTokens(Box::pin(deciding))))
            }
        }
    }
}

/// Decides and counts, if that is possible without waiting.
fn try_local(
    limiter: &Arc<Limiter>,
    subject: &str,
    costs: &Costs<'_>,
) -> Option<Result<(), Rejected>> {
    // Calls that wait come first.
    if limiter.lets_wait() && limiter.queues.waiting() > 0 {
        return None;
    }
    let plan = limiter.plan_of(subject);
    let prices = limiter.prices(&plan, costs);
    let decision = limiter.try_local(subject, &plan, &prices)?;
    if !decision.would_admit() && limiter.lets_wait() {
        return None;
    }
    let decision = limiter.finish(decision);
    Some(decision.into_result().map(drop))
}

async fn decide(
    limiter: Arc<Limiter>,
    subject: Box<str>,
    costs: Costs<'static>,
) -> Result<HeldTokens, Rejected> {
    let decision = limiter.acquire(&subject, costs).await.into_result()?;
    let prices = limiter.prices(&decision.plan, &costs);
    Ok(HeldTokens::new(move || {
        put_back(&limiter, subject, decision, prices);
    }))
}

/// Puts the tokens of an admitted request back, in the background.
fn put_back(limiter: &Arc<Limiter>, subject: Box<str>, decision: Decision, prices: Prices) {
    let uncounted = matches!(decision.by, DecidedBy::Unlimited | DecidedBy::Policy);
    if uncounted || decision.shadowed {
        return;
    }
    let undone = Arc::clone(limiter);
    limiter.spawn(async move { undone.undo(&subject, &decision, &prices).await });
}

/// A request that waits for its decision, and for its tokens if there is a queue. Dropping it leaves the queue.
#[must_use = "futures do nothing unless polled"]
pub struct WaitForTokens(Pin<Box<dyn Future<Output = Result<HeldTokens, Rejected>> + Send>>);

impl Future for WaitForTokens {
    type Output = Result<HeldTokens, Rejected>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for WaitForTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitForTokens").finish_non_exhaustive()
    }
}
