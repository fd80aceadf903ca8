//! The breaker as a tower layer. Thin: asks the machine, calls inner, reports back.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    CircuitBreaker, Permit, fleet::ProbeRequest, machine::Refusal, readiness::Readiness,
    shared::Shared,
};
use crate::{
    classify::{self, Classify},
    completion::{self, Completion, Guard},
    error::{Reason, Rejected, ServiceError},
    stripe::Striped,
    verdict::Verdict,
};

/// Guards services with a [`CircuitBreaker`]. From [`CircuitBreaker::layer`].
///
/// `M` is the mode: [`FailFast`] or [`Gate`].
#[derive(Clone, Debug)]
#[must_use]
pub struct CircuitBreakerLayer<C = classify::Standard, U = completion::OnResponse, M = FailFast> {
    breaker: CircuitBreaker,
    classify: C,
    completion: U,
    mode: PhantomData<fn() -> M>,
}

/// Mode of a layer: never keeps a caller waiting for the breaker. The default.
///
/// The inner service must be `Clone`: when a call is rejected after the inner service was made ready for it, a fresh
/// clone takes its place, so that whatever it had reserved (a place in a `ConcurrencyLimit`) goes to a call that is
/// made.
#[derive(Clone, Copy, Debug)]
pub struct FailFast;

/// Mode of a layer: `poll_ready` is pending while the breaker rejects.
#[derive(Clone, Copy, Debug)]
pub struct Gate;

impl<C, U> CircuitBreakerLayer<C, U> {
    pub(super) const fn new(breaker: CircuitBreaker, classify: C, completion: U) -> Self {
        Self {
            breaker,
            classify,
            completion,
            mode: PhantomData,
        }
    }

    /// Makes `poll_ready` pending while the breaker rejects, for use under `tower::balance`, which then passes this
    /// endpoint over. It is woken when the open interval is over and when the state changes. Of several callers that
    /// were woken for one probe, those who come too late are rejected in `call`.
    pub fn gate(self) -> CircuitBreakerLayer<C, U, Gate> {
        self.in_mode()
    }
}

impl<C, U, M> CircuitBreakerLayer<C, U, M> {
    /// What results mean. Default: [`classify::Standard`].
    pub fn classify<D>(self, classify: D) -> CircuitBreakerLayer<D, U, M> {
        CircuitBreakerLayer {
            breaker: self.breaker,
            classify,
            completion: self.completion,
            mode: PhantomData,
        }
    }

    /// When a call that was answered is over. Default: [`completion::OnResponse`], at once.
    pub fn complete_on<V>(self, completion: V) -> CircuitBreakerLayer<C, V, M> {
        CircuitBreakerLayer {
            breaker: self.breaker,
            classify: self.classify,
            completion,
            mode: PhantomData,
        }
    }

    fn in_mode<N>(self) -> CircuitBreakerLayer<C, U, N> {
        CircuitBreakerLayer {
            breaker: self.breaker,
            classify: self.classify,
            completion: self.completion,
            mode: PhantomData,
        }
    }
}

impl<C: Clone, U: Clone, M> CircuitBreakerLayer<C, U, M> {
    fn service<S>(&self, inner: S, mode: Mode<S>) -> CircuitBreakerService<S, C, U> {
        CircuitBreakerService {
            inner,
            inner_is_ready: false,
            breaker: self.breaker.shared.clone(),
            classify: self.classify.clone(),
            completion: self.completion.clone(),
            mode,
        }
    }
}

impl<S: Clone, C: Clone, U: Clone> Layer<S> for CircuitBreakerLayer<C, U, FailFast> {
    type Service = CircuitBreakerService<S, C, U>;

    fn layer(&self, inner: S) -> Self::Service {
        self.service(inner, Mode::FailFast { take })
    }
}

impl<S, C: Clone, U: Clone> Layer<S> for CircuitBreakerLayer<C, U, Gate> {
    type Service = CircuitBreakerService<S, C, U>;

    fn layer(&self, inner: S) -> Self::Service {
        self.service(inner, Mode::Gate(Readiness::default()))
    }
}

/// A service behind a circuit breaker. From [`CircuitBreakerLayer`].
///
/// A clone is not ready and holds nothing. A call that was rejected because `poll_ready` found the breaker open is
/// rejected even if it has closed meanwhile: the inner service was not asked whether it is ready.
pub struct CircuitBreakerService<S, C = classify::Standard, U = completion::OnResponse> {
    inner: S,
    /// `poll_ready` has found the inner service ready, for the next call.
    inner_is_ready: bool,
    breaker: Striped<Shared>,
    classify: C,
    completion: U,
    mode: Mode<S>,
}

