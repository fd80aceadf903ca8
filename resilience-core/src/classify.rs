//! One classification for the whole stack: what a result says about the dependency.
//!
//! Breaker, retry and idempotency all read the same [`Verdict`], so that what trips the breaker and what is
//! retried is decided once, in one place. The default, [`Standard`], treats every `Ok` as a success and every error
//! of the service as a transient failure. Other classifiers are
//!
//! - a closure: [`errors`], [`responses`] or [`results`];
//! - a type's own verdict: [`ClassifySelf`], read by [`SelfClassified`];
//! - a second opinion on another classifier: [`and_then`].
//!
//! A [`Rejected`] raised by a layer below never reaches a classifier: the layers themselves
//! ([`judge`]) ensure that a rejection by the stack is no evidence against the dependency.
//!
//! ```
//! use resilience_core::{Classify, classify::{self, Verdict}};
//! use resilience_core::Error;
//!
//! #[derive(Debug)]
//! enum DbError { Timeout, UniqueViolation }
//!
//! let classifier = classify::errors(|error: &DbError| match error {
//!     DbError::Timeout => Verdict::transient(),
//!     DbError::UniqueViolation => Verdict::Ignored,
//! });
//! let failed: Result<&(), _> = Err(&Error::Service(DbError::UniqueViolation));
//! assert_eq!(classifier.classify(failed), Verdict::Ignored);
//! ```

use crate::error::{Error, Rejected, ServiceError};
pub use crate::verdict::Verdict;

/// Maps a result to a [`Verdict`].
///
/// Called once per attempt, on the task that made the call: it should return quickly. Layers hold it by value and
/// clone it per call, so it should be a unit struct, a `fn`, or a closure that captures little.
pub trait Classify<Res, Err> {
    /// Returns what `result` says about the dependency.
    fn classify(&self, result: Result<&Res, &Err>) -> Verdict;
}

/// Judges `result` as every layer does: a [`Rejected`] raised below has its own verdict, everything else goes to
/// `classifier`.
#[inline]
pub fn judge<C, Res, Err>(classifier: &C, result: Result<&Res, &Err>) -> Verdict
where
    C: Classify<Res, Err>,
    Err: ServiceError,
{
    match result.err().and_then(ServiceError::as_rejected) {
        Some(rejected) => rejected.verdict(),
        None => classifier.classify(result),
    }
}

/// The default classifier: `Ok` is a success, an error is a transient failure.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standard;

impl<Res, Err> Classify<Res, Err> for Standard {
    fn classify(&self, result: Result<&Res, &Err>) -> Verdict {
        match result {
            Ok(_) => Verdict::Success,
            Err(_) => Verdict::transient(),
        }
    }
}

/// A type that knows its own verdict. Read by [`SelfClassified`].
pub trait ClassifySelf {
    /// Returns what this response or error says about the dependency that it came from.
    fn verdict(&self) -> Verdict;

    /// Whether the connection that it came over must not be used again. Default: `false`.
    ///
    /// Read where the toolkit holds that connection (`sql::transaction`, `sql::connection`, `sql::inbox`). An error that wraps
    /// another one passes on what that says.
    fn discards_connection(&self) -> bool {
        false
    }
}

impl ClassifySelf for Rejected {
    fn verdict(&self) -> Verdict {
        Self::verdict(self)
    }
}

impl<E: ClassifySelf> ClassifySelf for Error<E> {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Rejected(rejected) => rejected.verdict(),
            Self::Service(error) => error.verdict(),
        }
    }

    fn discards_connection(&self) -> bool {
        self.service().is_some_and(E::discards_connection)
    }
}

/// Classifier for errors that know their own verdict ([`ClassifySelf`]); `Ok` is a success.
#[derive(Clone, Copy, Debug, Default)]
pub struct SelfClassified;

impl<Res, Err: ClassifySelf> Classify<Res, Err> for SelfClassified {
    fn classify(&self, result: Result<&Res, &Err>) -> Verdict {
        result.err().map_or(Verdict::Success, ClassifySelf::verdict)
    }
}

/// Classifier made by [`errors`].
#[derive(Clone, Copy, Debug)]
pub struct Errors<F>(F);

