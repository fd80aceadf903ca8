//! What a shared call leaves for its callers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Rejected;

/// The result of a shared call, as all of its callers get it.
pub(super) enum Outcome<T, E> {
    Response(T),
    Failed(Arc<Failed<E>>),
}

/// The error of a shared call.
pub(super) struct Failed<E> {
    error: Mutex<Option<E>>,
    /// The rejection by a layer below that the error is, or wraps.
    pub(super) rejected: Option<Rejected>,
}

impl<T, E> Outcome<T, E> {
    pub(super) fn new(result: Result<T, E>, rejected: fn(&E) -> Option<&Rejected>) -> Self {
        match result {
            Ok(response) => Self::Response(response),
            Err(error) => Self::Failed(Arc::new(Failed {
                rejected: rejected(&error).cloned(),
                error: Mutex::new(Some(error)),
            })),
        }
    }
}

impl<T: Clone, E> Clone for Outcome<T, E> {
    fn clone(&self) -> Self {
        match self {
            Self::Response(response) => Self::Response(response.clone()),
            Self::Failed(failed) => Self::Failed(Arc::clone(failed)),
        }
    }
}

impl<E> Failed<E> {
    /// Takes the error itself: for one caller.
    pub(super) fn take(&self) -> Option<E> {
        self.lock().take()
    }

    /// Copies the error, which must not have been taken.
    pub(super) fn copy(&self, copy: &dyn Fn(&E) -> E) -> Option<E> {
        self.lock().as_ref().map(copy)
    }

    fn lock(&self) -> MutexGuard<'_, Option<E>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
