//! The inbox as a closure: begin, claim, work, complete, commit; and again, where that is safe.

use std::{
    fmt,
    future::Future,
    ops::{Deref, DerefMut},
    time::Duration,
};

use ::sqlx::{Database, Pool, Transaction};
use bytes::Bytes;

use super::{Claimed, Dialect, Entry, Inbox, Recorded};
use crate::{
    classify::{HasVerdict, Verdict},
    deadline,
    error::{Error, Pattern, Reason, Rejected},
};

/// The transaction that [`Inbox::run`] does the work in. It is the connection: `query.execute(&mut *work)`.
///
/// Committed by `run` when the work is [done](Self::done), rolled back when it is dropped. A `COMMIT` in a statement of
/// the work's own ends the protection.
pub struct Work<DB: Dialect> {
    transaction: Transaction<'static, DB>,
    entry: Entry<DB>,
}

impl<DB: Dialect> Work<DB> {
    /// The work is done: `outcome` is recorded, and everything is committed.
    #[must_use = "nothing is committed unless this is returned"]
    pub fn done(self, outcome: impl Into<Bytes>) -> Done<DB> {
        Done {
            work: self,
            outcome: outcome.into(),
        }
    }

    /// See [`Entry::fence`].
    #[must_use]
    pub const fn fence(&self) -> u64 {
        self.entry.fence()
    }

    /// See [`Entry::attempt`]. Attempts within one `run` are rolled back and do not count.
    #[must_use]
    pub const fn attempt(&self) -> u32 {
        self.entry.attempt()
    }

    /// See [`Entry::key`].
    #[must_use]
    pub const fn key(&self) -> &str {
        self.entry.key()
    }
}

/// Work that is done, with its outcome; from [`Work::done`].
pub struct Done<DB: Dialect> {
    work: Work<DB>,
    outcome: Bytes,
}

/// What [`Inbox::run`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ran {
    /// What is recorded now.
    pub recorded: Recorded,
    /// Whether it was there before, and the work was not done by this call.
    pub replayed: bool,
}

impl<DB: Dialect> Deref for Work<DB> {
    type Target = <DB as Database>::Connection;

    fn deref(&self) -> &Self::Target {
        &self.transaction
    }
}

impl<DB: Dialect> DerefMut for Work<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.transaction
    }
}

impl<DB: Dialect> fmt::Debug for Done<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done")
            .field("work", &self.work)
            .field("outcome_bytes", &self.outcome.len())
            .finish()
    }
}

impl<DB: Dialect> fmt::Debug for Work<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}

/// Why an attempt ended without a result.
struct Failed<E> {
    error: Error<E>,
    /// Whether another attempt may do better.
    again: bool,
}

