//! What a claim is answered with, and how work is recorded.

use std::{fmt, sync::Arc, time::Duration};

use ::sqlx::Database;
use bytes::Bytes;

use super::{Dialect, Shared, dialect::Complete};
use crate::{error::Pattern, idempotency::key};

/// The answer to [`Inbox::claim`](super::Inbox::claim).
#[derive(Debug)]
#[non_exhaustive]
pub enum Claimed<DB: Dialect> {
    /// The work is to be done in this transaction, and to be [completed](Entry::complete) in it.
    Fresh(Entry<DB>),
    /// It is done, and here is what was recorded.
    Done(Settled),
    /// The key belongs to other work.
    Mismatch,
    /// Another transaction is at work on it. This transaction can only be rolled back: PostgreSQL has aborted it, if it
    /// [waited](super::InboxBuilder::wait).
    Busy,
}

/// What was recorded of work that is done.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// The outcome, as it was given to [`Entry::complete`].
    pub outcome: Bytes,
    /// The fence that the work was done under.
    pub fence: u64,
    /// The attempt that did it.
    pub attempt: u32,
    /// How long ago, by the database's clock, to the millisecond.
    pub age: Duration,
    /// How much longer it is kept.
    pub expires_in: Duration,
}

/// Work that is to be done, and to be recorded in the transaction that claimed it.
///
/// Dropping it does nothing. What counts is how the transaction ends: rolled back, there was no claim; committed without
/// completion, the next claim is granted, as the next attempt.
pub struct Entry<DB: Dialect> {
    shared: Arc<Shared<DB>>,
    key: Box<str>,
    fence: i64,
    attempt: u32,
}

impl<DB: Dialect> Entry<DB> {
    pub(super) const fn new(
        shared: Arc<Shared<DB>>,
        key: Box<str>,
        fence: i64,
        attempt: u32,
    ) -> Self {
        Self {
            shared,
            key,
            fence,
            attempt,
        }
    }

    /// The key that was claimed, as it is kept in the table.
    #[must_use]
    pub const fn key(&self) -> &str {
        &self.key
    }

    /// A key for a call to somebody else, in the form of a UUID: the same in every attempt at this work, another for
    /// every label.
    #[must_use]
    pub fn child_key(&self, label: &str) -> String {
        key::child(&self.shared.name, &self.key, label)
    }

    /// Higher than that of any claim before on this key, also of those that were rolled back, expired and pruned. For
    /// effects outside of this transaction: whoever keeps the highest fence seen refuses lower ones.
    ///
    /// In SQLite, of two claims of different processes within one millisecond the second may get the first one's
    /// fence, if the first was rolled back.
    #[must_use]
    pub const fn fence(&self) -> u64 {
        self.fence.cast_unsigned()
    }

    /// Counts claims that were committed, this one included. Above one, an earlier transaction was committed without
    /// completion.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Records the outcome, in the transaction that made the claim. It counts when that is committed.
    ///
    /// # Errors
    /// Those of the database, and `InvalidArgument` if the outcome is
    /// [too large](super::InboxBuilder::max_outcome), or if the claim does not stand in this transaction: it is another
    /// transaction, the claim's savepoint was rolled back, or the key was claimed again since. Roll back then.
    pub async fn complete(
        self,
        connection: &mut <DB as Database>::Connection,
        outcome: &[u8],
    ) -> Result<(), ::sqlx::Error> {
        let retention = self.shared.retention;
        self.complete_for(connection, outcome, retention).await
    }

    /// The same, and the record is kept for `retention` instead of what the inbox was built with: a failure that may
    /// be asked for again sooner, say.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub async fn complete_for(
        self,
        connection: &mut <DB as Database>::Connection,
        outcome: &[u8],
        retention: Duration,
    ) -> Result<(), ::sqlx::Error> {
        let Shared {
            name,
            max_outcome,
            statements,
            ..
        } = &*self.shared;
        if outcome.len() > *max_outcome {
            return Err(::sqlx::Error::InvalidArgument(format!(
                "the outcome for `{}` has {} bytes, more than {max_outcome}",
                self.key,
                outcome.len()
            )));
        }
        let completed = Complete {
            name,
            key: &self.key,
            fence: self.fence,
            outcome,
            retention_ms: super::millis(retention),
        };
        if DB::complete(connection, statements.complete.clone(), completed).await? == 0 {
            return Err(::sqlx::Error::InvalidArgument(format!(
                "the claim on `{}` does not stand in this transaction",
                self.key
            )));
        }
        tracing::debug!(target: "resilience", pattern = Pattern::Idempotency.as_str(), name = &**name, attempt = self.attempt, "recorded in the inbox");
        Ok(())
    }
}

impl<DB: Dialect> fmt::Debug for Entry<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("name", &self.shared.name)
            .field("key", &self.key)
            .field("fence", &self.fence)
            .field("attempt", &self.attempt)
            .finish()
    }
}

/// Without the outcome, which may be anybody's.
impl fmt::Debug for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settled")
            .field("outcome_bytes", &self.outcome.len())
            .field("fence", &self.fence)
            .field("attempt", &self.attempt)
            .field("age", &self.age)
            .field("expires_in", &self.expires_in)
            .finish()
    }
}
