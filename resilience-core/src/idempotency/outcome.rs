//! Results: whether they are recorded, and as which bytes.

use std::{fmt, marker::PhantomData, time::Duration};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::lossless;

/// What the record says about an attempt that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disposition {
    /// Done: the result is recorded and replayed, for as long as the handle's
    /// [`ttl`](super::IdempotencyBuilder::ttl).
    Record,
    /// Done: the result is recorded and replayed for this time.
    RecordFor(Duration),
    /// Not done: this attempt had no effects, and the next caller runs the work. The key is then free for other work too
    /// (another [fingerprint](super::Key::fingerprint)), unless the attempt left a
    /// [checkpoint](super::Attempt::save_checkpoint) or a doubt. An earlier attempt with an unknown outcome
    /// stays in doubt: the next attempt has the same [`previous`](super::Attempt::previous), unless the
    /// [reconcile hook](super::IdempotencyBuilder::reconcile) found that it had not done the work either.
    Release,
    /// Unknown whether the work was done: the handle's [`effect`](super::IdempotencyBuilder::effect) decides about the
    /// next caller, which is rejected by default.
    Unknown,
}

/// Origin of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The work was done just now.
    Fresh(Recorded),
    /// The work was done before.
    Replayed {
        /// Time since its completion, by the store's clock.
        age: Duration,
    },
    /// The reconcile hook found that an earlier attempt had done it.
    Reconciled,
}

/// What the record says of work that was done just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recorded {
    /// The result will be replayed.
    Stored,
    /// The work counts as done, but its result is too large or could not be encoded: later callers are rejected with
    /// [`Reason::OutcomeNotKept`](crate::Reason::OutcomeNotKept).
    WithoutResult,
    /// The key was given back, as the disposition said.
    Released,
    /// The outcome is unknown, as the disposition said.
    Unknown,
    /// The store has not answered. The step is repeated in the background for as long as the process lives and the record
    /// would be kept. For an outcome that is to be recorded, only with [`OnUnrecorded::Answer`](super::OnUnrecorded::Answer).
    Pending,
    /// The lease was lost, and another attempt holds the key: this result will not be replayed.
    Lost,
    /// The work was done without a record, because the store was unavailable and the handle
    /// [lets such calls pass](crate::fleet::OnOutage::FailOpen).
    Unguarded,
}

/// A result and its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome<R> {
    /// The result.
    pub value: R,
    /// Where it comes from.
    pub source: Source,
}

impl<R> Outcome<R> {
    pub(crate) const fn new(value: R, source: Source) -> Self {
        Self { value, source }
    }

    /// Age of the result, if the work was done before this call; `None` if it was done now.
    #[must_use]
    pub const fn replayed(&self) -> Option<Duration> {
        match self.source {
            Source::Replayed { age } => Some(age),
            Source::Reconciled => Some(Duration::ZERO),
            Source::Fresh(_) => None,
        }
    }

    /// Returns the result alone.
    pub fn into_inner(self) -> R {
        self.value
    }
}

/// A result could not be encoded, or recorded bytes not be decoded.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(Box<dyn std::error::Error + Send + Sync>);

impl CodecError {
    /// An error with this reason.
    pub fn new(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

/// A policy and codec for results of type `R`: decides what is recorded, and encodes and decodes it. [`Json`] is the
/// ready-made one.
///
/// Recorded bytes must be readable by the next version of the program: keys outlive deployments.
pub trait Outcomes<R>: Send + Sync + 'static {
    /// Decides what the record says about `result`.
    fn decide(&self, result: &R) -> Disposition;

    /// Encodes a result that is to be recorded.
    ///
    /// # Errors
    /// [`CodecError`] if it cannot be encoded. The work then counts as done, and its result cannot be replayed.
    fn encode(&self, result: &R) -> Result<Bytes, CodecError>;

    /// Decodes bytes that [`encode`](Self::encode) made.
    ///
    /// # Errors
    /// [`CodecError`] if they are anything else.
    fn decode(&self, recorded: Bytes) -> Result<R, CodecError>;

    /// Marks the result that the caller gets with its source, e.g. by a header that says that this is a replay.
    fn mark(&self, result: R, _source: &Source) -> R {
        result
    }
}

/// Records `Ok` as JSON, by serde. Errors are not recorded: by default the key is given back, so that the next caller
/// runs the work; [`on_error`](Self::on_error) decides otherwise.
///
/// A result is replayed as what it was, numbers to their last bit. One that JSON cannot represent (a number that is infinite or
/// not a number; `Some(None)` and `Some(())`, which it writes as it writes `None`; a map whose keys are no strings) is
/// not recorded: the work counts as done, and later callers are rejected with
/// [`OutcomeNotKept`](crate::Reason::OutcomeNotKept).
///
/// An error after which the work may have been done nevertheless (a timeout of a payment service) is better left
/// [unknown](Disposition::Unknown), unless the called service takes a [child key](super::Attempt::child_key).
#[derive(Clone, Copy, Debug, Default)]
pub struct Json<F = Released>(F);

/// Gives the key back on errors. The default of [`Json`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Released;

impl Json {
    /// A codec that gives the key back on errors.
    #[must_use]
    pub const fn new() -> Self {
        Self(Released)
    }

    /// Sets what the record says when the work fails. Errors are not encoded, so that one that is recorded stands for work
    /// that counts as done and cannot be replayed.
    pub const fn on_error<E, F: Fn(&E) -> Disposition>(self, decide: F) -> Json<ByError<E, F>> {
        Json(ByError {
            decide,
            error: PhantomData,
        })
    }
}

/// Decides by the error; from [`Json::on_error`].
pub struct ByError<E, F> {
    decide: F,
    error: PhantomData<fn(&E)>,
}

impl<E, F: Clone> Clone for ByError<E, F> {
    fn clone(&self) -> Self {
        Self {
            decide: self.decide.clone(),
            error: PhantomData,
        }
    }
}

impl<E, F> fmt::Debug for ByError<E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByError")
    }
}

/// The policy of [`Json`] for errors: [`Released`] or [`ByError`].
pub trait OnError<E>: Send + Sync + 'static {
    /// Decides what the record says about `error`.
    fn decide(&self, error: &E) -> Disposition;
}

impl<E> OnError<E> for Released {
    fn decide(&self, _: &E) -> Disposition {
        Disposition::Release
    }
}

impl<E: 'static, F: Fn(&E) -> Disposition + Send + Sync + 'static> OnError<E> for ByError<E, F> {
    fn decide(&self, error: &E) -> Disposition {
        (self.decide)(error)
    }
}

impl<T, E, F> Outcomes<Result<T, E>> for Json<F>
where
    T: Serialize + DeserializeOwned,
    F: OnError<E>,
{
    fn decide(&self, result: &Result<T, E>) -> Disposition {
        match result {
            Ok(_) => Disposition::Record,
            Err(error) => self.0.decide(error),
        }
    }

    fn encode(&self, result: &Result<T, E>) -> Result<Bytes, CodecError> {
        match result {
            Ok(value) => to_json(value),
            Err(_) => Err(CodecError::new("errors are not encoded")),
        }
    }

    fn decode(&self, recorded: Bytes) -> Result<Result<T, E>, CodecError> {
        serde_json::from_slice(&recorded)
            .map(Ok)
            .map_err(CodecError::new)
    }
}

/// The value in JSON, if it is read from there as what it was.
pub(crate) fn to_json(value: &impl Serialize) -> Result<Bytes, CodecError> {
    lossless::check(value).map_err(CodecError::new)?;
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(CodecError::new)
}