/// Makes a classifier from a function over the service's own error, in a typed stack ([`Error<E>`]); `Ok` is a
/// success.
pub const fn errors<E, F: Fn(&E) -> Verdict>(judge: F) -> Errors<F> {
    Errors(judge)
}

impl<Res, E, F: Fn(&E) -> Verdict> Classify<Res, Error<E>> for Errors<F> {
    fn classify(&self, result: Result<&Res, &Error<E>>) -> Verdict {
        match result {
            Ok(_) => Verdict::Success,
            Err(Error::Rejected(rejected)) => rejected.verdict(),
            Err(Error::Service(error)) => (self.0)(error),
        }
    }
}

/// Classifier made by [`responses`].
#[derive(Clone, Copy, Debug)]
pub struct Responses<F>(F);

/// Makes a classifier from a function over the response; errors are transient failures.
pub const fn responses<Res, F: Fn(&Res) -> Verdict>(judge: F) -> Responses<F> {
    Responses(judge)
}

impl<Res, Err, F: Fn(&Res) -> Verdict> Classify<Res, Err> for Responses<F> {
    fn classify(&self, result: Result<&Res, &Err>) -> Verdict {
        result.map_or(Verdict::transient(), &self.0)
    }
}

/// Classifier made by [`results`].
#[derive(Clone, Copy, Debug)]
pub struct Results<F>(F);

/// Makes a classifier from a function over the whole result.
pub const fn results<Res, Err, F>(judge: F) -> Results<F>
where
    F: Fn(Result<&Res, &Err>) -> Verdict,
{
    Results(judge)
}

impl<Res, Err, F: Fn(Result<&Res, &Err>) -> Verdict> Classify<Res, Err> for Results<F> {
    fn classify(&self, result: Result<&Res, &Err>) -> Verdict {
        (self.0)(result)
    }
}

/// Classifier made by [`and_then`].
#[derive(Clone, Copy, Debug)]
pub struct AndThen<C, F> {
    first: C,
    second: F,
}

/// Makes a classifier whose `second` function confirms or changes the verdict of `first`. It receives the result and
/// that verdict.
///
/// ```
/// use resilience_core::{Classify, classify::{self, Standard, Verdict}};
///
/// // An empty answer is a failure, all else as usual.
/// let strict = classify::and_then(Standard, |result: Result<&Vec<u8>, &()>, verdict| match result {
///     Ok(body) if body.is_empty() => Verdict::transient(),
///     _ => verdict,
/// });
/// assert_eq!(strict.classify(Ok(&vec![])), Verdict::transient());
/// assert_eq!(strict.classify(Ok(&vec![1])), Verdict::Success);
/// ```
pub const fn and_then<Res, Err, C, F>(first: C, second: F) -> AndThen<C, F>
where
    C: Classify<Res, Err>,
    F: Fn(Result<&Res, &Err>, Verdict) -> Verdict,
{
    AndThen { first, second }
}

impl<Res, Err, C, F> Classify<Res, Err> for AndThen<C, F>
where
    C: Classify<Res, Err>,
    F: Fn(Result<&Res, &Err>, Verdict) -> Verdict,
{
    fn classify(&self, result: Result<&Res, &Err>) -> Verdict {
        (self.second)(result, self.first.classify(result))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::error::{Pattern, Reason};

    #[test]
    fn a_rejection_from_below_never_reaches_the_classifier() {
        let hard = results(|_: Result<&(), &Error<()>>| Verdict::Permanent);
        let full = Error::Rejected(Rejected::new(Pattern::Bulkhead, Reason::Full, "db"));
        assert_eq!(judge(&hard, Err(&full)), Verdict::Ignored);
        assert_eq!(judge(&hard, Err(&Error::Service(()))), Verdict::Permanent);
        assert_eq!(judge(&hard, Ok(&())), Verdict::Permanent);
    }

    #[test]
    fn a_timeout_from_below_is_a_transient_failure() {
        let late = Error::<()>::Rejected(Rejected::new(Pattern::Deadline, Reason::TimedOut, "db"));
        assert_eq!(judge(&Standard, Err::<&(), _>(&late)), Verdict::transient());
    }
}
