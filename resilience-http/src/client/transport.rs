//! reqwest as the innermost service of a stack.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use resilience_core::Error;
use tower_service::Service;

/// reqwest's client with the error type of a stack. Always ready.
///
/// ```no_run
/// use std::time::Duration;
/// use resilience_core::Timeout;
/// use resilience_http::client::{self, ReqwestService};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let timeout = Timeout::new("api", Duration::from_secs(2))?;
/// let stack = ServiceBuilder::new()
///     .layer(timeout.layer())
///     .service(ReqwestService::new(client::reqwest_builder().build()?));
/// let request = reqwest::Request::new(reqwest::Method::GET, "http://api.test/".parse()?);
/// let response = stack.oneshot(request).await?;
/// # Ok(()) }
/// ```
///
/// # reqwest's own retries
///
/// reqwest repeats requests that a server refused at the level of HTTP/2, below all other layers
/// and outside of any budget. Build your own client with `.retry(reqwest::retry::never())`, as
/// [`reqwest_builder`] does: this cannot be changed on a client that is built. What cannot be
/// turned off, and is harmless, is that a request is sent on another connection when the pooled one
/// turns out to be closed before any of it was sent.
#[derive(Clone, Debug)]
pub struct ReqwestService {
    http: reqwest::Client,
}

impl ReqwestService {
    /// Creates a service that sends through `http`.
    #[must_use]
    pub const fn new(http: reqwest::Client) -> Self {
        Self { http }
    }

    /// Returns the client that it sends through.
    #[must_use]
    pub const fn get_ref(&self) -> &reqwest::Client {
        &self.http
    }
}

impl From<reqwest::Client> for ReqwestService {
    fn from(http: reqwest::Client) -> Self {
        Self::new(http)
    }
}

/// Starts a builder of a reqwest client that fits into a stack: without retries of its own, and
/// with a connect timeout of three seconds, so that an unresponsive address leaves time for another
/// attempt. All else is reqwest's default.
pub fn reqwest_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .retry(reqwest::retry::never())
        .connect_timeout(Duration::from_secs(3))
}

impl Service<reqwest::Request> for ReqwestService {
    type Response = reqwest::Response;
    type Error = Error<reqwest::Error>;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.http.poll_ready(cx).map_err(Error::Service)
    }

    fn call(&mut self, request: reqwest::Request) -> ResponseFuture {
        ResponseFuture {
            inner: self.http.call(request),
        }
    }
}

pin_project! {
    /// Response future of [`ReqwestService`].
    #[derive(Debug)]
    pub struct ResponseFuture {
        #[pin]
        inner: <reqwest::Client as Service<reqwest::Request>>::Future,
    }
}

impl Future for ResponseFuture {
    type Output = Result<reqwest::Response, Error<reqwest::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(self.project().inner.poll(cx)).map_err(Error::Service))
    }
}
