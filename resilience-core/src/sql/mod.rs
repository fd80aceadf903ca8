//! What error codes of databases say; for users of sqlx also transactions and pools that survive cancellation, idempotency
//! keys in SQL transactions, and events that are published with them.
//!
//! | item | what it does | feature |
//! |---|---|---|
//! | [`sqlstate`], [`mysql_error`], [`sqlite_error`] | classify error codes, of any driver | none |
//! | `SqlxErrors`, `condition` | classify errors of sqlx, for breaker and retry | `sqlx` |
//! | `transaction`, `begin` | transactions that no dropped future leaves open in the pool | `sqlx` |
//! | `connection` | single statements; closes connections that must not be used again | `sqlx` |
//! | `outside_transaction`, `writable` | checks for a pool | `sqlx`; `sqlx-postgres` |
//! | `inbox` | idempotency keys in the transaction that does the work | `sqlx-postgres`, `sqlx-sqlite` |
//! | `outbox` | events that are published if the transaction that writes them commits | `sqlx-postgres`, `sqlx-sqlite`, with `stream` |
//!
//! # Classification
//!
//! `SqlxErrors` is the classifier for a stack of closures that fail with `sqlx::Error`; errors of your own
//! that wrap one can call its [`ClassifySelf`](crate::classify::ClassifySelf).
//!
//! ```
//! # #[cfg(not(feature = "sqlx"))] fn main() {}
//! # #[cfg(feature = "sqlx")]
//! # fn main() -> Result<(), resilience_core::InvalidConfig> {
//! use std::time::Duration;
//! use resilience_core::{Bulkhead, CircuitBreaker, Retry, Timeout, execute, sql::SqlxErrors};
//! use tower::ServiceBuilder;
//!
//! let db = execute::guard(
//!     ServiceBuilder::new()
//!         .layer(Timeout::new("db", Duration::from_secs(2))?.layer())
//!         .layer(Retry::builder("db").max_attempts(3).build()?.layer().classify(SqlxErrors))
//!         .layer(Bulkhead::builder("db").max_concurrent(32).build()?.layer())
//!         .layer(CircuitBreaker::builder("db").build()?.layer().classify(SqlxErrors)),
//! );
//! // let user = db.call_idempotent(|| sql::connection(&pool, async |db| query_as("select ..").fetch_one(db).await)).await?;
//! # let _ = db;
//! # Ok(()) }
//! ```
//!
//! The drivers are the application's choice and their types are not named here. The classifier reads what all of them
//! share: the kind of error, its code (an SQLSTATE, or SQLite's extended result code), and for MySQL, whose SQLSTATE is
//! often just `HY000`, the error number at the front of the message. Other drivers' errors are classified by their code:
//! a sea-orm error by the sqlx error in it, one of tokio-postgres by [`sqlstate`], one of mysql_async by [`mysql_error`].
//! The tables are run against PostgreSQL, PgBouncer and SQLite. MySQL's and MariaDB's are not run against a server, and
//! there is no inbox in them.
//!
//! # The table
//!
//! Transient: the database failed and may succeed next time; counted by a breaker, retried. Permanent: the database failed
//! and will fail again; counted, not retried. Success: the database worked, and the error is about the statement; never
//! retried, and a half-open breaker may close on it. **A code that is not listed is a success**: a database that answers is
//! not down. Ignored: the database was not called, or its answer was not understood here.
//!
//! In the last column, *close* says that the connection must not be used again ([`Condition::discard_connection`]): it has
//! ended, or its session is not in the state that the client believes it to be in, so that the next call would fail as
//! well.
//!
//! | `sqlx::Error` | verdict | connection |
//! |---|---|---|
//! | `Io`, `Protocol`, `WorkerCrashed` | transient | close |
//! | `PoolTimedOut` | transient | |
//! | `Tls`, and variants added since | permanent | close |
//! | `Configuration`, `PoolClosed` | permanent | |
//! | `RowNotFound` | success | |
//! | `ColumnNotFound`, `ColumnIndexOutOfBounds`, `ColumnDecode`, `Decode`, `Encode`, `TypeNotFound`, `InvalidArgument`, `AnyDriverError` | ignored | |
//! | `InvalidSavePointStatement`, `BeginFailed` | ignored | close |
//! | `Database` of kind unique, foreign key, not null, check or exclusion violation | success | |
//! | `Database`, other | by code, as follows; else success | |
//!
//! | SQLSTATE | [PostgreSQL, appendix A](https://www.postgresql.org/docs/current/errcodes-appendix.html); also MySQL's | verdict | connection |
//! |---|---|---|---|
//! | `08...` | connection exceptions, also PgBouncer's; MySQL: too many connections (1040), communication errors, server shutdown (1053) | transient | close |
//! | `0A000` by the routine `RevalidateCachedQuery` | cached plan must not change result type: the table was altered since the statement was prepared on this connection | transient | close |
//! | `0A000`, other | not supported | success | |
//! | `25006` | read-only: most often a primary that has become a replica; another connection may lead to the new one | transient | close |
//! | `25P02` | the transaction is aborted: an earlier statement failed, in this call or in the one that left it | transient | close |
//! | `25P03`, `25P04` | ended by the idle or transaction timeout | transient | close |
//! | `25...`, other; `3B...` | inside or outside of a transaction or savepoint, against expectation | success | close |
//! | `26000`, `42P05` | prepared statement missing, or there already: another session than the driver believes, through a pooler | transient | close |
//! | `40...`, without `40002` and `40003` | `40001` serialization failure, `40P01` deadlock; MySQL: deadlock (1213) | transient | |
//! | `40003` | completion unknown | transient | close |
//! | `53000`, `53200` | resources, memory exhausted | transient | |
//! | `53300` | too many connections | transient | close |
//! | `55P03`, `55006` | lock not available, object in use | transient | |
//! | `57000`, `57014` | operator intervention, cancelled (statement timeout) | transient | |
//! | `57...`, other | `57P01` admin shutdown, `57P02` crash shutdown, `57P03` cannot connect now, `57P05` idle session timeout | transient | close |
//! | `72000` | snapshot too old | transient | |
//! | `28...`, `3D000`, `57P04` | authorization failed, no such database, database dropped | permanent | close |
//! | `F0...`, `XX...` | configuration file; internal error (also stale caches of the session), corruption | permanent | close |
//! | `53100`, `53400`, `58...` | disk full, configured limit, system error | permanent | |
//!
//! | number | [MySQL error reference](https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html), and MariaDB's; goes before the SQLSTATE | verdict | connection |
//! |---|---|---|---|
//! | 1037, 1038, 1041, 1135, 1226 | out of memory, no thread, user limit reached | transient | |
//! | 1020, 1205, 1206, 1213, 1613, 1614, 3058, 3101, 3572 | snapshot conflict, lock wait timeout, lock table full, deadlock, XA timeout and deadlock, rollback during commit, `NOWAIT` | transient | |
//! | 1317, 1969, 3024 | query interrupted, statement timeout | transient | |
//! | 1040, 1203 | too many connections, also of one user | transient | close |
//! | 1053, 1927, 2002, 2003, 2006, 2013, 2055, 3168, 4031 | shutdown, connection killed or lost, server not available | transient | close |
//! | 1243, 1461, 1615 | prepared statement unknown, too many of them, or to be prepared again | transient | close |
//! | 1290, 1792, 1836 | read-only: as `25006` | transient | close |
//! | 1044, 1045, 1049, 1129, 1130, 1251, 1820, 1862, 3159 | access denied, unknown database, host blocked or not allowed, authentication | permanent | close |
//! | 1021, 1114 | disk or table full | permanent | |
//!
//! | code | [SQLite result codes](https://www.sqlite.org/rescode.html), with all extended codes of each | verdict | connection |
//! |---|---|---|---|
//! | 5, 6 | `BUSY`, `LOCKED` | transient | |
//! | 7, 9, 15, 17, and of the extended ones 513, 516, 769 | `NOMEM`, `INTERRUPT`, `PROTOCOL` (a race for the log), `SCHEMA`; `ERROR_RETRY`, `ABORT_ROLLBACK`, `ERROR_SNAPSHOT` | transient | |
//! | 1032 | `READONLY_DBMOVED`: the file was moved or replaced | permanent | close |
//! | 2, 3, 8, 10, 11, 13, 14, 22, 26 | `INTERNAL`, `PERM`, `READONLY`, `IOERR`, `CORRUPT`, `FULL`, `CANTOPEN` (no such file), `NOLFS`, `NOTADB` | permanent | |
//!
//! # Connections that are shared
//!
//! A layer that gives up on a call (a timeout, a client that hangs up) drops its future wherever that is. Dropped while
//! sqlx begins a transaction, it can return a connection to the pool on which the server has an open transaction: the
//! next call's writes succeed and are never committed. And a connection that has failed in a way that lasts (*close*
//! above) fails every call that gets it, retries included. So:
//!
//! - begin transactions by `transaction` or `begin`, or run them in an inbox, which does;
//! - run single statements in `connection`, which closes what must not be used again;
//! - give the pool the checks `outside_transaction` (`after_release`) and, in front of a primary, `writable`
//!   (`before_acquire`), for code that does neither.
//!
//! **Through PgBouncer** in transaction mode, named prepared statements fail, or run another client's statement of the
//! same name; sqlx names all of them. Use `query(..).persistent(false)` inside a transaction, as the inbox does. sqlx
//! connects with `extra_float_digits`, which PgBouncer refuses unless configured otherwise:
//! `PgConnectOptions::extra_float_digits(None)`.
//!
//! # What may be retried
//!
//! Transient says that another attempt may succeed, not that the first had no effect:
//!
//! - **Nothing was done**: `PoolTimedOut`, connections refused, `0A000`, `25006`, `25P02`, `26000`, `40001`, `40P01`, `42P05`,
//!   `53300`, `57P03`; MySQL 1040, 1213, 1290; SQLite `BUSY` outside a transaction. Repeat it as you like.
//! - **The statement was undone, the transaction may live on**: `55P03`, `57014`, MySQL 1205, 3024, 3572. Repeat the
//!   transaction from its beginning: put the whole of it, from `begin` to `commit`, in the closure.
//! - **Unknown**: `Io` and `Protocol` after the statement was sent, `08...`, `57P01`, `57P02`, `40003`, MySQL 1053,
//!   2006, 2013, and whatever breaks during a `commit`. The statement may have been carried out. Repeat it only if
//!   doing it twice does no harm.
//!
//! The classifier cannot tell which of these are safe to repeat; the caller can: only
//! [`call_idempotent`](crate::execute::Guarded::call_idempotent) is ever retried.
//!
//! # References
//! The error tables of [PostgreSQL](https://www.postgresql.org/docs/current/errcodes-appendix.html),
//! [MySQL](https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html) and
//! [SQLite](https://www.sqlite.org/rescode.html).

#[cfg(feature = "sqlx")]
mod classify;
mod codes;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
pub mod inbox;
#[cfg(all(
    feature = "stream",
    any(feature = "sqlx-postgres", feature = "sqlx-sqlite")
))]
pub mod outbox;
#[cfg(feature = "sqlx")]
mod pool;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
mod statement;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
#[allow(unnameable_types, reason = "of a sealed trait")]
mod table;
#[cfg(feature = "sqlx")]
mod transaction;

pub use self::codes::{Condition, mysql_error, sqlite_error, sqlstate};
#[cfg(feature = "sqlx-postgres")]
pub use self::pool::writable;
#[cfg(feature = "sqlx")]
pub use self::{
    classify::{SqlxErrors, condition},
    pool::{connection, outside_transaction},
    transaction::{Transaction, begin, begin_with, transaction},
};
