//! The error that every layer raises, and the error types of stacks.
//!
//! Layers do not wrap each other's errors. A layer's `Service::Error` is the inner service's error
//! type; a layer that rejects a call makes a [`Rejected`] and converts it with `From`.
//! A stack of six layers has the error type of a stack of one.
//!
//! - Typed stacks use [`Error<E>`]: `Rejected` or the service's own `E`.
//!   [`WrapErrorLayer`](wrap::WrapErrorLayer) converts a service whose error is a plain `E`.
//! - Stacks of tower's `BoxError` work as they are.
//! - Other error types need two small impls: `From<Rejected>` and [`ServiceError`].

mod pattern;
mod reason;
pub mod wrap;

use std::{error::Error as StdError, fmt, ops::RangeInclusive, sync::Arc, time::Duration};

pub use self::{
    pattern::{CustomPattern, Pattern},
    reason::{Reason, ReasonKind},
};

use crate::verdict::Verdict;

/// A rejection of a call by a layer, or the end of a call that a layer gave up on: pattern, name of the handle, reason,
/// and how long to wait before a retry can succeed.
///
/// It is not an error of the dependency. The one exception is [`Reason::TimedOut`], which is raised
/// after the dependency had its time: [`verdict`](Self::verdict) tells the two apart.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Pattern, Reason, Rejected};
///
/// let no = Rejected::new(Pattern::CircuitBreaker, Reason::Open, "payments").with_retry_after(Duration::from_secs(2));
/// assert_eq!(no.to_string(), "circuit breaker `payments`: open, retry after 2s");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Rejected(Box<Details>);

/// Boxed, since a `Result` is moved through every layer of a stack: a call that passes should not carry the space of a
/// rejection.
#[derive(Clone, PartialEq, Eq)]
struct Details {
    pattern: Pattern,
    reason: Reason,
    name: Arc<str>,
    retry_after: Option<Duration>,
}

impl Rejected {
    /// A rejection by the `pattern` called `name`, with no advice on when to retry.
    #[cold]
    pub fn new(pattern: Pattern, reason: Reason, name: impl Into<Arc<str>>) -> Self {
        Self(Box::new(Details {
            pattern,
            reason,
            name: name.into(),
            retry_after: None,
        }))
    }

    /// Sets how long to wait before a retry can succeed.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// The pattern that rejected the call.
    #[must_use]
    pub fn pattern(&self) -> Pattern {
        self.0.pattern
    }

    /// The reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// The name that the pattern's handle was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How long to wait before a retry can succeed, where the layer knows.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// What this says about the dependency: nothing, unless the dependency had its time and did not answer.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.0.reason {
            Reason::TimedOut => Verdict::transient(),
            _ => Verdict::Ignored,
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details {
            pattern,
            reason,
            name,
            retry_after,
        } = &*self.0;
        write!(f, "{pattern} `{name}`: {reason}")?;
        match retry_after {
            Some(wait) => write!(f, ", retry after {wait:?}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected")
            .field("pattern", &self.0.pattern)
            .field("reason", &self.0.reason)
            .field("name", &self.0.name)
            .field("retry_after", &self.0.retry_after)
            .finish()
    }
}

impl StdError for Rejected {}

/// The error of a typed stack: a [`Rejected`] of some layer, or the innermost service's own error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// A layer of the stack did not let the call through, or gave up on it.
    Rejected(Rejected),
    /// The guarded service failed with its own error.
    Service(E),
}

impl<E> Error<E> {
    /// The service's own error, if this is one.
    pub const fn service(&self) -> Option<&E> {
        match self {
            Self::Service(error) => Some(error),
            Self::Rejected(_) => None,
        }
    }

    /// The rejection, if this is one.
    pub const fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            Self::Service(_) => None,
        }
    }
}

impl<E> From<Rejected> for Error<E> {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejected) => rejected.fmt(f),
            Self::Service(error) => error.fmt(f),
        }
    }
}

impl<E: StdError + 'static> StdError for Error<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            Self::Service(error) => Some(error),
        }
    }
}

