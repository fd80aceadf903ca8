//! What the methods of every store trait return.

use std::{fmt, future::Future, pin::Pin};

/// The future of a store's method. Boxed, so that stores can be trait objects; no call that a local decision lets
/// pass ever makes one.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Why a store gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreError {
    /// What went wrong, for logs.
    pub reason: String,
    /// Whether the store may have done what it was asked although no answer came.
    pub ambiguous: bool,
    /// Whether it concerns a part of the store only (one shard), so that steps about other keys may succeed. Does not count
    /// against the health of the store.
    pub partial: bool,
}

impl StoreError {
    /// An error that left nothing behind in the store, unless `ambiguous`.
    pub fn new(reason: impl Into<String>, ambiguous: bool) -> Self {
        Self {
            reason: reason.into(),
            ambiguous,
            partial: false,
        }
    }

    /// The same error, of a part of the store only.
    #[must_use]
    pub fn partial(mut self) -> Self {
        self.partial = true;
        self
    }

    /// The store did not answer within the time budget of the step; it may have done it all the same.
    #[must_use]
    pub fn timed_out() -> Self {
        Self::new("no answer within the time budget", true)
    }

    /// The store was not asked, because it is known to be unavailable.
    #[must_use]
    pub fn unavailable() -> Self {
        Self::new("the store is unavailable", false)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for StoreError {}
