//! Differences between the databases.

use std::{future::Future, sync::atomic::AtomicI64};

use ::sqlx::{Database, SqlStr, database::HasStatementCache, query, query::Query};

use super::super::{Transaction, table::Table};

/// A database that an [`Inbox`](super::Inbox) can be kept in: PostgreSQL (feature `sqlx-postgres`) and SQLite (feature
/// `sqlx-sqlite`). Sealed: its methods change with the inbox.
pub trait Dialect: Database + sealed::Sealed {}

pub(super) mod sealed {
    use super::{
        Ask, AtomicI64, Complete, Database, Found, Future, SqlStr, Statement, Statements, Table,
        Transaction,
    };

    /// The statements and steps of the inbox in one database.
    pub trait Sealed: Database + Sized {
        /// Begins a transaction that may claim.
        const BEGIN: &'static str;
        /// Whether statements are prepared once per connection.
        const PREPARED: bool;

        /// The statements about `table`.
        fn statements(table: &Table, waits: bool, prepared: bool) -> Statements;

        fn claim(
            connection: &mut Self::Connection,
            statements: &Statements,
            ask: Ask<'_>,
            last: &AtomicI64,
        ) -> impl Future<Output = Result<Found, ::sqlx::Error>> + Send;

        /// Returns the number of changed rows: one, or none.
        fn complete(
            connection: &mut Self::Connection,
            statement: &Statement,
            completed: Complete<'_>,
        ) -> impl Future<Output = Result<u64, ::sqlx::Error>> + Send;

        /// Returns the number of deleted rows.
        fn prune(
            connection: &mut Self::Connection,
            statement: &Statement,
            most: u32,
        ) -> impl Future<Output = Result<u64, ::sqlx::Error>> + Send;

        /// Runs the schema, one instance at a time.
        fn migrate(
            transaction: Transaction<Self>,
            schema: SqlStr,
        ) -> impl Future<Output = Result<(), ::sqlx::Error>> + Send;
    }
}

/// The statements about one table.
#[derive(Debug)]
pub struct Statements {
    pub(super) schema: SqlStr,
    pub(super) claim: Statement,
    /// Reads the record, where the claim statement cannot return it.
    #[cfg_attr(
        not(feature = "sqlx-sqlite"),
        allow(dead_code, reason = "in PostgreSQL the claim returns it")
    )]
    pub(super) look: Statement,
    pub(super) complete: Statement,
    pub(super) prune: Statement,
}

/// A statement with parameters.
#[derive(Debug)]
pub struct Statement {
    pub(super) text: SqlStr,
    /// Under a name, and kept by the connection: a pooler that changes the server's connection between transactions has no
    /// such statement on the next one, or another one of that name.
    pub(super) prepared: bool,
}

impl Statement {
    pub(super) fn query<'q, DB: Database + HasStatementCache>(
        &self,
    ) -> Query<'q, DB, DB::Arguments> {
        query(self.text.clone()).persistent(self.prepared)
    }
}

/// The parameters of a claim.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub(super) name: &'a str,
    pub(super) key: &'a str,
    pub(super) fingerprint: &'a [u8],
    pub(super) retention_ms: i64,
    /// Maximum wait for another transaction; `None`: no waiting.
    #[cfg_attr(
        not(feature = "sqlx-postgres"),
        allow(dead_code, reason = "SQLite waits as its connection says")
    )]
    pub(super) wait_ms: Option<u64>,
}

/// The parameters of a completion.
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
    /// Another transaction holds the key.
    Busy,
    /// The record as this transaction sees it.
    Row(Row),
}

/// A row after a claim.
#[derive(Debug)]
pub struct Row {
    /// `None` if the claim was granted.
    pub(super) fingerprint: Option<Vec<u8>>,
    pub(super) fence: i64,
    pub(super) attempt: i32,
    pub(super) outcome: Option<Vec<u8>>,
    pub(super) age_ms: i64,
    pub(super) left_ms: i64,
}
