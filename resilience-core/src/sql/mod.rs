//! What users of sqlx need: classification of errors, and idempotency keys in SQL transactions (feature `sqlx`).
//!
//! | item | what it does | feature |
//! |---|---|---|
//! | [`SqlxErrors`] | classifies [`sqlx::Error`]s for breaker and retry | `sqlx` |
//! | `inbox` | idempotency keys in the transaction that does the work | `sqlx-postgres`, `sqlx-sqlite` |
//!
//! # Classification
//!
//! [`SqlxErrors`] is the classifier for a stack of closures that fail with [`sqlx::Error`]; errors of your own
//! that wrap one can call its [`ClassifySelf`](crate::classify::ClassifySelf).
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{breaker::CircuitBreaker, bulkhead::Bulkhead, deadline::Timeout, execute, retry::Retry, sql::SqlxErrors};
//! use tower::ServiceBuilder;
//!
//! # fn main() -> Result<(), resilience_core::InvalidConfig> {
//! let db = execute::guard(
//!     ServiceBuilder::new()
//!         .layer(Timeout::new("db", Duration::from_secs(2))?.layer())
//!         .layer(Retry::builder("db").max_attempts(3).build()?.layer().classify(SqlxErrors))
//!         .layer(Bulkhead::builder("db").max_concurrent(32).build()?.layer())
//!         .layer(CircuitBreaker::builder("db").build()?.layer().classify(SqlxErrors)),
//! );
//! // let user = db.call_idempotent(|| async { query_as("select ..").fetch_one(&pool).await }).await?;
//! # let _ = db;
//! # Ok(()) }
//! ```
//!
//! The drivers are the application's choice and their types are not named here. The classifier reads what all of them
//! share: the kind of error, its code (an SQLSTATE, or SQLite's extended result code), and for MySQL, whose SQLSTATE is
//! often just `HY000`, the error number at the front of the message.
//!
//! # The table
//!
//! Transient: the database failed and may succeed next time; counted by a breaker, retried. Permanent: the database failed
//! and will fail again; counted, not retried. Success: the database worked, and the error is about the statement; never
//! retried, and a half-open breaker may close on it. **A code that is not listed is a success**: a database that answers is
//! not down. Ignored: the database was not called, or its answer was not understood here.
//!
//! | `sqlx::Error` | verdict |
//! |---|---|
//! | `Io`, `PoolTimedOut`, `Protocol`, `WorkerCrashed` | transient |
//! | `Tls`, `Configuration`, `PoolClosed`, and variants added since | permanent |
//! | `RowNotFound` | success |
//! | `ColumnNotFound`, `ColumnIndexOutOfBounds`, `ColumnDecode`, `Decode`, `Encode`, `TypeNotFound`, `InvalidArgument`, `AnyDriverError`, `InvalidSavePointStatement`, `BeginFailed` | ignored |
//! | `Database` of kind unique, foreign key, not null, check or exclusion violation | success |
//! | `Database`, other | by code, as follows; else success |
//!
//! | SQLSTATE | [PostgreSQL, appendix A](https://www.postgresql.org/docs/current/errcodes-appendix.html); also MySQL's | verdict |
//! |---|---|---|
//! | `08...` | connection exceptions; MySQL: too many connections (1040), communication errors, server shutdown (1053) | transient |
//! | `40...`, without `40002` | `40001` serialization failure, `40P01` deadlock, `40003` completion unknown; MySQL: deadlock (1213) | transient |
//! | `53000`, `53200`, `53300` | resources, memory, connections exhausted | transient |
//! | `55P03`, `55006` | lock not available, object in use | transient |
//! | `57...`, without `57P04` | `57014` cancelled (statement timeout), `57P01` admin shutdown, `57P02` crash shutdown, `57P03` cannot connect now, `57P05` idle session timeout | transient |
//! | `25P04`, `72000` | transaction timeout, snapshot too old | transient |
//! | `28...`, `3D000`, `57P04` | authorization failed, no such database, database dropped | permanent |
//! | `25006` | read-only: most often a primary that has become a replica, where this pool will find no other | permanent |
//! | `53100`, `53400`, `58...`, `F0...`, `XX...` | disk full, configured limit, system error, configuration file, internal error and corruption | permanent |
//!
//! | number | [MySQL error reference](https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html), and MariaDB's; goes before the SQLSTATE | verdict |
//! |---|---|---|
//! | 1037, 1038, 1041, 1135 | out of memory, no thread | transient |
//! | 1040, 1203, 1226 | too many connections, also of one user; user limit reached | transient |
//! | 1205, 1206, 1213, 1613, 1614, 3058, 3101, 3572 | lock wait timeout, lock table full, deadlock, XA timeout and deadlock, rollback during commit, `NOWAIT` | transient |
//! | 1053, 1317, 1927, 1969, 2002, 2003, 2006, 2013, 2055, 3024, 3168, 4031 | shutdown, query interrupted, connection killed or lost, statement timeout, server not available | transient |
//! | 1044, 1045, 1049, 1129, 1130, 1251, 1820, 1862, 3159 | access denied, unknown database, host blocked or not allowed, authentication | permanent |
//! | 1021, 1114, 1290, 1792, 1836 | disk or table full, read-only | permanent |
//!
//! | code | [SQLite result codes](https://www.sqlite.org/rescode.html), with all extended codes of each | verdict |
//! |---|---|---|
//! | 5, 6 | `BUSY`, `LOCKED` | transient |
//! | 7, 9, 15, 17, and of the extended ones 513, 516, 769 | `NOMEM`, `INTERRUPT`, `PROTOCOL` (a race for the log), `SCHEMA`; `ERROR_RETRY`, `ABORT_ROLLBACK`, `ERROR_SNAPSHOT` | transient |
//! | 2, 3, 8, 10, 11, 13, 14, 22, 26 | `INTERNAL`, `PERM`, `READONLY`, `IOERR`, `CORRUPT`, `FULL`, `CANTOPEN` (no such file), `NOLFS`, `NOTADB` | permanent |
//!
//! # What may be retried
//!
//! Transient says that another attempt may succeed, not that the first had no effect:
//!
//! - **Nothing was done**: `PoolTimedOut`, connections refused, `40001`, `40P01`, `53300`, `57P03`; MySQL 1040, 1213;
//!   SQLite `BUSY` outside a transaction. Repeat it as you like.
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

mod classify;
mod codes;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-sqlite"))]
pub mod inbox;

pub use self::classify::SqlxErrors;
