//! Attempts whose outcome is unknown: what the reconcile hook is asked, and what it or an operator answers.

use std::{future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use serde::Serialize;

use super::{
    outcome::{CodecError, to_json},
    record::Previous,
};

/// An attempt whose outcome is unknown; given to the [reconcile hook](super::IdempotencyBuilder::reconcile).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InDoubt {
    /// The key, as the store keeps it.
    pub key: Arc<str>,
    /// How the previous attempt ended: [`Previous::Ended`] or [`Previous::Unknown`].
    pub previous: Previous,
    /// Number of the current attempt.
    pub attempt: u32,
    /// Fence of the current attempt.
    pub fence: u64,
    /// The last checkpoint of an earlier attempt.
    pub checkpoint: Option<Bytes>,
}

/// Result of the [reconcile hook](super::IdempotencyBuilder::reconcile).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reconciled {
    /// The work was done. Holds its result as the codec would have encoded it.
    Done(Bytes),
    /// The work was not done, and is run now.
    NotDone,
    /// The hook could not tell: the outcome stays unknown.
    Unknown,
}

impl Reconciled {
    /// The work was done, with this result encoded for [`Json`](super::Json).
    ///
    /// # Errors
    /// [`CodecError`] if the result cannot be represented in JSON.
    pub fn done(result: &impl Serialize) -> Result<Self, CodecError> {
        to_json(result).map(Self::Done)
    }
}

/// What an operator or a reconciliation job found out about work with an unknown outcome; given to
/// [`Idempotency::resolve`](super::Idempotency::resolve).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Resolution {
    /// The work was done. Holds its result as the codec encodes it.
    Done(Bytes),
    /// The work was done; there is no result to replay.
    DoneWithoutResult,
    /// The work was not done: the next caller runs it.
    NotDone,
}

/// The hook.
pub(super) type Reconcile =
    Arc<dyn Fn(InDoubt) -> Pin<Box<dyn Future<Output = Reconciled> + Send>> + Send + Sync>;
