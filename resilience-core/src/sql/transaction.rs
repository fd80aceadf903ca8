//! Transactions that cancellation cannot leave open in the pool.

use std::{
    fmt,
    future::Future,
    ops::{Deref, DerefMut},
    pin::{Pin, pin},
    time::Duration,
};

use ::sqlx::{Connection, Database, Error, Pool, SqlSafeStr, SqlStr, pool::PoolConnection};
use sqlx_core::transaction::TransactionManager;
use tokio::{sync::oneshot, time::timeout};
use tracing::instrument::{Instrument, WithSubscriber};

use super::{
    condition,
    pool::{SQLITE, closes},
};
use crate::{classify::ClassifySelf, verdict::Verdict};

type Manager<DB> = <DB as Database>::TransactionManager;

/// A transaction on a connection of a pool, from [`begin`]. Dereferences to the connection: `query.execute(&mut *tx)`.
///
/// Differs from [`sqlx::Transaction`](::sqlx::Transaction) in what a dropped future leaves behind:
///
/// | dropped | the transaction | the connection |
/// |---|---|---|
/// | while it waits in [`begin`] for a connection | has not begun | stays in the pool |
/// | while it begins | begins, and is rolled back | returns to the pool |
/// | before [`commit`](Self::commit) | is rolled back | returns to the pool |
/// | during `commit` | is committed, or fails | returns to the pool |
/// | with its task, or with a server that does not answer within the pool's `acquire_timeout` | unknown | is closed |
///
/// With sqlx alone, a future dropped while it begins can return a connection to the pool on which the server has an open
/// transaction: writes of the next user of that connection succeed, and are never committed.
///
/// A savepoint (`Connection::begin(&mut *tx)`) that is dropped while it begins rolls back the whole transaction, and the
/// statements that follow take effect one by one; `commit` then fails. Put a timeout around the transaction instead.
pub struct Transaction<DB: Database> {
    connection: PoolConnection<DB>,
    state: State,
    /// Time for a step that no caller waits for any more.
    grace: Duration,
}

/// What a connection is in when it is dropped.
#[derive(Clone, Copy, Debug)]
enum State {
    /// In the middle of a step, or after one that failed: it is unknown whether a transaction is open. Closed.
    Unknown,
    /// In a transaction. Rolled back, and returned to the pool.
    Open,
    /// In no transaction. Returned to the pool.
    Over,
}

/// Begins a transaction that no dropped future leaves open; see [`Transaction`].
///
/// In SQLite prefer [`begin_with`] and `BEGIN IMMEDIATE` for transactions that write. Costs a task beside sqlx's own
/// `pool.begin()`.
///
/// # Errors
/// Those of sqlx. After one that [discards the connection](super::Condition::discard_connection), it is closed.
pub async fn begin<DB: Database>(pool: &Pool<DB>) -> Result<Transaction<DB>, Error> {
    let connection = pool.acquire().await?;
    Transaction::open(connection, None, grace(pool)).await
}

/// Begins a transaction as [`begin`] does, by a statement of the caller's: `BEGIN ISOLATION LEVEL SERIALIZABLE`.
///
/// # Errors
/// As [`begin`], and `BeginFailed` if the statement begins no transaction.
pub async fn begin_with<DB: Database>(
    pool: &Pool<DB>,
    statement: impl SqlSafeStr,
) -> Result<Transaction<DB>, Error> {
    let statement = statement.into_sql_str();
    let connection = pool.acquire().await?;
    Transaction::open(connection, Some(statement), grace(pool)).await
}

/// Runs `work` in a transaction from [`begin`] and commits it; rolls it back if the work fails or this future is dropped
/// before that. The connection is closed after an error that says so
/// ([`discards_connection`](ClassifySelf::discards_connection)).
///
/// ```
/// # #[cfg(not(feature = "sqlx-sqlite"))] fn main() {}
/// # #[cfg(feature = "sqlx-sqlite")]
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use resilience_core::sql;
///
/// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
/// # sqlx::query("CREATE TABLE orders (item TEXT)").execute(&pool).await?;
/// let ordered = sql::transaction(&pool, async |tx| {
///     sqlx::query("INSERT INTO orders VALUES ('tea')").execute(&mut *tx).await?;
///     sqlx::query_scalar::<_, i64>("SELECT count(*) FROM orders").fetch_one(&mut *tx).await
/// });
/// assert_eq!(ordered.await?, 1);
/// # Ok(()) }
/// ```
///
/// # Errors
/// That of the work, or of the database.
pub async fn transaction<DB, T, E>(
    pool: &Pool<DB>,
    work: impl AsyncFnOnce(&mut DB::Connection) -> Result<T, E>,
) -> Result<T, E>
where
    DB: Database,
    E: From<Error> + ClassifySelf,
{
    let mut transaction = begin(pool).await?;
    match work(&mut transaction).await {
        Ok(value) => {
            transaction.commit().await?;
            Ok(value)
        }
        Err(error) => {
            transaction.end_after(&error);
            Err(error)
        }
    }
}

