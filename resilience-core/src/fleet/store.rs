//! What the methods of every store trait return, and how a store is attached.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

/// What the `.store(..)` method of every builder takes: a store of the pattern's trait `S`, or an `Arc` of one, for a store
/// that is chosen at run time.
///
/// ```
/// use std::sync::Arc;
/// use resilience_core::{Idempotency, idempotency::{IdempotencyStore, InProcessIdempotency}};
///
/// let store: Arc<dyn IdempotencyStore> = Arc::new(InProcessIdempotency::new()); // or `redis.idempotency()`
/// let payments = Idempotency::builder("payments").store(store).build()?;
/// # let _ = payments;
/// # Ok::<_, resilience_core::InvalidConfig>(())
/// ```
pub trait IntoStore<S: ?Sized> {
    /// The store as builders keep it.
    fn into_store(self) -> Arc<S>;
}

/// Lets `.store(..)` take stores of the trait, and `Arc`s of them.
macro_rules! into_store {
    ($store:ident) => {
        impl<S: $store> $crate::fleet::IntoStore<dyn $store> for S {
            fn into_store(self) -> std::sync::Arc<dyn $store> {
                std::sync::Arc::new(self)
            }
        }

        impl $crate::fleet::IntoStore<dyn $store> for std::sync::Arc<dyn $store> {
            fn into_store(self) -> Self {
                self
            }
        }
    };
}

pub(crate) use into_store;

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

    /// The handle has no store.
    #[must_use]
    pub fn not_attached() -> Self {
        Self::new("the handle has no store", false)
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
