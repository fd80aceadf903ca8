//! An inbox: idempotency keys in the transaction that does the work (features `sqlx-postgres`, `sqlx-sqlite`).
//!
//! A record elsewhere (in Redis, say) and an effect in a database cannot be written atomically: a crash between the two
//! leaves one without the other. Here the record is a row in the same database. It is committed together with the effect or
//! not at all, so the effect takes place once: no lease, no zombie, nothing to reconcile.
//!
//! ```
//! # #[cfg(not(feature = "sqlx-sqlite"))] fn main() {}
//! # #[cfg(feature = "sqlx-sqlite")]
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use resilience_core::{SqliteInbox, idempotency::{Fingerprint, Key}, sql::inbox::Claimed};
//! use sqlx::{SqlitePool, query};
//!
//! # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
//! # query("CREATE TABLE orders (item TEXT)").execute(&pool).await?;
//! let inbox = SqliteInbox::builder("orders").build()?;
//! inbox.migrate(&pool).await?;
//!
//! let key = Key::new("order-1").scope("tenant-7").fingerprint(Fingerprint::of([b"tea".as_slice()]));
//! let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
//! match inbox.claim(&mut tx, &key).await? {
//!     Claimed::Fresh(entry) => {
//!         query("INSERT INTO orders VALUES ('tea')").execute(&mut *tx).await?;
//!         entry.complete(&mut tx, b"ordered").await?;
//!         tx.commit().await?;
//!     }
//!     Claimed::Done(settled) => println!("done before: {:?}", settled.outcome),
//!     Claimed::Mismatch => println!("the key belongs to another order"),
//!     Claimed::Busy => println!("another transaction is in progress"),
//!     _ => {}
//! }
//! # let mut tx = pool.begin().await?;
//! # assert!(matches!(inbox.claim(&mut tx, &key).await?, Claimed::Done(_)));
//! # Ok(()) }
//! ```
//!
//! [`Inbox::run`] does this for a closure: begins, commits, and repeats the transaction where necessary. By hand, begin with
//! [`sql::begin`](super::begin()) where the caller's future may be dropped.
//!
//! # Concurrency
//! Calls of [`Inbox::run`] with one key in one process (of an inbox and its clones) wait for each other before they take a
//! connection, in order of arrival. Transactions of other processes, and claims by hand, wait in the database, each with its
//! connection.
//!
//! **PostgreSQL.** Claims on a key go one at a time, by an advisory lock of the transaction. The second waits for the
//! end of the first, for as long as [`wait`](InboxBuilder::wait) says, or [not at all](InboxBuilder::no_wait); then it
//! sees what the first has left: its record, or nothing, if it was rolled back. Claims on completed keys take no lock.
//! This holds from `READ COMMITTED` to `SERIALIZABLE`. In `REPEATABLE READ` and `SERIALIZABLE`, a claim that waited for
//! a transaction which committed fails with SQLSTATE `40001`, as any statement does that meets an update it cannot see:
//! repeat the transaction. [`Inbox::run`] does. A transaction holds one lock per key that it claims; PostgreSQL has
//! room for some thousands by default (`max_locks_per_transaction`).
//!
//! **SQLite.** There is one writer at a time. Begin with `BEGIN IMMEDIATE`: a transaction that has read before it claims
//! fails (`SQLITE_BUSY_SNAPSHOT`) when another has written since. A wait longer than the connection's `busy_timeout` fails
//! with `SQLITE_BUSY`, which says nothing about the key.
//!
//! # A faster store in front
//! With a [front](InboxBuilder::front), say in Redis, [`Inbox::run`] replays committed outcomes from there, without a query.
//! The database stays authoritative: the front is told what was committed, and nothing else it says counts. When it has lost
//! its data, is slow or unavailable, has no record, or says that another attempt is in progress or that the key belongs to
//! other work, the database decides. A front that failed three times in a row is skipped until it answers again. It keeps
//! outcomes no longer than the database does. After restoring the database from a backup, flush the front.
//!
//! # Connections
//! A dropped call leaves no transaction open in the pool, and a connection that [must not be used
//! again](super#the-table) is closed: in the inbox's own statements, and when the error of the work
//! [says so](crate::classify::ClassifySelf::discards_connection). The statements of the inbox work through a pooler that gives the
//! server's connection to another client after each transaction, such as PgBouncer; those of the work do when they are
//! unprepared too (`query(..).persistent(false)`).
//!
//! # Cost
//! A claim is one statement, and so is a completion; in SQLite a replay is two. In PostgreSQL each takes two round trips, or one
//! if it is [prepared](InboxBuilder::prepared_statements). Begin and commit are tasks. A front adds two round trips to the first
//! call, and replays then cost one round trip to the front. Times are read from the database's clock.
//!
//! # Limits
//! Effects outside of the database are not rolled back with it. Give them [`Entry::fence`] or a key derived from
//! [`Entry::key`], so that the receiver can tell repeated ones.
//!
//! # References
//! Richardson, [Idempotent consumer](https://microservices.io/patterns/communication-style/idempotent-consumer.html); Helland,
//! [Life beyond Distributed Transactions](https://queue.acm.org/detail.cfm?id=3025012) (ACM Queue, 2016).