enum Mode<S> {
    FailFast {
        /// Takes the service that was made ready and puts a fresh clone in its place.
        take: fn(&mut S) -> S,
    },
    Gate(Readiness),
}

impl<S, C, U> CircuitBreakerService<S, C, U> {
    /// The guarded service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The guarded service.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The guarded service, without the breaker.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// The inner service was made ready for a call that is not made.
    fn give_readiness_back(&mut self) {
        if let Mode::FailFast { take } = self.mode {
            drop(take(&mut self.inner));
        }
    }

    /// The breaker is not plainly closed. Pending: not now; ready with an error: the next call is to be rejected.
    #[cold]
    fn poll_breaker(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        match &mut self.mode {
            Mode::FailFast { .. } => Poll::Ready(self.breaker.check()),
            Mode::Gate(waiting) => waiting.poll(&self.breaker, cx).map(Ok),
        }
    }

    /// Any way in but the plain one. Behind a pointer: memory that this function writes to could not be registers
    /// for the calls that pass.
    #[cold]
    #[inline(never)]
    fn call_otherwise<Req>(&mut self, req: Req, inner_is_ready: bool) -> Box<State<S, Req>>
    where
        S: Service<Req>,
    {
        if !inner_is_ready {
            return Box::new(State::rejected(self.reject()));
        }
        Box::new(match Permit::try_admit(&self.breaker) {
            Ok(call) => State::calling_begun(&mut self.inner, req, call),
            Err(refusal) => self.call_refused(req, refusal),
        })
    }

    /// With one of the fleet's probes it may still be made.
    fn call_refused<Req>(&mut self, req: Req, refusal: Refusal) -> State<S, Req>
    where
        S: Service<Req>,
    {
        let inner = &mut self.inner;
        let req = match self.mode {
            Mode::FailFast { take } => {
                match ProbeRequest::start(&self.breaker, &refusal, req, || take(inner)) {
                    Ok(asking) => return State::asking(asking),
                    Err(req) => req,
                }
            }
            // Without a clone of the service there is nothing to wait with.
            Mode::Gate(_) => match Permit::admit_parked(&self.breaker, &refusal) {
                Some(call) => return State::calling_begun(inner, req, call),
                None => req,
            },
        };
        drop(req);
        self.give_readiness_back();
        State::rejected(self.breaker.reject(refusal))
    }

    #[cold]
    fn reject(&self) -> Rejected {
        let refusal = self.breaker.check().err().unwrap_or(Refusal {
            reason: Reason::Open,
            until: None,
            needs_lease: false,
            retry_after: Some(Duration::ZERO),
        });
        self.breaker.reject(refusal)
    }
}

impl<S, C, U, Req> Service<Req> for CircuitBreakerService<S, C, U>
where
    S: Service<Req>,
    S::Error: ServiceError,
    C: Classify<S::Response, S::Error> + Clone,
    U: Completion<S::Response, Permit>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, C, U>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if !self.breaker.is_plainly_closed() && ready!(self.poll_breaker(cx)).is_err() {
            if mem::take(&mut self.inner_is_ready) {
                self.give_readiness_back();
            }
            return Poll::Ready(Ok(()));
        }
        self.inner_is_ready = false;
        let readiness = ready!(self.inner.poll_ready(cx));
        match &readiness {
            Ok(()) => self.inner_is_ready = true,
            Err(error) => {
                let verdict = classify::judge(&self.classify, Err(error));
                if let Ok(mut call) = Permit::try_admit(&self.breaker) {
                    call.settle(verdict);
                }
            }
        }
        Poll::Ready(readiness)
    }

    #[inline(always)]
    fn call(&mut self, req: Req) -> Self::Future {
        let inner_is_ready = mem::take(&mut self.inner_is_ready);
        let call = if inner_is_ready {
            Permit::pass(&self.breaker)
        } else {
            None
        };
        let state = match call {
            Some(call) => State::calling(&mut self.inner, req, call),
            None => *self.call_otherwise(req, inner_is_ready),
        };
        ResponseFuture {
            state,
            classify: self.classify.clone(),
            completion: self.completion.clone(),
        }
    }
}

impl<S: Clone, C: Clone, U: Clone> Clone for CircuitBreakerService<S, C, U> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            inner_is_ready: false,
            breaker: self.breaker.clone(),
            classify: self.classify.clone(),
            completion: self.completion.clone(),
            mode: match self.mode {
                Mode::FailFast { take } => Mode::FailFast { take },
                Mode::Gate(_) => Mode::Gate(Readiness::default()),
            },
        }
    }
}

