//! Requests in the making, with reqwest's names.

use std::{fmt, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Version};
use reqwest::{Body, Request, Response};
use resilience_core::Error;
use serde::Serialize;

use super::{Client, Idempotent};
use crate::headers;

/// A request in the making. Made by [`Client::get`] and its like.
///
/// The methods are reqwest's own, and like there a mistake (a bad URL, a bad header) comes out at
/// [`send`](Self::send). What reqwest offers beyond them, and behind features of its own (`form`, `multipart`), is
/// reached through [`with`](Self::with).
#[must_use = "it does nothing until it is sent"]
pub struct RequestBuilder {
    client: Client,
    inner: reqwest::RequestBuilder,
    idempotent: Option<Idempotent>,
}

impl RequestBuilder {
    pub(super) const fn new(client: Client, inner: reqwest::RequestBuilder) -> Self {
        Self {
            client,
            inner,
            idempotent: None,
        }
    }

    /// From a request that was begun elsewhere.
    pub fn from_parts(client: Client, request: Request) -> Self {
        let inner = reqwest::RequestBuilder::from_parts(client.http().clone(), request);
        Self::new(client, inner)
    }

    /// Adds a header.
    pub fn header<K, V>(self, key: K, value: V) -> Self
    where
        HeaderName: TryFrom<K>,
        <HeaderName as TryFrom<K>>::Error: Into<http::Error>,
        HeaderValue: TryFrom<V>,
        <HeaderValue as TryFrom<V>>::Error: Into<http::Error>,
    {
        self.with(|inner| inner.header(key, value))
    }

    /// Sets these headers, in the place of those of the same names.
    pub fn headers(self, headers: HeaderMap) -> Self {
        self.with(|inner| inner.headers(headers))
    }

    /// HTTP basic authentication.
    pub fn basic_auth<U, P>(self, username: U, password: Option<P>) -> Self
    where
        U: fmt::Display,
        P: fmt::Display,
    {
        self.with(|inner| inner.basic_auth(username, password))
    }

    /// HTTP bearer authentication.
    pub fn bearer_auth<T: fmt::Display>(self, token: T) -> Self {
        self.with(|inner| inner.bearer_auth(token))
    }

    /// Sets the body. One that is in memory (bytes, a string) can be sent again, a stream cannot.
    pub fn body<T: Into<Body>>(self, body: T) -> Self {
        self.with(|inner| inner.body(body))
    }

    /// How long this call may take in all: every attempt, the waits between them, and the reading of the body. It
    /// takes the place of the client's deadline, shorter or longer.
    ///
    /// Under a client without a deadline ([`without_deadline`](super::ClientBuilder::without_deadline)), it is what
    /// it is in reqwest: a limit for each attempt.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|inner| inner.timeout(timeout))
    }

    /// Adds to the query of the URL.
    pub fn query<T: Serialize + ?Sized>(self, query: &T) -> Self {
        self.with(|inner| inner.query(query))
    }

    /// Sets the HTTP version.
    pub fn version(self, version: Version) -> Self {
        self.with(|inner| inner.version(version))
    }

    /// Sends `json` as the body, with its content type.
    pub fn json<T: Serialize + ?Sized>(self, json: &T) -> Self {
        self.with(|inner| inner.json(json))
    }

    /// Adds an `Idempotency-Key`, which makes the request one that may be sent again: every attempt carries the same
    /// key, so that a server that knows the header carries it out once. Take a new one for each thing to be done.
    pub fn idempotency_key<V>(self, key: V) -> Self
    where
        HeaderValue: TryFrom<V>,
        <HeaderValue as TryFrom<V>>::Error: Into<http::Error>,
    {
        self.header(headers::IDEMPOTENCY_KEY, key)
    }

    /// Says whether this request may be sent more than once, whatever its method and headers: `true` for a `POST`
    /// that only asks, `false` for a `GET` that does something.
    pub const fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = Some(Idempotent(idempotent));
        self
    }

    /// Applies any method of reqwest's own builder.
    ///
    /// ```
    /// # let client = resilience_http::Client::new("api")?;
    /// let request = client.get("http://api.test/").with(|request| request.bearer_auth("token"));
    /// # Ok::<_, resilience_core::InvalidConfig>(())
    /// ```
    pub fn with(
        mut self,
        change: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Self {
        self.inner = change(self.inner);
        self
    }

    /// The request itself, to be looked at, changed, and sent by [`Client::execute`]. What was said by
    /// [`idempotent`](Self::idempotent) is not in it.
    ///
    /// # Errors
    ///
    /// A URL, header or body was not well formed.
    pub fn build(self) -> reqwest::Result<Request> {
        self.inner.build()
    }

    /// A second one like this; `None` if the body is a stream.
    #[must_use]
    pub fn try_clone(&self) -> Option<Self> {
        Some(Self {
            client: self.client.clone(),
            inner: self.inner.try_clone()?,
            idempotent: self.idempotent,
        })
    }

    /// Sends it through the client's stack.
    ///
    /// # Errors
    ///
    /// [`Error::Rejected`]: a layer of the stack did not let the call through, or gave up on it at the deadline.
    /// [`Error::Service`]: reqwest's own error, of the last attempt. As with reqwest, a status like `503` is not an
    /// error: if the retries could not mend it, it is the answer.
    ///
    /// # Cancellation
    ///
    /// Dropping the future drops the attempt that is under way, with its connection unless HTTP/2 shares that.
    /// The server may have carried it out.
    pub async fn send(self) -> Result<Response, Error<reqwest::Error>> {
        let request = self.inner.build().map_err(Error::Service)?;
        let call = self.client.execute(request);
        match self.idempotent {
            Some(said) => said.scope(call).await,
            None => call.await,
        }
    }
}

impl fmt::Debug for RequestBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
