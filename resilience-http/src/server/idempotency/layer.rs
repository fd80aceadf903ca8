//! The layer: reads the key and the body, asks the handle, calls the handler.

use std::{
    fmt,
    future::poll_fn,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header, request::Parts};
use http_body::Body;
use pin_project_lite::pin_project;
use resilience_core::{
    Reason, Rejected,
    idempotency::{self, Attempt, Fingerprint},
};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    IdempotentRequests, Settings,
    body::{IdempotentBody, Read, read},
    response::{HandlerResponse, ResponseOutcomes},
};
use crate::{
    idempotency::{Key, MalformedKey},
    problem::{Problem, TYPE_PREFIX},
};

/// Made by [`IdempotentRequests::layer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct IdempotentRequestsLayer {
    requests: IdempotentRequests,
}

impl IdempotentRequestsLayer {
    pub(super) const fn new(requests: IdempotentRequests) -> Self {
        Self { requests }
    }
}

impl<S> Layer<S> for IdempotentRequestsLayer {
    type Service = IdempotentRequestsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotentRequestsService {
            inner,
            requests: self.requests.clone(),
        }
    }
}

/// The service of [`IdempotentRequestsLayer`].
#[derive(Clone, Debug)]
pub struct IdempotentRequestsService<S> {
    inner: S,
    requests: IdempotentRequests,
}

impl<S, B, R> Service<Request<B>> for IdempotentRequestsService<S>
where
    S: Service<Request<IdempotentBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Send,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Send,
{
    type Response = Response<IdempotentBody<R>>;
    type Error = S::Error;
    type Future = IdempotentRequestsFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let state = match self.requests.settings.key(&request) {
            Ok(None) => State::Passing {
                inner: self.inner.call(request.map(IdempotentBody::passed)),
            },
            Ok(Some(key)) => {
                let call = Call {
                    service: self.unready(),
                    requests: self.requests.clone(),
                };
                State::Guarded {
                    answer: Box::pin(call.serve(key, request)),
                }
            }
            Err(problem) => {
                self.unready();
                State::Refused {
                    response: Some(problem.into_response()),
                }
            }
        };
        IdempotentRequestsFuture { state }
    }
}

impl<S: Clone> IdempotentRequestsService<S> {
    /// What was polled ready makes room for one that holds nothing while the body is read and the store asked; the
    /// call takes another one.
    fn unready(&mut self) -> S {
        let fresh = self.inner.clone();
        self.inner = fresh;
        self.inner.clone()
    }
}

impl Settings {
    /// The key of a request that this layer is about.
    fn key<B>(&self, request: &Request<B>) -> Result<Option<Key>, Problem> {
        if !self.methods.contains(request.method()) {
            return Ok(None);
        }
        match self.rules.read(request.headers()) {
            Ok(None) if self.required => Err(no_key()),
            Ok(key) => Ok(key),
            Err(malformed) => Err(malformed_key(malformed)),
        }
    }

    fn rejected(&self, rejected: Rejected) -> Problem {
        let wait = rejected.retry_after();
        let within = self.come_back_within;
        let sooner = within.filter(|within| wait.is_some_and(|wait| wait > *within));
        match sooner.filter(|_| rejected.reason() == Reason::InFlight) {
            Some(within) => rejected.with_retry_after(within).into(),
            None => rejected.into(),
        }
    }
}

/// What one call takes along.
struct Call<S> {
    service: S,
    requests: IdempotentRequests,
}

type Served<R, E> = Result<Response<IdempotentBody<R>>, E>;

impl<S> Call<S> {
    async fn serve<B, R>(self, key: Key, request: Request<B>) -> Served<R, S::Error>
    where
        S: Service<Request<IdempotentBody<B>>, Response = Response<R>> + Send + 'static,
        S::Future: Send,
        S::Error: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Send,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Send,
    {
        let Self { service, requests } = self;
        let settings = &requests.settings;
        let (head, body) = request.into_parts();
        let body = match in_memory(body, settings.max_request).await {
            Ok(body) => body,
            Err(problem) => return Ok(problem.into_response()),
        };
        let key = settings.stored(&key, &head, &body);
        let outcomes = ResponseOutcomes {
            decide: Arc::clone(&settings.decide),
            keep: settings.keep.clone(),
            of: PhantomData,
        };
        let limits = Arc::clone(settings);
        let work = move |attempt| {
            let request = Request::from_parts(head, IdempotentBody::whole(body, None));
            called(service, request, attempt, limits)
        };
        let ran = requests.handle.run_with(key, outcomes, work).await;
        match ran.and_then(|outcome| requests.handle.accept(outcome)) {
            Err(rejected) => Ok(settings.rejected(rejected).into_response()),
            Ok(outcome) => outcome.value.map(HandlerResponse::into_response),
        }
    }
}

