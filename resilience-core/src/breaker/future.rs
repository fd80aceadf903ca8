//! The response of a call through a breaker.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{Permit, fleet::ProbeRequest};
use crate::{
    classify::{self, Classify},
    completion::{Completion, Guard},
    error::{Rejected, ServiceError},
    verdict::Verdict,
};

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
    pub(super) enum State<S, Req>
    where
        S: Service<Req>,
    {
        // The future is dropped before the call is: what is released by the drop is released within the call.
        Calling { #[pin] future: S::Future, call: Option<Permit> },
        // `None`: over. Two variants and not more, so that dropping the future of a call that passed is one comparison.
        Refused { refused: Option<Refused<S, Req>> },
    }
}

pub(super) enum Refused<S: Service<Req>, Req> {
    Rejected(Rejected),
    /// Of a shared breaker that is half-open. Boxed, so that calls that pass do not carry the room for it.
    Asking(Box<ProbeRequest<S, Req>>),
}

impl<S: Service<Req>, Req> State<S, Req> {
    pub(super) const fn rejected(rejected: Rejected) -> Self {
        Self::Refused {
            refused: Some(Refused::Rejected(rejected)),
        }
    }

    pub(super) fn asking(asking: ProbeRequest<S, Req>) -> Self {
        Self::Refused {
            refused: Some(Refused::Asking(Box::new(asking))),
        }
    }

    #[inline(always)]
    pub(super) fn calling(inner: &mut S, req: Req, call: Permit) -> Self {
        Self::Calling {
            future: inner.call(req),
            call: Some(call),
        }
    }

    pub(super) fn calling_begun(inner: &mut S, req: Req, mut call: Permit) -> Self {
        call.begin_in_layer();
        Self::calling(inner, req, call)
    }
}

impl<S: Service<Req>, Req, C, U> ResponseFuture<S, Req, C, U> {
    #[inline(always)]
    pub(super) const fn new(state: State<S, Req>, classify: C, completion: U) -> Self {
        Self {
            state,
            classify,
            completion,
        }
    }

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

const AGAIN: &str = "polled after it was ready";

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
        let mut this = self.project();
        let (future, call) = loop {
            match this.state.as_mut().project() {
                StateProjection::Calling { future, call } => break (future, call),
                StateProjection::Refused { refused } => {
                    let next = ready!(poll_refused(refused, cx));
                    this.state.set(next?);
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

#[cold]
fn poll_refused<S, Req>(
    refused: &mut Option<Refused<S, Req>>,
    cx: &mut Context<'_>,
) -> Poll<Result<State<S, Req>, S::Error>>
where
    S: Service<Req>,
    S::Error: ServiceError,
{
    let begun = match refused.as_mut().expect(AGAIN) {
        Refused::Asking(asking) => Some(ready!(asking.poll(cx))),
        Refused::Rejected(_) => None,
    };
    let rejected = match (begun, refused.take()) {
        (Some(Ok((call, mut inner, req))), _) => {
            return Poll::Ready(Ok(State::calling_begun(&mut inner, req, call)));
        }
        (Some(Err(rejected)), _) | (None, Some(Refused::Rejected(rejected))) => rejected,
        (None, _) => unreachable!("one or the other"),
    };
    Poll::Ready(Err(rejected.into()))
}

impl<S: Service<Req>, Req, C, U> fmt::Debug for ResponseFuture<S, Req, C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
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
