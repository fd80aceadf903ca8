//! A service with or without a layer around it.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// A service with or without a layer around it: of one type either way. Costs a branch.
#[derive(Clone, Debug)]
pub enum Optional<L, S> {
    /// With the layer.
    With(L),
    /// Without it.
    Without(S),
}

impl<S, T> Optional<S, T> {
    pub(super) fn new<L: Layer<T, Service = S>>(layer: Option<L>, inner: T) -> Self {
        match layer {
            Some(layer) => Self::With(layer.layer(inner)),
            None => Self::Without(inner),
        }
    }
}

impl<L, S, Req> Service<Req> for Optional<L, S>
where
    L: Service<Req, Response = S::Response, Error = S::Error>,
    S: Service<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = OptionalFuture<L::Future, S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match self {
            Self::With(layered) => layered.poll_ready(cx),
            Self::Without(service) => service.poll_ready(cx),
        }
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let of = match self {
            Self::With(layered) => Of::With {
                future: layered.call(request),
            },
            Self::Without(service) => Of::Without {
                future: service.call(request),
            },
        };
        OptionalFuture { of }
    }
}

pin_project! {
    /// The future of [`Optional`]: that of the service with the layer, or of the one without.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct OptionalFuture<L, S> {
        #[pin]
        of: Of<L, S>,
    }
}

pin_project! {
    #[project = OfProj]
    #[derive(Debug)]
    enum Of<L, S> {
        With { #[pin] future: L },
        Without { #[pin] future: S },
    }
}

impl<L, S> Future for OptionalFuture<L, S>
where
    L: Future<Output = S::Output>,
    S: Future,
{
    type Output = S::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<S::Output> {
        match self.project().of.project() {
            OfProj::With { future } => future.poll(cx),
            OfProj::Without { future } => future.poll(cx),
        }
    }
}
