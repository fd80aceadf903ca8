//! Future of the fallback: the call, then the fallback's response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    layer::Shared,
    response::{FallbackResponse, When},
};
use crate::stripe::Local;

pin_project! {
    /// The future of [`FallbackService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, A, W>
    where
        S: Service<Req>,
        A: FallbackResponse<Req, S::Response, S::Error>,
    {
        #[pin]
        state: State<S::Future, S::Response, S::Error, A::Note, A::Future>,
        shared: Local<Shared<A>>,
        when: W,
    }
}

pin_project! {
    #[project = StateProj]
    pub(super) enum State<F, Res, E, Note, G> {
        Calling { #[pin] future: F, note: Option<Note> },
        Failed { failed: Option<Result<Res, E>>, note: Option<Note> },
        Answering { #[pin] future: G },
    }
}

impl<S, Req, A, W> ResponseFuture<S, Req, A, W>
where
    S: Service<Req>,
    A: FallbackResponse<Req, S::Response, S::Error>,
{
    #[inline]
    #[expect(clippy::type_complexity, reason = "a state is named once")]
    pub(super) const fn new(
        state: State<S::Future, S::Response, S::Error, A::Note, A::Future>,
        shared: Local<Shared<A>>,
        when: W,
    ) -> Self {
        Self {
            state,
            shared,
            when,
        }
    }
}

impl<S, Req, A, W> Future for ResponseFuture<S, Req, A, W>
where
    S: Service<Req>,
    A: FallbackResponse<Req, S::Response, S::Error>,
    W: When<S::Response, S::Error>,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let (result, note) = match this.state.as_mut().project() {
                StateProj::Calling { future, note } => (ready!(future.poll(cx)), note.take()),
                StateProj::Failed { failed, note } => (
                    failed.take().expect("polled after it was done"),
                    note.take(),
                ),
                StateProj::Answering { future } => return future.poll(cx),
            };
            if !this.when.applies(result.as_ref()) {
                return Poll::Ready(result);
            }
            let note = note.expect("polled after it was done");
            match this.shared.fall_back(result, note) {
                Ok(future) => this.state.set(State::Answering { future }),
                Err(result) => return Poll::Ready(result),
            }
        }
    }
}

impl<S, Req, A, W> fmt::Debug for ResponseFuture<S, Req, A, W>
where
    S: Service<Req>,
    A: FallbackResponse<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Calling { .. } => "calling",
            State::Failed { .. } => "failed",
            State::Answering { .. } => "answering",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
