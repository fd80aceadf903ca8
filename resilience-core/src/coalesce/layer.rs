//! Layer, service and future.

use std::{
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    Coalesce,
    call::{Request, SharedCall},
};
use crate::{
    admission::take_ready,
    error::{Error, Pattern, ServiceError},
    execute,
    order::{self, Part},
};

/// Whether a request must not join a call in progress. Implemented by closures `Fn(&Req) -> bool`, and by [`NeverFresh`].
pub trait IsFresh<Req> {
    /// Returns whether the call has to begin after this moment.
    fn is_fresh(&self, req: &Req) -> bool;
}

impl<Req, F: Fn(&Req) -> bool> IsFresh<Req> for F {
    fn is_fresh(&self, req: &Req) -> bool {
        self(req)
    }
}

/// Any request may join a call in progress. The default of [`CoalesceLayer`].
#[derive(Clone, Copy, Debug, Default)]
pub struct NeverFresh;

impl<Req> IsFresh<Req> for NeverFresh {
    #[inline]
    fn is_fresh(&self, _: &Req) -> bool {
        false
    }
}

/// Layer that lets requests of one key share one call. Made by [`Coalesce::layer`].
#[must_use]
pub struct CoalesceLayer<K, T, E, F, G = NeverFresh> {
    handle: Coalesce<K, T, E>,
    key: F,
    fresh: G,
}

impl<K, T, E, F> CoalesceLayer<K, T, E, F> {
    pub(super) const fn new(handle: Coalesce<K, T, E>, key: F) -> Self {
        Self {
            handle,
            key,
            fresh: NeverFresh,
        }
    }

    /// Requests for which `fresh` is true never join a call in progress: their call begins after they came, and later
    /// requests join it. For reads after a write of one's own.
    pub fn fresh<Req, G>(self, fresh: G) -> CoalesceLayer<K, T, E, F, G>
    where
        G: Fn(&Req) -> bool,
    {
        CoalesceLayer {
            handle: self.handle,
            key: self.key,
            fresh,
        }
    }
}

impl<K, T, E, F: Clone, G: Clone> Clone for CoalesceLayer<K, T, E, F, G> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            key: self.key.clone(),
            fresh: self.fresh.clone(),
        }
    }
}

impl<K, T, E, F, G> fmt::Debug for CoalesceLayer<K, T, E, F, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CoalesceLayer").field(&self.handle).finish()
    }
}

impl<S, K, T, E, F: Clone, G: Clone> Layer<S> for CoalesceLayer<K, T, E, F, G> {
    type Service = CoalesceService<S, K, T, E, F, G>;

    fn layer(&self, inner: S) -> Self::Service {
        CoalesceService {
            inner,
            layer: self.clone(),
            ready: false,
        }
    }
}

/// Service whose requests of one key share one call. Made by [`CoalesceLayer`].
///
/// Always ready, unless the inner service fails to become ready.
pub struct CoalesceService<S, K, T, E, F, G = NeverFresh> {
    inner: S,
    layer: CoalesceLayer<K, T, E, F, G>,
    /// Whether `inner` was polled ready for the next call.
    ready: bool,
}

impl<S: Clone, K, T, E, F: Clone, G: Clone> Clone for CoalesceService<S, K, T, E, F, G> {
    /// Readiness is not cloned.
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
            ready: false,
        }
    }
}

impl<S: fmt::Debug, K, T, E, F, G> fmt::Debug for CoalesceService<S, K, T, E, F, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.layer.handle.shared.count.name;
        let _entered = order::enter(|| Part::new(Pattern::Coalesce, Arc::clone(name)));
        f.debug_struct("CoalesceService")
            .field("layer", &self.layer)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, K, T, E, F, G, Req> Service<Req> for CoalesceService<S, K, T, E, F, G>
where
    S: Service<Req, Response = T, Error = E> + Clone + Send + 'static,
    S::Future: Send,
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
    E: ServiceError + Send + 'static,
    F: Fn(&Req) -> Option<K>,
    G: IsFresh<Req>,
    Req: Send + 'static,
{
    type Response = T;
    type Error = E;
    type Future = ResponseFuture<S, K, T, E, Req>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        let polled = self.inner.poll_ready(cx)?;
        self.ready = polled.is_ready();
        if !self.ready {
            // A call that joins another one needs no readiness, and must not keep a place in a queue for it.
            drop(take_ready(&mut self.inner));
        }
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let ready = std::mem::take(&mut self.ready);
        let state = match (self.layer.key)(&request) {
            None if ready => State::Passing {
                future: self.inner.call(request),
            },
            None => State::Unready {
                call: Box::pin(execute::Call::new(take_ready(&mut self.inner), request)),
            },
            Some(key) => {
                let fresh = self.layer.fresh.is_fresh(&request);
                let service = take_ready(&mut self.inner);
                let work = Request { service, request };
                let call = SharedCall::new(&self.layer.handle, key, fresh, work);
                State::Shared {
                    call: Box::new(call),
                }
            }
        };
        ResponseFuture { state }
    }
}

pin_project! {
    /// The future of [`CoalesceService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, K, T, E, Req>
    where
        S: Service<Req>,
        K: Hash,
        K: Eq,
        K: Send,
        K: Sync,
        K: 'static,
        T: Clone,
        T: Send,
        T: 'static,
        E: Send,
        E: 'static,
    {
        #[pin]
        state: State<S, K, T, E, Req, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, K, T, E, Req, Fut>
    where
        S: Service<Req>,
        K: Hash,
        K: Eq,
        K: Send,
        K: Sync,
        K: 'static,
        T: Clone,
        T: Send,
        T: 'static,
        E: Send,
        E: 'static,
    {
        // Without a key.
        Passing { #[pin] future: Fut },
        Unready { call: Pin<Box<execute::Call<S, Req>>> },
        // Boxed, so that a call without a key does not carry the space for it.
        Shared { call: Box<SharedCall<K, T, E, Request<S, Req>>> },
    }
}

impl<S, K, T, E, Req> Future for ResponseFuture<S, K, T, E, Req>
where
    S: Service<Req, Response = T, Error = E> + Clone + Send + 'static,
    S::Future: Send,
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
    E: ServiceError + Send + 'static,
    Req: Send + 'static,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Passing { future } => future.poll(cx),
            StateProj::Unready { call } => call.as_mut().poll(cx),
            StateProj::Shared { call } => Pin::new(call).poll(cx).map_err(|error| match error {
                Error::Rejected(rejected) => rejected.into(),
                Error::Service(error) => error,
            }),
        }
    }
}

impl<S, K, T, E, Req> fmt::Debug for ResponseFuture<S, K, T, E, Req>
where
    S: Service<Req>,
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
    E: Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Passing { .. } => "passing",
            State::Unready { .. } => "waiting for readiness",
            State::Shared { .. } => "shared",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish_non_exhaustive()
    }
}
