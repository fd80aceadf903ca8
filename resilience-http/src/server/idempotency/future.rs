//! The response future.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::{body::IdempotentBody, call::Served};

type Guarded<R, E> = Pin<Box<dyn Future<Output = Served<R, E>> + Send>>;

pin_project! {
    /// Response future of [`IdempotentRequestsService`](super::IdempotentRequestsService). Dropping
    /// it does not stop a handler that has started.
    #[must_use = "futures do nothing unless polled"]
    pub struct IdempotentRequestsFuture<F, R, E>
    where
        R: Body,
    {
        #[pin]
        state: State<F, R, E>,
    }
}

pin_project! {
    #[project = Projected]
    pub(super) enum State<F, R, E>
    where
        R: Body,
    {
        Passing { #[pin] inner: F },
        Guarded { response: Guarded<R, E> },
        Refused { response: Option<Response<IdempotentBody<R>>> },
    }
}

impl<F, R: Body, E> IdempotentRequestsFuture<F, R, E> {
    pub(super) const fn new(state: State<F, R, E>) -> Self {
        Self { state }
    }
}

impl<F, R, E> Future for IdempotentRequestsFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body,
{
    type Output = Served<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().state.project() {
            Projected::Passing { inner } => {
                let response = ready!(inner.poll(cx))?;
                Ok(response.map(IdempotentBody::passed))
            }
            Projected::Guarded { response } => ready!(response.as_mut().poll(cx)),
            Projected::Refused { response } => {
                Ok(response.take().expect("polled after completion"))
            }
        })
    }
}

impl<F, R: Body, E> fmt::Debug for IdempotentRequestsFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotentRequestsFuture")
            .finish_non_exhaustive()
    }
}
