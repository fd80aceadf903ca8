//! Fallback: what to answer when the dependency does not.
//!
//! ```
//! use resilience_core::{Error, fallback::Fallback, error::wrap::WrapErrorLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! // Recommendations are nice to have: if they fail, or a breaker inside says no, there are none.
//! let service = ServiceBuilder::new()
//!     .layer(Fallback::value("recommendations", Vec::<String>::new()))
//!     .layer(WrapErrorLayer::new())
//!     .service(service_fn(|_user: u64| async { Err("down") }));
//! assert_eq!(service.oneshot(7).await, Ok(vec![]));
//! # }
//! ```
//!
//! | | answers with |
//! |---|---|
//! | [`Fallback::value`] | a clone of a response made in advance |
//! | [`Fallback::by`], [`by_async`](Fallback::by_async) | what a function makes of the error; it may fail itself |
//! | [`Fallback::by_result`] | what a function makes of the error *or of the failed response* |
//! | [`Fallback::service`] | another service's answer, to a request made from this one's |
//! | [`Fallback::with`] | your own [`FallbackResponse`] |
//!
//! **When**: on every error, rejections included. [`when`](FallbackLayer::when) narrows that down by the error;
//! [`classify`](FallbackLayer::classify) asks a classifier instead, which also sees the failed *responses* of
//! services that report failure by response, as HTTP does.
//!
//! It hides failures from everything outside: keep it outside breaker and retry, which must see them. It is not a
//! cache: nothing is remembered, and the fallback is not guarded by the layers inside it. A fallback that calls a
//! service needs a timeout of its own; a deadline outside covers both together.
//!
//! **Errors**: the fallback's own, if it fails; the inner service's, if the fallback does not apply.
//! **Readiness**: that of the inner service, and if it *fails*, the next call falls back without calling it. A
//! fallback service is driven to readiness when it is needed, never before. **Cancellation**: drops whichever future
//! is running. **Cost** of a passing call: one reference count of its own thread's, and for [`Fallback::service`]
//! the making of the other request, which has to be done before the first is given away. Nothing is cloned
//! otherwise, and neither requests nor errors need to be `Clone`.

mod answer;
mod layer;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::{
    answer::{
        By, ByAsync, ByResult, FallbackResponse, OnError, OnFailure, OnService, Value, When,
        WhenError,
    },
    layer::{FallbackLayer, FallbackService, ResponseFuture},
};

/// Makes [`FallbackLayer`]s, which share their count with all their clones and services.
#[derive(Clone, Copy, Debug)]
pub struct Fallback(());

impl Fallback {
    /// Answers with a clone of `response`. `name` appears in events and metrics.
    pub fn value<Res: Clone>(
        name: impl Into<Arc<str>>,
        response: Res,
    ) -> FallbackLayer<Value<Res>> {
        Self::with(name, Value(response))
    }

    /// Answers with what `f` makes of the error: `|error| Ok(response)`, or `Err` to fail with an error after all.
    pub fn by<Res, E, F>(name: impl Into<Arc<str>>, f: F) -> FallbackLayer<By<F>>
    where
        F: Fn(E) -> Result<Res, E>,
    {
        Self::with(name, By(f))
    }

    /// Like [`by`](Self::by), with an async function.
    pub fn by_async<Res, E, F, Fut>(name: impl Into<Arc<str>>, f: F) -> FallbackLayer<ByAsync<F>>
    where
        F: Fn(E) -> Fut,
        Fut: Future<Output = Result<Res, E>>,
    {
        Self::with(name, ByAsync(f))
    }

    /// Answers with what `f` makes of the failed result, which may be a response that
    /// [`classify`](FallbackLayer::classify) took for a failure.
    pub fn by_result<Res, E, F>(name: impl Into<Arc<str>>, f: F) -> FallbackLayer<ByResult<F>>
    where
        F: Fn(Result<Res, E>) -> Result<Res, E>,
    {
        Self::with(name, ByResult(f))
    }

    /// Answers with `other`'s answer to `request(&req)`. `None`: this request has no fallback.
    ///
    /// `request` is called before each call, whether or not the fallback will be needed: the inner service takes
    /// the original with it. Make it cheap; a reference-counted key or a URL will do. `other` is cloned when it is
    /// needed.
    pub fn service<S, Req, Alt, F>(
        name: impl Into<Arc<str>>,
        other: S,
        request: F,
    ) -> FallbackLayer<OnService<S, F>>
    where
        F: Fn(&Req) -> Option<Alt>,
        S: tower_service::Service<Alt> + Clone,
    {
        Self::with(name, OnService::new(other, request))
    }

    /// Answers with an [`FallbackResponse`] of your own.
    pub fn with<A>(name: impl Into<Arc<str>>, answer: A) -> FallbackLayer<A> {
        FallbackLayer::new(name.into(), answer, OnError)
    }
}
