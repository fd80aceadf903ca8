//! The inbox around a closure: begin, claim, work, complete, commit; repeated where that is safe.

use std::{future::Future, sync::atomic::Ordering::Relaxed, time::Duration};

use ::sqlx::{Pool, SqlSafeStr, pool::PoolConnection};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, timeout_at};

use super::{
    super::{Transaction, transaction::grace},
    Claimed, Dialect, Done, Inbox, Settled, Work,
    front::Answer,
    work::Lent,
};
use crate::{
    classify::ClassifySelf,
    deadline::{self, before_deadline},
    error::{Error, Pattern, Reason, Rejected},
    idempotency::{Key, Outcome, Recorded, Source, to_json},
    verdict::Verdict,
};

/// The record, and the result if the work ran just now.
type Ran<T> = (Settled, Option<T>);

/// How long after the deadline a transaction is given up: later than a timeout layer drops it.
const LATER: Duration = Duration::from_millis(5);

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
    /// connection is not tried again, and no transaction begins later than
    /// [`retry_for`](super::InboxBuilder::retry_for) after the first.
    ///
    /// If `work` fails, everything is rolled back and nothing is recorded: the next call runs it again. To record a failure,
    /// return it as a result: `T` may be a `Result`.
    ///
    /// Dropping the future rolls back, unless the commit was in progress: that goes on, and the next call finds what was
    /// committed. The current deadline does the same a moment after it is past.
    ///
    /// ```
    /// # #[cfg(not(feature = "sqlx-sqlite"))] fn main() {}
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use resilience_core::{Error, SqliteInbox};
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
    ///   call or transaction held it for longer than the inbox [waits](super::InboxBuilder::wait), or
    ///   [`Reason::OutcomeUnreadable`], if the recorded result is not a `T`, or [`Reason::TimedOut`] at the deadline.
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

    /// One call at a time per key, within the deadline.
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
        let (stored, queued) = (key.stored(), Instant::now());
        let until = self.shared.wait.map(before_deadline);
        let queue = self
            .shared
            .queue
            .turn(&stored, self.shared.max_waiting, until);
        let Some(_turn) = queue.await else {
            self.shared.totals.busy.fetch_add(1, Relaxed);
            return Err(self.rejected(Reason::InFlight).into());
        };
        let wait = self
            .shared
            .wait
            .map(|wait| wait.saturating_sub(queued.elapsed()));
        let attempts = self.attempts(pool, key, wait, work);
        match deadline::current() {
            // A timeout layer that enforces the same deadline goes first.
            Some(deadline) => timeout_at(deadline.instant() + LATER, attempts)
                .await
                .unwrap_or_else(|_| Err(self.rejected(Reason::TimedOut).into())),
            None => attempts.await,
        }
    }

    async fn attempts<T, E, F, Fut>(
        &self,
        pool: &Pool<DB>,
        key: &Key,
        wait: Option<Duration>,
        work: &mut F,
    ) -> Result<Ran<T>, Error<E>>
    where
        F: FnMut(Work<DB>) -> Fut,
        Fut: Future<Output = Result<Done<DB, T>, E>>,
        T: Serialize,
        E: From<::sqlx::Error> + ClassifySelf,
    {
        let last = Instant::now() + self.shared.retry_for;
        let mut delays = self.shared.backoff.delays();
        let mut left = self.shared.max_attempts;
        loop {
            let Failed { error, again } = match self.once(pool, key, wait, work).await {
                Ok(ran) => return Ok(ran),
                Err(failed) => failed,
            };
            left -= 1;
            let fits = |pause: &Duration| {
                let begins = Instant::now() + *pause;
                begins <= last && deadline::current().is_none_or(|end| begins < end.instant())
            };
            let pause = delays
                .next()
                .filter(|pause| again && left > 0 && fits(pause));
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
        wait: Option<Duration>,
        work: &mut F,
    ) -> Result<Ran<T>, Failed<E>>
    where
        F: FnMut(Work<DB>) -> Fut,
        Fut: Future<Output = Result<Done<DB, T>, E>>,
        T: Serialize,
        E: From<::sqlx::Error> + ClassifySelf,
    {
        let mut transaction = self.begin(pool).await?;
        let claimed = match self.claim_within(&mut transaction, key, wait).await {
            Ok(claimed) => claimed,
            Err(error) => return Err(ended_by(transaction, error)),
        };
        let entry = match claimed {
            Claimed::Fresh(entry) => entry,
            Claimed::Done(settled) => return Ok((settled, None)),
            Claimed::Mismatch => return Err(self.refuse(Reason::KeyReused)),
            Claimed::Busy => return Err(self.refuse(Reason::InFlight)),
        };
        let (lent, mut back) = Lent::new(transaction);
        let working = work(Work {
            transaction: lent,
            entry,
        });
        let done = working.await;
        let (entry, value) = match done {
            Ok(Done { work, value }) => (work.entry, value),
            Err(error) => {
                if let Ok(transaction) = back.try_recv() {
                    transaction.end_after(&error);
                }
                return Err(Failed::by(error));
            }
        };
        // Dropped just now, with the rest of the work.
        let mut transaction = back
            .try_recv()
            .map_err(|_| database(::sqlx::Error::WorkerCrashed))?;
        let encoded = to_json(&value);
        let outcome = encoded.map_err(|error| database(::sqlx::Error::Encode(error.into())))?;
        let mut settled = Settled {
            outcome: Bytes::new(),
            fence: entry.fence(),
            attempt: entry.attempt(),
            age: Duration::ZERO,
            expires_in: self.shared.retention,
        };
        if let Err(error) = entry.complete(&mut transaction, &outcome).await {
            return Err(ended_by(transaction, error));
        }
        transaction.commit().await.map_err(database)?;
        settled.outcome = outcome;
        Ok((settled, Some(value)))
    }

    /// Begins a transaction on a connection that is waited for no longer than the deadline.
    async fn begin<E>(&self, pool: &Pool<DB>) -> Result<Transaction<DB>, Failed<E>>
    where
        E: From<::sqlx::Error> + ClassifySelf,
    {
        let connection: PoolConnection<DB> =
            match timeout_at(before_deadline(grace(pool)), pool.acquire()).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) if !matches!(error, ::sqlx::Error::PoolTimedOut) => {
                    return Err(database(error));
                }
                Ok(Err(_)) | Err(_) => {
                    let full = database(::sqlx::Error::PoolTimedOut);
                    return Err(Failed {
                        again: false,
                        ..full
                    });
                }
            };
        let statement = self.shared.begin.into_sql_str();
        let begun = Transaction::open(connection, Some(statement), grace(pool));
        begun.await.map_err(database)
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

/// Ends the transaction as the error of one of its statements says.
fn ended_by<DB: Dialect, E>(transaction: Transaction<DB>, error: ::sqlx::Error) -> Failed<E>
where
    E: From<::sqlx::Error> + ClassifySelf,
{
    transaction.end_after(&error);
    database(error)
}
