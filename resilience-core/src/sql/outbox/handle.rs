//! The handle that writes events.

use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use ::sqlx::{Database, Error, Pool};

use super::{
    super::begin_with,
    Dialect, OutboxBuilder, RelayBuilder,
    row::NewRow,
    snapshot::{OutboxCounts, OutboxTotals},
    statements::Statements,
};
use crate::{
    codec::Codec,
    error::Pattern,
    fleet::{IntoStore, Waker, instance_id},
    stream::{
        Envelope, RawMessage, TraceContext,
        broker::{StreamBroker, validate},
    },
    telemetry::{self, Reading, Source},
};

/// Events of one type, on their way to a stream by a table of the database that the application changes; see the
/// [module](super). Clones share one outbox.
pub struct Outbox<DB: Dialect, E> {
    pub(super) shared: Arc<Shared<DB>>,
    pub(super) codec: Arc<dyn Codec<E>>,
}

type TraceWith = dyn Fn() -> TraceContext + Send + Sync;

pub(super) struct Shared<DB> {
    pub(super) name: Arc<str>,
    pub(super) stream: Arc<str>,
    pub(super) statements: Statements,
    pub(super) source: Arc<str>,
    pub(super) event_type: Arc<str>,
    pub(super) schema: u32,
    pub(super) trace: Option<Arc<TraceWith>>,
    pub(super) notifies: bool,
    /// Wakes the relays of this process.
    pub(super) wakers: std::sync::Mutex<Vec<std::sync::Weak<Waker>>>,
    pub(super) totals: OutboxTotals,
    /// [`telemetry::retire`], for a `Drop` without the bounds of its trait.
    pub(super) retire: fn(&Self),
    pub(super) database: PhantomData<fn() -> DB>,
}

impl<DB: Dialect, E: Send + Sync + 'static> Outbox<DB, E> {
    /// Starts a builder for an outbox called `name`, for the stream of that name. Outboxes of different names may share a
    /// table; each has a relay of its own.
    pub fn builder(name: impl Into<Arc<str>>) -> OutboxBuilder<DB, E>
    where
        E: serde::Serialize + serde::de::DeserializeOwned,
    {
        OutboxBuilder::new(name.into(), Arc::new(crate::codec::Json))
    }

    /// Publishes one event in the transaction that `connection` is in: if and when that is committed. Events of one `key`
    /// keep their [order](super#order); the empty key is none.
    ///
    /// Dropping the future leaves it undecided whether the event is in the transaction: roll back, as a dropped transaction
    /// does by itself.
    ///
    /// # Errors
    /// `Encode` if the event has no form in the codec, and `InvalidArgument` if it is too large for a broker, or its key is
    /// too long or has a NUL in it: no statement was sent then, and the transaction may go on. Others are the database's:
    /// roll back.
    pub async fn publish(
        &self,
        connection: &mut <DB as Database>::Connection,
        key: &str,
        event: &E,
    ) -> Result<(), Error> {
        let event = (self.envelope(key), event);
        self.publish_all(connection, [event]).await
    }

    /// An envelope for an event of `key`, with an id of its own (128 random bits) and what the builder was given: to be changed
    /// for [`publish_all`](Self::publish_all). The empty key is none. Time and format are filled in later.
    #[must_use]
    pub fn envelope(&self, key: &str) -> Envelope {
        let shared = &*self.shared;
        let trace = shared
            .trace
            .as_ref()
            .map_or_else(TraceContext::default, |find| find());
        Envelope {
            id: format!("{}{}", instance_id(None), instance_id(None)).into(),
            source: Arc::clone(&shared.source),
            event_type: Arc::clone(&shared.event_type),
            key: Some(key).filter(|it| !it.is_empty()).map(Into::into),
            schema: shared.schema,
            trace_parent: trace.parent,
            trace_state: trace.state,
            ..Envelope::default()
        }
    }

    /// Publishes events as [`publish`](Self::publish) does, in order and in one statement, each with an
    /// [envelope](Self::envelope) of the caller's; up to [`MAX_BATCH`](validate::MAX_BATCH).
    ///
    /// ```
    /// # #[cfg(not(feature = "sqlx-sqlite"))] fn main() {}
    /// # #[cfg(feature = "sqlx-sqlite")]
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use resilience_core::{SqliteOutbox, sql, stream::Envelope};
    ///
    /// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// let outbox = SqliteOutbox::<u64>::builder("orders").build()?;
    /// outbox.migrate(&pool).await?;
    /// let mut tx = sql::begin_with(&pool, "BEGIN IMMEDIATE").await?;
    /// let paid = Envelope { event_type: "order.paid".into(), ..outbox.envelope("order-7") };
    /// outbox.publish_all(&mut tx, [(outbox.envelope("order-7"), &7), (paid, &7)]).await?;
    /// tx.commit().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`publish`](Self::publish). All or none are in the transaction.
    pub async fn publish_all<'a>(
        &self,
        connection: &mut <DB as Database>::Connection,
        events: impl IntoIterator<Item = (Envelope, &'a E)>,
    ) -> Result<(), Error>
    where
        E: 'a,
    {
        let rows: Result<Vec<_>, _> = events.into_iter().map(|it| self.row(it)).collect();
        let rows = rows?;
        let many = rows.len();
        if many == 0 {
            return Ok(());
        }
        if many > validate::MAX_BATCH {
            let most = validate::MAX_BATCH;
            return Err(Error::InvalidArgument(format!(
                "{many} events are more than {most}"
            )));
        }
        let Shared {
            name,
            stream,
            statements,
            totals,
            ..
        } = &*self.shared;
        DB::insert(connection, statements, name, stream, rows).await?;
        totals.written.fetch_add(many as u64, Relaxed);
        tracing::debug!(target: "resilience", pattern = Pattern::Stream.as_str(), name = &**name, events = many, "written to the outbox");
        Ok(())
    }

    fn row(&self, (mut envelope, event): (Envelope, &E)) -> Result<NewRow, Error> {
        if envelope.content_type.is_empty() {
            envelope.content_type = self.codec.content_type().into();
        }
        let body = self.codec.encode(event);
        let body = body.map_err(|error| Error::Encode(error.into()))?;
        let message = RawMessage {
            envelope,
            body: body.into(),
        };
        let refused = |error: String| {
            Error::InvalidArgument(format!("the event cannot be published: {error}"))
        };
        validate::message(&message).map_err(|error| refused(error.to_string()))?;
        let RawMessage { envelope, body } = message;
        // PostgreSQL cannot store it.
        let texts = [Some(&envelope.id), envelope.key.as_ref()];
        if texts.into_iter().flatten().any(|text| text.contains('\0')) {
            return Err(refused(
                "its id and its key must not contain NUL".to_owned(),
            ));
        }
        NewRow::new(&envelope, body.into()).map_err(|error| Error::Encode(error.into()))
    }

    /// Settings of a relay, which publishes what is committed to `broker`. Run one in every instance: one of them works.
    pub fn relay(
        &self,
        pool: &Pool<DB>,
        broker: impl IntoStore<dyn StreamBroker>,
    ) -> RelayBuilder<DB> {
        RelayBuilder::new(Arc::clone(&self.shared), pool.clone(), broker.into_store())
    }
}

