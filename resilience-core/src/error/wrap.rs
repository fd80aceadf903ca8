//! Brings a service with an error type of its own into a typed stack.
//!
//! The layers of this toolkit ask for an error that a [`Rejected`](crate::Rejected) can be turned
//! into. A service whose error is tower's `BoxError` has that already, and so has one of
//! [`Error<E>`]. For everything else, put [`WrapErrorLayer`] innermost: it turns `E` into
//! [`Error::Service`]`(E)` and changes nothing else.
//!
//! It is not an error mapper for general use: that is tower's `MapErr`, which would do here too, at
//! the price of a stack type with a closure in it.
//!
//! ```
//! use resilience_core::{Error, error::wrap::WrapErrorLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let stack = ServiceBuilder::new()
//!     // .layer(timeout.layer()).layer(breaker.layer()) ..
//!     .layer(WrapErrorLayer::new())
//!     .service(service_fn(|n: u32| async move { n.checked_sub(1).ok_or("below zero") }));
//! assert_eq!(stack.clone().oneshot(1).await, Ok(0));
//! assert_eq!(stack.oneshot(0).await, Err(Error::Service("below zero")));
//! # }
//! ```
//!
//! **Cost**: none that can be measured; one enum tag on the error. **Cancellation**: drops the
//! inner future.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::Error;

/// Makes [`WrapErrorService`]s.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct WrapErrorLayer;

impl WrapErrorLayer {
    /// The layer. It has no state and no settings.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl<S> Layer<S> for WrapErrorLayer {
    type Service = WrapErrorService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WrapErrorService { inner }
    }
}

/// A service of error `E` as one of [`Error<E>`].
#[derive(Clone, Copy, Debug)]
pub struct WrapErrorService<S> {
    inner: S,
}

impl<S, Req> Service<Req> for WrapErrorService<S>
where
    S: Service<Req>,
{
    type Response = S::Response;
    type Error = Error<S::Error>;
    type Future = ResponseFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Error::Service)
    }

    #[inline]
    fn call(&mut self, req: Req) -> Self::Future {
        ResponseFuture {
            inner: self.inner.call(req),
        }
    }
}

pin_project! {
    /// The future of [`WrapErrorService`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
    }
}

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, Error<E>>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx).map_err(Error::Service)
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok};
    use tower_test::{assert_request_eq, mock};

    use super::*;

    #[tokio::test]
    async fn errors_of_readiness_and_of_the_call_are_both_lifted() {
        let (mut service, mut handle) = mock::spawn_layer::<&str, &str, _>(WrapErrorLayer::new());
        assert_ready_ok!(service.poll_ready());
        let response = service.call("hello");
        assert_request_eq!(handle, "hello").send_error("broken");
        let Err(Error::Service(error)) = response.await else {
            panic!("not lifted")
        };
        assert_eq!(error.to_string(), "broken");

        handle.allow(0);
        assert_pending!(service.poll_ready());
        handle.send_error("gone");
        assert!(matches!(
            assert_ready_err!(service.poll_ready()),
            Error::Service(_)
        ));
    }
}
