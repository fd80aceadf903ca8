//! What a relay does in the database: each step a transaction within a time budget.

use std::{sync::Arc, time::Duration};

use ::sqlx::{Error, Pool};
use tokio::time::{Instant, error::Elapsed, timeout_at};

use super::super::{
    super::{Transaction, begin_with},
    dialect::{Begun, Dialect, Waiting, Without, within},
    handle::Shared,
    lease::Lease,
    row::{FORMAT, StoredRow},
};

/// The database as a relay sees it.
pub(super) struct Database<DB: Dialect> {
    pub(super) pool: Pool<DB>,
    pub(super) outbox: Arc<Shared<DB>>,
    pub(super) budget: Duration,
}

/// What a batch came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Finished {
    /// To be deleted.
    pub(super) stored: Vec<i64>,
    /// Refused: the row, why, and whether it is a dead letter from now on.
    pub(super) refused: Vec<(i64, String, bool)>,
}

/// The batch to begin.
pub(super) struct Begin {
    pub(super) producer: String,
    /// Number of its first row, if it is a new batch.
    pub(super) first: u64,
    pub(super) most: usize,
    pub(super) without: Without,
    /// Whether a batch that is in progress was begun by another relay, and is to be finished.
    pub(super) adopt: bool,
}

/// Answer to a turn.
pub(super) enum Turn {
    /// Another relay has the lease: nothing changed.
    Lost,
    /// There is nothing to publish.
    Empty,
    /// Written down, and to be published.
    Batch(Begun, Vec<StoredRow>),
    /// The next row has a format of a later version.
    Unreadable(i32),
}

/// Bytes of a batch, about.
const MOST_BYTES: i64 = 8 << 20;

impl<DB: Dialect> Database<DB> {
    pub(super) async fn look(&self) -> Result<Option<Lease>, Error> {
        let Shared {
            name, statements, ..
        } = &*self.outbox;
        let (mut tx, until) = self.begin(DB::READ).await?;
        let found = timeout_at(until, DB::look(&mut tx, statements, name)).await;
        self.end(tx, until, found).await
    }

    pub(super) async fn enter(&self) -> Result<(), Error> {
        let Shared {
            name, statements, ..
        } = &*self.outbox;
        let (mut tx, until) = self.begin(DB::BEGIN).await?;
        let entered = timeout_at(until, DB::enter(&mut tx, statements, name)).await;
        self.end(tx, until, entered).await
    }

    pub(super) async fn take(&self, holder: &str, found: &Lease) -> Result<bool, Error> {
        let Shared {
            name, statements, ..
        } = &*self.outbox;
        let (mut tx, until) = self.begin(DB::BEGIN).await?;
        let taken = timeout_at(until, DB::take(&mut tx, statements, name, holder, found)).await;
        self.end(tx, until, taken).await
    }

    /// Renews the lease. Whether it is still this relay's.
    pub(super) async fn renew(&self, fence: i64) -> Result<bool, Error> {
        let Shared {
            name, statements, ..
        } = &*self.outbox;
        let (mut tx, until) = self.begin(DB::BEGIN).await?;
        let renewed = timeout_at(until, DB::beat(&mut tx, statements, name, fence)).await;
        Ok(self.end(tx, until, renewed).await?.is_some())
    }

    pub(super) async fn waiting(&self) -> Result<Waiting, Error> {
        let Shared {
            name, statements, ..
        } = &*self.outbox;
        let (mut tx, until) = self.begin(DB::READ).await?;
        let waiting = timeout_at(until, DB::waiting(&mut tx, statements, name)).await;
        self.end(tx, until, waiting).await
    }

    /// Ends a batch and begins the next one, in one transaction. May be repeated after an error: nothing of a batch that was
    /// begun without an answer has been sent.
    pub(super) async fn turn(
        &self,
        fence: i64,
        finished: &Finished,
        begin: &Begin,
    ) -> Result<Turn, Error> {
        let (mut tx, until) = self.begin(DB::BEGIN).await?;
        let turned = timeout_at(until, self.turned(&mut tx, fence, finished, begin)).await;
        self.end(tx, until, turned).await
    }