impl<DB: Dialect, E> Outbox<DB, E> {
    /// The name that the outbox was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Name of the stream that its events go to.
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.shared.stream
    }

    /// The schema, for migrations that are kept elsewhere: statements that can be run repeatedly.
    #[must_use]
    pub fn schema(&self) -> &str {
        self.shared.statements.schema.as_str()
    }

    /// Returns the counts of the outbox since it was built.
    #[must_use]
    pub fn snapshot(&self) -> OutboxCounts {
        self.shared.totals.snapshot()
    }

    /// Wakes the relays of this process: after a commit, so that they need not wait for a notification, which SQLite does not
    /// have, or for their next poll.
    pub fn wake(&self) {
        self.shared.wake();
    }

    /// Creates the tables and what belongs to them, unless they exist. Any number of instances may do so at once, at every
    /// start. Needs the right to create; where the service does not have it, run [`schema`](Self::schema) by other means.
    /// What publishes needs `INSERT` on the table; the relay `SELECT`, `UPDATE` and `DELETE`, and on the table of leases
    /// (`outbox_relays`) `SELECT`, `INSERT` and `UPDATE`.
    ///
    /// # Errors
    /// Those of the database. Nothing is changed then.
    pub async fn migrate(&self, pool: &Pool<DB>) -> Result<(), Error> {
        let transaction = begin_with(pool, DB::BEGIN).await?;
        DB::migrate(transaction, self.shared.statements.schema.clone()).await
    }
}

impl<DB> Shared<DB> {
    pub(super) fn wake(&self) {
        let mut wakers = crate::sync::lock(&self.wakers);
        wakers.retain(|waker| waker.upgrade().map(|waker| waker.wake()).is_some());
    }
}

impl<DB: Dialect> Source for Shared<DB> {
    fn pattern(&self) -> Pattern {
        Pattern::Stream
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.totals.read(out);
    }
}

impl<DB> Drop for Shared<DB> {
    fn drop(&mut self) {
        (self.retire)(self);
    }
}

/// [`telemetry::retire`] as a function of one type.
pub(super) fn retire<DB: Dialect>(shared: &Shared<DB>) {
    telemetry::retire(shared);
}

impl<DB: Dialect, E> Clone for Outbox<DB, E> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            codec: Arc::clone(&self.codec),
        }
    }
}

impl<DB: Dialect, E> fmt::Debug for Outbox<DB, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("name", &self.shared.name)
            .field("stream", &self.shared.stream)
            .finish_non_exhaustive()
    }
}
