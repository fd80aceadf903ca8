//! The databases: what a step of the outbox is in each. Every step runs on a connection that is in a transaction.

use std::future::Future;

use ::sqlx::{Database, Error, Pool, SqlStr};

use super::{
    super::{Transaction, table::Table},
    lease::Lease,
    row::{NewRow, StoredRow},
    statements::Statements,
};

/// A database that an [`Outbox`](super::Outbox) can be kept in: PostgreSQL (feature `sqlx-postgres`) and SQLite (feature
/// `sqlx-sqlite`). Sealed: its methods change with the outbox.
pub trait Dialect: Database + sealed::Sealed {}

/// A batch as the table of leases keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    pub(super) sequences: Vec<i64>,
    pub(super) producer: String,
    pub(super) first: i64,
}

/// Rows that are not to be sent yet.
#[derive(Clone, Debug, Default)]
pub struct Without {
    pub(super) sequences: Vec<i64>,
    /// All rows of these keys.
    pub(super) keys: Vec<String>,
}

/// What waits in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub(super) rows: i64,
    pub(super) oldest_ms: Option<i64>,
    pub(super) dead: i64,
}

/// A dead letter: the row, why, and since when in milliseconds.
pub(super) type DeadRow = (StoredRow, Option<String>, i64);

pub(super) mod sealed {
    use super::{
        Begun, Database, DeadRow, Error, Future, Lease, NewRow, Pool, SqlStr, Statements,
        StoredRow, Table, Transaction, Waiting, Without,
    };

    type Done<T> = Result<T, Error>;

    /// The statements and steps of the outbox in one database. `name` is the outbox's.
    pub trait Sealed: Database + Sized {
        /// Begins a transaction that writes.
        const BEGIN: &'static str;
        /// Begins a transaction that reads.
        const READ: &'static str;
        /// Whether there are notifications.
        const NOTIFIES: bool;

        fn statements(table: &Table, locks: bool, notifies: bool) -> Statements;

        /// Runs the schema, one instance at a time.
        fn migrate(
            transaction: Transaction<Self>,
            schema: SqlStr,
        ) -> impl Future<Output = Done<()>> + Send;

        fn insert(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            stream: &str,
            rows: Vec<NewRow>,
        ) -> impl Future<Output = Done<()>> + Send;

        /// The lease; `None`: its row does not exist.
        fn look(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
        ) -> impl Future<Output = Done<Option<Lease>>> + Send;

        /// Makes the row of the lease, unless it exists.
        fn enter(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
        ) -> impl Future<Output = Done<()>> + Send;

        /// Takes the lease, if it is still as it was found. Whether it was.
        fn take(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            holder: &str,
            found: &Lease,
        ) -> impl Future<Output = Done<bool>> + Send;

        /// Renews the lease, and locks it until the transaction ends. `None`: another relay has it.
        fn beat(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            fence: i64,
        ) -> impl Future<Output = Done<Option<Option<Begun>>>> + Send;

        fn give_back(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            fence: i64,
        ) -> impl Future<Output = Done<()>> + Send;

        /// The first rows and their sizes in bytes, without some.
        fn next(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            without: &Without,
            most: i64,
        ) -> impl Future<Output = Done<Vec<(i64, i64)>>> + Send;

        /// Writes down a batch; `None`: that there is none.
        fn note_batch(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            fence: i64,
            batch: Option<&Begun>,
        ) -> impl Future<Output = Done<()>> + Send;

        fn rows(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            sequences: &[i64],
        ) -> impl Future<Output = Done<Vec<StoredRow>>> + Send;

        fn delete(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            sequences: &[i64],
        ) -> impl Future<Output = Done<()>> + Send;

        /// Counts a refusal of a row; `last`: it is a dead letter from now on.
        fn refuse(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            sequence: i64,
            reason: &str,
            last: bool,
        ) -> impl Future<Output = Done<()>> + Send;

        fn waiting(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
        ) -> impl Future<Output = Done<Waiting>> + Send;

        fn dead_letters(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            most: i64,
        ) -> impl Future<Output = Done<Vec<DeadRow>>> + Send;

        /// Runs `redrive` or `discard`; the number of rows.
        fn among(
            connection: &mut Self::Connection,
            statement: &SqlStr,
            name: &str,
            sequences: &[i64],
        ) -> impl Future<Output = Done<u64>> + Send;

        /// Calls `wake` for every notification, and after every gap between them, forever.
        fn listen(
            pool: Pool<Self>,
            name: std::sync::Arc<str>,
            wake: impl Fn() + Send + 'static,
        ) -> impl Future<Output = ()> + Send + 'static;

        /// A pool of one connection to where `pool` leads, which is not one of its own.
        fn apart(pool: &Pool<Self>) -> Pool<Self>;
    }
}

/// The first rows of `sizes` that are at most `bytes` together; one at least.
pub(super) fn within(sizes: &[(i64, i64)], bytes: i64) -> Vec<i64> {
    let mut sum = 0;
    let fits = |&&(_, size): &&(i64, i64)| {
        let first = sum == 0;
        sum += size.max(1);
        first || sum <= bytes
    };
    sizes.iter().take_while(fits).map(|it| it.0).collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_batch_ends_before_the_row_that_would_make_it_too_large_and_has_one_at_least() {
        let sizes = [(1, 6), (4, 4), (5, 1), (9, 1)];
        assert_eq!(within(&sizes, 10), [1, 4]);
        assert_eq!(within(&sizes, 11), [1, 4, 5]);
        assert_eq!(within(&sizes, 1), [1]);
        assert!(within(&[], 1).is_empty());
    }
}
