//! The one error that every layer raises, and how it travels through a stack.
//!
//! Layers do not wrap each other's errors. A layer's `Service::Error` is the inner service's error
//! type; when the layer itself has to say no, it makes a [`Rejected`] and converts it with `From`.
//! A stack of six layers has the error type of a stack of one.
//!
//! - Typed stacks use [`Error<E>`]: `Rejected` or the service's own `E`.
//!   [`WrapErrorLayer`](wrap::WrapErrorLayer) brings a service whose error is a plain `E` there.
//! - Stacks of tower's `BoxError` work as they are.
//! - An error enum of your own joins in with two small impls: `From<Rejected>` and
//!   [`ServiceError`].

mod pattern;
mod reason;
pub mod wrap;

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

pub use self::{
    pattern::{CustomPattern, Pattern},
    reason::{Reason, ReasonKind},
};

use crate::verdict::Verdict;

/// A call that a layer of this toolkit did not let through, or gave up on: which pattern, which
/// instance of it, why, and how long to wait before it is worth another try.
///
/// It is not an error of the dependency. The one exception is [`Reason::TimedOut`], which is raised
/// after the dependency was given its time: [`verdict`](Self::verdict) tells the two apart.
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

/// Behind a pointer: a `Result` is moved through every layer of a stack, and a call that passes
/// should not have to carry the room for a rejection along.
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

    /// Adds how long to wait before another try can be of use.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// Which pattern said no.
    #[must_use]
    pub fn pattern(&self) -> Pattern {
        self.0.pattern
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// The name that the pattern's handle was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How long to wait before another try can be of use, where the layer knows.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// What this says about the dependency: nothing, unless the dependency was given its time and
    /// did not answer.
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
    /// What the guarded service itself said.
    Service(E),
}

impl<E> Error<E> {
    /// The service's own error, if it is one.
    pub const fn service(&self) -> Option<&E> {
        match self {
            Self::Service(error) => Some(error),
            Self::Rejected(_) => None,
        }
    }

    /// The rejection, if it is one.
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

/// What a layer asks of the error type of the service that it wraps: it can be made from a
/// [`Rejected`], and a `Rejected` raised further down can be seen in it.
///
/// The second half is what keeps layers from feeding each other: a breaker must not count the
/// "full" of a bulkhead beneath it as a failure of the dependency, whatever classifier the user
/// wrote.
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
    /// The rejection that this error is, or wraps.
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

/// Looks along the chain of sources, so that a `Rejected` is found inside whatever wrapped it.
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

/// A builder was given a value that cannot work. Names the field, the value and the rule it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidConfig {
    field: &'static str,
    value: String,
    rule: &'static str,
}

impl InvalidConfig {
    /// `field` was set to `value`, but `rule` ("must be above zero").
    #[must_use]
    pub fn new(field: &'static str, value: impl fmt::Debug, rule: &'static str) -> Self {
        Self {
            field,
            value: format!("{value:?}"),
            rule,
        }
    }

    /// The field, as the builder's method is called.
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

#[cfg(test)]
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
