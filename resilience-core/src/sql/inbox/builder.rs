//! The builder of an inbox.

use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use super::{
    super::table::Table, Dialect, Inbox, Shared, front::Front, queue::KeyQueue, totals::Totals,
};
use crate::{
    error::InvalidConfig, fleet::IntoStore, idempotency::IdempotencyStore, retry::Backoff,
    telemetry,
};

/// Settings of an [`Inbox`]; checked in [`build`](Self::build).
#[derive(Clone)]
#[must_use = "a builder does nothing before `build`"]
pub struct InboxBuilder<DB> {
    name: Arc<str>,
    table: String,
    retention: Duration,
    wait: Option<Duration>,
    max_waiting: usize,
    max_outcome: usize,
    max_attempts: u32,
    retry_for: Duration,
    backoff: Backoff,
    prepared: Option<bool>,
    front: Option<(Arc<dyn IdempotencyStore>, Duration)>,
    begin: Option<&'static str>,
    database: PhantomData<fn() -> DB>,
}

/// Maximum retention: a hundred years.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

impl<DB: Dialect> InboxBuilder<DB> {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            table: "inbox".to_owned(),
            retention: Duration::from_secs(7 * 86_400),
            wait: Some(Duration::from_secs(5)),
            max_waiting: 1_000,
            max_outcome: 1 << 20,
            max_attempts: 5,
            retry_for: Duration::from_secs(10),
            backoff: Backoff::full_jitter(Duration::from_millis(5), Duration::from_millis(500)),
            prepared: None,
            front: None,
            begin: None,
            database: PhantomData,
        }
    }

    /// Name of the table, `table` or `schema.table` of lower-case letters, digits and underscores. Default: `inbox`. Inboxes of
    /// different names may share one.
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = table.into();
        self
    }

    /// How long a record is kept after its completion. Default: a week. Must be longer than the longest time after which the
    /// same work may be requested again: later requests run it again.
    pub const fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Maximum wait for another transaction with the same key. Default: 5 s. After it, the claim is
    /// [busy](super::Claimed::Busy). Never longer than the [current deadline](crate::deadline::current).
    ///
    /// In [`run`](Inbox::run), calls of one inbox in one process wait in a queue per key, in order of arrival and without a
    /// connection; what is left of the wait is for transactions of other processes.
    ///
    /// SQLite has one writer at a time; others wait for up to the connection's `busy_timeout`, whatever their keys. Neither this nor
    /// [`no_wait`](Self::no_wait) changes that.
    pub const fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Disables waiting for another transaction with the same key: such a claim is [busy](super::Claimed::Busy) at once.
    pub const fn no_wait(mut self) -> Self {
        self.wait = None;
        self
    }

    /// Maximum number of calls of [`run`](Inbox::run) that wait in the queue of one key. Default: 1,000. Further ones are rejected
    /// at once, with [`InFlight`](crate::Reason::InFlight).
    pub const fn max_waiting(mut self, calls: usize) -> Self {
        self.max_waiting = calls;
        self
    }

    /// Maximum size of an outcome in bytes. Default: 1 MiB. A larger one is an error, and the work is rolled back.
    pub const fn max_outcome(mut self, bytes: usize) -> Self {
        self.max_outcome = bytes;
        self
    }

    /// Maximum number of transactions of one [`run`](Inbox::run), when they fail with transient errors. Default: 5.
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Time after the begin of the first of those transactions within which another one may begin. Default: 10 s. Bounds a
    /// call whose work itself waits before it fails, for a lock or for a connection of the same pool.
    pub const fn retry_for(mut self, time: Duration) -> Self {
        self.retry_for = time;
        self
    }

    /// Pauses between those transactions. Default: full jitter from 5 ms up to 500 ms.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Puts a faster store in front of the database; see the [module](super). `budget` is the time for each of its two steps,
    /// between 1 ms and 1 day; without an answer by then the database decides.
    pub fn front(mut self, store: impl IntoStore<dyn IdempotencyStore>, budget: Duration) -> Self {
        self.front = Some((store.into_store(), budget));
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`InvalidConfig`] if the name is empty or longer than 255 bytes, the table's name is no identifier, the retention is
    /// below a second or above a hundred years, the wait is zero (use [`no_wait`](Self::no_wait)) or above a day, the front's
    /// budget is out of bounds, or a number is zero.
    pub fn build(self) -> Result<Inbox<DB>, InvalidConfig> {
        // Part of the primary key, whose size PostgreSQL limits.
        if self.name.is_empty() || self.name.len() > 255 || self.name.contains('\0') {
            return Err(InvalidConfig::new(
                "name",
                &self.name,
                "must have 1 to 255 bytes and no NUL",
            ));
        }
        let table = Table::parse(&self.table)?;
        if !(Duration::from_secs(1)..=LONGEST).contains(&self.retention) {
            return Err(InvalidConfig::new(
                "retention",
                self.retention,
                "must be between a second and a hundred years",
            ));
        }
        let day = Duration::from_secs(86_400);
        if self
            .wait
            .is_some_and(|wait| wait.as_millis() == 0 || wait > day)
        {
            return Err(InvalidConfig::new(
                "wait",
                self.wait,
                "must be between a millisecond and a day",
            ));
        }
        if self.max_outcome == 0 {
            return Err(InvalidConfig::new("max_outcome", 0, "must be at least 1"));
        }
        if self.max_attempts == 0 {
            return Err(InvalidConfig::new("max_attempts", 0, "must be at least 1"));
        }
        if self.retry_for > LONGEST {
            return Err(InvalidConfig::new(
                "retry_for",
                self.retry_for,
                "must be at most a hundred years",
            ));
        }
        let front = self
            .front
            .map(|(store, budget)| Front::new(&self.name, store, budget))
            .transpose()?;
        let shared = Arc::new(Shared {
            statements: DB::statements(
                &table,
                self.wait.is_some(),
                self.prepared.unwrap_or(DB::PREPARED),
            ),
            begin: self.begin.unwrap_or(DB::BEGIN),
            name: self.name,
            retention: self.retention,
            wait: self.wait,
            max_waiting: self.max_waiting,
            queue: KeyQueue::default(),
            max_outcome: self.max_outcome,
            max_attempts: self.max_attempts,
            retry_for: self.retry_for,
            backoff: self.backoff,
            front,
            last_fence: AtomicI64::new(0),
            totals: Totals::default(),
            retire: telemetry::retire,
            database: PhantomData,
        });
        telemetry::register(&shared);
        Ok(Inbox { shared })
    }
}

