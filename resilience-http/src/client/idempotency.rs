//! Idempotency keys on outbound calls.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, Method};
use resilience_core::order::{self, Part};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    headers::IDEMPOTENCY_KEY,
    idempotency::{Key, KeyForm},
};

/// Adds an `Idempotency-Key` to every call of some methods: a new [UUID of version 7](Key::fresh),
/// unless the request carries a key already.
///
/// Put it above the retry (and above a hedge), so that all attempts of a call carry the same key. A
/// server that supports the header processes the call once; a retry with
/// [`HttpReplay`](super::HttpReplay) may therefore send the request again.
///
/// **Only for servers that support the header.** Others process each attempt, and the retry repeats
/// what must not be repeated. This is why a [`Client`](super::Client) sends no keys by default
/// ([`ClientBuilder::idempotency_keys`](super::ClientBuilder::idempotency_keys)).
///
/// A key that lives as long as the call does not protect a caller that repeats the call after a
/// crash. A key that must outlive the process is created by the caller before the first attempt and
/// stored with the work
/// ([`RequestBuilder::idempotency_key`](super::RequestBuilder::idempotency_key)).
///
/// ```
/// use std::convert::Infallible;
/// use http::{Request, Response};
/// use resilience_http::{IdempotencyKeys, headers::IDEMPOTENCY_KEY};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(IdempotencyKeys::new().layer())
///     .service(service_fn(|request: Request<()>| async move {
///         Ok::<_, Infallible>(request.headers().get(IDEMPOTENCY_KEY).cloned())
///     }));
/// let post = Request::post("/payments").body(()).unwrap();
/// assert!(service.clone().oneshot(post).await.unwrap().is_some());
/// assert!(service.oneshot(Request::new(())).await.unwrap().is_none());
/// # }
/// ```
///
/// **Cost**: two allocations and some random bytes for a call that gets a key; a look at the method
/// for any other. **Errors and cancellation**: none of its own.
///
/// # References
/// draft-ietf-httpapi-idempotency-key-header-07; RFC 9562 (UUID version 7).
#[derive(Clone, Debug)]
#[must_use]
pub struct IdempotencyKeys {
    methods: Arc<[Method]>,
    form: KeyForm,
}

impl IdempotencyKeys {
    /// Creates the default: keys for `POST` and `PATCH`, in quotes as the draft requires.
    pub fn new() -> Self {
        Self {
            methods: Arc::new([Method::POST, Method::PATCH]),
            form: KeyForm::Quoted,
        }
    }

    /// Sets the methods that get a key. With none, only keys that the caller sets are sent.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// Sets the format of new keys. Keys that the caller sets are sent unchanged.
    pub const fn form(mut self, form: KeyForm) -> Self {
        self.form = form;
        self
    }

    /// Makes a layer.
    pub fn layer(&self) -> IdempotencyKeysLayer {
        IdempotencyKeysLayer { keys: self.clone() }
    }

    fn write(&self, method: &Method, headers: &mut HeaderMap) {
        if self.methods.contains(method) && !headers.contains_key(IDEMPOTENCY_KEY) {
            headers.insert(IDEMPOTENCY_KEY, Key::fresh().header(self.form));
        }
    }
}

impl Default for IdempotencyKeys {
    fn default() -> Self {
        Self::new()
    }
}

/// Layer that adds idempotency keys. Made by [`IdempotencyKeys::layer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct IdempotencyKeysLayer {
    keys: IdempotencyKeys,
}

impl<S> Layer<S> for IdempotencyKeysLayer {
    type Service = IdempotencyKeysService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyKeysService {
            inner,
            keys: self.keys.clone(),
        }
    }
}

/// Service that adds idempotency keys. Made by [`IdempotencyKeysLayer`].
#[derive(Clone)]
pub struct IdempotencyKeysService<S> {
    inner: S,
    keys: IdempotencyKeys,
}

impl<S: fmt::Debug> fmt::Debug for IdempotencyKeysService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _entered = order::enter(|| Part::new(order::IDEMPOTENCY_KEYS, ""));
        f.debug_struct("IdempotencyKeysService")
            .field("inner", &self.inner)
            .field("keys", &self.keys)
            .finish()
    }
}

impl<S: Service<reqwest::Request>> Service<reqwest::Request> for IdempotencyKeysService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: reqwest::Request) -> S::Future {
        let method = request.method().clone();
        self.keys.write(&method, request.headers_mut());
        self.inner.call(request)
    }
}

impl<S, B> Service<http::Request<B>> for IdempotencyKeysService<S>
where
    S: Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> S::Future {
        let method = request.method().clone();
        self.keys.write(&method, request.headers_mut());
        self.inner.call(request)
    }
}