mod builder;
mod claim;
// The trait is sealed: it and the types it mentions are visible, but cannot be named.
#[allow(unnameable_types)]
mod dialect;
mod front;
#[cfg(feature = "sqlx-postgres")]
mod postgres;
mod queue;
mod run;
#[cfg(feature = "sqlx-sqlite")]
mod sqlite;
mod totals;
mod work;

use std::{
    fmt,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use ::sqlx::{Database, Pool};
use tokio::time::Instant;

pub use builder::InboxBuilder;
#[cfg(feature = "sqlx-postgres")]
pub use builder::Isolation;
pub use claim::{Claimed, Entry, Settled};
pub use dialect::Dialect;
use dialect::{Ask, Found, Row, Statements};
use front::Front;
use queue::KeyQueue;
pub use totals::InboxSnapshot;
use totals::Totals;
pub use work::{Done, Work};

use super::begin_with;
use crate::{deadline::before_deadline, error::Pattern, idempotency::Key, retry::Backoff};

/// An inbox in PostgreSQL.
#[cfg(feature = "sqlx-postgres")]
pub type PgInbox = Inbox<::sqlx::Postgres>;

/// An inbox in SQLite.
#[cfg(feature = "sqlx-sqlite")]
pub type SqliteInbox = Inbox<::sqlx::Sqlite>;

/// Records of work in the database that the work changes; see the [module](self). Clones share one inbox.
pub struct Inbox<DB: Dialect> {
    shared: Arc<Shared<DB>>,
}

struct Shared<DB> {
    name: Arc<str>,
    statements: Statements,
    begin: &'static str,
    retention: Duration,
    wait: Option<Duration>,
    max_waiting: usize,
    queue: KeyQueue,
    max_outcome: usize,
    max_attempts: u32,
    retry_for: Duration,
    backoff: Backoff,
    front: Option<Front>,
    /// The highest fence so far: SQLite has no sequences, and could repeat one after a rollback.
    last_fence: AtomicI64,
    totals: Totals,
    /// [`telemetry::retire`], for a `Drop` without the bounds of its trait.
    retire: fn(&Self),
    database: PhantomData<fn() -> DB>,
}

impl<DB: Dialect> Inbox<DB> {
    /// Starts a builder for an inbox called `name`. Inboxes of different names have separate keys: name it after the
    /// operation.
    pub fn builder(name: impl Into<Arc<str>>) -> InboxBuilder<DB> {
        InboxBuilder::new(name.into())
    }

    /// The name that the inbox was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The schema, for migrations that are kept elsewhere: statements that can be run repeatedly.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.shared.statements.schema.as_str()
    }

    /// Returns the counts of the inbox since it was built.
    #[must_use]
    pub fn snapshot(&self) -> InboxSnapshot {
        self.shared.totals.snapshot()
    }

    /// Creates the table and what belongs to it, unless they exist. Any number of instances may do so at once, at every start.
    /// Needs the right to create; where the service does not have it, run [`schema`](Self::schema) by other means. The service itself needs `SELECT`, `INSERT`, `UPDATE` and `DELETE` on the table, and in
    /// PostgreSQL `USAGE` on the sequence named after it (`inbox_fence`).
    ///
    /// # Errors
    /// Those of the database. Nothing is changed then.
    pub async fn migrate(&self, pool: &Pool<DB>) -> Result<(), ::sqlx::Error> {
        let transaction = begin_with(pool, DB::BEGIN).await?;
        DB::migrate(transaction, self.shared.statements.schema.clone()).await
    }

    /// Claims `key` in the transaction that `connection` is in, preferably as its first statement.
    ///
    /// The key's scope separates tenants; its fingerprint identifies the work, so that a key that is reused for other work is
    /// noticed. Outside of a transaction a claim protects nothing.
    ///
    /// Dropping the future leaves the claim undecided: roll back, as a dropped transaction does by itself.
    ///
    /// # Errors
    /// Those of the database, and `InvalidArgument` for a key with a NUL in it.
    pub async fn claim(
        &self,
        connection: &mut <DB as Database>::Connection,
        key: &Key,
    ) -> Result<Claimed<DB>, ::sqlx::Error> {
        self.claim_within(connection, key, self.shared.wait).await
    }

    /// Claims with a wait of at most `wait`, and of at most what is left of the deadline.
    async fn claim_within(
        &self,
        connection: &mut <DB as Database>::Connection,
        key: &Key,
        wait: Option<Duration>,
    ) -> Result<Claimed<DB>, ::sqlx::Error> {
        let (key, fingerprint) = (key.stored(), key.print().bytes());
        if key.contains('\0') {
            // PostgreSQL cannot store it.
            return Err(::sqlx::Error::InvalidArgument(
                "a key must not contain NUL".to_owned(),
            ));
        }
        let shared = &self.shared;
        let wait_ms = wait.map(|wait| {
            let wait = before_deadline(wait).saturating_duration_since(Instant::now());
            (wait.as_millis() as u64).max(1)
        });
        let ask = Ask {
            name: &shared.name,
            key: &key,
            fingerprint,
            retention_ms: millis(shared.retention),
            wait_ms,
        };
        let found = DB::claim(connection, &shared.statements, ask, &shared.last_fence);
        let claimed = match found.await? {
            Found::Busy => Claimed::Busy,
            Found::Row(row) => self.claimed(&key, fingerprint, row),
        };
        let totals = &shared.totals;
        let (answer, counter) = match &claimed {
            Claimed::Fresh(_) => ("fresh", &totals.fresh),
            Claimed::Done(_) => ("done", &totals.replayed),
            Claimed::Mismatch => ("mismatch", &totals.mismatched),
            Claimed::Busy => ("busy", &totals.busy),
        };
        counter.fetch_add(1, Relaxed);
        tracing::debug!(target: "resilience", pattern = Pattern::Idempotency.as_str(), name = &*shared.name, answer, "claim on the inbox");
        Ok(claimed)
    }

    fn claimed(&self, key: &str, fingerprint: &[u8], row: Row) -> Claimed<DB> {
        if row.fingerprint.is_some_and(|stored| stored != fingerprint) {
            return Claimed::Mismatch;
        }
        let attempt = row.attempt.cast_unsigned();
        match row.outcome {
            Some(outcome) => Claimed::Done(Settled {
                outcome: outcome.into(),
                fence: row.fence.cast_unsigned(),
                attempt,
                age: Duration::from_millis(row.age_ms.max(0).cast_unsigned()),
                expires_in: Duration::from_millis(row.left_ms.max(0).cast_unsigned()),
            }),
            None => Claimed::Fresh(Entry::new(
                Arc::clone(&self.shared),
                key.into(),
                row.fence,
                attempt,
            )),
        }
    }

    /// Deletes expired records of all inboxes in the table, `batch` records at a time (at least one), each batch in a
    /// transaction of its own; returns their number. Several instances may do so at once. Blocks no claims: call it every few
    /// minutes.
    ///
    /// Dropping the future leaves the batches so far deleted.
    ///
    /// # Errors
    /// Those of the database. The batches before stay deleted.
    pub async fn prune(&self, pool: &Pool<DB>, batch: u32) -> Result<u64, ::sqlx::Error> {
        let batch = batch.max(1);
        let mut deleted = 0;
        loop {
            let mut transaction = begin_with(pool, DB::BEGIN).await?;
            let statement = &self.shared.statements.prune;
            let now = match DB::prune(&mut transaction, statement, batch).await {
                Ok(now) => now,
                Err(error) => {
                    transaction.end_after(&error);
                    return Err(error);
                }
            };
            transaction.commit().await?;
            deleted += now;
            if now < u64::from(batch) {
                return Ok(deleted);
            }
        }
    }
}

/// Milliseconds as the database's integer.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}

impl<DB: Dialect> Clone for Inbox<DB> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<DB: Dialect> fmt::Debug for Inbox<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("name", &self.shared.name)
            .field("retention", &self.shared.retention)
            .field("wait", &self.shared.wait)
            .finish_non_exhaustive()
    }
}