/// Time that a step may take which no caller waits for any more: what a caller would have waited for a connection.
pub(super) fn grace<DB: Database>(pool: &Pool<DB>) -> Duration {
    pool.options().get_acquire_timeout()
}

impl<DB: Database> Transaction<DB> {
    pub(super) async fn open(
        connection: PoolConnection<DB>,
        statement: Option<SqlStr>,
        grace: Duration,
    ) -> Result<Self, Error> {
        let mut beginning = Self {
            connection,
            state: State::Unknown,
            grace,
        };
        to_its_end(grace, async move {
            let begun = Manager::<DB>::begin(&mut beginning.connection, statement).await;
            beginning.state = match &begun {
                Ok(()) => State::Open,
                // Locked by another writer: the database says that it did not begin.
                Err(error) if is_refusal(error) => State::Over,
                Err(_) => State::Unknown,
            };
            begun.map(|()| beginning)
        })
        .await
    }

    /// Commits. The step ends even if this future is dropped.
    ///
    /// # Errors
    /// Those of the database: the transaction is rolled back, except after a lost connection, when it may have been
    /// committed. `Protocol` if the transaction was over before; see [`Transaction`].
    pub async fn commit(mut self) -> Result<(), Error> {
        self.state = State::Unknown;
        to_its_end(self.grace, async move { self.committed().await }).await
    }

    async fn committed(&mut self) -> Result<(), Error> {
        self.is_still_open().await?;
        let committed = Manager::<DB>::commit(&mut self.connection).await;
        self.state = match &committed {
            Ok(()) => State::Over,
            Err(error) if condition(error).discard_connection => State::Unknown,
            // SQLite's goes on, and is rolled back.
            Err(_) => State::Open,
        };
        committed
    }

    /// Rolls back, and waits for it; dropping the transaction rolls back too. The step ends even if this future is dropped.
    ///
    /// # Errors
    /// Those of the database. The connection is closed then.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.state = State::Unknown;
        to_its_end(self.grace, async move { self.rolled_back().await }).await
    }

    async fn rolled_back(&mut self) -> Result<(), Error> {
        Manager::<DB>::rollback(&mut self.connection).await?;
        self.state = State::Over;
        Ok(())
    }

    /// Closes the connection instead of returning it to the pool: after an error that
    /// [says so](super::Condition::discard_connection). The server rolls back.
    pub fn discard(mut self) {
        self.state = State::Unknown;
    }

    /// Rolls back or discards, as the error says.
    pub(super) fn end_after<E: ClassifySelf>(self, error: &E) {
        if closes::<DB, E>(error) {
            self.discard();
        }
    }

    /// Fails if a savepoint has taken the transaction with it: sqlx would report success without having committed anything.
    async fn is_still_open(&mut self) -> Result<(), Error> {
        if DB::NAME == SQLITE {
            // A queued rollback is carried out by another thread, before this.
            self.connection.ping().await?;
        }
        if Manager::<DB>::get_transaction_depth(&self.connection) == 1 {
            return Ok(());
        }
        let why = "the transaction is over: a savepoint in it was dropped while it began";
        Err(Error::Protocol(why.to_owned()))
    }
}

/// Whether the database refused to begin and may do so later.
fn is_refusal(error: &Error) -> bool {
    let condition = condition(error);
    matches!(condition.verdict, Verdict::Transient { .. }) && !condition.discard_connection
}

/// Runs a step in a task of its own, so that it ends also when the caller does not wait for it: then for at most `grace` longer.
async fn to_its_end<T: Send + 'static>(
    grace: Duration,
    step: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let (mut reply, answer) = oneshot::channel();
    let task = async move {
        let mut step = pin!(step);
        let ended = tokio::select! {
            biased;
            ended = &mut step => Ok(ended),
            () = reply.closed() => timeout(grace, step).await,
        };
        if let Ok(ended) = ended {
            // Without a caller, what the step made is dropped here.
            let _ = reply.send(ended);
        }
    };
    let task: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(task);
    tokio::spawn(task.in_current_span().with_current_subscriber());
    answer.await.unwrap_or(Err(Error::WorkerCrashed))
}

impl<DB: Database> Drop for Transaction<DB> {
    fn drop(&mut self) {
        match self.state {
            State::Unknown => self.connection.close_on_drop(),
            State::Open => Manager::<DB>::start_rollback(&mut self.connection),
            State::Over => {}
        }
    }
}

impl<DB: Database> Deref for Transaction<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl<DB: Database> DerefMut for Transaction<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

impl<DB: Database> fmt::Debug for Transaction<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
