//! Calls whose earlier attempt is still in progress at the server.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, StatusCode, header};
use pin_project_lite::pin_project;
use resilience_core::{admission::take_ready, deadline, retry::Replay};
use tokio::time::{Instant, sleep};
use tower_layer::Layer;
use tower_service::Service;

use super::HttpReplay;
use crate::headers::{self, IDEMPOTENCY_KEY};

/// Waits for the outcome of a call whose earlier attempt is still in progress at the server.
///
/// A server responds to a request with an `Idempotency-Key` by `409` with `Retry-After` while it
/// processes an earlier request with the same key, for example one whose response was lost or whose
/// attempt timed out here. This layer then waits for `Retry-After` and sends the request again,
/// until the server has the outcome or the call's [deadline](resilience_core::deadline) does not
/// leave the time; without a deadline, for at most 60 s. Requests without a key, requests that
/// [cannot be sent again](HttpReplay), and all other responses pass.
///
/// Put it above the retry: asking for an outcome is neither a failure nor an attempt, and uses up
/// neither the attempts nor the budget of the retry. A [`Client`](super::Client) with a retry has
/// it there.
///
/// ```
/// use std::convert::Infallible;
/// use http::{Request, Response};
/// use resilience_http::client::AwaitInFlightLayer;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let asked = std::sync::atomic::AtomicU32::new(0);
/// let asked: &'static _ = Box::leak(Box::new(asked));
/// let server = service_fn(move |_: Request<String>| async move {
///     let response = match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
///         0 => Response::builder().status(409).header("retry-after", "1"),
///         _ => Response::builder().status(201),
///     };
///     Ok::<_, Infallible>(response.body(()).unwrap())
/// });
/// let service = ServiceBuilder::new().layer(AwaitInFlightLayer::new()).service(server);
/// let post = Request::post("/payments").header("idempotency-key", "\"7\"").body(String::new()).unwrap();
/// assert_eq!(service.oneshot(post).await.unwrap().status(), 201);
/// # }
/// ```
///
/// **Cost**: one allocation and a copy of the request for a call with a key; a look at the headers
/// for any other. **Errors**: none of its own. **Cancellation**: drops the request that is being
/// sent; the server goes on.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct AwaitInFlightLayer<R = HttpReplay> {
    replay: R,
}

impl AwaitInFlightLayer {
    /// Creates a layer that sends again what [`HttpReplay`] allows.
    pub const fn new() -> Self {
        Self::with(HttpReplay::new())
    }
}

impl<R> AwaitInFlightLayer<R> {
    /// Creates a layer that sends again what `replay` allows.
    pub const fn with(replay: R) -> Self {
        Self { replay }
    }
}

impl<S, R: Clone> Layer<S> for AwaitInFlightLayer<R> {
    type Service = AwaitInFlightService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        AwaitInFlightService {
            inner,
            replay: self.replay.clone(),
        }
    }
}

/// Service that waits for outcomes. Made by [`AwaitInFlightLayer`].
#[derive(Clone)]
pub struct AwaitInFlightService<S, R = HttpReplay> {
    inner: S,
    replay: R,
}

impl<S: fmt::Debug, R> fmt::Debug for AwaitInFlightService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwaitInFlightService")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// A request or a response.
pub trait Head {
    /// Returns its headers.
    fn fields(&self) -> &HeaderMap;
}

/// A response.
pub trait ResponseHead: Head {
    /// Returns its status.
    fn code(&self) -> StatusCode;
}

impl<S, R, Req> Service<Req> for AwaitInFlightService<S, R>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: ResponseHead + Send,
    R: Replay<Req> + Clone + Send + 'static,
    Req: Head + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = AwaitInFlightFuture<S::Future, S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let state = if request.fields().contains_key(IDEMPOTENCY_KEY) {
            let service = take_ready(&mut self.inner);
            let answered = until_answered(service, request, self.replay.clone());
            State::Keyed {
                call: Box::pin(answered),
            }
        } else {
            State::Passing {
                inner: self.inner.call(request),
            }
        };
        AwaitInFlightFuture { state }
    }
}

/// Maximum time for an outcome that is not there, of a call without a deadline.
const LONGEST: Duration = Duration::from_secs(60);

/// `service` is ready.
async fn until_answered<S, R, Req>(
    mut service: S,
    mut request: Req,
    replay: R,
) -> Result<S::Response, S::Error>
where
    S: Service<Req>,
    S::Response: ResponseHead,
    R: Replay<Req>,
{
    let end = match deadline::current() {
        Some(deadline) => deadline.instant(),
        None => Instant::now() + LONGEST,
    };
    loop {
        let spare = replay.replay(&request);
        let response = service.call(request).await?;
        let left = end.saturating_duration_since(Instant::now());
        let wait = in_flight(&response).filter(|wait| *wait < left);
        let (Some(wait), Some(again)) = (wait, spare) else {
            return Ok(response);
        };
        drop(response);
        sleep(wait).await;
        poll_fn(|cx| service.poll_ready(cx)).await?;
        request = again;
    }
}

/// The time to wait, if the response says that an earlier request is in progress.
fn in_flight(response: &impl ResponseHead) -> Option<Duration> {
    let conflict = response.code() == StatusCode::CONFLICT;
    let conflict = conflict && response.fields().contains_key(header::RETRY_AFTER);
    conflict.then(|| headers::retry_after(response.fields(), Duration::MAX))?
}

pin_project! {
    /// Response future of [`AwaitInFlightService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct AwaitInFlightFuture<F, T, E> {
        #[pin]
        state: State<F, T, E>,
    }
}

type Keyed<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

pin_project! {
    #[project = Projected]
    enum State<F, T, E> {
        Passing { #[pin] inner: F },
        Keyed { call: Keyed<T, E> },
    }
}

impl<F, T, E> Future for AwaitInFlightFuture<F, T, E>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            Projected::Passing { inner } => inner.poll(cx),
            Projected::Keyed { call } => call.as_mut().poll(cx),
        }
    }
}

impl<F, T, E> fmt::Debug for AwaitInFlightFuture<F, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwaitInFlightFuture")
            .finish_non_exhaustive()
    }
}

impl Head for reqwest::Request {
    fn fields(&self) -> &HeaderMap {
        self.headers()
    }
}

impl Head for reqwest::Response {
    fn fields(&self) -> &HeaderMap {
        self.headers()
    }
}

impl ResponseHead for reqwest::Response {
    fn code(&self) -> StatusCode {
        self.status()
    }
}

impl<B> Head for http::Request<B> {
    fn fields(&self) -> &HeaderMap {
        self.headers()
    }
}

impl<B> Head for http::Response<B> {
    fn fields(&self) -> &HeaderMap {
        self.headers()
    }
}

impl<B> ResponseHead for http::Response<B> {
    fn code(&self) -> StatusCode {
        self.status()
    }
}
