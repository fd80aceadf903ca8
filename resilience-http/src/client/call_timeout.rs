//! Deadline of a whole call, up to the end of the response body.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use resilience_core::deadline::{Timeout, TimeoutLayer, TimeoutService};
use tower_layer::Layer;
use tower_service::Service;

use crate::OnBodyEnd;

/// Outermost layer of a stack over reqwest: all attempts, the waits between them and the response
/// body share one [`Timeout`].
///
/// It adds three things to [`Timeout::layer`]:
/// - the timeout of a single request (`reqwest::RequestBuilder::timeout`) covers the whole call
///   here. It replaces the handle's, whether shorter or longer, and is removed from the request,
///   since reqwest would grant it to every attempt again;
/// - a body that is incomplete at the deadline ends with an error (see [`body`](crate::body));
/// - the deadline of the code around the call, if there is one, bounds both.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::Timeout;
/// use resilience_http::client::{ReqwestService, CallTimeoutLayer, reqwest_builder};
/// use tower::ServiceBuilder;
///
/// let timeout = Timeout::new("payments", Duration::from_secs(5))?;
/// let stack = ServiceBuilder::new()
///     .layer(CallTimeoutLayer::new(&timeout))
///     .service(ReqwestService::new(reqwest_builder().build()?));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CallTimeoutLayer {
    timeout: TimeoutLayer<OwnTimeout>,
    body: OnBodyEnd,
}

/// Reads the timeout of a single request.
type OwnTimeout = fn(&reqwest::Request) -> Option<Duration>;

impl CallTimeoutLayer {
    /// Creates a layer. The handle's time applies to calls without a timeout of their own.
    #[must_use]
    pub fn new(timeout: &Timeout) -> Self {
        let own: OwnTimeout = |request| request.timeout().copied();
        Self {
            timeout: timeout.layer().per_request(own),
            body: OnBodyEnd::new().name(timeout.name()),
        }
    }
}

impl<S: Clone> Layer<S> for CallTimeoutLayer {
    type Service = TimeoutService<BodyService<S>, OwnTimeout>;

    fn layer(&self, inner: S) -> Self::Service {
        let body = self.body.clone();
        self.timeout.layer(BodyService { inner, body })
    }
}

/// Service between the timeout and the inner layers. Made by [`CallTimeoutLayer`].
#[derive(Clone, Debug)]
pub struct BodyService<S> {
    inner: S,
    body: OnBodyEnd,
}

impl<S> Service<reqwest::Request> for BodyService<S>
where
    S: Service<reqwest::Request, Response = reqwest::Response>,
{
    type Response = reqwest::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: reqwest::Request) -> Self::Future {
        *request.timeout_mut() = None;
        ResponseFuture {
            inner: self.inner.call(request),
            body: self.body.clone(),
        }
    }
}

pin_project! {
    /// Response future of [`BodyService`].
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        body: OnBodyEnd,
    }
}

impl<F, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<reqwest::Response, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        Poll::Ready(Ok(this.body.cover(response)))
    }
}
