//! The inbox around a closure: begin, claim, work, complete, commit; repeated where that is safe.

use std::{
    fmt,
    future::Future,
    ops::{Deref, DerefMut},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use ::sqlx::{Database, Pool, Transaction};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{Claimed, Dialect, Entry, Inbox, Settled, front::Answer};
use crate::{
    classify::ClassifySelf,
    deadline,
    error::{Error, Pattern, Reason, Rejected},
    idempotency::{Key, Outcome, Recorded, Source, to_json},
    verdict::Verdict,
};

/// The transaction of one [`Inbox::run`]. Dereferences to the connection: `query.execute(&mut *work)`.
///
/// Committed by `run` when the work is [done](Self::done), rolled back when dropped. A `COMMIT` statement inside the work ends
/// the protection.
pub struct Work<DB: Dialect> {
    transaction: Transaction<'static, DB>,
    entry: Entry<DB>,
}

impl<DB: Dialect> Work<DB> {
    /// Ends the work: `run` records `value` and commits.
    #[must_use = "nothing is committed unless this is returned"]
    pub const fn done<T>(self, value: T) -> Done<DB, T> {
        Done { work: self, value }
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

    /// See [`Entry::child_key`].
    #[must_use]
    pub fn child_key(&self, label: &str) -> String {
        self.entry.child_key(label)
    }
}

/// Finished work with its result; from [`Work::done`].
pub struct Done<DB: Dialect, T> {
    work: Work<DB>,
    value: T,
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

impl<DB: Dialect, T> fmt::Debug for Done<DB, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Done")
            .field("work", &self.work)
            .finish_non_exhaustive()
    }
}

impl<DB: Dialect> fmt::Debug for Work<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}

/// The record, and the result if the work ran just now.
type Ran<T> = (Settled, Option<T>);

/// Why an attempt ended without a result.
struct Failed<E> {
    error: Error<E>,
    /// Whether another transaction may succeed.
    again: bool,
}

impl<DB: Dialect> Inbox<DB> {
    /// Runs `work` once for all calls with this key, in a transaction that is committed together with its record, or returns the
    /// recorded result. Results are recorded as JSON.
    ///
    /// The transaction is begun again, up to [`max_attempts`](super::InboxBuilder::max_attempts) times and as long as the
    /// [current deadline](deadline::current) leaves time, when it fails with a transient error, by the
    /// error's [verdict](ClassifySelf) (a serialization failure, a deadlock, a lost connection). That is safe, because what
    /// failed was rolled back; and after a connection lost during the commit, the next transaction finds the record if it was
    /// committed. Effects of `work` outside of the database may be repeated, those inside never are. A pool without a free
    /// connection is not tried again.
    ///
    /// If `work` fails, everything is rolled back and nothing is recorded: the next call runs it again. To record a failure,
    /// return it as a result: `T` may be a `Result`.
    ///
    /// Dropping the future rolls back, unless the commit was in progress; the next call then finds what was committed.
    ///
    /// ```
    /// # #[cfg(not(feature = "sqlx-sqlite"))] fn main() {}
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use resilience_core::{Error, sql::inbox::SqliteInbox};
    ///
    /// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// # sqlx::query("CREATE TABLE orders (item TEXT)").execute(&pool).await?;
    /// let inbox = SqliteInbox::builder("orders").build()?;
    /// inbox.migrate(&pool).await?;
    /// for replayed in [false, true] {
    ///     let ran = inbox.run(&pool, "order-1", |mut work| async move {
    ///         sqlx::query("INSERT INTO orders VALUES ('tea')").execute(&mut *work).await?;
    ///         Ok::<_, sqlx::Error>(work.done(String::from("ordered")))
    ///     });
    ///     let outcome = ran.await?;
    ///     assert_eq!((outcome.replayed().is_some(), outcome.value), (replayed, String::from("ordered")));
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// - `Rejected` with [`Reason::KeyReused`], if the key belongs to other work, or [`Reason::InFlight`], if another
    ///   transaction held it for longer than the inbox [waits](super::InboxBuilder::wait), or
    ///   [`Reason::OutcomeUnreadable`], if the recorded result is not a `T`.
    /// - `Service` with the error of `work`, or with that of the database; `Encode`, if the result has no form in JSON.
    pub async fn run<T, E, F, Fut>(
        &self,
        pool: &Pool<DB>,
        key: impl Into<Key>,
        mut work: F,
    ) -> Result<Outcome<T>, Error<E>>
    where
        F: FnMut(Work<DB>) -> Fut,
        Fut: Future<Output = Result<Done<DB, T>, E>>,
        T: Serialize + DeserializeOwned,
        E: From<::sqlx::Error> + ClassifySelf,
    {
        let key = key.into();
        let Some(front) = &self.shared.front else {
            let ran = self.until_settled(pool, &key, &mut work).await?;
            return self.outcome(ran);
        };
        let (stored, totals) = (key.stored(), &self.shared.totals);
        match front.ask(&stored, key.print().bytes()).await {
            Answer::Done { outcome, age } => {
                totals.replayed_in_front.fetch_add(1, Relaxed);
                self.replay(&outcome, age)
            }
            answer @ (Answer::Nothing | Answer::Failed) => {
                if matches!(answer, Answer::Failed) {
                    totals.front_errors.fetch_add(1, Relaxed);
                }
                let ran = self.until_settled(pool, &key, &mut work).await?;
                self.outcome(ran)
            }
            Answer::Claimed(holder) => {
                let ran = self.until_settled(pool, &key, &mut work).await;
                let settled = ran.as_ref().ok().map(|(settled, _)| settled);
                if !front.tell(&stored, &holder, settled).await {
                    totals.front_errors.fetch_add(1, Relaxed);
                }
                self.outcome(ran?)
            }
        }
    }

