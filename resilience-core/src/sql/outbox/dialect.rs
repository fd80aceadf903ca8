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

/// The steps that are the same in each database, but for types.
macro_rules! steps {
    () => {
        async fn insert(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            stream: &str,
            rows: Vec<NewRow>,
        ) -> Result<(), Error> {
            if let Some(lock) = &statements.lock {
                let mut keys: Vec<_> = rows.iter().filter_map(|row| row.key.as_deref()).collect();
                keys.sort_unstable();
                keys.dedup();
                if !keys.is_empty() {
                    let keys = ::serde_json::to_string(&keys).unwrap_or_default();
                    let lock = query(lock.clone()).persistent(false).bind(name).bind(keys);
                    lock.execute(&mut *connection).await?;
                }
            }
            let [before, after, end] = &statements.insert;
            let mut insert = QueryBuilder::<Self>::new(before);
            insert.push_values(rows, |mut row, new| {
                row.push_bind(name)
                    .push_bind($crate::sql::outbox::row::FORMAT)
                    .push_bind(&*new.id)
                    .push_bind(stream)
                    .push_bind(new.key.as_deref())
                    .push_bind(new.envelope)
                    .push_bind(new.body);
            });
            insert.push(after);
            if !end.is_empty() {
                insert.push_bind(name).push(end);
            }
            let insert = insert.build().persistent(false);
            insert.execute(connection).await.map(drop)
        }

        async fn look(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
        ) -> Result<Option<Lease>, Error> {
            let look = query(statements.look.clone()).persistent(false).bind(name);
            let Some(row) = look.fetch_optional(connection).await? else {
                return Ok(None);
            };
            Ok(Some(Lease {
                fence: row.try_get(0)?,
                beat: row.try_get(1)?,
                holder: row.try_get(2)?,
            }))
        }

        async fn enter(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
        ) -> Result<(), Error> {
            let enter = query(statements.enter.clone()).persistent(false).bind(name);
            enter.execute(connection).await.map(drop)
        }

        async fn take(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            holder: &str,
            found: &Lease,
        ) -> Result<bool, Error> {
            let take = query(statements.take.clone())
                .persistent(false)
                .bind(name)
                .bind(holder)
                .bind(found.fence)
                .bind(found.beat);
            Ok(take.execute(connection).await?.rows_affected() == 1)
        }

        async fn beat(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            fence: i64,
        ) -> Result<Option<Option<Begun>>, Error> {
            let beat = query(statements.beat.clone())
                .persistent(false)
                .bind(name)
                .bind(fence);
            let Some(row) = beat.fetch_optional(connection).await? else {
                return Ok(None);
            };
            let batch: Option<String> = row.try_get(0)?;
            let Some(batch) = batch else {
                return Ok(Some(None));
            };
            let sequences = ::serde_json::from_str(&batch);
            Ok(Some(Some(Begun {
                sequences: sequences.map_err(|error| Error::Decode(error.into()))?,
                producer: row.try_get(1)?,
                first: row.try_get(2)?,
            })))
        }

        async fn give_back(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            fence: i64,
        ) -> Result<(), Error> {
            let give_back = query(statements.give_back.clone())
                .persistent(false)
                .bind(name)
                .bind(fence);
            give_back.execute(connection).await.map(drop)
        }

        async fn next(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            without: &Without,
            most: i64,
        ) -> Result<Vec<(i64, i64)>, Error> {
            let next = query(statements.next.clone())
                .persistent(false)
                .bind(name)
                .bind(::serde_json::to_string(&without.sequences).unwrap_or_default())
                .bind(::serde_json::to_string(&without.keys).unwrap_or_default())
                .bind(most);
            let rows = next.fetch_all(connection).await?;
            rows.iter()
                .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
                .collect()
        }

        async fn note_batch(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            fence: i64,
            batch: Option<&Begun>,
        ) -> Result<(), Error> {
            let Some(batch) = batch else {
                let end = query(statements.end.clone())
                    .persistent(false)
                    .bind(name)
                    .bind(fence);
                return end.execute(connection).await.map(drop);
            };
            let begin = query(statements.begin.clone())
                .persistent(false)
                .bind(name)
                .bind(fence)
                .bind(::serde_json::to_string(&batch.sequences).unwrap_or_default())
                .bind(&batch.producer)
                .bind(batch.first);
            begin.execute(connection).await.map(drop)
        }

        async fn rows(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            sequences: &[i64],
        ) -> Result<Vec<StoredRow>, Error> {
            let rows = query(statements.rows.clone())
                .persistent(false)
                .bind(name)
                .bind(::serde_json::to_string(sequences).unwrap_or_default());
            rows.fetch_all(connection)
                .await?
                .iter()
                .map(stored)
                .collect()
        }

        async fn delete(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            sequences: &[i64],
        ) -> Result<(), Error> {
            Self::among(connection, &statements.delete, name, sequences)
                .await
                .map(drop)
        }

        async fn refuse(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            sequence: i64,
            reason: &str,
            last: bool,
        ) -> Result<(), Error> {
            let statement = if last {
                &statements.kill
            } else {
                &statements.refuse
            };
            let refuse = query(statement.clone())
                .persistent(false)
                .bind(name)
                .bind(sequence)
                .bind(reason);
            refuse.execute(connection).await.map(drop)
        }

        async fn waiting(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
        ) -> Result<Waiting, Error> {
            let waiting = query(statements.waiting.clone())
                .persistent(false)
                .bind(name);
            let waiting = waiting.fetch_one(&mut *connection).await?;
            let dead = query(statements.dead.clone()).persistent(false).bind(name);
            let dead = dead.fetch_one(connection).await?;
            Ok(Waiting {
                rows: waiting.try_get(0)?,
                oldest_ms: waiting.try_get(1)?,
                dead: dead.try_get(0)?,
            })
        }

        async fn dead_letters(
            connection: &mut Self::Connection,
            statements: &Statements,
            name: &str,
            most: i64,
        ) -> Result<Vec<DeadRow>, Error> {
            let rows = query(statements.dead_letters.clone())
                .persistent(false)
                .bind(name)
                .bind(most);
            let rows = rows.fetch_all(connection).await?;
            let dead = |row| Ok((stored(row)?, row.try_get(9)?, row.try_get(10)?));
            rows.iter().map(dead).collect()
        }

        async fn among(
            connection: &mut Self::Connection,
            statement: &SqlStr,
            name: &str,
            sequences: &[i64],
        ) -> Result<u64, Error> {
            let statement = query(statement.clone())
                .persistent(false)
                .bind(name)
                .bind(::serde_json::to_string(sequences).unwrap_or_default());
            Ok(statement.execute(connection).await?.rows_affected())
        }
    };
}

/// A function that reads a row.
macro_rules! stored {
    ($row:ty) => {
        fn stored(row: &$row) -> Result<StoredRow, Error> {
            Ok(StoredRow {
                sequence: row.try_get(0)?,
                format: row.try_get(1)?,
                id: row.try_get(2)?,
                stream: row.try_get(3)?,
                key: row.try_get(4)?,
                envelope: row.try_get(5)?,
                body: row.try_get(6)?,
                attempts: row.try_get(7)?,
                created_ms: row.try_get(8)?,
            })
        }
    };
}

pub(super) use {steps, stored};

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
