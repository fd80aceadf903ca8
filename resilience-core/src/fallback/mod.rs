//! Fallback: a response in place of a failed one.
//!
//! ```
//! use resilience_core::{Error, Fallback, error::wrap::WrapErrorLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! // Recommendations are optional: if they fail, or a breaker inside rejects the call, the list is empty.
//! let service = ServiceBuilder::new()
//!     .layer(Fallback::value("recommendations", Vec::<String>::new()).layer())
//!     .layer(WrapErrorLayer::new())
//!     .service(service_fn(|_user: u64| async { Err("down") }));
//! assert_eq!(service.oneshot(7).await, Ok(vec![]));
//! # }
//! ```
//!
//! | | responds with |
//! |---|---|
//! | [`Fallback::value`] | a clone of a response made in advance |
//! | [`Fallback::by`], [`by_async`](Fallback::by_async) | the result of a function of the error; it may fail itself |
//! | [`Fallback::by_result`] | the result of a function of the error *or of the failed response* |
//! | [`Fallback::service`] | the response of another service, to a request made from this one |
//! | [`Fallback::with`] | an own implementation of [`FallbackResponse`] |
//!
//! **When**: on every error, rejections included. [`when`](Fallback::when) selects errors by a
//! function; [`classify`](Fallback::classify) uses a classifier, which also sees the failed *responses* of services
//! that report failure by response, as HTTP does.
//!
//! It hides failures from all layers outside of it: keep it outside breaker and retry, which must see them. It is not a
//! cache: nothing is stored, and the fallback is not guarded by the layers inside it. A fallback that calls a
//! service needs a timeout of its own; a deadline outside covers both together.
//!
//! **Errors**: the fallback's own, if it fails; the inner service's, if the fallback does not apply.
//! **Readiness**: that of the inner service, and if it *fails*, the next call falls back without calling it. A
//! fallback service is driven to readiness when it is needed, never before. **Cancellation**: drops the future that
//! is running. **Cost** of a passing call: one reference count of its own thread, and for [`Fallback::service`] the
//! making of the other request, before the inner service takes the original. Nothing else is cloned, and neither requests
//! nor errors need to be `Clone`.
//!
//! # References
//!
//! Michael Nygard, "Release It!", 2nd edition, Pragmatic Bookshelf, 2018; Netflix, "Hystrix: How it Works", section "Get
//! the Fallback".

mod future;
mod layer;
mod response;
mod service;
#[cfg(all(test, not(loom)))]
mod tests;

use std::sync::Arc;

pub use self::{
    future::ResponseFuture,
    layer::{FallbackLayer, FallbackSnapshot},
    response::{
        By, ByAsync, ByResult, FallbackResponse, OnError, OnFailure, OnService, Value, When,
        WhenError,
    },
    service::FallbackService,
};

use self::layer::Shared;
use crate::stripe::Striped;

/// A response in place of a failed one, under a name. Clones share the response and the counters, and so do all layers.
#[must_use]
pub struct Fallback<A, W = OnError> {
    shared: Striped<Shared<A>>,
    when: W,
}

impl<Res: Clone> Fallback<Value<Res>> {
    /// Responds with a clone of `response`. `name` appears in events and metrics.
    pub fn value(name: impl Into<Arc<str>>, response: Res) -> Self {
        Self::with(name, Value(response))
    }
}

impl<F> Fallback<By<F>> {
    /// Responds with the result of `f` for the error: `|error| Ok(response)`, or `Err` to fail with an error.
    pub fn by<Res, E>(name: impl Into<Arc<str>>, f: F) -> Self
    where
        F: Fn(E) -> Result<Res, E>,
    {
        Self::with(name, By(f))
    }
}

impl<F> Fallback<ByAsync<F>> {
    /// As [`by`](Fallback::by), with an async function.
    pub fn by_async<Res, E, Fut>(name: impl Into<Arc<str>>, f: F) -> Self
    where
        F: Fn(E) -> Fut,
        Fut: Future<Output = Result<Res, E>>,
    {
        Self::with(name, ByAsync(f))
    }
}

impl<F> Fallback<ByResult<F>> {
    /// Responds with the result of `f` for the failed result, which may be a response that
    /// [`classify`](Fallback::classify) judged as a failure.
    pub fn by_result<Res, E>(name: impl Into<Arc<str>>, f: F) -> Self
    where
        F: Fn(Result<Res, E>) -> Result<Res, E>,
    {
        Self::with(name, ByResult(f))
    }
}

impl<S, F> Fallback<OnService<S, F>> {
    /// Responds with the response of `other` to `request(&req)`. `None`: this request has no fallback.
    ///
    /// `request` is called before each call, since the inner service takes the original. It should be cheap, e.g. copy a
    /// reference-counted key or a URL. `other` is cloned only when the fallback is needed.
    pub fn service<Req, Alt>(name: impl Into<Arc<str>>, other: S, request: F) -> Self
    where
        F: Fn(&Req) -> Option<Alt>,
        S: tower_service::Service<Alt> + Clone,
    {
        Self::with(name, OnService::new(other, request))
    }
}

impl<A> Fallback<A> {
    /// Responds as `answer`, an own implementation of [`FallbackResponse`], decides.
    pub fn with(name: impl Into<Arc<str>>, answer: A) -> Self {
        Self::new(name.into(), answer, OnError)
    }
}