/// Requirement of every layer on the error type of its inner service: it can be made from a [`Rejected`], and a
/// `Rejected` raised further down can be found in it.
///
/// The second half separates the layers from each other: a breaker must not count the "full" of a bulkhead below it as a
/// failure of the dependency, whichever classifier is set.
///
/// ```
/// use resilience_core::{Rejected, ServiceError};
///
/// enum OrderError { Rejected(Rejected), OutOfStock }
///
/// impl From<Rejected> for OrderError {
///     fn from(rejected: Rejected) -> Self { Self::Rejected(rejected) }
/// }
/// impl ServiceError for OrderError {
///     fn as_rejected(&self) -> Option<&Rejected> {
///         match self { Self::Rejected(rejected) => Some(rejected), Self::OutOfStock => None }
///     }
/// }
/// ```
pub trait ServiceError: From<Rejected> {
    /// Returns the rejection that this error is, or wraps.
    fn as_rejected(&self) -> Option<&Rejected>;
}

impl ServiceError for Rejected {
    fn as_rejected(&self) -> Option<&Rejected> {
        Some(self)
    }
}

impl<E> ServiceError for Error<E> {
    fn as_rejected(&self) -> Option<&Rejected> {
        self.rejected()
    }
}

/// Searches the chain of sources, so that a `Rejected` is found inside any error that wraps it.
impl ServiceError for Box<dyn StdError + Send + Sync> {
    fn as_rejected(&self) -> Option<&Rejected> {
        let mut next: Option<&(dyn StdError + 'static)> = Some(self.as_ref());
        while let Some(error) = next {
            if let Some(rejected) = error.downcast_ref() {
                return Some(rejected);
            }
            next = error.source();
        }
        None
    }
}

/// Error of a builder for a value that cannot work: the field, the value and the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidConfig {
    field: &'static str,
    value: String,
    rule: &'static str,
}

impl InvalidConfig {
    /// The error for `field`, which was set to `value` but `rule` ("must be above zero").
    #[must_use]
    pub fn new(field: &'static str, value: impl fmt::Debug, rule: &'static str) -> Self {
        Self {
            field,
            value: format!("{value:?}"),
            rule,
        }
    }

    /// The error for a handle that starts a background task, because of `field`, and is built outside of a tokio runtime.
    #[must_use]
    pub fn no_runtime(field: &'static str) -> Self {
        let value = format_args!("used outside of a tokio runtime");
        let rule = "needs a background task; build the handle in an async function, or after `tokio::runtime::Handle::enter`";
        Self::new(field, value, rule)
    }

    /// Checks that a time is within `bounds`; `rule` says which they are.
    pub(crate) fn check_time(
        field: &'static str,
        time: Duration,
        bounds: RangeInclusive<Duration>,
        rule: &'static str,
    ) -> Result<(), Self> {
        if bounds.contains(&time) {
            return Ok(());
        }
        Err(Self::new(field, time, rule))
    }

    /// The field: the name of the builder's method.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        self.field
    }
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {}: {}", self.field, self.value, self.rule)
    }
}

impl StdError for InvalidConfig {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    type BoxError = Box<dyn StdError + Send + Sync>;

    fn full() -> Rejected {
        Rejected::new(Pattern::Bulkhead, Reason::Full, "db")
    }

    #[test]
    fn a_rejection_is_found_in_a_boxed_error_however_deep() {
        let plain: BoxError = full().into();
        let wrapped: BoxError = Box::new(Error::<std::io::Error>::Rejected(full()));
        let foreign: BoxError = Box::new(std::io::Error::other("reset"));
        assert_eq!(plain.as_rejected(), Some(&full()));
        assert_eq!(wrapped.as_rejected(), Some(&full()));
        assert_eq!(foreign.as_rejected(), None);
    }

    #[test]
    fn only_a_timeout_says_something_about_the_dependency() {
        assert_eq!(full().verdict(), Verdict::Ignored);
        let late = Rejected::new(Pattern::Deadline, Reason::TimedOut, "api");
        assert_eq!(late.verdict(), Verdict::transient());
        let never_made = Rejected::new(Pattern::Deadline, Reason::NoTimeLeft, "api");
        assert_eq!(never_made.verdict(), Verdict::Ignored);
    }

    #[test]
    fn a_config_error_names_field_value_and_rule() {
        let error = InvalidConfig::new("max_concurrent", 0, "must be at least 1");
        assert_eq!(
            error.to_string(),
            "`max_concurrent` is 0: must be at least 1"
        );
    }
}
