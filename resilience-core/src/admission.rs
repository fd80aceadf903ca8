//! One layer for everything that decides before a call and holds something during it.
//!
//! A policy implements [`Admit`]: it looks at a request and answers [`Ok`] with a permit, or with a reason to wait or a
//! rejection ([`Refused`]). [`AdmissionLayer`] does the rest: readiness, the wait, the permit's life, the end of the
//! call. The bulkhead, the rate limit, their fleet versions and the limits of upstream servers are policies; so can be
//! a policy of your own.
//!
//! It is not for what judges calls (a circuit breaker) or repeats them (a retry).
//!
//! ```
//! use std::{convert::Infallible, future::Ready};
//! use resilience_core::{
//!     Pattern, Reason, Rejected, Verdict,
//!     admission::{Admission, AdmissionLayer, Admit, Permit, Refused},
//!     completion::Guard,
//! };
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! /// Admits requests of up to a size.
//! #[derive(Clone)]
//! struct UpTo(usize);
//!
//! struct NoPermit;
//!
//! impl Guard for NoPermit {
//!     fn settle(&mut self, _: Verdict) {}
//! }
//! impl Permit for NoPermit {}
//!
//! impl Admit<Vec<u8>> for UpTo {
//!     type Permit = NoPermit;
//!     type Wait = Ready<Result<NoPermit, Rejected>>; // never waits
//!
//!     fn admit(&self, request: &Vec<u8>) -> Admission<NoPermit, Self::Wait> {
//!         if request.len() <= self.0 {
//!             return Ok(NoPermit);
//!         }
//!         let rejected = Rejected::new(Pattern::RateLimit, Reason::TooCostly, "uploads");
//!         Err(Refused::no(rejected))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let service = ServiceBuilder::new()
//!     .layer(AdmissionLayer::new(UpTo(3)))
//!     .service(service_fn(|body: Vec<u8>| async move { Ok::<_, Rejected>(body.len()) }));
//! assert_eq!(service.clone().oneshot(vec![0; 3]).await, Ok(3));
//! assert!(service.oneshot(vec![0; 4]).await.is_err());
//! # }
//! ```
//!
//! # Readiness
//! The service is ready when the inner one is. A call that waits takes a clone of the inner service that was *not*
//! polled ready, and drives it to readiness once it is admitted; a call that waits or is rejected releases the readiness
//! of the inner service it was called on. So nothing further down is reserved by a call that waits. This is why the
//! inner service has to be `Clone`.
//!
//! # Cancellation and panics
//! A dropped call drops its wait, its inner future and its permit, in this order. A permit that was granted and whose
//! call was never started is dropped without [`Permit::started`].
//!
//! # Cost
//! A call that is admitted at once allocates nothing and boxes nothing. One that waits allocates once.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    completion::{self, Completion, Guard},
    error::{Rejected, ServiceError},
    verdict::Verdict,
};

/// A policy that decides, before a call, whether it may start. Cheap to clone; clones share the policy's state.
pub trait Admit<Req>: Clone {
    /// Held during the call; dropping it gives back what it holds.
    type Permit: Permit;
    /// Ends with the permit, or with a rejection when the wait was in vain. Dropping it ends the wait.
    type Wait: Future<Output = Result<Self::Permit, Rejected>>;

    /// Decides about `request`, without waiting.
    ///
    /// # Errors
    /// When the call may not start now.
    fn admit(&self, request: &Req) -> Admission<Self::Permit, Self::Wait>;
}

/// A permit, or why there is none now.
pub type Admission<P, W> = Result<P, Box<Refused<W>>>;

/// A call that may not start now. Boxed in an [`Admission`], so that a call that is admitted does not carry the room.
#[derive(Debug)]
pub enum Refused<W> {
    /// It may wait.
    Wait(W),
    /// It may not.
    No(Rejected),
}

impl<W> Refused<W> {
    /// The call waits for its permit.
    #[cold]
    pub fn wait(wait: W) -> Box<Self> {
        Box::new(Self::Wait(wait))
    }

