//! What the future of a loader resolves to.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;

use crate::error::Error;

/// What the future of a loader resolves to: a [`Result`], or what came of a [`guarded`] call.
pub trait LoadOutcome {
    /// What is loaded.
    type Value;
    /// The loader's own error.
    type Error;

    /// The outcome, with the rejections of a guard apart from the loader's own errors.
    ///
    /// # Errors
    /// The loader's own error, or a rejection by a layer around it.
    fn into_result(self) -> Result<Self::Value, Error<Self::Error>>;
}

impl<T, E> LoadOutcome for Result<T, E> {
    type Value = T;
    type Error = E;

    fn into_result(self) -> Result<T, Error<E>> {
        self.map_err(Error::Service)
    }
}

/// What came of a [`guarded`] call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedOutcome<T, E>(pub(super) Result<T, Error<E>>);

impl<T, E> LoadOutcome for GuardedOutcome<T, E> {
    type Value = T;
    type Error = E;

    fn into_result(self) -> Result<T, Error<E>> {
        self.0
    }
}

/// A load through a stack of layers, so that errors do not nest: a rejection by a layer of the stack is
/// [`Error::Rejected`], as one by the cache is, and [`Error::Service`] has the loader's own error in its `Arc`. The rules for
/// errors ([`not_found`](super::CacheBuilder::not_found), [`classify`](super::CacheBuilder::classify)) see the own error
/// too.
///
/// Without it a loader's error is whatever its future returns, which for a stack is an [`Error`] itself: a rejection would
/// be found one level further in.
///
/// For [`get_or_load`](super::Cache::get_or_load) and all that take a loader. A tower service behind
/// [`layer`](super::Cache::layer) needs nothing of the kind.
///
/// ```
/// use std::{io, time::Duration};
/// use resilience_core::{Cache, Error, cache::guarded, execute::Stack, CircuitBreaker};
///
/// # async fn product(id: u64) -> io::Result<String> { Ok(format!("product {id}")) }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let breaker = CircuitBreaker::builder("products").build()?;
/// let database = Stack::builder().breaker(&breaker).build();
/// let products = Cache::<u64, String>::builder("products").build()?;
///
/// let loading = products.get_or_load(&7, move || guarded(database.call_idempotent(|| product(7))));
/// match loading.await {
///     Ok(found) => assert!(found.is_some()),
///     // An open breaker, or a load that took too long.
///     Err(Error::Rejected(rejected)) => eprintln!("not now: {rejected}"),
///     // `error` is an `Arc<io::Error>`.
///     Err(Error::Service(error)) => eprintln!("the database: {}", error.kind()),
/// }
/// # Ok(()) }
/// ```
pub const fn guarded<F, T, E>(call: F) -> GuardedLoad<F>
where
    F: Future<Output = Result<T, Error<E>>>,
{
    GuardedLoad { call }
}

pin_project! {
    /// The future of [`guarded`]: that of the call.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct GuardedLoad<F> {
        #[pin]
        call: F,
    }
}

impl<F, T, E> Future for GuardedLoad<F>
where
    F: Future<Output = Result<T, Error<E>>>,
{
    type Output = GuardedOutcome<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(self.project().call.poll(cx));
        Poll::Ready(GuardedOutcome(result))
    }
}
