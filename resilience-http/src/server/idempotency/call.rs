//! One call with a key: reads the request, runs the handler once, reads its response.

use std::{
    any::Any,
    future::poll_fn,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body::Body;
use resilience_core::{
    deadline::{self, Deadline},
    idempotency::{Attempt, Disposition, Idempotency},
};
use tower_service::Service;

use super::{
    body::{BoxError, IdempotentBody, Read, read},
    problems::{limited_outside, not_recorded, panicked, too_large, unreadable_body},
    response::{HandlerResponse, ResponseOutcomes, Unrecordable},
    settings::{Settings, due},
};
use crate::{idempotency::Key, problem::Problem};

/// What one call needs of its service.
pub(super) struct Call<S> {
    pub(super) service: S,
    pub(super) handle: Idempotency,
    pub(super) settings: Arc<Settings>,
}

pub(super) type Served<R, E> = Result<Response<IdempotentBody<R>>, E>;

impl<S> Call<S> {
    pub(super) async fn serve<B, R>(self, key: Key, request: Request<B>) -> Served<R, S::Error>
    where
        S: Service<Request<IdempotentBody<B>>, Response = Response<R>> + Send + 'static,
        S::Future: Send,
        S::Error: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError> + Send,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError> + Send,
    {
        let Self {
            service,
            handle,
            settings,
        } = self;
        let (mut head, body) = request.into_parts();
        let due = due(&head.headers);
        let body = match in_memory(body, settings.max_request).await {
            Ok(body) => body,
            Err(problem) => return Ok(problem.into_response()),
        };
        let key = match settings.record_key(&key, &head, &body, &handle).await {
            Ok(key) => key,
            Err(problem) => return Ok(problem.into_response()),
        };
        if !settings.keep.takes_encoded() {
            // Nothing is negotiated that not every caller has: the response is recorded as it is.
            head.headers.remove(header::ACCEPT_ENCODING);
        }
        let outcomes = ResponseOutcomes {
            settings: Arc::clone(&settings),
            of: PhantomData,
        };
        let limits = Arc::clone(&settings);
        let work = move |attempt| {
            let request = Request::from_parts(head, IdempotentBody::whole(body, None));
            run(service, request, attempt, limits)
        };
        let ran = within(due, handle.run_with(key, outcomes, work));
        let Ok(ran) = caught(ran).await else {
            return Ok(panicked().into_response());
        };
        match ran.and_then(|outcome| handle.accept(outcome)) {
            Err(rejected) => Ok(settings.rejected(rejected).into_response()),
            Ok(outcome) => outcome.value.map(HandlerResponse::into_response),
        }
    }
}

async fn within<F: Future>(due: Option<Deadline>, future: F) -> F::Output {
    match due {
        Some(due) => deadline::scope(due, future).await,
        None => future.await,
    }
}

/// The output of `future`, or the panic that it ended with.
async fn caught<F: Future>(future: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polled.map_or_else(|panic| Poll::Ready(Err(panic)), |polled| polled.map(Ok))
    })
    .await
}

async fn in_memory<B>(body: B, limit: usize) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    match read(body, limit).await {
        Read::Whole(body, _) => Ok(body),
        Read::More(_) => Err(too_large(limit)),
        Read::Broken(body) if body.is_too_large() => Err(limited_outside()),
        Read::Broken(_) => Err(unreadable_body()),
    }
}

/// Runs the handler, up to the end of its response.
async fn run<S, B, R>(
    mut service: S,
    mut request: Request<IdempotentBody<B>>,
    attempt: Attempt,
    settings: Arc<Settings>,
) -> Result<HandlerResponse<R>, S::Error>
where
    S: Service<Request<IdempotentBody<B>>, Response = Response<R>>,
    B: Body,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    request.extensions_mut().insert(attempt);
    poll_fn(|cx| service.poll_ready(cx)).await?;
    let response = service.call(request).await?;
    let (head, body) = response.into_parts();
    if let Some(why) = unrecordable(&settings, &head.headers) {
        let response = Response::from_parts(head, IdempotentBody::passed(body));
        return Ok(unrecorded(&settings, response, why));
    }
    Ok(match read(body, settings.max_response).await {
        Read::Whole(body, trailers) => HandlerResponse::Whole {
            head,
            body,
            trailers,
        },
        Read::More(body) => {
            let response = Response::from_parts(head, body);
            unrecorded(&settings, response, Unrecordable::TooLarge)
        }
        Read::Broken(body) => {
            let response = Response::from_parts(head, body);
            HandlerResponse::Passing(response, Unrecordable::EndedEarly)
        }
    })
}

/// A response that cannot be recorded: passed on, or replaced by one that can if it was to be.
fn unrecorded<R: Body>(
    settings: &Settings,
    response: Response<IdempotentBody<R>>,
    why: Unrecordable,
) -> HandlerResponse<R> {
    let (status, headers) = (response.status(), response.headers());
    let becomes = settings.disposition(status, headers, response.extensions());
    let is_kept = !matches!(becomes, Disposition::Release | Disposition::Unknown);
    if !(settings.refuse_unkept && is_kept) {
        return HandlerResponse::Passing(response, why);
    }
    let (mut head, body) = not_recorded().into_response::<String>().into_parts();
    head.extensions.insert(becomes);
    HandlerResponse::Whole {
        head,
        body: body.into(),
        trailers: None,
    }
}

/// Why a response with these headers cannot be recorded, if so.
fn unrecordable(settings: &Settings, headers: &HeaderMap) -> Option<Unrecordable> {
    if is_event_stream(headers) {
        return Some(Unrecordable::Events);
    }
    (!settings.keep.takes(headers)).then_some(Unrecordable::Encoded)
}

/// Whether the body is a stream of server-sent events, which has no end.
fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("text/event-stream")
}
