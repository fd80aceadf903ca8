//! What differs between the databases.

use std::{
    future::Future,
    sync::{Arc, atomic::AtomicI64},
};

use ::sqlx::{AssertSqlSafe, Database, SqlSafeStr, SqlStr, Transaction};

use super::table::Table;

/// A database that an [`Inbox`](super::Inbox) can be kept in: PostgreSQL (feature `sqlx-postgres`) and SQLite (feature
/// `sqlx-sqlite`). Not for others to implement: what it asks for changes with the inbox.
pub trait Dialect: Database + sealed::Sealed {}

pub(super) mod sealed {
    use super::{
        Ask, AtomicI64, Complete, Database, Found, Future, SqlStr, Statements, Table, Transaction,
    };

    /// What the inbox does, in the words of one database.
    pub trait Sealed: Database + Sized {
        /// Begins a transaction that may claim.
        const BEGIN: &'static str;

        /// The statements about `table`.
        fn statements(table: &Table, waits: bool) -> Statements;

        fn claim(
            connection: &mut Self::Connection,
            statement: SqlStr,
            look: SqlStr,
            ask: Ask<'_>,
            last: &AtomicI64,
        ) -> impl Future<Output = Result<Found, ::sqlx::Error>> + Send;

        /// How many rows were changed: one, or none.
        fn complete(
            connection: &mut Self::Connection,
            statement: SqlStr,
            completed: Complete<'_>,
        ) -> impl Future<Output = Result<u64, ::sqlx::Error>> + Send;

        /// How many rows were deleted.
        fn prune(
            connection: &mut Self::Connection,
            statement: SqlStr,
            most: u32,
        ) -> impl Future<Output = Result<u64, ::sqlx::Error>> + Send;

        /// Runs the schema, one instance at a time.
        fn migrate(
            transaction: Transaction<'_, Self>,
            schema: SqlStr,
        ) -> impl Future<Output = Result<(), ::sqlx::Error>> + Send;
    }
}

/// The statements about one table.
#[derive(Debug)]
pub struct Statements {
    pub(super) schema: SqlStr,
    pub(super) claim: SqlStr,
    /// Reads what stands, where the claim cannot do it.
    pub(super) look: SqlStr,
    pub(super) complete: SqlStr,
    pub(super) prune: SqlStr,
}

/// A statement with a checked table name in it.
pub(super) fn statement(text: String) -> SqlStr {
    // The only thing that was put in is the table's name, and `Table` has seen to it that it is one.
    // Shared, because each call takes a clone of it.
    AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
}

/// What a claim asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub(super) name: &'a str,
    pub(super) key: &'a str,
    pub(super) fingerprint: &'a [u8],
    pub(super) retention_ms: i64,
    /// How long to wait for another transaction; nothing: not at all.
    #[cfg_attr(
        not(feature = "sqlx-postgres"),
        allow(dead_code, reason = "SQLite waits as its connection says")
    )]
    pub(super) wait_ms: Option<u64>,
}

/// What a completion says.
#[derive(Clone, Copy, Debug)]
pub struct Complete<'a> {
    pub(super) name: &'a str,
    pub(super) key: &'a str,
    pub(super) fence: i64,
    pub(super) outcome: &'a [u8],
    pub(super) retention_ms: i64,
}

/// The answer to a claim.
#[derive(Debug)]
pub enum Found {
    /// Another transaction is at work.
    Busy,
    /// What stands now, in this transaction.
    Row(Row),
}

/// A row as a claim leaves it.
#[derive(Debug)]
pub struct Row {
    /// Nothing, if it is the asker's own.
    pub(super) fingerprint: Option<Vec<u8>>,
    pub(super) fence: i64,
    pub(super) attempt: i32,
    pub(super) outcome: Option<Vec<u8>>,
    pub(super) age_ms: i64,
    pub(super) left_ms: i64,
}
