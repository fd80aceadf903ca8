//! Load shed: a call that finds the inner service not ready is rejected at once, instead of waiting.
//!
//! tower's own `LoadShed` does the same, and where the error of the stack is a `BoxError` it serves. This one is for
//! the rest:
//!
//! | | tower's | this one |
//! |---|---|---|
//! | error | `BoxError`, with `Overloaded` inside | the stack's own; a [`Rejected`] of [`Reason::Overloaded`] that the layers around it know not to blame on the dependency |
//! | name, count, event | none | yes |
//! | was not ready: the inner service | keeps its place in line, with nobody there to take it when it comes up | is replaced by a clone: idle clones hold nothing |
//! | inner service | any | `Clone` |
//!
//! The last two belong together: the place in line of a service such as tower's `ConcurrencyLimit` or `Buffer` becomes
//! a permit that an idle clone keeps from everybody else. The price is that readiness must not be work that
//! one instance does for itself and a clone would start over. Put such a service (one that connects, say) behind a
//! `tower::buffer`, whose worker drives it.
//!
//! To shed by a number of calls in flight, use a [`Bulkhead`](crate::bulkhead::Bulkhead) without a queue: it knows
//! when to come back.
//!
//! ```
//! use resilience_core::{Rejected, shed::LoadShed};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let shed = LoadShed::new("api");
//! let service = ServiceBuilder::new()
//!     .layer(shed.layer())
//!     .buffer(16)
//!     .service(service_fn(|n: u32| async move { Ok::<_, Rejected>(n + 1) }));
//! assert_eq!(service.oneshot(1).await?, 2);
//! assert_eq!(shed.rejected(), 0);
//! # Ok(()) }
//! ```
//!
//! **Order**: outermost of what may make callers wait. **Cost**: a passing call pays for one flag; a shed one for a
//! clone of the inner service. **Cancellation**: drops the inner future.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    error::{Pattern, Reason, Rejected, ServiceError},
    telemetry::{self, Reading, Scope, Source},
};

/// Sheds calls that would have to wait, and counts them. Clones share the count.
#[derive(Clone)]
pub struct LoadShed {
    shared: Arc<Shared>,
}

struct Shared {
    name: Arc<str>,
    rejected: AtomicU64,
}

impl LoadShed {
    /// A load shed called `name`, as it appears in rejections, events and metrics.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        let shared = Arc::new(Shared {
            name: name.into(),
            rejected: AtomicU64::new(0),
        });
        telemetry::register(&shared);
        Self { shared }
    }

    /// A layer that sheds.
    pub fn layer(&self) -> LoadShedLayer {
        LoadShedLayer { shed: self.clone() }
    }

    /// How many calls were shed so far.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.shared.rejected.load(Relaxed)
    }
}

impl Shared {
    #[cold]
    fn reject(&self) -> Rejected {
        let scope = Scope::new(Pattern::LoadShed, &self.name);
        scope.count_and_reject(&self.rejected, Reason::Overloaded, None)
    }
}

impl Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::LoadShed
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        out(Reading {
            metric: &telemetry::SHED_REJECTIONS,
            attribute: "",
            value: self.rejected.load(Relaxed),
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

impl fmt::Debug for LoadShed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadShed")
            .field("name", &self.shared.name)
            .field("rejected", &self.rejected())
            .finish()
    }
}

/// Makes [`LoadShedService`]s. See [`LoadShed::layer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct LoadShedLayer {
    shed: LoadShed,
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

/// A service that is always ready, and rejects calls while its inner one is not. Made by [`LoadShedLayer`].
#[derive(Debug)]
pub struct LoadShedService<S> {
    inner: S,
    shed: LoadShed,
    ready: bool,
}

impl<S: Clone> Clone for LoadShedService<S> {
    /// Readiness is the original's alone.
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shed: self.shed.clone(),
            ready: false,
        }
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
            // Gives up the place in line that the poll may have taken: nobody will come back for it.
            let fresh = self.inner.clone();
            self.inner = fresh;
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
        ResponseFuture { state }
    }
}

pin_project! {
    /// The future of [`LoadShedService`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F> {
        Calling { #[pin] future: F },
        Rejected { rejected: Option<Rejected> },
    }
}

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: From<Rejected>,
{
    type Output = Result<T, E>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Calling { future } => future.poll(cx),
            StateProj::Rejected { rejected } => {
                let rejected = rejected.take().expect("polled after it was done");
                Poll::Ready(Err(rejected.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
    use tower::{limit::ConcurrencyLimit, service_fn};
    use tower_test::{assert_request_eq, mock};

    use super::*;

    type BoxError = Box<dyn std::error::Error + Send + Sync>;

    #[tokio::test]
    async fn a_call_that_would_wait_is_rejected_as_overloaded_and_the_next_one_is_not() {
        let shed = LoadShed::new("api");
        let (mut service, mut handle) = mock::spawn_layer::<&str, &str, _>(shed.layer());
        handle.allow(0);
        assert_ready_ok!(service.poll_ready());
        let mut call = task::spawn(service.call("early"));
        let error = assert_ready_err!(call.poll());
        let rejected = error.as_rejected().unwrap();
        assert_eq!(rejected.reason(), Reason::Overloaded);
        assert_eq!(
            (rejected.pattern(), rejected.name()),
            (Pattern::LoadShed, "api")
        );
        assert_eq!(shed.rejected(), 1);

        handle.allow(1);
        assert_ready_ok!(service.poll_ready());
        let response = service.call("hello");
        assert_request_eq!(handle, "hello").send_response("world");
        assert_eq!(response.await.unwrap(), "world");
        assert_eq!(shed.rejected(), 1);
    }

    #[test]
    fn a_shed_call_leaves_an_event() {
        let shed = LoadShed::new("api");
        let events = crate::test_log::events_of(|| drop(shed.shared.reject()));
        assert_eq!(
            events,
            [r#"rejected pattern="load_shed" name="api" reason="overloaded""#]
        );
    }

    #[tokio::test]
    async fn a_clone_does_not_inherit_readiness_and_a_call_uses_it_up() {
        let shed = LoadShed::new("api");
        let (mut service, mut handle) = mock::spawn_layer::<&str, &str, _>(shed.layer());
        handle.allow(1);
        assert_ready_ok!(service.poll_ready());
        let mut clone = service.clone();
        assert_ready_err!(task::spawn(clone.call("never polled ready")).poll());
        let _used = service.call("hello");
        assert_ready_err!(task::spawn(service.call("not polled again")).poll());
    }

    #[tokio::test]
    async fn idle_clones_that_were_not_ready_hold_no_place_in_line() {
        let shed = LoadShed::new("api");
        let forever =
            service_fn(async |(): ()| std::future::pending::<Result<(), BoxError>>().await);
        let limit = ConcurrencyLimit::new(forever, 1);
        let mut taker = task::spawn(tower::ServiceExt::oneshot(limit.clone(), ()));
        assert_pending!(taker.poll());

        let mut idle = task::spawn(shed.layer().layer(limit.clone()));
        let polled = idle.enter(|cx, mut service| Service::<()>::poll_ready(&mut *service, cx));
        assert!(polled.is_ready());

        drop(taker);
        let mut other = task::spawn(limit);
        let polled = other.enter(|cx, mut service| Service::<()>::poll_ready(&mut *service, cx));
        assert!(polled.is_ready(), "the freed place went to an idle clone");
    }
}
