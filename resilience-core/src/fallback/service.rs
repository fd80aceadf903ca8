//! Service of the fallback: readiness, and the start of a call.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use tower_service::Service;

use super::{
    future::{ResponseFuture, State},
    layer::Shared,
    response::{FallbackResponse, OnError, When},
};
use crate::{
    error::Pattern,
    order::{self, Part},
    stripe::Striped,
};

/// Service with a fallback. Made by [`FallbackLayer`](super::FallbackLayer).
pub struct FallbackService<S, A, W = OnError> {
    inner: S,
    shared: Striped<Shared<A>>,
    when: W,
    /// The error of the inner service's `poll_ready`. Its type depends on the request, which the type of the service does
    /// not name; only a failure pays for the box. The lock (never taken) makes the service `Sync` where its inner service
    /// is, for every error type.
    unready: Option<Box<dyn Any + Send + Sync>>,
}

impl<S, A, W> FallbackService<S, A, W> {
    pub(super) const fn new(inner: S, shared: Striped<Shared<A>>, when: W) -> Self {
        Self {
            inner,
            shared,
            when,
            unready: None,
        }
    }
}

impl<S: Clone, A, W: Clone> Clone for FallbackService<S, A, W> {
    /// A failed readiness is not cloned.
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
        ResponseFuture::new(state, self.shared.local(), self.when.clone())
    }
}

impl<S, A, W> FallbackService<S, A, W> {
    #[inline]
    fn take_unready<E: 'static>(&mut self) -> Option<E> {
        let error = self.unready.take()?.downcast::<Mutex<E>>().ok()?;
        Some(error.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: fmt::Debug, A, W> fmt::Debug for FallbackService<S, A, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.shared.count.name;
        let _entered = order::enter(|| Part::new(Pattern::Fallback, Arc::clone(name)));
        f.debug_struct("FallbackService")
            .field("name", name)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
