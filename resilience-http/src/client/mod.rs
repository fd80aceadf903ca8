//! The outbound side: reqwest that keeps its head when the other side does not.
//!
//! [`Client`] has reqwest's own feel and a stack of guards beneath it:
//!
//! ```no_run
//! use std::time::Duration;
//! use resilience_http::Client;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new("payments")?;
//! let response = client
//!     .get("http://payments.internal/v1/balance")
//!     .query(&[("account", "7")])
//!     .timeout(Duration::from_secs(2))
//!     .send()
//!     .await?;
//! let balance = response.text().await?;
//! # Ok(()) }
//! ```
//!
//! # The default stack, outermost first, and why in this order
//!
//! | layer | default | why here |
//! |---|---|---|
//! | [deadline](CallTimeoutLayer) | 10 s | one promise to the caller: all attempts, the waits between them and the body |
//! | [idempotency keys](IdempotencyKeys) | off | above the retry: one key for a call, the same on all of its attempts |
//! | [retry](resilience_core::retry) | 3 attempts, jitter, a budget of 20 % | above the guards, so that every attempt asks them anew; only what [may be repeated](HttpReplay) |
//! | [limits of peers](UpstreamLimitsLayer) | off | beneath the retry: each attempt keeps to them; above the bulkhead: what is not sent takes no place |
//! | [bulkhead](resilience_core::bulkhead) per host | 128 calls, 256 waiting up to 1 s | above the breaker: a wait in our own queue is not held against the server |
//! | [circuit breaker](resilience_core::breaker) per host | its own defaults; `Retry-After` honoured up to 60 s | sees exactly what reaches the server, and each attempt by itself |
//! | attempt timeout | off | beneath the breaker: an attempt cut short is a failure; bounds the time to the head, the whole call's deadline bounds the body |
//! | [propagation](Propagation) | on | beneath the retry: each attempt tells its own remaining time |
//! | [reqwest](ReqwestService) | its own retries off, 3 s to connect | |
//!
//! Breaker and bulkhead hear how a call ended at the end of its [body](crate::body), not at its head. What counts as
//! a failure is in the tables of [`classify`](crate::classify). Every part can be configured, handed in or left out
//! ([`ClientBuilder`]); a stack in an order of your own becomes a client by [`Client::from_service`].
//!
//! # What to know
//!
//! - An answer whose body is neither read nor dropped keeps its place in the bulkhead.
//! - The deadline covers the body: for a long download or a stream of events give the request a
//!   [`timeout`](RequestBuilder::timeout) of its own (`Duration::MAX` for none).
//! - One client is one retry budget and one set of settings: make one per dependency. All of its hosts share the
//!   budget, each has its own breaker and its own places.
//! - Redirects are followed inside of reqwest: they count for the host that was asked first, and its headers of
//!   propagation go along.
//!
//! **Cost**: a few microseconds per call, most of them for the deadline's timer, the copy of the request that a retry
//! would need, and the body's guards: 29 us instead of 25 for a small exchange over loopback.
//!
//! # Errors
//!
//! [`Error::Rejected`] says that the stack did not make the call, or gave up on it.
//! [`Error::Service`] is reqwest's own error. An error while the body is read is a
//! `reqwest::Error` always, because a `reqwest::Response` is what you hold by then: ask
//! [`rejected_in`](crate::body::rejected_in) whether it was the deadline.

mod builder;
mod call_timeout;
mod host;
mod idempotency;
mod propagate;
mod replay;
mod request;
mod stack;
mod transport;
mod upstream_limits;

use std::{fmt, sync::Arc};

use reqwest::{IntoUrl, Method, Request, Response};
use resilience_core::{
    Error, InvalidConfig, breaker::KeyedCircuitBreaker, bulkhead::KeyedBulkhead, deadline::Timeout,
    retry::Retry,
};
use tower_service::Service;

use self::stack::Stack;
pub use self::{
    builder::ClientBuilder,
    call_timeout::{BodyService, CallTimeoutLayer},
    host::Host,
    idempotency::{IdempotencyKeys, IdempotencyKeysLayer, IdempotencyKeysService, RetryInFlight},
    propagate::{Propagation, PropagationLayer, PropagationService},
    replay::{HttpReplay, Idempotent},
    request::RequestBuilder,
    stack::ResponseFuture,
    transport::{ReqwestService, reqwest_builder},
    upstream_limits::{
        Target, UpstreamLimitsLayer, UpstreamLimitsPolicy, UpstreamLimitsReader,
        UpstreamLimitsService,
    },
};

/// A reqwest client behind a stack of guards. Cheap to clone; clones share everything. See the [module](self).
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    stack: Box<dyn Stack>,
    http: reqwest::Client,
    parts: Parts,
}

