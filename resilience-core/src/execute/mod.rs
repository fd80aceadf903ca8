//! Closures as requests: any async function behind the layers that guard a service.
//!
//! [`Execute`] is the innermost service of such a stack. Its request is a closure, its response the output of the closure's
//! future. [`Guarded`] is the handle that callers hold: it wraps the closure, drives the stack to
//! readiness and calls it. One stack serves closures of every output and error type: nothing in its type names them.
//! [`Stack`] is the usual one, with a type that fits in a struct.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{Bulkhead, Error, Retry, Timeout, execute};
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), resilience_core::InvalidConfig> {
//! let layers = ServiceBuilder::new()
//!     .layer(Timeout::new("db", Duration::from_secs(2))?.layer())
//!     .layer(Retry::builder("db").max_attempts(3).build()?.layer())
//!     .layer(Bulkhead::builder("db").max_concurrent(32).build()?.layer());
//! let db = execute::guard(layers);
//!
//! // Runs at most once, also under a retry layer.
//! let rows = db.call(|| async { Ok::<u64, std::io::Error>(3) }).await;
//! assert_eq!(rows.unwrap(), 3);
//!
//! // A retry layer may run it again: running it twice must be harmless.
//! let name = db.call_idempotent(|| async { Err::<String, &str>("no such row") }).await;
//! assert_eq!(name, Err(Error::Service("no such row")));
//! # Ok(()) }
//! ```
//!
//! # Which call for which work
//!
//! | | runs | for |
//! |---|---|---|
//! | [`Guarded::call`] | at most once | inserts, payments, everything that must not happen twice. Takes `FnOnce` |
//! | [`Guarded::call_idempotent`] | once per attempt | reads, upserts, whole transactions. Takes `FnOnce + Clone`: closures that capture references or cloneable handles |
//!
//! An attempt that failed may still have been carried out: a connection that breaks after a statement was sent says
//! nothing about the statement. So nothing is retried unless the call allows it.
//!
//! **Cost**: a clone of the stack per call, on the caller's stack: no allocation, but the reference counts of the
//! layers' handles. **Cancellation**: dropping the future drops the closure's future.

mod optional;
mod stack;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    error::Error,
    order::{self, Description},
    retry::Replayable,
};

pub use self::{
    optional::{Optional, OptionalFuture},
    stack::{Stack, StackBuilder, StackService},
};

/// Wraps [`Execute`] in `layers`. A `tower::ServiceBuilder` is such a layer, and so is a single layer.
///
/// Emits a warning for layers in an order that defeats itself ([`order`]). For a stack that does not implement `Debug`,
/// which is not checked, use [`Guarded::new`].
pub fn guard<L: Layer<Execute>>(layers: L) -> Guarded<L::Service>
where
    L::Service: Clone + fmt::Debug,
{
    let stack = layers.layer(Execute);
    order::check(&stack);
    Guarded::new(stack)
}

/// Handle on a stack whose requests are closures. Cloning it clones the stack, which shares the state of its layers.
#[derive(Clone)]
pub struct Guarded<S> {
    stack: S,
}

impl<S: Clone> Guarded<S> {
    /// A handle on `stack`, whose innermost service is [`Execute`].
    pub const fn new(stack: S) -> Self {
        Self { stack }
    }

    /// Runs `work` through the stack, at most once: no retry layer will repeat it.
    ///
    /// # Errors
    /// [`Error::Service`] with the error of `work`, or [`Error::Rejected`] by a layer of the stack.
    pub fn call<F, Fut, T, E>(&self, work: F) -> Call<S, Once<F>>
    where
        S: Service<Once<F>, Response = T, Error = Error<E>>,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        Call::new(self.stack.clone(), Once(work))
    }

    /// Runs `work` through the stack. A retry layer may run it again ([`crate::retry::attempt`] counts): running it
    /// twice must be harmless.
    ///
    /// # Errors
    /// [`Error::Service`] with the error of the last attempt, or [`Error::Rejected`] by a layer of the stack.
    pub fn call_idempotent<F, Fut, T, E>(&self, work: F) -> Call<S, Idempotent<F>>
    where
        S: Service<Idempotent<F>, Response = T, Error = Error<E>>,
        F: FnOnce() -> Fut + Clone,
        Fut: Future<Output = Result<T, E>>,
    {
        Call::new(self.stack.clone(), Idempotent(work))
    }

    /// The stack itself.
    pub const fn stack(&self) -> &S {
        &self.stack
    }
}

