//! The outbox in SQLite.

use std::{future::pending, sync::Arc};

use ::sqlx::{
    Error, Pool, QueryBuilder, Row as _, SqlStr, Sqlite, query, raw_sql, sqlite::SqliteRow,
};

use super::{
    super::{Transaction, table::Table},
    dialect::{Begun, DeadRow, Dialect, Waiting, Without, sealed::Sealed},
    lease::Lease,
    queries::{steps, stored},
    row::{NewRow, StoredRow},
    statements::{Spelling, Statements},
};

impl Dialect for Sqlite {}

const NOW: &str = "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER)";

const SPELLING: Spelling = Spelling {
    schema: include_str!("sqlite/0001_outbox.sql"),
    insert: [
        "INSERT INTO {table} (name, format, id, stream, key, envelope, body) ",
        "",
        "",
    ],
    lock: None,
    among: "IN (SELECT value FROM json_each($2))",
    among_keys: "IN (SELECT value FROM json_each($3))",
    now: NOW,
    created_ms: "created_at",
    age_ms: [
        "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER) - ",
        "",
    ],
};

impl Sealed for Sqlite {
    /// Takes the write lock first: a transaction that reads before it writes fails when another has written since.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";
    const READ: &'static str = "BEGIN";
    const NOTIFIES: bool = false;

    fn statements(table: &Table, _locks: bool, _notifies: bool) -> Statements {
        SPELLING.fill(table)
    }

    async fn migrate(mut transaction: Transaction<Self>, schema: SqlStr) -> Result<(), Error> {
        raw_sql(schema).execute(&mut *transaction).await?;
        transaction.commit().await
    }

    steps!();

    async fn listen(_: Pool<Self>, _: Arc<str>, _: impl Fn() + Send + 'static) {
        pending().await
    }

    fn apart(pool: &Pool<Self>) -> Pool<Self> {
        pool.clone()
    }
}

stored!(SqliteRow);