/// The handles of a default stack.
#[derive(Default)]
struct Parts {
    deadline: Option<Timeout>,
    retry: Option<Retry>,
    breakers: Option<KeyedCircuitBreaker<Host>>,
    bulkheads: Option<KeyedBulkhead<Host>>,
}

impl Client {
    /// With the default stack. `name` is the name of its parts in metrics, events and rejections.
    ///
    /// # Errors
    ///
    /// reqwest cannot build a client: its TLS library does not start.
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, InvalidConfig> {
        Self::builder(name).build()
    }

    /// To configure the parts of the stack, or leave some out.
    pub fn builder(name: impl Into<Arc<str>>) -> ClientBuilder {
        ClientBuilder::new(name.into())
    }

    /// With a stack of your own, in any order and with any layers, that ends in a [`ReqwestService`] (or in something
    /// that answers in its place). `http` only makes the requests that [`get`](Self::get) and its like begin; give it
    /// the client that the stack sends through.
    ///
    /// The stack is cloned for every call: state belongs in handles, as all layers of this toolkit have it.
    ///
    /// ```
    /// use resilience_core::bulkhead::Bulkhead;
    /// use resilience_http::{OnBodyEnd, Client, client::{ReqwestService, reqwest_builder}};
    /// use tower::ServiceBuilder;
    ///
    /// let http = reqwest_builder().build()?;
    /// let bulkhead = Bulkhead::builder("reports").max_concurrent(2).build()?;
    /// let stack = ServiceBuilder::new()
    ///     .layer(bulkhead.layer().complete_on(OnBodyEnd::new("reports")))
    ///     .service(ReqwestService::new(http.clone()));
    /// let client = Client::from_service(http, stack);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_service<S>(http: reqwest::Client, stack: S) -> Self
    where
        S: Service<Request, Response = Response, Error = Error<reqwest::Error>>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        Self::from_parts(http, Box::new(stack), Parts::default())
    }

    fn from_parts(http: reqwest::Client, stack: Box<dyn Stack>, parts: Parts) -> Self {
        let inner = Arc::new(Inner { stack, http, parts });
        Self { inner }
    }

    /// Begins a `GET`.
    pub fn get<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::GET, url)
    }

    /// Begins a `POST`.
    pub fn post<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::POST, url)
    }

    /// Begins a `PUT`.
    pub fn put<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::PUT, url)
    }

    /// Begins a `PATCH`.
    pub fn patch<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::PATCH, url)
    }

    /// Begins a `DELETE`.
    pub fn delete<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::DELETE, url)
    }

    /// Begins a `HEAD`.
    pub fn head<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::HEAD, url)
    }

    /// Begins a request. A malformed URL comes out when it is sent, as reqwest's error.
    pub fn request<U: IntoUrl>(&self, method: Method, url: U) -> RequestBuilder {
        RequestBuilder::new(self.clone(), self.inner.http.request(method, url))
    }

    /// Sends a request through the stack.
    ///
    /// # Errors
    ///
    /// See [`RequestBuilder::send`].
    pub fn execute(&self, request: Request) -> ResponseFuture {
        self.inner.stack.execute(request)
    }

    /// The client that requests are made by.
    #[must_use]
    pub fn http(&self) -> &reqwest::Client {
        &self.inner.http
    }

    /// The breakers, one per host: to read, to watch, to give orders. `None` if there are none, or if the stack was
    /// handed in whole.
    #[must_use]
    pub fn breakers(&self) -> Option<&KeyedCircuitBreaker<Host>> {
        self.inner.parts.breakers.as_ref()
    }

    /// The bulkheads, one per host. `None` as with [`breakers`](Self::breakers).
    #[must_use]
    pub fn bulkheads(&self) -> Option<&KeyedBulkhead<Host>> {
        self.inner.parts.bulkheads.as_ref()
    }

    /// The retry, with its budget. `None` as with [`breakers`](Self::breakers).
    #[must_use]
    pub fn retry(&self) -> Option<&Retry> {
        self.inner.parts.retry.as_ref()
    }

    /// The deadline of whole calls. `None` as with [`breakers`](Self::breakers).
    #[must_use]
    pub fn deadline(&self) -> Option<&Timeout> {
        self.inner.parts.deadline.as_ref()
    }
}

/// A client is a service too, always ready: for layers around it that its own stack does not have.
impl Service<Request> for Client {
    type Response = Response;
    type Error = Error<reqwest::Error>;
    type Future = ResponseFuture;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> ResponseFuture {
        self.execute(request)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = &self.inner.parts;
        f.debug_struct("Client")
            .field("deadline", &parts.deadline)
            .field("retry", &parts.retry)
            .field("bulkheads", &parts.bulkheads)
            .field("breakers", &parts.breakers)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