impl<S: fmt::Debug> Guarded<S> {
    /// The layers of the stack, outermost first. Its `Display` prints one line per layer.
    pub fn describe(&self) -> Description {
        order::describe(&self.stack)
    }
}

/// In the description of another stack it is not listed: it is a handle, and no layer.
impl<S: fmt::Debug> fmt::Debug for Guarded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        order::hidden(|| {
            f.debug_struct("Guarded")
                .field("stack", &self.stack)
                .finish()
        })
    }
}

/// A closure as a request, called at most once.
#[derive(Clone, Copy)]
pub struct Once<F>(pub F);

/// A closure as a request, which may be called again.
#[derive(Clone, Copy)]
pub struct Idempotent<F>(pub F);

/// Returns no copy: the closure runs at most once.
impl<F> Replayable for Once<F> {
    #[inline]
    fn replay(&self) -> Option<Self> {
        None
    }
}

impl<F: Clone> Replayable for Idempotent<F> {
    #[inline]
    fn replay(&self) -> Option<Self> {
        Some(self.clone())
    }
}

impl<F> fmt::Debug for Once<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Once(..)")
    }
}

impl<F> fmt::Debug for Idempotent<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Idempotent(..)")
    }
}

/// The innermost service of a stack of closures: calls the closure and lifts its error into [`Error::Service`].
///
/// Always ready. The closure runs in `call`, its future is polled as the response.
#[derive(Clone, Copy, Debug, Default)]
pub struct Execute;

impl<F, Fut, T, E> Service<Once<F>> for Execute
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    type Response = T;
    type Error = Error<E>;
    type Future = ResponseFuture<Fut>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, Once(work): Once<F>) -> Self::Future {
        ResponseFuture { work: work() }
    }
}

impl<F, Fut, T, E> Service<Idempotent<F>> for Execute
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    type Response = T;
    type Error = Error<E>;
    type Future = ResponseFuture<Fut>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, Idempotent(work): Idempotent<F>) -> Self::Future {
        ResponseFuture { work: work() }
    }
}

pin_project! {
    /// The future of [`Execute`]: that of the closure.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<Fut> {
        #[pin]
        work: Fut,
    }
}

impl<Fut, T, E> Future for ResponseFuture<Fut>
where
    Fut: Future<Output = Result<T, E>>,
{
    type Output = Result<T, Error<E>>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().work.poll(cx).map_err(Error::Service)
    }
}

pin_project! {
    /// The future of one call through a stack: waits until the stack is ready, then calls it. Does nothing until polled.
    #[must_use = "futures do nothing unless polled"]
    pub struct Call<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateReplaced]
    enum State<S, Req, Fut> {
        // Driving the stack to readiness.
        Waiting { stack: S, request: Req },
        Calling { #[pin] future: Fut },
        Done,
    }
}

impl<S: Service<Req>, Req> Call<S, Req> {
    pub(crate) const fn new(stack: S, request: Req) -> Self {
        Self {
            state: State::Waiting { stack, request },
        }
    }
}

impl<S: Service<Req>, Req> fmt::Debug for Call<S, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("called", &!matches!(self.state, State::Waiting { .. }))
            .finish_non_exhaustive()
    }
}

impl<S: Service<Req>, Req> Future for Call<S, Req> {
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Waiting { stack, .. } => {
                    if let Err(error) = ready!(stack.poll_ready(cx)) {
                        state.set(State::Done);
                        return Poll::Ready(Err(error));
                    }
                    if let StateReplaced::Waiting { mut stack, request } =
                        state.as_mut().project_replace(State::Done)
                    {
                        let future = stack.call(request);
                        state.set(State::Calling { future });
                    }
                }
                StateProj::Calling { future } => {
                    let result = ready!(future.poll(cx));
                    state.set(State::Done);
                    return Poll::Ready(result);
                }
                StateProj::Done => panic!("polled after it was done"),
            }
        }
    }
}
