//! The outbound side: a reqwest client behind a stack of guards.
//!
//! [`Client`] has reqwest's API:
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
//! # The default stack
//!
//! From the outermost layer to the innermost:
//!
//! | layer | default | reason for its place |
//! |---|---|---|
//! | [deadline](CallTimeoutLayer) | 10 s | covers all attempts, the waits between them and the body |
//! | [idempotency keys](IdempotencyKeys) | off | above the retry: one key per call, the same on all attempts |
//! | [outcomes in flight](AwaitInFlightLayer) | on, with the retry | above the retry: asking for the outcome of an attempt that the server still processes is no attempt |
//! | [retry](resilience_core::retry) | 3 attempts, jitter, a budget of 20 % | above the guards, so that every attempt passes them again; only what [may be repeated](HttpReplay) |
//! | [upstream limits](UpstreamLimitsLayer) | off | below the retry: checks each attempt; above the bulkhead: a call that is not sent takes no permit |
//! | [bulkhead](resilience_core::bulkhead) per host | 128 calls, 256 waiting up to 1 s | above the breaker: the wait in the local queue does not count against the server |
//! | [circuit breaker](resilience_core::breaker) per host | its own defaults; `Retry-After` honoured up to 60 s | sees exactly what reaches the server, each attempt by itself |
//! | attempt timeout | off | below the breaker: an attempt that times out is a failure; bounds the time to the head, while the deadline bounds the body |
//! | [propagation](Propagation) | on | below the retry: each attempt carries its own remaining time |
//! | [reqwest](ReqwestService) | its own retries off, 3 s to connect | |
//!
//! Breaker and bulkhead see the end of a call at the end of its [body](crate::body), not at its
//! head. The tables of [`classify`](crate::classify) define what counts as a failure. Every part
//! can be configured, replaced or left out ([`ClientBuilder`]); a stack in another order becomes a
//! client by [`Client::from_service`].
//!
//! # Notes
//!
//! - A response whose body is neither read nor dropped keeps its permit of the bulkhead.
//! - The deadline covers the body: for a long download or a stream of events set the request's own
//!   [`timeout`](RequestBuilder::timeout) (`Duration::MAX` for none).
//! - A client has one retry budget and one set of settings: make one client per dependency. Its
//!   hosts share the budget; each has a breaker and a bulkhead of its own.
//! - Redirects are followed inside reqwest: they count for the first host, and carry its
//!   propagation headers.
//!
//! **Cost**: a few microseconds per call, most of them for the deadline's timer, the copy of the
//! request for a retry, and the guards in the body: 29 us instead of 25 for a small exchange over
//! loopback.
//!
//! # Errors
//!
//! [`Error::Rejected`] means that the stack did not make the call, or gave up on it.
//! [`Error::Service`] is reqwest's own error. An error while the body is read is always a
//! `reqwest::Error`, because the caller holds a `reqwest::Response` by then:
//! [`rejected_in`](crate::body::rejected_in) tells whether it was the deadline.

mod builder;
mod call_timeout;
mod host;
mod idempotency;
mod in_flight;
mod propagate;
mod replay;
mod request;
mod stack;
mod transport;
mod upstream_limits;

use std::{fmt, sync::Arc};

use reqwest::{IntoUrl, Method, Request, Response};
use resilience_core::{
    Error, InvalidConfig,
    breaker::KeyedCircuitBreaker,
    bulkhead::KeyedBulkhead,
    deadline::Timeout,
    order::{self, Description},
    retry::Retry,
};
use tower_service::Service;

use self::stack::Stack;
pub use self::{
    builder::ClientBuilder,
    call_timeout::{BodyService, CallTimeoutLayer},
    host::Host,
    idempotency::{IdempotencyKeys, IdempotencyKeysLayer, IdempotencyKeysService},
    in_flight::{
        AwaitInFlightFuture, AwaitInFlightLayer, AwaitInFlightService, Head, ResponseHead,
    },
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

/// A reqwest client behind a stack of guards. Cheap to clone; clones share all state. See the
/// [module](self).
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    stack: Box<dyn Stack>,
    description: Description,
    http: reqwest::Client,
    parts: Parts,
}

/// The handles of the default stack.
#[derive(Default)]
struct Parts {
    deadline: Option<Timeout>,
    retry: Option<Retry>,
    breakers: Option<KeyedCircuitBreaker<Host>>,
    bulkheads: Option<KeyedBulkhead<Host>>,
}

