//! Layer and service of the load shed.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use tower_layer::Layer;
use tower_service::Service;

use super::{
    LoadShed,
    future::{ResponseFuture, State},
};
use crate::{
    admission::take_ready,
    error::{Pattern, ServiceError},
    order::{self, Part},
};

/// Layer that sheds load. Made by [`LoadShed::layer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct LoadShedLayer {
    shed: LoadShed,
}

impl LoadShedLayer {
    pub(super) const fn new(shed: LoadShed) -> Self {
        Self { shed }
    }
}

impl<S> Layer<S> for LoadShedLayer {
    type Service = LoadShedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        LoadShedService {
            inner,
            shed: self.shed.clone(),
            ready: false,
        }
    }
}

/// Service that is always ready and rejects calls while its inner service is not. Made by [`LoadShedLayer`].
pub struct LoadShedService<S> {
    inner: S,
    shed: LoadShed,
    ready: bool,
}

impl<S: Clone> Clone for LoadShedService<S> {
    /// Readiness is not cloned.
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shed: self.shed.clone(),
            ready: false,
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for LoadShedService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.shed.shared.name;
        let _entered = order::enter(|| Part::new(Pattern::LoadShed, Arc::clone(name)));
        f.debug_struct("LoadShedService")
            .field("name", name)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, Req> Service<Req> for LoadShedService<S>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    #[inline(always)]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let polled = self.inner.poll_ready(cx)?;
        self.ready = polled.is_ready();
        if !self.ready {
            // Releases the queue slot that the poll may have taken: no call waits for it.
            drop(take_ready(&mut self.inner));
        }
        Poll::Ready(Ok(()))
    }

    #[inline(always)]
    fn call(&mut self, req: Req) -> Self::Future {
        let state = if self.ready {
            self.ready = false;
            State::Calling {
                future: self.inner.call(req),
            }
        } else {
            State::Rejected {
                rejected: Some(self.shed.shared.reject()),
            }
        };
        ResponseFuture::new(state)
    }
}
