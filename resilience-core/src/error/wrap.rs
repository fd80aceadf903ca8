//! Conversion of a service with an error type of its own to a typed stack.
//!
//! The layers of this toolkit need an error that a [`Rejected`](crate::Rejected) can be converted
//! into. tower's `BoxError` and [`Error<E>`] are such errors. For all others, put
//! [`WrapErrorLayer`] innermost: it turns `E` into [`Error::Service`]`(E)` and changes nothing
//! else.
//!
//! tower's `MapErr` maps errors in general and would work too, with a closure in the type of the
//! stack.
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

/// Layer that converts errors `E` to [`Error<E>`].
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct WrapErrorLayer;

impl WrapErrorLayer {
    /// The layer. It has neither state nor settings.
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

/// Service whose error `E` is converted to [`Error<E>`]. Made by [`WrapErrorLayer`].
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

#[cfg(all(test, not(loom)))]
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