impl<DB: Dialect> Inbox<DB> {
    /// Does `work` once for all calls with this key: in a transaction that is committed together with the record of
    /// it, or tells what was recorded. See [`claim`](Self::claim) for keys and fingerprints.
    ///
    /// The transaction is begun anew, up to [`max_attempts`](super::InboxBuilder::max_attempts) times and as long as the
    /// [current deadline](deadline::current) leaves time, when it fails for a reason that may pass: the error's
    /// [verdict](HasVerdict) is transient (a serialization failure, a deadlock, a lost connection). That is safe,
    /// because what failed was rolled back; and where nobody knows, because the connection was lost during the
    /// commit, the next attempt finds the record. So effects of `work` that are not in the database may be repeated,
    /// those that are, never. A pool without a free connection is not tried again.
    ///
    /// If `work` fails, everything is rolled back and nothing is recorded: the next call does it again. To record a
    /// failure, return it as an outcome.
    ///
    /// Dropping the future rolls back, unless the commit was under way; then the record tells.
    ///
    /// ```
    /// # #[cfg(not(feature = "sqlx-sqlite"))] fn main() {}
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use resilience_core::{Error, idempotency::inbox::SqliteInbox};
    ///
    /// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// # sqlx::query("CREATE TABLE orders (item TEXT)").execute(&pool).await?;
    /// let inbox = SqliteInbox::builder("orders").build()?;
    /// inbox.migrate(&pool).await?;
    /// for replayed in [false, true] {
    ///     let ran = inbox.run(&pool, "order-1", b"tea", |mut work| async move {
    ///         sqlx::query("INSERT INTO orders VALUES ('tea')").execute(&mut *work).await?;
    ///         Ok::<_, sqlx::Error>(work.done("ordered"))
    ///     });
    ///     let ran = ran.await?;
    ///     assert_eq!((ran.replayed, &ran.recorded.outcome[..]), (replayed, &b"ordered"[..]));
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// - `Rejected` with [`Reason::KeyReused`], if the key belongs to other work, or [`Reason::InFlight`], if another
    ///   transaction was at work on it for longer than the inbox [waits](super::InboxBuilder::wait).
    /// - `Service` with the error of `work`, or with that of the database.
    pub async fn run<E, F, Fut>(
        &self,
        pool: &Pool<DB>,
        key: &str,
        fingerprint: &[u8],
        mut work: F,
    ) -> Result<Ran, Error<E>>
    where
        F: FnMut(Work<DB>) -> Fut,
        Fut: Future<Output = Result<Done<DB>, E>>,
        E: From<::sqlx::Error> + HasVerdict,
    {
        let mut delays = self.shared.backoff.delays();
        let mut left = self.shared.max_attempts;
        loop {
            let Failed { error, again } = match self.once(pool, key, fingerprint, &mut work).await {
                Ok(ran) => return Ok(ran),
                Err(failed) => failed,
            };
            left -= 1;
            let pause = delays
                .next()
                .filter(|pause| again && left > 0 && fits(*pause));
            let Some(pause) = pause else {
                return Err(error);
            };
            tracing::debug!(target: "resilience", name = &*self.shared.name, left, "transaction of the inbox begins again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn once<E, F, Fut>(
        &self,
        pool: &Pool<DB>,
        key: &str,
        fingerprint: &[u8],
        work: &mut F,
    ) -> Result<Ran, Failed<E>>
    where
        F: FnMut(Work<DB>) -> Fut,
        Fut: Future<Output = Result<Done<DB>, E>>,
        E: From<::sqlx::Error> + HasVerdict,
    {
        let mut transaction = pool.begin_with(self.shared.begin).await.map_err(|error| {
            let again = !matches!(error, ::sqlx::Error::PoolTimedOut);
            let failed = Failed::by(E::from(error));
            Failed {
                again: again && failed.again,
                ..failed
            }
        })?;
        let claimed = self
            .claim(&mut transaction, key, fingerprint)
            .await
            .map_err(database)?;
        let entry = match claimed {
            Claimed::Fresh(entry) => entry,
            Claimed::Done(recorded) => {
                return Ok(Ran {
                    recorded,
                    replayed: true,
                });
            }
            Claimed::Mismatch => return Err(self.refuse(Reason::KeyReused)),
            Claimed::Busy => return Err(self.refuse(Reason::InFlight)),
        };
        let done = work(Work { transaction, entry })
            .await
            .map_err(Failed::by)?;
        let Done {
            work: Work {
                mut transaction,
                entry,
            },
            outcome,
        } = done;
        let recorded = Recorded {
            outcome: outcome.clone(),
            fence: entry.fence(),
            attempt: entry.attempt(),
            age: Duration::ZERO,
        };
        entry
            .complete(&mut transaction, &outcome)
            .await
            .map_err(database)?;
        transaction.commit().await.map_err(database)?;
        Ok(Ran {
            recorded,
            replayed: false,
        })
    }

    fn refuse<E>(&self, reason: Reason) -> Failed<E> {
        let name = self.shared.name.clone();
        Failed {
            error: Rejected::new(Pattern::Idempotency, reason, name).into(),
            again: false,
        }
    }
}

impl<E: HasVerdict> Failed<E> {
    fn by(error: E) -> Self {
        let again = matches!(error.verdict(), Verdict::Transient { .. });
        Self {
            error: Error::Service(error),
            again,
        }
    }
}

fn database<E: From<::sqlx::Error> + HasVerdict>(error: ::sqlx::Error) -> Failed<E> {
    Failed::by(E::from(error))
}

/// Whether there is time left after a pause.
fn fits(pause: Duration) -> bool {
    deadline::current().is_none_or(|deadline| deadline.remaining() > pause)
}
