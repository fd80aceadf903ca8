//! Rejections as responses.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use pin_project_lite::pin_project;
use resilience_core::{Error, Rejected};
use tower_layer::Layer;
use tower_service::Service;

use crate::problem::{Problems, RejectionResponse};

/// Layer that turns the [`Rejected`] of a service that fails with [`Error<E>`] into a response; the
/// error type becomes `E`.
///
/// Put it outside the layers whose rejections it turns into responses. [`guard`](super::guard) does
/// so by itself; use this layer where the error of the innermost service is [`Error<E>`] already
/// and must not be wrapped again:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience_core::{Error, Pattern, Reason, Rejected};
/// use resilience_http::RejectionLayer;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// let proxy = service_fn(async |_: http::Request<()>| {
///     let open = Rejected::new(Pattern::CircuitBreaker, Reason::Open, "upstream");
///     Err::<http::Response<String>, Error<std::io::Error>>(open.into())
/// });
/// let server = ServiceBuilder::new().layer(RejectionLayer::new()).service(proxy);
/// let response = server.oneshot(http::Request::new(())).await?;
/// assert_eq!(response.status(), 503);
/// # Ok(()) }
/// ```
///
/// A rejection from `poll_ready` becomes the response to the next request.
///
/// **Cost**: none for a call that passes. **Cancellation**: drops the inner future.
#[derive(Clone, Copy, Debug, Default)]
pub struct RejectionLayer<A = Problems> {
    answer: A,
}

impl RejectionLayer {
    /// Creates a layer that responds with problem documents, without names of handles.
    #[must_use]
    pub const fn new() -> Self {
        Self::with(Problems::new())
    }
}

impl<A> RejectionLayer<A> {
    /// Creates a layer that makes responses with `answer`: [`Problems`] with other settings, or a
    /// closure from `&Rejected` to a response.
    pub const fn with(answer: A) -> Self {
        Self { answer }
    }
}

impl<S, A: Clone> Layer<S> for RejectionLayer<A> {
    type Service = RejectionService<S, A>;

    fn layer(&self, inner: S) -> Self::Service {
        RejectionService {
            inner,
            answer: self.answer.clone(),
            refused: None,
        }
    }
}

/// Service that turns rejections into responses. Made by [`RejectionLayer`].
pub struct RejectionService<S, A = Problems> {
    inner: S,
    answer: A,
    /// A rejection from `poll_ready`: the response to the next call.
    refused: Option<Rejected>,
}

/// A clone starts without the original's pending rejection.
impl<S: Clone, A: Clone> Clone for RejectionService<S, A> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            answer: self.answer.clone(),
            refused: None,
        }
    }
}

impl<S: fmt::Debug, A> fmt::Debug for RejectionService<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RejectionService")
            .field("inner", &self.inner)
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}

impl<S, A, Req, B, E> Service<Req> for RejectionService<S, A>
where
    S: Service<Req, Response = Response<B>, Error = Error<E>>,
    A: RejectionResponse<B> + Clone,
{
    type Response = Response<B>;
    type Error = E;
    type Future = RejectionFuture<S::Future, A>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        if self.refused.is_some() {
            return Poll::Ready(Ok(()));
        }
        match self.inner.poll_ready(cx) {
            Poll::Ready(Err(Error::Rejected(rejected))) => {
                self.refused = Some(rejected);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Error::Service(error))) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn call(&mut self, req: Req) -> Self::Future {
        let state = match self.refused.take() {
            None => State::Called {
                inner: self.inner.call(req),
            },
            Some(rejected) => State::Refused {
                rejected: Some(rejected),
            },
        };
        RejectionFuture {
            state,
            answer: self.answer.clone(),
        }
    }
}

pin_project! {
    /// Response future of [`RejectionService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct RejectionFuture<F, A> {
        #[pin]
        state: State<F>,
        answer: A,
    }
}

pin_project! {
    #[project = Projected]
    enum State<F> {
        Called { #[pin] inner: F },
        Refused { rejected: Option<Rejected> },
    }
}

impl<F, A, B, E> Future for RejectionFuture<F, A>
where
    F: Future<Output = Result<Response<B>, Error<E>>>,
    A: RejectionResponse<B>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let rejected = match this.state.project() {
            Projected::Refused { rejected } => rejected.take().expect("polled after completion"),
            Projected::Called { inner } => match std::task::ready!(inner.poll(cx)) {
                Ok(response) => return Poll::Ready(Ok(response)),
                Err(Error::Service(error)) => return Poll::Ready(Err(error)),
                Err(Error::Rejected(rejected)) => rejected,
            },
        };
        Poll::Ready(Ok(this.answer.answer(&rejected)))
    }
}

impl<F, A> fmt::Debug for RejectionFuture<F, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RejectionFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use resilience_core::{Pattern, Reason};
    use tower::{Service, ServiceExt, service_fn};

    use super::*;

    fn full() -> Rejected {
        Rejected::new(Pattern::Bulkhead, Reason::Full, "handlers")
    }

    /// Rejects in `poll_ready`, once, as a third-party layer might.
    #[derive(Clone)]
    struct RefusesOnce(bool);

    impl Service<()> for RefusesOnce {
        type Response = Response<String>;
        type Error = Error<Infallible>;
        type Future = std::future::Ready<Result<Response<String>, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            match std::mem::replace(&mut self.0, true) {
                true => Poll::Ready(Ok(())),
                false => Poll::Ready(Err(full().into())),
            }
        }

        fn call(&mut self, (): ()) -> Self::Future {
            std::future::ready(Ok(Response::default()))
        }
    }

    #[tokio::test]
    async fn a_refusal_by_readiness_is_answered_to_one_request_of_that_clone() {
        let mut service = RejectionLayer::new().layer(RefusesOnce(false));
        service.ready().await.unwrap();
        let mut clone = service.clone();
        assert_eq!(service.call(()).await.unwrap().status(), 503);
        assert_eq!(
            service
                .ready()
                .await
                .unwrap()
                .call(())
                .await
                .unwrap()
                .status(),
            200
        );
        assert_eq!(
            clone
                .ready()
                .await
                .unwrap()
                .call(())
                .await
                .unwrap()
                .status(),
            200
        );
    }

    #[tokio::test]
    async fn an_error_of_the_service_stays_an_error() {
        let service = service_fn(async |(): ()| {
            Err::<Response<String>, _>(Error::Service("not of this toolkit"))
        });
        let outcome = RejectionLayer::new().layer(service).oneshot(()).await;
        assert_eq!(outcome.unwrap_err(), "not of this toolkit");
    }

    #[tokio::test]
    async fn a_closure_can_answer() {
        let service = service_fn(async |(): ()| Err::<_, Error<Infallible>>(full().into()));
        let layer =
            RejectionLayer::with(|rejected: &Rejected| Response::new(rejected.name().len()));
        let response = layer.layer(service).oneshot(()).await.unwrap();
        assert_eq!(*response.body(), "handlers".len());
    }
}
