//! Events that the broker refuses, for operators.

use std::time::Duration;

use ::sqlx::{Error, Pool};

use super::{super::transaction, Dialect, Outbox, dialect::DeadRow};
use crate::stream::RawMessage;

/// An event that is not published any more, because the broker refused it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadEvent {
    /// Its place in the table, under which it is [redriven](Outbox::redrive) or [discarded](Outbox::discard).
    pub sequence: i64,
    /// The event; `None`: it cannot be read.
    pub message: Option<RawMessage>,
    /// How often it was refused while the broker took others.
    pub attempts: u32,
    /// Why, at last.
    pub reason: String,
    /// Time since then, by the database's clock.
    pub age: Duration,
}

impl<DB: Dialect, E> Outbox<DB, E> {
    /// Lists dead letters, the oldest first, at most `most`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn dead_letters(&self, pool: &Pool<DB>, most: u32) -> Result<Vec<DeadEvent>, Error> {
        let shared = &self.shared;
        let list = transaction(pool, async |connection: &mut DB::Connection| {
            DB::dead_letters(connection, &shared.statements, &shared.name, most.into()).await
        });
        Ok(list.await?.into_iter().map(dead).collect())
    }

    /// Publishes dead letters after all, in their old order among each other. The number of those that were there.
    ///
    /// An event of which it is [said](DeadEvent::reason) that it may have been published can be in the stream twice then,
    /// with the same id.
    ///
    /// # Errors
    /// Those of the database. Nothing is changed then.
    pub async fn redrive(&self, pool: &Pool<DB>, sequences: &[i64]) -> Result<u64, Error> {
        let statement = &self.shared.statements.redrive;
        let redriven = transaction(pool, async |connection: &mut DB::Connection| {
            DB::among(connection, statement, &self.shared.name, sequences).await
        });
        let redriven = redriven.await?;
        self.wake();
        Ok(redriven)
    }

    /// Deletes dead letters for good. The number of those that were there.
    ///
    /// # Errors
    /// Those of the database. Nothing is changed then.
    pub async fn discard(&self, pool: &Pool<DB>, sequences: &[i64]) -> Result<u64, Error> {
        let statement = &self.shared.statements.discard;
        let discarded = transaction(pool, async |connection: &mut DB::Connection| {
            DB::among(connection, statement, &self.shared.name, sequences).await
        });
        discarded.await
    }
}

fn dead((row, reason, age_ms): DeadRow) -> DeadEvent {
    DeadEvent {
        sequence: row.sequence,
        attempts: row.attempts.max(0).cast_unsigned(),
        reason: reason.unwrap_or_default(),
        age: Duration::from_millis(age_ms.max(0).cast_unsigned()),
        message: row.message().ok(),
    }
}
