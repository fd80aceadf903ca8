//! What a pool gives out and takes back.

use std::{future::Future, pin::Pin};

use ::sqlx::{Connection, Database, Error, Pool, pool::PoolConnectionMetadata};

use crate::{classify::ClassifySelf, verdict::Verdict};

/// The future of a check.
type Checked<'c> = Pin<Box<dyn Future<Output = Result<bool, Error>> + Send + 'c>>;

/// Whether no transaction is open on a connection: a check for
/// [`after_release`](::sqlx::pool::PoolOptions::after_release), for PostgreSQL and SQLite.
///
/// A transaction that a dropped future or a forgotten `COMMIT` has left open is rolled back, and the connection stays. On
/// one that is aborted, the connection is closed (`false`). So what the next call writes is committed, and it does not
/// fail with `25P02`. Costs one round trip, after the caller has its answer.
///
/// ```
/// # #[cfg(not(feature = "sqlx-sqlite"))] fn main() {}
/// # #[cfg(feature = "sqlx-sqlite")]
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = sqlx::sqlite::SqlitePoolOptions::new()
///     .after_release(resilience_core::sql::outside_transaction)
///     .connect("sqlite::memory:")
///     .await?;
/// # sqlx::query("SELECT 1").execute(&pool).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// Those of the connection, which the pool closes then.
pub fn outside_transaction<C>(connection: &mut C, _: PoolConnectionMetadata) -> Checked<'_>
where
    C: Connection,
{
    Box::pin(async move {
        // sqlx knows the state that the server reports after every statement, and tells it here alone: this begins no
        // transaction, which is an error, unless there is one already.
        match connection.begin_with("SELECT 1").await {
            Err(Error::BeginFailed) => Ok(true),
            Ok(left_open) => {
                tracing::warn!(target: "resilience", "a connection came back to its pool inside a transaction");
                left_open.rollback().await?;
                Ok(true)
            }
            Err(Error::Database(error)) => {
                tracing::warn!(target: "resilience", %error, "a connection came back to its pool inside an aborted transaction");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    })
}

/// Whether a connection can write: a check for
/// [`before_acquire`](::sqlx::pool::PoolOptions::before_acquire), for PostgreSQL (feature `sqlx-postgres`).
///
/// A connection to a primary that has become a replica, or to a database that was made read-only, is closed; the next one
/// is made to where the address leads now. Without it, a pool keeps such connections and answers `25006` for as long as
/// they last. Not for pools of replicas. Costs one round trip before each call; with
/// `test_before_acquire(false)` it takes the place of the pool's own.
///
/// # Errors
/// Those of the connection, which the pool closes then.
#[cfg(feature = "sqlx-postgres")]
pub fn writable(connection: &mut ::sqlx::PgConnection, _: PoolConnectionMetadata) -> Checked<'_> {
    use ::sqlx::{Row, raw_sql};
    Box::pin(async move {
        let read_only = raw_sql("SHOW transaction_read_only");
        let row = read_only.fetch_one(connection).await?;
        Ok(row.try_get::<&str, _>(0)? == "off")
    })
}

/// Runs `work` on a connection of the pool, and closes it instead of returning it if the work fails with an error after which
/// it must not be used again ([`discards_connection`](ClassifySelf::discards_connection)): so that a retry meets another
/// one. For single statements; for several that belong together take [`transaction`](super::transaction()).
///
/// ```
/// # #[cfg(not(feature = "sqlx-sqlite"))] fn main() {}
/// # #[cfg(feature = "sqlx-sqlite")]
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
/// let answer = resilience_core::sql::connection(&pool, async |db| {
///     sqlx::query_scalar::<_, i64>("SELECT 42").fetch_one(db).await
/// });
/// assert_eq!(answer.await?, 42);
/// # Ok(()) }
/// ```
///
/// # Errors
/// That of the work, or of the pool.
pub async fn connection<DB, T, E>(
    pool: &Pool<DB>,
    work: impl AsyncFnOnce(&mut DB::Connection) -> Result<T, E>,
) -> Result<T, E>
where
    DB: Database,
    E: From<Error> + ClassifySelf,
{
    let mut connection = pool.acquire().await?;
    let done = work(&mut connection).await;
    if done.as_ref().is_err_and(closes::<DB, E>) {
        connection.close_on_drop();
    }
    done
}

/// Whether a connection to this database is closed after `error`. SQLite has no line that could break and no session that
/// a server could change: what may succeed next time leaves its connection, and a database in memory, as they were.
pub(super) fn closes<DB: Database, E: ClassifySelf>(error: &E) -> bool {
    let lasts = DB::NAME != SQLITE || matches!(error.verdict(), Verdict::Permanent);
    lasts && error.discards_connection()
}

pub(super) const SQLITE: &str = "SQLite";
