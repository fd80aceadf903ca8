//! The bulkhead as a tower layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Admission, Bulkhead, Denied, Permit, Wait};
use crate::{
    completion::{self, Completion},
    error::{Rejected, ServiceError},
    verdict::Verdict,
};

/// Makes [`BulkheadService`]s. See [`Bulkhead::layer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct BulkheadLayer<U = completion::OnResponse> {
    bulkhead: Bulkhead,
    completion: U,
}

impl<U> BulkheadLayer<U> {
    pub(super) const fn new(bulkhead: Bulkhead, completion: U) -> Self {
        Self {
            bulkhead,
            completion,
        }
    }

    /// When a call gives its place back. The default is when its response is there; an HTTP body can keep it until
    /// it has been read.
    pub fn complete_on<V>(self, completion: V) -> BulkheadLayer<V> {
        BulkheadLayer::new(self.bulkhead, completion)
    }
}

impl<S, U: Clone> Layer<S> for BulkheadLayer<U> {
    type Service = BulkheadService<S, U>;

    fn layer(&self, inner: S) -> Self::Service {
        BulkheadService {
            inner,
            bulkhead: self.bulkhead.clone(),
            completion: self.completion.clone(),
        }
    }
}

/// A service of whose calls so many can be in flight at once. Made by [`BulkheadLayer`].
#[derive(Clone, Debug)]
pub struct BulkheadService<S, U = completion::OnResponse> {
    inner: S,
    bulkhead: Bulkhead,
    completion: U,
}

impl<S, U, Req> Service<Req> for BulkheadService<S, U>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    U: Completion<S::Response, Permit>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, U>;

    #[inline(always)]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline(always)]
    fn call(&mut self, req: Req) -> Self::Future {
        let admission = self.bulkhead.admit();
        ResponseFuture::new(&mut self.inner, req, admission, self.completion.clone())
    }
}

pin_project! {
    /// The future of [`BulkheadService`] and [`KeyedBulkheadService`](super::KeyedBulkheadService).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, U>
    where
        S: Service<Req>,
    {
        // Dropped before the permit: whoever gets the place next does not overlap with this call.
        #[pin]
        state: State<S, Req, S::Future>,
        permit: Option<Permit>,
        completion: U,
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
    // Waiting for a permit, then for the inner service.
    struct Queued<S, Req> {
        #[pin]
        wait: Wait,
        // Before the permit, so that it is dropped before the permit.
        inner: S,
        request: Option<Req>,
        permit: Option<Permit>,
    }
}

impl<S, Req, U> ResponseFuture<S, Req, U>
where
    S: Service<Req> + Clone,
{
    #[inline(always)]
    pub(super) fn new(inner: &mut S, request: Req, admission: Admission, completion: U) -> Self {
        let (state, permit) = match admission {
            Ok(permit) => {
                let future = inner.call(request);
                (State::Calling { future }, Some(permit))
            }
            Err(denied) => match *denied {
                Denied::Queued(wait) => {
                    let queued = queue(inner, request, wait);
                    (State::Queued { queued }, None)
                }
                Denied::Rejected(rejected) => {
                    let_go(inner);
                    (State::Rejected { rejected }, None)
                }
            },
        };
        Self {
            state,
            permit,
            completion,
        }
    }
}

#[cold]
fn queue<S: Clone, Req>(inner: &mut S, request: Req, wait: Wait) -> Pin<Box<Queued<S, Req>>> {
    let_go(inner);
    Box::pin(Queued {
        wait,
        inner: inner.clone(),
        request: Some(request),
        permit: None,
    })
}

/// Replaces a service that was polled ready and will not be called by one that holds nothing.
#[cold]
fn let_go<S: Clone>(inner: &mut S) {
    let fresh = inner.clone();
    *inner = fresh;
}

impl<S, Req, U> Future for ResponseFuture<S, Req, U>
where
    S: Service<Req>,
    S::Error: ServiceError,
    U: Completion<S::Response, Permit>,
{
    type Output = Result<U::Response, S::Error>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Calling { future } => {
                    let result = ready!(future.poll(cx));
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
                StateProj::Queued { queued } => {
                    let called = ready!(queued.as_mut().poll_call(cx));
                    this.state.set(State::Done);
                    let (future, permit) = called?;
                    *this.permit = Some(permit);
                    this.state.set(State::Calling { future });
                }
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

type Called<Fut> = (Fut, Permit);

impl<S, Req> Queued<S, Req>
where
    S: Service<Req>,
    S::Error: ServiceError,
{
    /// Waits for a permit, then for the inner service, then calls it.
    fn poll_call(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Called<S::Future>, S::Error>> {
        let this = self.project();
        if this.permit.is_none() {
            *this.permit = Some(ready!(this.wait.poll(cx))?);
        }
        ready!(this.inner.poll_ready(cx))?;
        let request = this.request.take().expect("polled after it was called");
        let future = this.inner.call(request);
        let permit = this.permit.take().expect("taken above");
        Poll::Ready(Ok((future, permit)))
    }
}

impl<S: Service<Req>, Req, U> fmt::Debug for ResponseFuture<S, Req, U> {
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
