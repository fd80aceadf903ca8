//! The fallback as a tower layer.

use std::{
    any::Any,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::answer::{FallbackResponse, OnError, OnFailure, When, WhenError};
use crate::{
    error::Pattern,
    stripe::{Local, Striped},
    telemetry::{self, Reading, Source},
};

/// Makes [`FallbackService`]s. Made by the functions of [`Fallback`](super::Fallback). Clones share the answer and
/// the count.
#[must_use]
pub struct FallbackLayer<A, W = OnError> {
    shared: Striped<Shared<A>>,
    when: W,
}

struct Shared<A> {
    answer: A,
    count: Arc<Count>,
}

/// What the exporter sees: no type parameters, so that nothing is asked of the answer.
struct Count {
    name: Arc<str>,
    used: AtomicU64,
}

impl<A, W> FallbackLayer<A, W> {
    pub(super) fn new(name: Arc<str>, answer: A, when: W) -> Self {
        let used = AtomicU64::new(0);
        let count = Arc::new(Count { name, used });
        telemetry::register(&count);
        let shared = Striped::new(Shared { answer, count });
        Self { shared, when }
    }

    /// How many calls were answered by the fallback so far.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.shared.count.used.load(Relaxed)
    }

    /// Falls back on the errors for which `applies` is true, and on nothing else.
    pub fn when<E, P: Fn(&E) -> bool>(self, applies: P) -> FallbackLayer<A, WhenError<P>> {
        FallbackLayer {
            shared: self.shared,
            when: WhenError(applies),
        }
    }

    /// Falls back on what `classifier` takes for a failure, be it an error or a response, and on rejections. What it
    /// ignores (the caller's own fault) goes through.
    ///
    /// [`Fallback::by`](super::Fallback::by) and [`by_async`](super::Fallback::by_async) know what to make of an error
    /// only: with them a failed response goes through, too.
    pub fn classify<C>(self, classifier: C) -> FallbackLayer<A, OnFailure<C>> {
        FallbackLayer {
            shared: self.shared,
            when: OnFailure(classifier),
        }
    }
}

impl Source for Count {
    fn pattern(&self) -> Pattern {
        Pattern::Fallback
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        out(Reading {
            metric: &telemetry::FALLBACK_FALLBACKS,
            attribute: "",
            value: self.used.load(Relaxed),
        });
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

impl<S, A, W: Clone> Layer<S> for FallbackLayer<A, W> {
    type Service = FallbackService<S, A, W>;

    fn layer(&self, inner: S) -> Self::Service {
        FallbackService {
            inner,
            shared: self.shared.clone(),
            when: self.when.clone(),
            unready: None,
        }
    }
}

/// A service with an answer for when it fails. Made by [`FallbackLayer`].
pub struct FallbackService<S, A, W = OnError> {
    inner: S,
    shared: Striped<Shared<A>>,
    when: W,
    /// The error that the inner service failed its readiness with. Its type depends on the request's, which a
    /// service does not name; only a failure pays for the box. The lock (never taken) makes the service `Sync`
    /// where its inner service is, whatever the error.
    unready: Option<Box<dyn Any + Send + Sync>>,
}

impl<S: Clone, A, W: Clone> Clone for FallbackService<S, A, W> {
    /// A failed readiness is the original's alone.
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shared: self.shared.clone(),
            when: self.when.clone(),
            unready: None,
        }
    }
}

impl<S, A, W, Req> Service<Req> for FallbackService<S, A, W>
where
    S: Service<Req>,
    S::Error: Send + 'static,
    A: FallbackResponse<Req, S::Response, S::Error>,
    W: When<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, A, W>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if self.unready.is_none()
            && let Err(error) = ready!(self.inner.poll_ready(cx))
        {
            self.unready = Some(Box::new(Mutex::new(error)));
        }
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        let note = Some(self.shared.answer.note(&req));
        let state = match self.take_unready() {
            None => State::Calling {
                future: self.inner.call(req),
                note,
            },
            Some(error) => State::Failed {
                failed: Some(Err(error)),
                note,
            },
        };
        ResponseFuture {
            state,
            shared: self.shared.local(),
            when: self.when.clone(),
        }
    }
}

impl<S, A, W> FallbackService<S, A, W> {
    #[inline]
    fn take_unready<E: 'static>(&mut self) -> Option<E> {
        let error = self.unready.take()?.downcast::<Mutex<E>>().ok()?;
        Some(error.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

pin_project! {
    /// The future of [`FallbackService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, A, W>
    where
        S: Service<Req>,
        A: FallbackResponse<Req, S::Response, S::Error>,
    {
        #[pin]
        state: State<S::Future, S::Response, S::Error, A::Note, A::Future>,
        shared: Local<Shared<A>>,
        when: W,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, Res, E, Note, G> {
        Calling { #[pin] future: F, note: Option<Note> },
        Failed { failed: Option<Result<Res, E>>, note: Option<Note> },
        Answering { #[pin] future: G },
    }
}

impl<S, Req, A, W> Future for ResponseFuture<S, Req, A, W>
where
    S: Service<Req>,
    A: FallbackResponse<Req, S::Response, S::Error>,
    W: When<S::Response, S::Error>,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let (result, note) = match this.state.as_mut().project() {
                StateProj::Calling { future, note } => (ready!(future.poll(cx)), note.take()),
                StateProj::Failed { failed, note } => (
                    failed.take().expect("polled after it was done"),
                    note.take(),
                ),
                StateProj::Answering { future } => return future.poll(cx),
            };
            if !this.when.applies(result.as_ref()) {
                return Poll::Ready(result);
            }
            let note = note.expect("polled after it was done");
            match this.shared.fall_back(result, note) {
                Ok(future) => this.state.set(State::Answering { future }),
                Err(result) => return Poll::Ready(result),
            }
        }
    }
}

impl<A> Shared<A> {
    #[cold]
    fn fall_back<Req, Res, E>(
        &self,
        failed: Result<Res, E>,
        note: A::Note,
    ) -> Result<A::Future, Result<Res, E>>
    where
        A: FallbackResponse<Req, Res, E>,
    {
        let was_error = failed.is_err();
        let answer = self.answer.answer(failed, note)?;
        let name = &*self.count.name;
        self.count.used.fetch_add(1, Relaxed);
        let pattern = Pattern::Fallback.as_str();
        tracing::debug!(target: "resilience", pattern, name, was_error, "fell back");
        Ok(answer)
    }
}

impl<A, W: Clone> Clone for FallbackLayer<A, W> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            when: self.when.clone(),
        }
    }
}

impl<A, W> fmt::Debug for FallbackLayer<A, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackLayer")
            .field("name", &self.shared.count.name)
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, A, W> fmt::Debug for FallbackService<S, A, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackService")
            .field("name", &self.shared.count.name)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, Req, A, W> fmt::Debug for ResponseFuture<S, Req, A, W>
where
    S: Service<Req>,
    A: FallbackResponse<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Calling { .. } => "calling",
            State::Failed { .. } => "failed",
            State::Answering { .. } => "answering",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