impl Client {
    /// Creates a client with the default stack. `name` is the name of its parts in metrics, events
    /// and rejections.
    ///
    /// # Errors
    ///
    /// If reqwest cannot build a client, for example because its TLS library does not start.
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, InvalidConfig> {
        Self::builder(name).build()
    }

    /// Starts a builder, to configure parts of the stack or to leave them out.
    pub fn builder(name: impl Into<Arc<str>>) -> ClientBuilder {
        ClientBuilder::new(name.into())
    }

    /// Creates a client over a stack of your own, with any layers in any order, that ends in a
    /// [`ReqwestService`] or a substitute. `http` only makes the requests that [`get`](Self::get)
    /// and the like start; pass the client that the stack sends through.
    ///
    /// The stack is cloned for every call: keep state in handles, as all layers of this toolkit do.
    /// Layers in an order that defeats itself are [warned](resilience_core::order) of.
    ///
    /// ```
    /// use resilience_core::Bulkhead;
    /// use resilience_http::{OnBodyEnd, Client, client::{ReqwestService, reqwest_builder}};
    /// use tower::ServiceBuilder;
    ///
    /// let http = reqwest_builder().build()?;
    /// let bulkhead = Bulkhead::builder("reports").max_concurrent(2).build()?;
    /// let stack = ServiceBuilder::new()
    ///     .layer(bulkhead.layer().complete_on(OnBodyEnd::new()))
    ///     .service(ReqwestService::new(http.clone()));
    /// let client = Client::from_service(http, stack);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_service<S>(http: reqwest::Client, stack: S) -> Self
    where
        S: Service<Request, Response = Response, Error = Error<reqwest::Error>>,
        S: Clone + fmt::Debug + Send + Sync + 'static,
        S::Future: Send,
    {
        Self::from_parts(http, stack, Parts::default())
    }

    fn from_parts<S>(http: reqwest::Client, stack: S, parts: Parts) -> Self
    where
        S: Stack + fmt::Debug + 'static,
    {
        let inner = Arc::new(Inner {
            description: order::check(&stack),
            stack: Box::new(stack),
            http,
            parts,
        });
        Self { inner }
    }

    /// Starts a `GET` request.
    pub fn get<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::GET, url)
    }

    /// Starts a `POST` request.
    pub fn post<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::POST, url)
    }

    /// Starts a `PUT` request.
    pub fn put<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::PUT, url)
    }

    /// Starts a `PATCH` request.
    pub fn patch<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::PATCH, url)
    }

    /// Starts a `DELETE` request.
    pub fn delete<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::DELETE, url)
    }

    /// Starts a `HEAD` request.
    pub fn head<U: IntoUrl>(&self, url: U) -> RequestBuilder {
        self.request(Method::HEAD, url)
    }

    /// Starts a request. A malformed URL is reported when the request is sent, as reqwest's error.
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

    /// Returns the layers of the stack, outermost first. Its `Display` prints one line per layer.
    ///
    /// ```
    /// use resilience_http::Client;
    ///
    /// let client = Client::new("payments")?;
    /// assert!(client.describe().to_string().starts_with("\
    /// deadline `payments` (after 10s, per_request)
    ///   retry `payments` (max_attempts 3)
    ///     bulkhead `payments` (per_key)
    /// "));
    /// # Ok::<_, resilience_core::InvalidConfig>(())
    /// ```
    #[must_use]
    pub fn describe(&self) -> &Description {
        &self.inner.description
    }

    /// Returns the reqwest client that makes the requests.
    #[must_use]
    pub fn http(&self) -> &reqwest::Client {
        &self.inner.http
    }

    /// Returns the breakers, one per host, to read, watch or override them. `None` if there are
    /// none, or if the client was made by [`from_service`](Self::from_service).
    #[must_use]
    pub fn breakers(&self) -> Option<&KeyedCircuitBreaker<Host>> {
        self.inner.parts.breakers.as_ref()
    }

    /// Returns the bulkheads, one per host. `None` as for [`breakers`](Self::breakers).
    #[must_use]
    pub fn bulkheads(&self) -> Option<&KeyedBulkhead<Host>> {
        self.inner.parts.bulkheads.as_ref()
    }

    /// Returns the retry, with its budget. `None` as for [`breakers`](Self::breakers).
    #[must_use]
    pub fn retry(&self) -> Option<&Retry> {
        self.inner.parts.retry.as_ref()
    }

    /// Returns the deadline of whole calls. `None` as for [`breakers`](Self::breakers).
    #[must_use]
    pub fn deadline(&self) -> Option<&Timeout> {
        self.inner.parts.deadline.as_ref()
    }
}

/// The client as a service, always ready, for additional layers around it.
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
        self.inner.description.enter();
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
