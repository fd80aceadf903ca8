//! The service: reads the key, and decides which way a request goes.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use resilience_core::{
    Pattern,
    admission::take_ready,
    idempotency::Idempotency,
    order::{self, Part},
};
use tower_service::Service;

use super::{
    body::{BoxError, IdempotentBody},
    call::Call,
    future::{IdempotentRequestsFuture, State},
    settings::Settings,
};

/// Service that gives requests with an `Idempotency-Key` one effect each. Made by
/// [`IdempotentRequestsLayer`](super::IdempotentRequestsLayer).
#[derive(Clone)]
pub struct IdempotentRequestsService<S> {
    inner: S,
    handle: Idempotency,
    settings: Arc<Settings>,
}

impl<S> IdempotentRequestsService<S> {
    pub(super) const fn new(inner: S, handle: Idempotency, settings: Arc<Settings>) -> Self {
        Self {
            inner,
            handle,
            settings,
        }
    }
}

impl<S, B, R> Service<Request<B>> for IdempotentRequestsService<S>
where
    S: Service<Request<IdempotentBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError> + Send,
{
    type Response = Response<IdempotentBody<R>>;
    type Error = S::Error;
    type Future = IdempotentRequestsFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let state = match self.settings.request_key(&request) {
            Ok(None) => State::Passing {
                inner: self.inner.call(request.map(IdempotentBody::passed)),
            },
            Ok(Some(key)) => {
                let call = Call {
                    service: self.unready(),
                    handle: self.handle.clone(),
                    settings: Arc::clone(&self.settings),
                };
                State::Guarded {
                    response: Box::pin(call.serve(key, request)),
                }
            }
            Err(problem) => {
                self.unready();
                State::Refused {
                    response: Some(problem.into_response()),
                }
            }
        };
        IdempotentRequestsFuture::new(state)
    }
}

impl<S: Clone> IdempotentRequestsService<S> {
    /// Releases what the inner service reserved when it was polled ready, so that nothing is held
    /// while the body is read and the store decides. The call gets a clone that is not ready yet.
    fn unready(&mut self) -> S {
        drop(take_ready(&mut self.inner));
        self.inner.clone()
    }
}

impl<S: fmt::Debug> fmt::Debug for IdempotentRequestsService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _entered = order::enter(|| Part::new(Pattern::Idempotency, self.handle.name()));
        f.debug_struct("IdempotentRequestsService")
            .field("inner", &self.inner)
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}