    /// The call is rejected.
    #[cold]
    #[must_use]
    pub fn no(rejected: Rejected) -> Box<Self> {
        Box::new(Self::No(rejected))
    }
}

/// What a call holds from its admission to its end.
pub trait Permit: Guard {
    /// The inner service was called: what was paid for the call is spent. A permit that is dropped before is given back
    /// whole. The default does nothing.
    #[inline(always)]
    fn started(&mut self) {}

    /// Makes the permit visible to the code of the call while it is polled, by [`enter`](Self::enter); the default is no
    /// scope.
    #[inline(always)]
    fn enter(&self) -> impl Sized {}

    /// Ready when the permit was revoked and the call must end with this rejection. The default is never.
    #[inline(always)]
    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<Rejected> {
        let _ = cx;
        Poll::Pending
    }
}

/// Makes [`AdmissionService`]s of a policy.
#[derive(Clone)]
#[must_use]
pub struct AdmissionLayer<A, C = completion::OnResponse> {
    pub(crate) policy: A,
    pub(crate) completion: C,
}

impl<A> AdmissionLayer<A> {
    /// A layer over `policy`.
    pub const fn new(policy: A) -> Self {
        Self {
            policy,
            completion: completion::OnResponse,
        }
    }
}

impl<A, C> AdmissionLayer<A, C> {
    /// When a call ends and gives its permit back. The default is when its response is there; an HTTP body can keep the
    /// permit until it has been read.
    pub fn until<D>(self, completion: D) -> AdmissionLayer<A, D> {
        AdmissionLayer {
            policy: self.policy,
            completion,
        }
    }
}

impl<S, A: Clone, C: Clone> Layer<S> for AdmissionLayer<A, C> {
    type Service = AdmissionService<S, A, C>;

    fn layer(&self, inner: S) -> Self::Service {
        AdmissionService {
            inner,
            policy: self.policy.clone(),
            completion: self.completion.clone(),
        }
    }
}

impl<A: fmt::Debug, C> fmt::Debug for AdmissionLayer<A, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionLayer")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// A service whose calls are admitted by a policy. Made by [`AdmissionLayer`].
#[derive(Clone)]
pub struct AdmissionService<S, A, C = completion::OnResponse> {
    inner: S,
    policy: A,
    completion: C,
}

impl<S: fmt::Debug, A: fmt::Debug, C> fmt::Debug for AdmissionService<S, A, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionService")
            .field("policy", &self.policy)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, A, C, Req> Service<Req> for AdmissionService<S, A, C>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    A: Admit<Req>,
    C: Completion<S::Response, A::Permit>,
{
    type Response = C::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, A::Permit, A::Wait, C>;

    #[inline(always)]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: Req) -> Self::Future {
        let (state, permit) = match self.policy.admit(&request) {
            Ok(mut permit) => {
                let future = start(&mut self.inner, request, &mut permit);
                (State::Calling { future }, Some(permit))
            }
            Err(refused) => (held_up(&mut self.inner, request, *refused), None),
        };
        ResponseFuture {
            state,
            permit,
            completion: self.completion.clone(),
        }
    }
}

/// Calls the inner service under the permit.
#[inline(always)]
fn start<S: Service<Req>, Req, P: Permit>(
    inner: &mut S,
    request: Req,
    permit: &mut P,
) -> S::Future {
    let future = {
        let _scope = permit.enter();
        inner.call(request)
    };
    permit.started();
    future
}

#[cold]
fn held_up<S, Req, P, W>(
    inner: &mut S,
    request: Req,
    refused: Refused<W>,
) -> State<S, Req, P, W, S::Future>
where
    S: Service<Req> + Clone,
{
    // A service that was polled ready and will not be called makes room for one that holds nothing.
    let fresh = inner.clone();
    *inner = fresh;
    match refused {
        Refused::Wait(wait) => State::Waiting {
            waiting: Box::pin(Waiting {
                wait,
                inner: inner.clone(),
                request: Some(request),
                permit: None,
            }),
        },
        Refused::No(rejected) => State::Rejected { rejected },
    }
}