#[cfg(feature = "sqlx-postgres")]
impl InboxBuilder<::sqlx::Postgres> {
    /// Isolation level of the transactions that [`run`](Inbox::run) begins. Default: `READ COMMITTED`, whatever the database's
    /// default is. The inbox is correct under each of them; choose what the work needs.
    pub const fn isolation(mut self, isolation: Isolation) -> Self {
        self.begin = Some(match isolation {
            Isolation::ReadCommitted => "BEGIN ISOLATION LEVEL READ COMMITTED",
            Isolation::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Isolation::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        });
        self
    }

    /// Whether the inbox's own statements are prepared under a name, once per connection. Default: `false`.
    ///
    /// Saves a round trip and the planning of each of them (two per call), on direct connections. Through a pooler that gives the server's
    /// connection to another client after each transaction (PgBouncer with `pool_mode = transaction`) they fail, or meet
    /// another statement of that name.
    pub const fn prepared_statements(mut self, prepared: bool) -> Self {
        self.prepared = Some(prepared);
        self
    }
}

/// Isolation level of a PostgreSQL transaction.
#[cfg(feature = "sqlx-postgres")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Each statement sees what was committed before it.
    ReadCommitted,
    /// All statements see what was committed before the first; conflicting updates fail with `40001`.
    RepeatableRead,
    /// As if transactions ran one after the other; those that could not fail with `40001`.
    Serializable,
}

impl<DB> fmt::Debug for InboxBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxBuilder")
            .field("name", &self.name)
            .field("table", &self.table)
            .field("retention", &self.retention)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}
