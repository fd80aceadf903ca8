//! An inbox: idempotency keys in the transaction that does the work (features `sqlx-postgres`, `sqlx-sqlite`).
//!
//! A record elsewhere, in Redis say, and an effect in a database cannot be written at once: between the two there is a
//! moment in which a crash leaves one without the other. Here the record is a row in the same database. It is committed
//! together with the effect or not at all, and so the effect takes place once: no lease, no zombie, nothing to reconcile.
//!
//! ```
//! # #[cfg(not(feature = "sqlx-sqlite"))] fn main() {}
//! # #[cfg(feature = "sqlx-sqlite")]
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use resilience_core::{idempotency::{Fingerprint, Key}, sql::inbox::{Claimed, SqliteInbox}};
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
//!     Claimed::Busy => println!("somebody is at it"),
//!     _ => {}
//! }
//! # let mut tx = pool.begin().await?;
//! # assert!(matches!(inbox.claim(&mut tx, &key).await?, Claimed::Done(_)));
//! # Ok(()) }
//! ```
//!
//! [`Inbox::run`] is the same as a closure, with the transaction begun, committed, and repeated where it has to be.
//!
//! # Two at the same time
//! **PostgreSQL.** Claims on a key go one at a time, by an advisory lock of the transaction. The second waits for the
//! end of the first, for as long as [`wait`](InboxBuilder::wait) says, or [not at all](InboxBuilder::no_wait); then it
//! sees what the first has left: its record, or nothing, if it was rolled back. Claims on completed keys take no lock.
//! This holds from `READ COMMITTED` to `SERIALIZABLE`. In `REPEATABLE READ` and `SERIALIZABLE`, a claim that waited for
//! a transaction which committed fails with SQLSTATE `40001`, as any statement does that meets an update it cannot see:
//! repeat the transaction. [`Inbox::run`] does. A transaction holds one lock per key that it claims; PostgreSQL has
//! room for some thousands by default (`max_locks_per_transaction`).
//!
//! **SQLite.** There is one writer at a time. Begin with `BEGIN IMMEDIATE`: a transaction that has read before it claims
//! is refused (`SQLITE_BUSY_SNAPSHOT`) when another has written since. Who has to wait longer than the connection's
//! `busy_timeout` gets `SQLITE_BUSY`, which says nothing about the key.
//!
//! # A faster store in front
//! With a [front](InboxBuilder::front), say in Redis, [`Inbox::run`] replays what is done from there, and does not touch
//! the database. The database is the truth: the front is told what was committed, and believed in nothing else. When it
//! is lost, slow or away, when it knows nothing, or says that somebody is at work or that the key is another's, the
//! database decides. What it keeps, it keeps for no longer than the database does. After the database was restored from
//! a backup, flush the front.
//!
//! # What it costs
//! A claim is one statement, and so is a completion; in SQLite a replay is two. A front adds its two round trips to the
//! first call, and takes everything else from the replays. Times are read from the database's clock.
//!
//! # What it does not do
//! Effects outside of the database are not rolled back with it. Give them [`Entry::fence`] or a key derived from
//! [`Entry::key`], so that whoever receives them can tell.

mod builder;
mod claim;
// Sealed: its trait can be seen and not be named, and so it is with what the trait mentions.
#[allow(unnameable_types)]
mod dialect;
mod front;
#[cfg(feature = "sqlx-postgres")]
mod postgres;
mod run;
#[cfg(feature = "sqlx-sqlite")]
mod sqlite;
#[allow(unnameable_types)]
mod table;
mod totals;

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

pub use builder::InboxBuilder;
#[cfg(feature = "sqlx-postgres")]
pub use builder::Isolation;
pub use claim::{Claimed, Entry, Settled};
pub use dialect::Dialect;
use dialect::{Ask, Found, Row, Statements};
use front::Front;
pub use run::{Done, Work};
pub use totals::InboxSnapshot;
use totals::Totals;

use crate::{error::Pattern, idempotency::Key, retry::Backoff};

/// An inbox in PostgreSQL.
#[cfg(feature = "sqlx-postgres")]
pub type PgInbox = Inbox<::sqlx::Postgres>;

/// An inbox in SQLite.
#[cfg(feature = "sqlx-sqlite")]
pub type SqliteInbox = Inbox<::sqlx::Sqlite>;