pin_project! {
    /// The future of [`AdmissionService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, P, W, C>
    where
        S: Service<Req>,
    {
        // Dropped before the permit: the next holder of the permit does not overlap with this call.
        #[pin]
        state: State<S, Req, P, W, S::Future>,
        permit: Option<P>,
        completion: C,
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateReplaced]
    enum State<S, Req, P, W, Fut> {
        Calling { #[pin] future: Fut },
        // Boxed, so that a call that passes does not carry the room around.
        Waiting { waiting: Pin<Box<Waiting<S, Req, P, W>>> },
        Rejected { rejected: Rejected },
        Done,
    }
}

pin_project! {
    // Waits for the permit, then for the inner service.
    struct Waiting<S, Req, P, W> {
        #[pin]
        wait: W,
        // Before the permit, so that it is dropped before the permit.
        inner: S,
        request: Option<Req>,
        permit: Option<P>,
    }
}

impl<S, Req, P, W, C> Future for ResponseFuture<S, Req, P, W, C>
where
    S: Service<Req>,
    S::Error: ServiceError,
    P: Permit,
    W: Future<Output = Result<P, Rejected>>,
    C: Completion<S::Response, P>,
{
    type Output = Result<C::Response, S::Error>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                // Waiting | Calling => Calling | Done
                StateProj::Calling { future } => {
                    if let Some(permit) = this.permit.as_mut()
                        && let Poll::Ready(rejected) = permit.poll_revoked(cx)
                    {
                        this.state.set(State::Done);
                        *this.permit = None;
                        return Poll::Ready(Err(rejected.into()));
                    }
                    let result = {
                        let _scope = this.permit.as_ref().map(Permit::enter);
                        ready!(future.poll(cx))
                    };
                    this.state.set(State::Done);
                    return Poll::Ready(match result {
                        Ok(response) => {
                            let verdict = Verdict::Success;
                            Ok(this.completion.complete(response, verdict, this.permit))
                        }
                        Err(error) => {
                            *this.permit = None;
                            Err(error)
                        }
                    });
                }
                // Waiting => Calling | Done
                StateProj::Waiting { waiting } => {
                    let started = ready!(waiting.as_mut().poll_start(cx));
                    this.state.set(State::Done);
                    let (future, permit) = started?;
                    *this.permit = Some(permit);
                    this.state.set(State::Calling { future });
                }
                // Rejected => Done
                StateProj::Rejected { .. } => {
                    let StateReplaced::Rejected { rejected } =
                        this.state.project_replace(State::Done)
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

type Started<Fut, P> = (Fut, P);

impl<S, Req, P, W> Waiting<S, Req, P, W>
where
    S: Service<Req>,
    S::Error: ServiceError,
    P: Permit,
    W: Future<Output = Result<P, Rejected>>,
{
    /// Waits for the permit, then for the inner service, then calls it.
    fn poll_start(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Started<S::Future, P>, S::Error>> {
        let this = self.project();
        if this.permit.is_none() {
            *this.permit = Some(ready!(this.wait.poll(cx))?);
        }
        if let Some(permit) = this.permit.as_mut()
            && let Poll::Ready(rejected) = permit.poll_revoked(cx)
        {
            return Poll::Ready(Err(rejected.into()));
        }
        ready!(this.inner.poll_ready(cx))?;
        let request = this.request.take().expect("polled after it was called");
        let mut permit = this.permit.take().expect("taken above");
        let future = start(this.inner, request, &mut permit);
        Poll::Ready(Ok((future, permit)))
    }
}

impl<S: Service<Req>, Req, P, W, C> fmt::Debug for ResponseFuture<S, Req, P, W, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Calling { .. } => "calling",
            State::Waiting { .. } => "waiting",
            State::Rejected { .. } => "rejected",
            State::Done => "done",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
