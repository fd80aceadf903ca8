//! The tower layer.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{Attempt, Idempotency, Json, Outcomes, Source, claim::Admission, key::Key};
use crate::{
    admission::take_ready,
    error::{Pattern, ServiceError},
    order::{self, Part},
};

/// A layer that makes [`IdempotencyService`]s; see [`Idempotency::layer`].
pub struct IdempotencyLayer<F, O = Json, A = NoAttach> {
    handle: Idempotency,
    key: F,
    outcomes: Arc<O>,
    attach: A,
}

/// Leaves requests unchanged. The default of [`IdempotencyLayer`].
#[derive(Clone, Copy, Debug, Default)]
pub struct NoAttach;

/// Puts the attempt into the request: a closure, or [`NoAttach`].
pub trait Attach<Req> {
    /// Attaches `attempt` to `request`, before the inner service is called.
    fn attach(&self, request: &mut Req, attempt: &Attempt);
}

impl<Req> Attach<Req> for NoAttach {
    fn attach(&self, _: &mut Req, _: &Attempt) {}
}

impl<Req, F: Fn(&mut Req, &Attempt)> Attach<Req> for F {
    fn attach(&self, request: &mut Req, attempt: &Attempt) {
        self(request, attempt);
    }
}

impl<F> IdempotencyLayer<F> {
    pub(super) fn new(handle: Idempotency, key: F) -> Self {
        Self {
            handle,
            key,
            outcomes: Arc::new(Json::new()),
            attach: NoAttach,
        }
    }
}

impl<F, O, A> IdempotencyLayer<F, O, A> {
    /// Records by `outcomes`, to which responses and errors of the inner service are results
    /// (`Outcomes<Result<Response, Error>>`).
    pub fn outcomes<P>(self, outcomes: P) -> IdempotencyLayer<F, P, A> {
        IdempotencyLayer {
            handle: self.handle,
            key: self.key,
            outcomes: Arc::new(outcomes),
            attach: self.attach,
        }
    }

    /// Puts the [`Attempt`] into the request before the inner service is called, so that a handler finds its fence and
    /// child keys there. [`Attempt::current`] returns it too.
    pub fn attach<B>(self, attach: B) -> IdempotencyLayer<F, O, B> {
        IdempotencyLayer {
            handle: self.handle,
            key: self.key,
            outcomes: self.outcomes,
            attach,
        }
    }
}

impl<F: Clone, O, A: Clone> Clone for IdempotencyLayer<F, O, A> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            key: self.key.clone(),
            outcomes: Arc::clone(&self.outcomes),
            attach: self.attach.clone(),
        }
    }
}

impl<F, O, A> fmt::Debug for IdempotencyLayer<F, O, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IdempotencyLayer")
            .field(&self.handle)
            .finish()
    }
}

impl<S, F: Clone, O, A: Clone> Layer<S> for IdempotencyLayer<F, O, A> {
    type Service = IdempotencyService<S, F, O, A>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyService {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service whose calls take effect once per key; made by [`IdempotencyLayer`].
pub struct IdempotencyService<S, F, O = Json, A = NoAttach> {
    inner: S,
    layer: IdempotencyLayer<F, O, A>,
}

impl<S: Clone, F: Clone, O, A: Clone> Clone for IdempotencyService<S, F, O, A> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl<S: fmt::Debug, F, O, A> fmt::Debug for IdempotencyService<S, F, O, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.layer.handle.name();
        let _entered = order::enter(|| Part::new(Pattern::Idempotency, name));
        f.debug_struct("IdempotencyService")
            .field("layer", &self.layer)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, F, O, A, Req> Service<Req> for IdempotencyService<S, F, O, A>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send + 'static,
    S::Error: ServiceError + Send + 'static,
    F: Fn(&Req) -> Option<Key>,
    O: Outcomes<Result<S::Response, S::Error>>,
    A: Attach<Req> + Clone + Send + 'static,
    Req: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let state = match (self.layer.key)(&request) {
            None => State::Passing {
                future: self.inner.call(request),
            },
            Some(key) => {
                let call = Call {
                    ready: Some(take_ready(&mut self.inner)),
                    fresh: self.inner.clone(),
                    handle: self.layer.handle.clone(),
                    outcomes: Arc::clone(&self.layer.outcomes),
                    attach: self.layer.attach.clone(),
                };
                State::Guarded {
                    future: Box::pin(call.make(key, request)),
                }
            }
        };
        ResponseFuture { state }
    }
}

/// The state of one call.
struct Call<S, O, A> {
    /// The service that was polled ready, until the call has to wait for another attempt.
    ready: Option<S>,
    fresh: S,
    handle: Idempotency,
    outcomes: Arc<O>,
    attach: A,
}

impl<S, O, A> Call<S, O, A> {
    async fn make<Req>(mut self, key: Key, request: Req) -> Result<S::Response, S::Error>
    where
        S: Service<Req> + Send + 'static,
        S::Future: Send,
        S::Response: Send + 'static,
        S::Error: ServiceError + Send + 'static,
        O: Outcomes<Result<S::Response, S::Error>>,
        A: Attach<Req> + Send + 'static,
        Req: Send + 'static,
    {
        let shared = Arc::clone(&self.handle.shared);
        // The ready service is released while this call waits.
        let ready = &mut self.ready;
        let admitted = shared.admit(&key, move || *ready = None).await;
        let outcome = match admitted.map_err(S::Error::from)? {
            Admission::Replay { outcome, age } => {
                drop(self.ready);
                shared.decoded(&*self.outcomes, outcome, Source::Replayed { age })
            }
            Admission::Work(worker) => {
                let (ready, fresh, attach) = (self.ready, self.fresh, self.attach);
                let work = move |attempt| called(ready, fresh, request, attach, attempt);
                let ending = worker.start(Arc::clone(&self.outcomes), work);
                shared.ended(ending, &*self.outcomes).await
            }
        };
        let accepted = outcome.and_then(|outcome| self.handle.accept(outcome));
        accepted.map_err(S::Error::from)?.value
    }
}

async fn called<S: Service<Req>, Req>(
    ready: Option<S>,
    fresh: S,
    mut request: Req,
    attach: impl Attach<Req>,
    attempt: Attempt,
) -> Result<S::Response, S::Error> {
    attach.attach(&mut request, &attempt);
    let future = match ready {
        Some(mut ready) => ready.call(request),
        None => {
            let mut service = fresh;
            poll_fn(|cx| service.poll_ready(cx)).await?;
            service.call(request)
        }
    };
    future.await
}

pin_project! {
    /// The future of [`IdempotencyService`]. Dropping it does not stop work that has begun.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<Fut, Res, Err> {
        #[pin]
        state: State<Fut, Res, Err>,
    }
}

type Guarded<Res, Err> = Pin<Box<dyn Future<Output = Result<Res, Err>> + Send>>;

pin_project! {
    #[project = StateProj]
    enum State<Fut, Res, Err> {
        Passing { #[pin] future: Fut },
        Guarded { future: Guarded<Res, Err> },
    }
}

impl<Fut, Res, Err> Future for ResponseFuture<Fut, Res, Err>
where
    Fut: Future<Output = Result<Res, Err>>,
{
    type Output = Result<Res, Err>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Passing { future } => future.poll(cx),
            StateProj::Guarded { future } => Poll::Ready(ready!(future.as_mut().poll(cx))),
        }
    }
}

impl<Fut, Res, Err> fmt::Debug for ResponseFuture<Fut, Res, Err> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Passing { .. } => "passing",
            State::Guarded { .. } => "guarded",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