impl<S: fmt::Debug, C, U> fmt::Debug for CircuitBreakerService<S, C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerService")
            .field("breaker", &self.breaker.name())
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// The response of a call through a breaker. Dropping it drops the call: see [`Dropped`](super::Dropped).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, C, U>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req>,
        classify: C,
        completion: U,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, Req>
    where
        S: Service<Req>,
    {
        Rejected { rejected: Option<Rejected> },
        // Of a shared breaker that is half-open. Boxed, so that calls that pass do not carry the room for it.
        ProbeRequest { asking: Box<ProbeRequest<S, Req>> },
        // The future is dropped before the call is: what is released by the drop is released within the call.
        Calling { #[pin] future: S::Future, call: Option<Permit> },
    }
}

impl<S: Service<Req>, Req> State<S, Req> {
    const fn rejected(rejected: Rejected) -> Self {
        Self::Rejected {
            rejected: Some(rejected),
        }
    }

    fn asking(asking: ProbeRequest<S, Req>) -> Self {
        Self::ProbeRequest {
            asking: Box::new(asking),
        }
    }

    #[inline(always)]
    fn calling(inner: &mut S, req: Req, call: Permit) -> Self {
        Self::Calling {
            future: inner.call(req),
            call: Some(call),
        }
    }

    fn calling_begun(inner: &mut S, req: Req, mut call: Permit) -> Self {
        call.begin_in_layer();
        Self::calling(inner, req, call)
    }
}

impl<S: Service<Req>, Req, C, U> ResponseFuture<S, Req, C, U> {
    #[inline(always)]
    pub(super) fn calling(
        inner: &mut S,
        req: Req,
        call: Permit,
        classify: C,
        completion: U,
    ) -> Self {
        let state = State::calling(inner, req, call);
        Self {
            state,
            classify,
            completion,
        }
    }

    pub(super) fn asking(asking: ProbeRequest<S, Req>, classify: C, completion: U) -> Self {
        let state = State::asking(asking);
        Self {
            state,
            classify,
            completion,
        }
    }

    pub(super) const fn rejected(rejected: Rejected, classify: C, completion: U) -> Self {
        Self {
            state: State::rejected(rejected),
            classify,
            completion,
        }
    }
}

impl<S, Req, C, U> Future for ResponseFuture<S, Req, C, U>
where
    S: Service<Req>,
    S::Error: ServiceError,
    C: Classify<S::Response, S::Error>,
    U: Completion<S::Response, Permit>,
{
    type Output = Result<U::Response, S::Error>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const AGAIN: &str = "polled after it was ready";
        let mut this = self.project();
        let (future, call) = loop {
            match this.state.as_mut().project() {
                StateProjection::Calling { future, call } => break (future, call),
                StateProjection::Rejected { rejected } => {
                    return Poll::Ready(Err(rejected.take().expect(AGAIN).into()));
                }
                StateProjection::ProbeRequest { asking } => {
                    let next = match ready!(asking.poll(cx)) {
                        Ok((call, mut inner, req)) => State::calling_begun(&mut inner, req, call),
                        Err(rejected) => State::rejected(rejected),
                    };
                    this.state.set(next);
                }
            }
        };
        // Judged arm by arm: a verdict that is known to be a success then never goes through memory.
        match poll_watched(future, call, cx) {
            Poll::Pending => {
                if let Some(call) = call {
                    call.wait();
                }
                Poll::Pending
            }
            Poll::Ready(Ok(response)) => {
                let verdict = classify::judge(this.classify, Ok(&response));
                if U::DEFERS
                    && let Some(call) = call
                {
                    call.wait();
                }
                Poll::Ready(Ok(this.completion.complete(response, verdict, call)))
            }
            Poll::Ready(Err(error)) => {
                let verdict = classify::judge(this.classify, Err(&error));
                call.take().expect(AGAIN).settle(verdict);
                Poll::Ready(Err(error))
            }
        }
    }
}

impl<S: Service<Req>, Req, C, U> fmt::Debug for ResponseFuture<S, Req, C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// The service that was made ready; a fresh clone takes its place.
fn take<S: Clone>(service: &mut S) -> S {
    let fresh = service.clone();
    mem::replace(service, fresh)
}

/// Polls; if that panics, the call has failed, also where the panic is caught before the future is dropped.
#[inline]
fn poll_watched<F: Future>(
    future: Pin<&mut F>,
    call: &mut Option<Permit>,
    cx: &mut Context<'_>,
) -> Poll<F::Output> {
    struct Unwinding<'a>(&'a mut Option<Permit>);
    impl Drop for Unwinding<'_> {
        fn drop(&mut self) {
            if let Some(mut call) = self.0.take() {
                call.settle(Verdict::transient());
            }
        }
    }
    let watch = Unwinding(call);
    let polled = future.poll(cx);
    mem::forget(watch);
    polled
}