    fn outcome<T: DeserializeOwned, E>(
        &self,
        (settled, value): Ran<T>,
    ) -> Result<Outcome<T>, Error<E>> {
        match value {
            Some(value) => Ok(Outcome::new(value, Source::Fresh(Recorded::Stored))),
            None => self.replay(&settled.outcome, settled.age),
        }
    }

    fn replay<T: DeserializeOwned, E>(
        &self,
        outcome: &[u8],
        age: Duration,
    ) -> Result<Outcome<T>, Error<E>> {
        let value = serde_json::from_slice(outcome);
        let value = value.map_err(|_| self.rejected(Reason::OutcomeUnreadable))?;
        Ok(Outcome::new(value, Source::Replayed { age }))
    }

    async fn until_settled<T, E, F, Fut>(
        &self,
        pool: &Pool<DB>,
        key: &Key,
        work: &mut F,
    ) -> Result<Ran<T>, Error<E>>
    where
        F: FnMut(Work<DB>) -> Fut,
        Fut: Future<Output = Result<Done<DB, T>, E>>,
        T: Serialize,
        E: From<::sqlx::Error> + ClassifySelf,
    {
        let mut delays = self.shared.backoff.delays();
        let mut left = self.shared.max_attempts;
        loop {
            let Failed { error, again } = match self.once(pool, key, work).await {
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
            self.shared.totals.retries.fetch_add(1, Relaxed);
            tracing::debug!(target: "resilience", pattern = Pattern::Idempotency.as_str(), name = &*self.shared.name, left, "transaction of the inbox begins again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn once<T, E, F, Fut>(
        &self,
        pool: &Pool<DB>,
        key: &Key,
        work: &mut F,
    ) -> Result<Ran<T>, Failed<E>>
    where
        F: FnMut(Work<DB>) -> Fut,
        Fut: Future<Output = Result<Done<DB, T>, E>>,
        T: Serialize,
        E: From<::sqlx::Error> + ClassifySelf,
    {
        let mut transaction = pool.begin_with(self.shared.begin).await.map_err(|error| {
            let full = matches!(error, ::sqlx::Error::PoolTimedOut);
            let failed = database(error);
            Failed {
                again: failed.again && !full,
                ..failed
            }
        })?;
        let claimed = self.claim(&mut transaction, key).await.map_err(database)?;
        let entry = match claimed {
            Claimed::Fresh(entry) => entry,
            Claimed::Done(settled) => return Ok((settled, None)),
            Claimed::Mismatch => return Err(self.refuse(Reason::KeyReused)),
            Claimed::Busy => return Err(self.refuse(Reason::InFlight)),
        };
        let done = work(Work { transaction, entry })
            .await
            .map_err(Failed::by)?;
        let Done { work, value } = done;
        let Work {
            mut transaction,
            entry,
        } = work;
        let encoded = to_json(&value);
        let outcome = encoded.map_err(|error| database(::sqlx::Error::Encode(error.into())))?;
        let mut settled = Settled {
            outcome: Bytes::new(),
            fence: entry.fence(),
            attempt: entry.attempt(),
            age: Duration::ZERO,
            expires_in: self.shared.retention,
        };
        entry
            .complete(&mut transaction, &outcome)
            .await
            .map_err(database)?;
        transaction.commit().await.map_err(database)?;
        settled.outcome = outcome;
        Ok((settled, Some(value)))
    }

    fn rejected(&self, reason: Reason) -> Rejected {
        Rejected::new(Pattern::Idempotency, reason, self.shared.name.clone())
    }

    fn refuse<E>(&self, reason: Reason) -> Failed<E> {
        Failed {
            error: self.rejected(reason).into(),
            again: false,
        }
    }
}

impl<E: ClassifySelf> Failed<E> {
    fn by(error: E) -> Self {
        let again = matches!(error.verdict(), Verdict::Transient { .. });
        Self {
            error: Error::Service(error),
            again,
        }
    }
}

fn database<E: From<::sqlx::Error> + ClassifySelf>(error: ::sqlx::Error) -> Failed<E> {
    Failed::by(E::from(error))
}

/// Whether there is time left after a pause.
fn fits(pause: Duration) -> bool {
    deadline::current().is_none_or(|deadline| deadline.remaining() > pause)
}
