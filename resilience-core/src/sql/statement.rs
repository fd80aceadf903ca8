//! Statements whose text contains a checked table name.

use std::sync::Arc;

use ::sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// The text of a statement that contains a checked table name.
pub(in crate::sql) fn text(text: String) -> SqlStr {
    // Only the table's name was inserted, which `Table` has checked.
    // Shared, because each call clones it.
    AssertSqlSafe(Arc::<str>::from(text)).into_sql_str()
}

/// The lock that a migration in PostgreSQL takes: `IF NOT EXISTS` alone can fail when two transactions create the same object.
/// Any number will do, as long as it stays.
#[cfg(feature = "sqlx-postgres")]
pub(in crate::sql) const MIGRATING: i64 = 0x7265_7369_6c69_656e;
