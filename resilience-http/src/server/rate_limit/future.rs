//! The response future.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    decision::{LimitState, RequestDecision},
    fields::LimitHeaders,
    refusal::Refusal,
};

type Decision = Pin<Box<dyn Future<Output = RequestDecision> + Send>>;

pin_project! {
    /// Response future of [`LimitRequestsService`](super::LimitRequestsService).
    #[must_use = "futures do nothing unless polled"]
    pub struct LimitRequestsFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B, S::Future>,
        headers: Option<(LimitHeaders, [u8; 8])>,
    }
}

pin_project! {
    #[project = Projected]
    pub(super) enum State<S, B, F> {
        Deciding { decision: Decision, call: Option<(S, Request<B>)> },
        Calling { #[pin] inner: F, limits: Option<Vec<LimitState>> },
        Refused { refusal: Option<Refusal> },
    }
}

impl<S: Service<Request<B>>, B> LimitRequestsFuture<S, B> {
    pub(super) const fn new(
        state: State<S, B, S::Future>,
        headers: Option<(LimitHeaders, [u8; 8])>,
    ) -> Self {
        Self { state, headers }
    }
}

impl<S, B, R> Future for LimitRequestsFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: From<String>,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                // Deciding => Calling | Refused
                Projected::Deciding { decision, call } => {
                    let decision = ready!(decision.as_mut().poll(cx));
                    let (mut inner, request) = call.take().expect("polled after completion");
                    let next = if decision.rejected.is_some() {
                        let refusal = Some(Refusal::Limited(decision));
                        State::Refused { refusal }
                    } else {
                        State::Calling {
                            inner: inner.call(request),
                            limits: Some(decision.limits),
                        }
                    };
                    this.state.set(next);
                }
                Projected::Calling { inner, limits } => {
                    let mut response = ready!(inner.poll(cx))?;
                    if let Some((limits, (headers, key))) = limits.take().zip(this.headers.as_ref())
                    {
                        headers.write(&limits, *key, response.headers_mut());
                    }
                    return Poll::Ready(Ok(response));
                }
                Projected::Refused { refusal } => {
                    let refusal = refusal.take().expect("polled after completion");
                    return Poll::Ready(Ok(refusal.into_response(this.headers.as_ref())));
                }
            }
        }
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for LimitRequestsFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitRequestsFuture")
            .finish_non_exhaustive()
    }
}
