//! What becomes of a result: whether it is recorded, and as which bytes.

use std::{fmt, marker::PhantomData, time::Duration};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// What the record is to say about an attempt that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disposition {
    /// Done: the result is recorded and replayed, for as long as the handle's
    /// [`ttl`](super::IdempotencyBuilder::ttl).
    Record,
    /// The same, for so long.
    RecordFor(Duration),
    /// Not done: nothing happened in this attempt that matters, and the next caller does the work. An attempt before,
    /// of which nobody knows how it ended, stays in doubt: the next attempt has the same
    /// [`previous`](super::Attempt::previous), unless the [reconcile hook](super::IdempotencyBuilder::reconcile) found
    /// that it had not done the work either.
    Release,
    /// Nobody knows: the next caller is treated as the handle's
    /// [`takeover`](super::IdempotencyBuilder::takeover) says, which is to be refused unless told otherwise.
    Unknown,
}

/// Where a result comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The work was done just now.
    Fresh(Recorded),
    /// The work was done before, so long ago.
    Replayed {
        /// By the store's clock.
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
    /// The work counts as done, but its result is too large or could not be encoded: whoever asks again is told
    /// [`Reason::OutcomeNotKept`](crate::Reason::OutcomeNotKept).
    WithoutResult,
    /// The key was given back, as the disposition was.
    Released,
    /// Unknown, as the disposition was.
    Unknown,
    /// The store gave no answer yet. It is asked on in the background for as long as the lease can last; if it stays
    /// away, the work may be done again.
    Pending,
    /// The lease had been lost, and somebody else holds the key: this result will not be replayed.
    Lost,
    /// The work was done without a record, because the store could not be reached and the handle
    /// [lets such calls pass](crate::fleet::OnOutage::FailOpen).
    Unguarded,
}

/// A result, and where it comes from.
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

    /// Whether it was recorded earlier, and how long ago.
    #[must_use]
    pub const fn replayed(&self) -> Option<Duration> {
        match self.source {
            Source::Replayed { age } => Some(age),
            Source::Reconciled => Some(Duration::ZERO),
            Source::Fresh(_) => None,
        }
    }

    /// The result alone.
    pub fn into_inner(self) -> R {
        self.value
    }
}

/// A result could not be turned into bytes, or bytes not into a result.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(Box<dyn std::error::Error + Send + Sync>);

impl CodecError {
    /// For this reason.
    pub fn new(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

/// Decides about results of type `R`, and turns those that are recorded into bytes and back. [`Json`] is the ready-made
/// one.
///
/// What is recorded must be readable by the next version of the program: keys outlive deployments.
pub trait Outcomes<R>: Send + Sync + 'static {
    /// What the record is to say.
    fn decide(&self, result: &R) -> Disposition;

    /// As bytes. Only asked for what is to be recorded.
    ///
    /// # Errors
    /// If it has no such form. The work then counts as done, and its result cannot be replayed.
    fn encode(&self, result: &R) -> Result<Bytes, CodecError>;

    /// From bytes that [`encode`](Self::encode) made.
    ///
    /// # Errors
    /// If they are not what it makes.
    fn decode(&self, recorded: Bytes) -> Result<R, CodecError>;

    /// A last touch to what the caller gets: a header that says that this is a replay.
    fn mark(&self, result: R, _source: &Source) -> R {
        result
    }
}

/// Records `Ok` as JSON, by serde. Errors are not recorded: by default the key is given back, so that the next caller
/// does the work; [`on_error`](Self::on_error) decides otherwise.
///
/// An error after which the work may have been done all the same (a timeout of a payment service) is better left
/// [unknown](Disposition::Unknown), unless what the work calls takes a [child key](super::Attempt::child_key).
#[derive(Clone, Copy, Debug, Default)]
pub struct Json<F = Released>(F);

/// Errors give the key back. The default of [`Json`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Released;

impl Json {
    /// Errors give the key back.
    #[must_use]
    pub const fn new() -> Self {
        Self(Released)
    }

    /// Decides what the record says when the work has failed. An error has no form in JSON here, so one that is
    /// recorded stands for work that counts as done and cannot be replayed.
    pub const fn on_error<E, F: Fn(&E) -> Disposition>(self, decide: F) -> Json<ByError<E, F>> {
        Json(ByError {
            decide,
            error: PhantomData,
        })
    }
}

/// Decides by the error. See [`Json::on_error`].
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

/// What [`Json`] asks about errors: [`Released`] or [`ByError`].
pub trait OnError<E>: Send + Sync + 'static {
    /// What the record is to say.
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
            Err(_) => Err(CodecError::new("an error has no recorded form")),
        }
    }

    fn decode(&self, recorded: Bytes) -> Result<Result<T, E>, CodecError> {
        serde_json::from_slice(&recorded)
            .map(Ok)
            .map_err(CodecError::new)
    }
}

pub(super) fn to_json(value: &impl Serialize) -> Result<Bytes, CodecError> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(CodecError::new)
}
