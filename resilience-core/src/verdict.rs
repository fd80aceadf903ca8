//! The vocabulary of classification: what one result says about the dependency.
//!
//! Errors know their verdict and classifiers return one, so it stands below both.

use std::time::Duration;

/// What one result says about the dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The dependency did its work.
    Success,
    /// The dependency failed, and the same call may succeed later: counts as a failure, may be
    /// retried.
    Transient {
        /// Minimum wait that the dependency asked for.
        retry_after: Option<Duration>,
    },
    /// The dependency failed, and the same call will fail again: counts as a failure, is not
    /// retried.
    Permanent,
    /// Caused by the caller (bad request, not found, cancelled): says nothing about the
    /// dependency.
    Ignored,
}

impl Verdict {
    /// A transient failure without a minimum wait.
    #[must_use]
    pub const fn transient() -> Self {
        Self::Transient { retry_after: None }
    }

    /// A transient failure of a dependency that asked for a wait of at least `wait`.
    #[must_use]
    pub const fn retry_after(wait: Duration) -> Self {
        Self::Transient {
            retry_after: Some(wait),
        }
    }

    /// Whether the dependency failed, permanently or transiently.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Transient { .. } | Self::Permanent)
    }
}
