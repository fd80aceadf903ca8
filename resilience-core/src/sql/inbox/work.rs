//! The transaction as the work of [`Inbox::run`](super::Inbox::run) has it.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use ::sqlx::Database;
use tokio::sync::oneshot;

use super::{super::Transaction, Dialect, Entry};

/// The transaction of one [`Inbox::run`](super::Inbox::run). Dereferences to the connection: `query.execute(&mut *work)`.
///
/// Committed by `run` when the work is [done](Self::done), rolled back when dropped. A `COMMIT` statement inside the work ends
/// the protection.
pub struct Work<DB: Dialect> {
    pub(super) transaction: Lent<DB>,
    pub(super) entry: Entry<DB>,
}

impl<DB: Dialect> Work<DB> {
    /// Ends the work: `run` records `value` and commits.
    #[must_use = "nothing is committed unless this is returned"]
    pub const fn done<T>(self, value: T) -> Done<DB, T> {
        Done { work: self, value }
    }

    /// See [`Entry::fence`].
    #[must_use]
    pub const fn fence(&self) -> u64 {
        self.entry.fence()
    }

    /// See [`Entry::attempt`]. Attempts within one `run` are rolled back and do not count.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.entry.attempt()
    }

    /// See [`Entry::key`].
    #[must_use]
    pub const fn key(&self) -> &str {
        self.entry.key()
    }

    /// See [`Entry::child_key`].
    #[must_use]
    pub fn child_key(&self, label: &str) -> String {
        self.entry.child_key(label)
    }
}

/// Finished work with its result; from [`Work::done`].
pub struct Done<DB: Dialect, T> {
    pub(super) work: Work<DB>,
    pub(super) value: T,
}

/// A transaction that returns to `run` when the work is over, however that ends: its error says whether the connection can be
/// used again.
pub(super) struct Lent<DB: Database> {
    /// `None` when it has been returned.
    transaction: Option<Transaction<DB>>,
    owner: Option<oneshot::Sender<Transaction<DB>>>,
}

impl<DB: Database> Lent<DB> {
    pub(super) fn new(transaction: Transaction<DB>) -> (Self, oneshot::Receiver<Transaction<DB>>) {
        let (owner, back) = oneshot::channel();
        let lent = Self {
            transaction: Some(transaction),
            owner: Some(owner),
        };
        (lent, back)
    }
}

const LENT: &str = "returned only when it is dropped";

impl<DB: Database> Drop for Lent<DB> {
    fn drop(&mut self) {
        if let (Some(transaction), Some(owner)) = (self.transaction.take(), self.owner.take()) {
            // A `run` that was dropped takes nothing back: the transaction is dropped here.
            let _ = owner.send(transaction);
        }
    }
}

impl<DB: Dialect> Deref for Work<DB> {
    type Target = <DB as Database>::Connection;

    fn deref(&self) -> &Self::Target {
        self.transaction.transaction.as_ref().expect(LENT)
    }
}

impl<DB: Dialect> DerefMut for Work<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.transaction.transaction.as_mut().expect(LENT)
    }
}

impl<DB: Dialect, T> fmt::Debug for Done<DB, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done")
            .field("work", &self.work)
            .finish_non_exhaustive()
    }
}

impl<DB: Dialect> fmt::Debug for Work<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}
