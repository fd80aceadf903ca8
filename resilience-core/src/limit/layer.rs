//! The rate limit as a tower layer.

use std::{
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    KeyedRateLimit, RateLimit,
    queue::{HeldTokens, Wait},
    shared::Denied,
};
use crate::{
    cost::{Cost, Each},
    error::{Rejected, ServiceError},
};

/// Whom a request is charged to, and how much: [`Whole`] or [`ByKey`].
pub trait Admit<Req>: sealed::Decide<Req> {}

/// One limit for all requests.
#[derive(Clone, Debug)]
pub struct Whole<C = Each> {
    limit: RateLimit,
    cost: C,
}

impl<C> Whole<C> {
    pub(super) const fn new(limit: RateLimit, cost: C) -> Self {
        Self { limit, cost }
    }
}

/// A limit for each key.
pub struct ByKey<K, F, C = Each> {
    limits: KeyedRateLimit<K>,
    key: F,
    cost: C,
}

impl<K, F, C> ByKey<K, F, C> {
    pub(super) const fn new(limits: KeyedRateLimit<K>, key: F, cost: C) -> Self {
        Self { limits, key, cost }
    }
}

impl<K, F: Clone, C: Clone> Clone for ByKey<K, F, C> {
    fn clone(&self) -> Self {
        Self::new(self.limits.clone(), self.key.clone(), self.cost.clone())
    }
}

impl<K, F, C> fmt::Debug for ByKey<K, F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ByKey").field(&self.limits).finish()
    }
}

mod sealed {
    use super::Denied;

    #[expect(unnameable_types, reason = "sealed")]
    pub trait Decide<Req> {
        #[expect(private_interfaces, reason = "sealed")]
        fn decide(&self, request: &Req) -> Result<(), Box<Denied>>;
    }
}

impl<Req, C: Cost<Req>> Admit<Req> for Whole<C> {}

impl<Req, C: Cost<Req>> sealed::Decide<Req> for Whole<C> {
    #[inline]
    #[expect(private_interfaces, reason = "sealed")]
    fn decide(&self, request: &Req) -> Result<(), Box<Denied>> {
        self.limit.admit(self.cost.cost(request))
    }
}

impl<Req, K, F, C> Admit<Req> for ByKey<K, F, C>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    F: Fn(&Req) -> K,
    C: Cost<Req>,
{
}

impl<Req, K, F, C> sealed::Decide<Req> for ByKey<K, F, C>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    F: Fn(&Req) -> K,
    C: Cost<Req>,
{
    #[inline]
    #[expect(private_interfaces, reason = "sealed")]
    fn decide(&self, request: &Req) -> Result<(), Box<Denied>> {
        let (key, cost) = ((self.key)(request), self.cost.cost(request));
        self.limits.with(&key, |limit| limit.admit(cost))
    }
}

/// Makes [`RateLimitService`]s. See [`RateLimit::layer`] and [`KeyedRateLimit::layer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RateLimitLayer<A> {
    admit: A,
}

impl<A> RateLimitLayer<A> {
    pub(super) const fn new(admit: A) -> Self {
        Self { admit }
    }
}

impl<C> RateLimitLayer<Whole<C>> {
    /// What a request costs. The default is one token.
    pub fn cost<D>(self, cost: D) -> RateLimitLayer<Whole<D>> {
        RateLimitLayer::new(Whole::new(self.admit.limit, cost))
    }
}

impl<K, F, C> RateLimitLayer<ByKey<K, F, C>> {
    /// What a request costs. The default is one token.
    pub fn cost<D>(self, cost: D) -> RateLimitLayer<ByKey<K, F, D>> {
        RateLimitLayer::new(ByKey::new(self.admit.limits, self.admit.key, cost))
    }
}

impl<S, A: Clone> Layer<S> for RateLimitLayer<A> {
    type Service = RateLimitService<S, A>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimitService {
            inner,
            admit: self.admit.clone(),
        }
    }
}

/// A service that takes so many calls per time. Made by [`RateLimitLayer`].
#[derive(Clone, Debug)]
pub struct RateLimitService<S, A> {
    inner: S,
    admit: A,
}

impl<S, A, Req> Service<Req> for RateLimitService<S, A>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    A: Admit<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req>;

    #[inline(always)]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        match self.admit.decide(&request) {
            Ok(()) => ResponseFuture {
                state: State::Calling {
                    future: self.inner.call(request),
                },
            },
            Err(denied) => held_up(&mut self.inner, request, *denied),
        }
    }
}

#[cold]
fn held_up<S: Service<Req> + Clone, Req>(
    inner: &mut S,
    request: Req,
    denied: Denied,
) -> ResponseFuture<S, Req> {
    // A service that was polled ready and will not be called makes room for one that holds nothing.
    let fresh = inner.clone();
    *inner = fresh;
    let state = match denied {
        Denied::Queued(wait) => State::Queued {
            queued: Box::pin(Queued {
                wait,
                inner: inner.clone(),
                request: Some(request),
                paid: None,
            }),
        },
        Denied::Rejected(rejected) => State::Rejected { rejected },
    };
    ResponseFuture { state }
}

pin_project! {
    /// The future of [`RateLimitService`].
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
        Queued { queued: Pin<Box<Queued<S, Req>>> },
        Rejected { rejected: Rejected },
        Done,
    }
}

pin_project! {
    // Waiting for tokens, then for the inner service.
    struct Queued<S, Req> {
        #[pin]
        wait: Wait,
        inner: S,
        request: Option<Req>,
        paid: Option<HeldTokens>,
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
                StateProj::Queued { queued } => {
                    let called = ready!(queued.as_mut().poll_call(cx));
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

impl<S, Req> Queued<S, Req>
where
    S: Service<Req>,
    S::Error: ServiceError,
{
    /// Waits for the tokens, then for the inner service, then calls it.
    fn poll_call(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<S::Future, S::Error>> {
        let this = self.project();
        if this.paid.is_none() {
            *this.paid = Some(ready!(this.wait.poll(cx)));
        }
        ready!(this.inner.poll_ready(cx))?;
        let request = this.request.take().expect("polled after it was called");
        if let Some(paid) = this.paid.take() {
            paid.spend();
        }
        Poll::Ready(Ok(this.inner.call(request)))
    }
}

impl<S: Service<Req>, Req> fmt::Debug for ResponseFuture<S, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Calling { .. } => "calling",
            State::Queued { .. } => "queued",
            State::Rejected { .. } => "rejected",
            State::Done => "done",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
