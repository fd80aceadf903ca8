//! The response future: waits for the permit, then calls, then ends.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{Admission, Permit, Refused, take_ready};
use crate::{
    completion::Completion,
    error::{Rejected, ServiceError},
    verdict::Verdict,
};

pin_project! {
    /// Response future of [`AdmissionService`].
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
    enum State<S, Req, P, W, Fut> {
        Calling { #[pin] future: Fut },
        // `None`: done. Two variants and not four, so that dropping the future of an admitted call is
        // one comparison.
        Refused { refused: Option<HeldUp<S, Req, P, W>> },
    }
}

impl<S, Req, P, W, Fut> State<S, Req, P, W, Fut> {
    const DONE: Self = Self::Refused { refused: None };
}

/// A call that was not admitted at once. Boxed, so that the future of an admitted one stays small.
enum HeldUp<S, Req, P, W> {
    Waiting(Pin<Box<Waiting<S, Req, P, W>>>),
    Rejected(Rejected),
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

impl<S, Req, P, W, C> ResponseFuture<S, Req, P, W, C>
where
    S: Service<Req> + Clone,
    P: Permit,
{
    #[inline(always)]
    pub(super) fn new(
        inner: &mut S,
        request: Req,
        admission: Admission<P, W>,
        completion: C,
    ) -> Self {
        let (state, permit) = match admission {
            Ok(mut permit) => {
                let future = start(inner, request, &mut permit);
                (State::Calling { future }, Some(permit))
            }
            Err(refused) => (hold_up(inner, request, *refused), None),
        };
        Self {
            state,
            permit,
            completion,
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
fn hold_up<S, Req, P, W>(
    inner: &mut S,
    request: Req,
    refused: Refused<W>,
) -> State<S, Req, P, W, S::Future>
where
    S: Service<Req> + Clone,
{
    // The service that was polled ready will not be called.
    drop(take_ready(inner));
    let held_up = match refused {
        Refused::Wait(wait) => HeldUp::Waiting(Box::pin(Waiting {
            wait,
            inner: inner.clone(),
            request: Some(request),
            permit: None,
        })),
        Refused::No(rejected) => HeldUp::Rejected(rejected),
    };
    State::Refused {
        refused: Some(held_up),
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
                    let permit = this.permit.as_mut();
                    let permit = permit.expect("a call that was started holds its permit");
                    if let Poll::Ready(rejected) = permit.poll_revoked(cx) {
                        this.state.set(State::DONE);
                        *this.permit = None;
                        return Poll::Ready(Err(rejected.into()));
                    }
                    let result = {
                        let _scope = permit.enter();
                        ready!(future.poll(cx))
                    };
                    this.state.set(State::DONE);
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
                // Waiting => Calling | Done; Rejected => Done
                StateProj::Refused { refused } => {
                    let started = ready!(poll_held_up(refused, cx));
                    *refused = None;
                    let (future, permit) = started?;
                    *this.permit = Some(permit);
                    this.state.set(State::Calling { future });
                }
            }
        }
    }
}

#[cold]
fn poll_held_up<S, Req, P, W>(
    refused: &mut Option<HeldUp<S, Req, P, W>>,
    cx: &mut Context<'_>,
) -> Poll<Started<S::Future, P, S::Error>>
where
    S: Service<Req>,
    S::Error: ServiceError,
    P: Permit,
    W: Future<Output = Result<P, Rejected>>,
{
    match refused.as_mut().expect("polled after it was done") {
        HeldUp::Waiting(waiting) => waiting.as_mut().poll_start(cx),
        HeldUp::Rejected(_) => {
            let Some(HeldUp::Rejected(rejected)) = refused.take() else {
                unreachable!("it was matched above")
            };
            Poll::Ready(Err(rejected.into()))
        }
    }
}

type Started<Fut, P, E> = Result<(Fut, P), E>;

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
    ) -> Poll<Started<S::Future, P, S::Error>> {
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
            State::Refused { refused } => match refused {
                Some(HeldUp::Waiting(_)) => "waiting",
                Some(HeldUp::Rejected(_)) => "rejected",
                None => "done",
            },
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