impl Settings {
    fn stored(&self, key: &Key, head: &Parts, body: &[u8]) -> idempotency::Key {
        let print = self
            .compare
            .fingerprint(&head.method, &head.uri, &head.headers, body);
        idempotency::Key::new(key.as_str())
            .scope((self.scope)(head))
            .fingerprint(Fingerprint::from_bytes(print.as_bytes().to_vec()))
    }
}

async fn in_memory<B: Body<Data = Bytes>>(body: B, limit: usize) -> Result<Bytes, Problem> {
    match read(body, limit).await {
        Read::Whole(body, _) => Ok(body),
        Read::More(_) => Err(too_large(limit)),
        Read::Broken(_) => Err(unreadable_body()),
    }
}

/// The handler's call, to the end of its answer.
async fn called<S, B, R>(
    mut service: S,
    mut request: Request<IdempotentBody<B>>,
    attempt: Attempt,
    settings: Arc<Settings>,
) -> Result<HandlerResponse<R>, S::Error>
where
    S: Service<Request<IdempotentBody<B>>, Response = Response<R>>,
    B: Body,
    R: Body<Data = Bytes>,
{
    request.extensions_mut().insert(attempt);
    poll_fn(|cx| service.poll_ready(cx)).await?;
    let response = service.call(request).await?;
    let (head, body) = response.into_parts();
    if is_stream(&head.headers) {
        return Ok(settings.unkept(Response::from_parts(head, IdempotentBody::passed(body))));
    }
    Ok(match read(body, settings.max_response).await {
        Read::Whole(body, trailers) => HandlerResponse::Whole {
            head,
            body,
            trailers,
        },
        Read::More(body) => settings.unkept(Response::from_parts(head, body)),
        Read::Broken(body) => HandlerResponse::Passing(Response::from_parts(head, body)),
    })
}

impl Settings {
    fn unkept<R: Body>(&self, response: Response<IdempotentBody<R>>) -> HandlerResponse<R> {
        if !self.refuse_unkept {
            return HandlerResponse::Passing(response);
        }
        let (head, body) = unkept().into_response::<String>().into_parts();
        HandlerResponse::Whole {
            head,
            body: body.into(),
            trailers: None,
        }
    }
}

/// Server-sent events have no end.
fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("text/event-stream")
}

fn problem(status: StatusCode, kind: &str, title: &'static str, detail: String) -> Problem {
    Problem::new(status, title)
        .with_type(format!("{TYPE_PREFIX}idempotency:{kind}"))
        .with_detail(detail)
}

fn no_key() -> Problem {
    let detail = "The request has to have an Idempotency-Key, so that it is served once.";
    let title = "Idempotency-Key is missing";
    problem(StatusCode::BAD_REQUEST, "no_key", title, detail.into())
}

fn malformed_key(malformed: MalformedKey) -> Problem {
    let title = "Idempotency-Key is malformed";
    let detail = format!("The header Idempotency-Key cannot be read: {malformed}.");
    problem(StatusCode::BAD_REQUEST, "malformed_key", title, detail)
}

fn too_large(limit: usize) -> Problem {
    let title = "Request body is too large";
    let detail = format!("A request with an idempotency key may have a body of {limit} bytes.");
    problem(StatusCode::PAYLOAD_TOO_LARGE, "too_large", title, detail)
}

fn unreadable_body() -> Problem {
    let title = "Request body cannot be read";
    let detail = "The body of the request broke off. It was not served.";
    let status = StatusCode::BAD_REQUEST;
    problem(status, "unreadable_body", title, detail.into())
}

fn unkept() -> Problem {
    let title = "Answer cannot be given twice";
    let detail =
        "The request was served, and its answer is more than can be kept for its repetitions.";
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    problem(status, "not_kept", title, detail.into())
}

type Guarded<R, E> = Pin<Box<dyn Future<Output = Served<R, E>> + Send>>;

pin_project! {
    /// The future of [`IdempotentRequestsService`]. Dropping it does not stop a handler that has begun.
    #[must_use = "futures do nothing unless polled"]
    pub struct IdempotentRequestsFuture<F, R, E>
    where
        R: Body,
    {
        #[pin]
        state: State<F, R, E>,
    }
}

pin_project! {
    #[project = Projected]
    enum State<F, R, E>
    where
        R: Body,
    {
        Passing { #[pin] inner: F },
        Guarded { answer: Guarded<R, E> },
        Refused { response: Option<Response<IdempotentBody<R>>> },
    }
}

impl<F, R, E> Future for IdempotentRequestsFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body,
{
    type Output = Served<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().state.project() {
            Projected::Passing { inner } => {
                let response = ready!(inner.poll(cx))?;
                Ok(response.map(IdempotentBody::passed))
            }
            Projected::Guarded { answer } => ready!(answer.as_mut().poll(cx)),
            Projected::Refused { response } => {
                Ok(response.take().expect("polled after completion"))
            }
        })
    }
}

impl<F, R: Body, E> fmt::Debug for IdempotentRequestsFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotentRequestsFuture")
            .finish_non_exhaustive()
    }
}
