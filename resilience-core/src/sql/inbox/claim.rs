//! Answers to a claim, and the completion of the work.

use std::{fmt, sync::Arc, time::Duration};

use ::sqlx::Database;
use bytes::Bytes;

use super::{Dialect, Shared, dialect::Complete};
use crate::{error::Pattern, idempotency::key};

/// The answer to [`Inbox::claim`](super::Inbox::claim).
#[derive(Debug)]
#[non_exhaustive]
pub enum Claimed<DB: Dialect> {
    /// Granted: run the work in this transaction, and [complete](Entry::complete) it there.
    Fresh(Entry<DB>),
    /// The work is done. Holds what was recorded.
    Done(Settled),
    /// The key belongs to other work.
    Mismatch,
    /// Another transaction holds the key. This transaction can only be rolled back: PostgreSQL has aborted it, if it
    /// [waited](super::InboxBuilder::wait).
    Busy,
}

/// A recorded outcome.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// The outcome as given to [`Entry::complete`].
    pub outcome: Bytes,
    /// Fence of the attempt that did the work.
    pub fence: u64,
    /// Number of that attempt.
    pub attempt: u32,
    /// Time since the completion, by the database's clock, in whole milliseconds.
    pub age: Duration,
    /// Time until the record expires.
    pub expires_in: Duration,
}

/// A granted claim, to be completed in the transaction that made it.
///
/// Dropping it has no effect. The end of the transaction decides: after a rollback there was no claim; after a commit without
/// completion, the next claim is granted as the next attempt.
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

    /// The claimed key as the table keeps it.
    #[must_use]
    pub const fn key(&self) -> &str {
        &self.key
    }

    /// Derives an idempotency key for a call to another system, in the form of a UUID: the same in every attempt at this work,
    /// different for every label.
    #[must_use]
    pub fn child_key(&self, label: &str) -> String {
        key::child(&self.shared.name, &self.key, label)
    }

    /// The fencing token, higher than that of every earlier claim on this key, including those that were rolled back, expired
    /// or pruned. For effects outside of this transaction: a system that keeps the highest fence seen can reject lower ones.
    ///
    /// In SQLite, of two claims of different processes within one millisecond the second may get the first one's
    /// fence, if the first was rolled back.
    #[must_use]
    pub const fn fence(&self) -> u64 {
        self.fence.cast_unsigned()
    }

    /// Number of committed claims, this one included. Above one, an earlier transaction was committed without completion.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Records the outcome in the transaction that made the claim; takes effect when that is committed.
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

    /// Records the outcome as [`complete`](Self::complete) does, and keeps it for `retention` instead of the inbox's own: for a
    /// failure that may be retried sooner, say.
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
        if DB::complete(connection, &statements.complete, completed).await? == 0 {
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

/// Leaves out the outcome, which may be confidential.
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
