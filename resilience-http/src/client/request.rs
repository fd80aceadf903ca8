//! Request builder with reqwest's methods.

use std::{fmt, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Version};
use reqwest::{Body, Request, Response};
use resilience_core::Error;
use serde::Serialize;

use super::{Client, Idempotent};
use crate::headers;

/// Builder of a request. Made by [`Client::get`] and the like.
///
/// The methods are those of reqwest, and as there a mistake (a bad URL, a bad header) is reported
/// by [`send`](Self::send). What reqwest offers beyond them, and behind features of its own
/// (`form`, `multipart`), is available through [`with`](Self::with).
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

    /// Creates a builder from an existing request.
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

    /// Sets these headers, replacing those with the same names.
    pub fn headers(self, headers: HeaderMap) -> Self {
        self.with(|inner| inner.headers(headers))
    }

    /// Sets HTTP basic authentication.
    pub fn basic_auth<U, P>(self, username: U, password: Option<P>) -> Self
    where
        U: fmt::Display,
        P: fmt::Display,
    {
        self.with(|inner| inner.basic_auth(username, password))
    }

    /// Sets HTTP bearer authentication.
    pub fn bearer_auth<T: fmt::Display>(self, token: T) -> Self {
        self.with(|inner| inner.bearer_auth(token))
    }

    /// Sets the body. A body in memory (bytes, a string) can be sent again, a stream cannot.
    pub fn body<T: Into<Body>>(self, body: T) -> Self {
        self.with(|inner| inner.body(body))
    }

    /// Sets the time of the whole call: every attempt, the waits between them, and the reading of
    /// the body. Replaces the client's deadline, whether shorter or longer.
    ///
    /// With a client that has no deadline
    /// ([`without_deadline`](super::ClientBuilder::without_deadline)), it limits each attempt, as
    /// in reqwest.
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

    /// Adds an `Idempotency-Key`, which makes the request safe to send again: every attempt carries
    /// the same key, and a server that supports the header processes it once. Use a new key for
    /// each operation.
    pub fn idempotency_key<V>(self, key: V) -> Self
    where
        HeaderValue: TryFrom<V>,
        <HeaderValue as TryFrom<V>>::Error: Into<http::Error>,
    {
        self.header(headers::IDEMPOTENCY_KEY, key)
    }

    /// Sets whether this request may be sent more than once, whatever its method and headers:
    /// `true` for a `POST` without side effects, `false` for a `GET` with some.
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

    /// Builds the request, to be inspected, changed, and sent by [`Client::execute`]. It does not
    /// contain the mark of [`idempotent`](Self::idempotent).
    ///
    /// # Errors
    ///
    /// If a URL, header or body is malformed.
    pub fn build(self) -> reqwest::Result<Request> {
        self.inner.build()
    }

    /// Clones the builder; `None` if the body is a stream.
    #[must_use]
    pub fn try_clone(&self) -> Option<Self> {
        Some(Self {
            client: self.client.clone(),
            inner: self.inner.try_clone()?,
            idempotent: self.idempotent,
        })
    }

    /// Sends the request through the client's stack.
    ///
    /// # Errors
    ///
    /// [`Error::Rejected`]: a layer of the stack did not admit the call, or ended it at the
    /// deadline. [`Error::Service`]: reqwest's own error, of the last attempt. As in reqwest, a
    /// status like `503` is not an error: if the retries do not help, it is the response.
    ///
    /// # Cancellation
    ///
    /// Dropping the future drops the attempt in progress, with its connection unless that is shared
    /// over HTTP/2. The server may have processed the request.
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
