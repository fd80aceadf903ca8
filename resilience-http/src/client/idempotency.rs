//! One key for one call, however often it is sent.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, Method, StatusCode, header};
use resilience_core::{Classify, Error, Verdict};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    HttpClassifier,
    headers::IDEMPOTENCY_KEY,
    idempotency::{Key, KeyForm},
};

/// Gives every call of some methods an `Idempotency-Key` of its own: a fresh [UUID of version 7](Key::fresh), unless
/// the request has one already.
///
/// It belongs above the retry (and above a hedge), so that all attempts of a call carry the same key. A server that
/// knows the header carries the call out once; a retry by [`HttpReplay`](super::HttpReplay) takes the key for leave to
/// send the request again.
///
/// **Only for servers that know the header.** One that does not carries out each attempt: then the key is a promise to
/// the retry that nobody keeps. This is why a [`Client`](super::Client) has no keys until it is asked to
/// ([`ClientBuilder::idempotency_keys`](super::ClientBuilder::idempotency_keys)).
///
/// A key that lives as long as the call does not help the *caller* who comes back after a crash: a key that must
/// outlive the process is the caller's own, made before the first try and kept with the work
/// ([`RequestBuilder::idempotency_key`](super::RequestBuilder::idempotency_key)).
///
/// ```
/// use std::convert::Infallible;
/// use http::{Request, Response};
/// use resilience_http::{client::IdempotencyKeys, headers::IDEMPOTENCY_KEY};
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
/// **Cost**: two allocations and some random bytes of the system's for a call that gets a key; a look at the method for
/// any other. **Errors and cancellation**: none of its own.
#[derive(Clone, Debug)]
#[must_use]
pub struct IdempotencyKeys {
    methods: Arc<[Method]>,
    form: KeyForm,
}

impl IdempotencyKeys {
    /// For `POST` and `PATCH`, in quotes as the draft has it.
    pub fn new() -> Self {
        Self {
            methods: Arc::new([Method::POST, Method::PATCH]),
            form: KeyForm::Quoted,
        }
    }

    /// For other methods. None: only keys that the caller gives are sent.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// How fresh keys are written. Keys that the caller gives are sent as they are.
    pub const fn form(mut self, form: KeyForm) -> Self {
        self.form = form;
        self
    }

    /// The layer.
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

/// See [`IdempotencyKeys`].
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

/// The service of [`IdempotencyKeysLayer`].
#[derive(Clone, Debug)]
pub struct IdempotencyKeysService<S> {
    inner: S,
    keys: IdempotencyKeys,
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

/// How a retry reads the answers to calls that carry a key: a `409` with `Retry-After` is worth another try.
///
/// It is what a server answers while the first of two requests with one key is still under way: when the reply to the
/// first attempt is lost, the second may come too early. Tried again in time, it gets the reply that was lost. Every
/// other answer is for the classifier inside.
///
/// For the retry alone: to a breaker, a server that says so is well, and it has the plain classifier.
/// [`ClientBuilder::idempotency_keys`](super::ClientBuilder::idempotency_keys) puts it there by itself.
///
/// ```
/// use std::time::Duration;
/// use http::Response;
/// use resilience_core::{Classify, Verdict};
/// use resilience_http::{HttpClassifier, client::RetryInFlight};
///
/// let busy = Response::builder().status(409).header("retry-after", "2").body(()).unwrap();
/// let verdict = RetryInFlight(HttpClassifier::new()).classify(Ok::<_, &()>(&busy));
/// assert_eq!(verdict, Verdict::retry_after(Duration::from_secs(2)));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RetryInFlight<C = HttpClassifier>(pub C);

impl<C> RetryInFlight<C> {
    fn head(status: StatusCode, headers: &HeaderMap) -> Option<Verdict> {
        let busy = status == StatusCode::CONFLICT && headers.contains_key(header::RETRY_AFTER);
        // As a 503 with the same header: when to come back, within the bounds of every classifier here.
        busy.then(|| HttpClassifier::new().head(StatusCode::SERVICE_UNAVAILABLE, headers))
    }
}

impl<C, B, E> Classify<http::Response<B>, E> for RetryInFlight<C>
where
    C: Classify<http::Response<B>, E>,
{
    fn classify(&self, result: Result<&http::Response<B>, &E>) -> Verdict {
        let head = result.map(|response| Self::head(response.status(), response.headers()));
        head.ok()
            .flatten()
            .unwrap_or_else(|| self.0.classify(result))
    }
}

impl<C> Classify<reqwest::Response, Error<reqwest::Error>> for RetryInFlight<C>
where
    C: Classify<reqwest::Response, Error<reqwest::Error>>,
{
    fn classify(&self, result: Result<&reqwest::Response, &Error<reqwest::Error>>) -> Verdict {
        let head = result.map(|response| Self::head(response.status(), response.headers()));
        head.ok()
            .flatten()
            .unwrap_or_else(|| self.0.classify(result))
    }
}