/// Records of work, kept beside what the work changes. See the [module](self). Clones are the same inbox.
pub struct Inbox<DB: Dialect> {
    shared: Arc<Shared<DB>>,
}

struct Shared<DB> {
    name: Arc<str>,
    statements: Statements,
    begin: &'static str,
    retention: Duration,
    wait: Option<Duration>,
    max_outcome: usize,
    max_attempts: u32,
    backoff: Backoff,
    front: Option<Front>,
    /// What SQLite, which has no sequences, might give out again after a rollback.
    last_fence: AtomicI64,
    totals: Totals,
    /// [`telemetry::retire`], for a `Drop` without the bounds of its trait.
    retire: fn(&Self),
    database: PhantomData<fn() -> DB>,
}

impl<DB: Dialect> Inbox<DB> {
    /// An inbox called `name`. Keys of inboxes with different names have nothing to do with each other: name it after
    /// the operation.
    pub fn builder(name: impl Into<Arc<str>>) -> InboxBuilder<DB> {
        InboxBuilder::new(name.into())
    }

    /// The name that it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The schema, for whoever keeps migrations elsewhere: statements that may be run again and change nothing then.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.shared.statements.schema.as_str()
    }

    /// What it has counted so far, for all of its clones.
    #[must_use]
    pub fn snapshot(&self) -> InboxSnapshot {
        self.shared.totals.snapshot()
    }

    /// Creates the table and what belongs to it, unless they are there. Any number of instances may do so at once, at
    /// every start. Needs the right to create; where the service does not have it, run [`schema`](Self::schema) by
    /// other means. The service itself needs `SELECT`, `INSERT`, `UPDATE` and `DELETE` on the table, and in
    /// PostgreSQL `USAGE` on the sequence named after it (`inbox_fence`).
    ///
    /// # Errors
    /// Those of the database. Nothing is changed then.
    pub async fn migrate(&self, pool: &Pool<DB>) -> Result<(), ::sqlx::Error> {
        let transaction = pool.begin_with(DB::BEGIN).await?;
        DB::migrate(transaction, self.shared.statements.schema.clone()).await
    }

    /// Asks for the work, in the transaction that `connection` is in: the first statement of it, if it can be.
    ///
    /// The key's scope keeps tenants apart; its fingerprint says what the work is about, so that a key which is used for
    /// something else is noticed. Outside of a transaction a claim protects nothing.
    ///
    /// A future that is dropped leaves the claim undecided; roll back, as a dropped transaction does of itself.
    ///
    /// # Errors
    /// Those of the database, and `InvalidArgument` for a key with a NUL in it.
    pub async fn claim(
        &self,
        connection: &mut <DB as Database>::Connection,
        key: &Key,
    ) -> Result<Claimed<DB>, ::sqlx::Error> {
        let (key, fingerprint) = (key.stored(), key.print().bytes());
        if key.contains('\0') {
            // PostgreSQL cannot store it.
            return Err(::sqlx::Error::InvalidArgument(
                "a key has no NUL in it".to_owned(),
            ));
        }
        let shared = &self.shared;
        let wait_ms = shared.wait.map(|wait| wait.as_millis() as u64);
        let ask = Ask {
            name: &shared.name,
            key: &key,
            fingerprint,
            retention_ms: millis(shared.retention),
            wait_ms,
        };
        let Statements { claim, look, .. } = &shared.statements;
        let found = DB::claim(
            connection,
            claim.clone(),
            look.clone(),
            ask,
            &shared.last_fence,
        );
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

    /// Deletes what has expired, of every inbox in the table, `batch` records at a time (at least one), each batch in a
    /// transaction of its own; says how many there were. Several instances may do so at once. Nobody waits for it:
    /// call it every few minutes.
    ///
    /// Dropped half-way, the batches so far are deleted.
    ///
    /// # Errors
    /// Those of the database. The batches before stay deleted.
    pub async fn prune(&self, pool: &Pool<DB>, batch: u32) -> Result<u64, ::sqlx::Error> {
        let batch = batch.max(1);
        let mut deleted = 0;
        loop {
            let mut connection = pool.acquire().await?;
            let statement = self.shared.statements.prune.clone();
            let now = DB::prune(&mut connection, statement, batch).await?;
            deleted += now;
            if now < u64::from(batch) {
                return Ok(deleted);
            }
        }
    }
}

/// As a number of the database's.
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