    /// Ends a batch, as far as it came, and gives the lease back.
    pub(super) async fn leave(&self, fence: i64, finished: &Finished) -> Result<(), Error> {
        let (mut tx, until) = self.begin(DB::BEGIN).await?;
        let left = timeout_at(until, self.left(&mut tx, fence, finished)).await;
        self.end(tx, until, left).await
    }

    async fn turned(
        &self,
        connection: &mut DB::Connection,
        fence: i64,
        finished: &Finished,
        begin: &Begin,
    ) -> Result<Turn, Error> {
        let Shared {
            name, statements, ..
        } = &*self.outbox;
        let Some(in_progress) = DB::beat(connection, statements, name, fence).await? else {
            return Ok(Turn::Lost);
        };
        self.finish(connection, finished).await?;
        if let Some(begun) = in_progress.as_ref().filter(|_| begin.adopt) {
            let rows = DB::rows(connection, statements, name, &begun.sequences).await?;
            if let Some(row) = rows.iter().find(|row| row.format > FORMAT) {
                return Ok(Turn::Unreadable(row.format));
            }
            if !rows.is_empty() {
                return Ok(Turn::Batch(begun.clone(), rows));
            }
        }
        let most = i64::try_from(begin.most).unwrap_or(i64::MAX);
        let sizes = DB::next(connection, statements, name, &begin.without, most).await?;
        let sequences = within(&sizes, MOST_BYTES);
        let mut rows = Vec::new();
        if !sequences.is_empty() {
            rows = DB::rows(connection, statements, name, &sequences).await?;
        }
        let later = rows.iter().position(|row| row.format > FORMAT);
        let format = later.map(|at| rows.split_off(at)[0].format);
        let batch = (!rows.is_empty()).then(|| Begun {
            sequences: rows.iter().map(|row| row.sequence).collect(),
            producer: begin.producer.clone(),
            first: i64::try_from(begin.first).unwrap_or(i64::MAX),
        });
        if batch.is_some() || in_progress.is_some() {
            DB::note_batch(connection, statements, name, fence, batch.as_ref()).await?;
        }
        Ok(match (batch, format) {
            (Some(begun), _) => Turn::Batch(begun, rows),
            (None, Some(format)) => Turn::Unreadable(format),
            (None, None) => Turn::Empty,
        })
    }

    async fn left(
        &self,
        connection: &mut DB::Connection,
        fence: i64,
        finished: &Finished,
    ) -> Result<(), Error> {
        let Shared {
            name, statements, ..
        } = &*self.outbox;
        if DB::beat(connection, statements, name, fence)
            .await?
            .is_some()
        {
            self.finish(connection, finished).await?;
            DB::give_back(connection, statements, name, fence).await?;
        }
        Ok(())
    }

    async fn finish(
        &self,
        connection: &mut DB::Connection,
        finished: &Finished,
    ) -> Result<(), Error> {
        let Shared {
            name, statements, ..
        } = &*self.outbox;
        if !finished.stored.is_empty() {
            DB::delete(connection, statements, name, &finished.stored).await?;
        }
        for (sequence, reason, last) in &finished.refused {
            DB::refuse(connection, statements, name, *sequence, reason, *last).await?;
        }
        Ok(())
    }

    async fn begin(&self, how: &'static str) -> Result<(Transaction<DB>, Instant), Error> {
        let until = Instant::now() + self.budget;
        // Dropped while it begins, it leaves nothing open.
        let begun = timeout_at(until, begin_with(&self.pool, how)).await;
        Ok((begun.unwrap_or(Err(Error::PoolTimedOut))?, until))
    }

    async fn end<T>(
        &self,
        transaction: Transaction<DB>,
        until: Instant,
        done: Result<Result<T, Error>, Elapsed>,
    ) -> Result<T, Error> {
        match done {
            Ok(Ok(value)) => {
                let committed = timeout_at(until, transaction.commit()).await;
                committed.unwrap_or_else(|_| Err(late())).map(|()| value)
            }
            Ok(Err(error)) => {
                transaction.end_after(&error);
                Err(error)
            }
            Err(_) => {
                transaction.discard();
                Err(late())
            }
        }
    }
}

fn late() -> Error {
    Error::Io(std::io::ErrorKind::TimedOut.into())
}
