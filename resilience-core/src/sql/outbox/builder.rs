//! The builder of an outbox.

use std::{fmt, marker::PhantomData, sync::Arc};

use super::{
    super::table::Table,
    Dialect, Outbox,
    handle::{Shared, retire},
    snapshot::OutboxTotals,
};
use crate::{
    codec::Codec,
    error::InvalidConfig,
    stream::{TraceContext, broker::validate::MAX_NAME},
    telemetry,
};

/// Settings of an [`Outbox`]; checked in [`build`](Self::build).
///
/// # Default
/// | setting | value |
/// |---|---|
/// | [`stream`](Self::stream) | the name of the outbox |
/// | [`table`](Self::table) | `outbox` |
/// | [`codec`](Self::codec) | [`Json`](crate::codec::Json) |
/// | [`source`](Self::source), [`event_type`](Self::event_type), [`schema_version`](Self::schema_version) | empty, empty, 0 |
/// | [`lock_keys`](Self::lock_keys), [`notify`](Self::notify) (PostgreSQL) | no, yes |
#[must_use = "a builder does nothing before `build`"]
pub struct OutboxBuilder<DB, E> {
    name: Arc<str>,
    stream: Option<Arc<str>>,
    table: String,
    codec: Arc<dyn Codec<E>>,
    source: Arc<str>,
    event_type: Arc<str>,
    schema: u32,
    trace: Option<Arc<dyn Fn() -> TraceContext + Send + Sync>>,
    locks: bool,
    notifies: bool,
    database: PhantomData<fn() -> DB>,
}

impl<DB: Dialect, E: Send + Sync + 'static> OutboxBuilder<DB, E> {
    pub(super) fn new(name: Arc<str>, codec: Arc<dyn Codec<E>>) -> Self {
        Self {
            name,
            stream: None,
            table: "outbox".to_owned(),
            codec,
            source: "".into(),
            event_type: "".into(),
            schema: 0,
            trace: None,
            locks: false,
            notifies: DB::NOTIFIES,
            database: PhantomData,
        }
    }

    /// The stream that the events go to. It is kept with each event: those written before a change go where they were meant to.
    pub fn stream(mut self, stream: impl Into<Arc<str>>) -> Self {
        self.stream = Some(stream.into());
        self
    }

    /// Name of the table, `table` or `schema.table` of lower-case letters, digits and underscores. Outboxes of different
    /// names may share one.
    pub fn table(mut self, table: impl Into<String>) -> Self {
        self.table = table.into();
        self
    }

    /// How events become bytes.
    pub fn codec(mut self, codec: impl Codec<E>) -> Self {
        self.codec = Arc::new(codec);
        self
    }

    /// What publishes the events, as a URI reference; CloudEvents' `source`.
    pub fn source(mut self, source: impl Into<Arc<str>>) -> Self {
        self.source = source.into();
        self
    }

    /// Kind of the events; CloudEvents' `type`.
    pub fn event_type(mut self, event_type: impl Into<Arc<str>>) -> Self {
        self.event_type = event_type.into();
        self
    }

    /// Version of the type of the events; see [`ProducerBuilder::schema`](crate::stream::ProducerBuilder::schema).
    pub const fn schema_version(mut self, version: u32) -> Self {
        self.schema = version;
        self
    }

    /// Where the trace of the running code is found, asked once per event.
    pub fn trace_with(mut self, find: impl Fn() -> TraceContext + Send + Sync + 'static) -> Self {
        self.trace = Some(Arc::new(find));
        self
    }

    /// Checks the settings. Needs no runtime: only relays run tasks.
    ///
    /// # Errors
    /// [`InvalidConfig`] if the name of the outbox or of the stream is empty, longer than 255 bytes or has a NUL in it, or
    /// the table's name is no identifier.
    pub fn build(self) -> Result<Outbox<DB, E>, InvalidConfig> {
        let stream = self.stream.unwrap_or_else(|| Arc::clone(&self.name));
        for (field, name) in [("name", &self.name), ("stream", &stream)] {
            if !(1..=MAX_NAME).contains(&name.len()) || name.contains('\0') {
                let rule = "must have 1 to 255 bytes and no NUL";
                return Err(InvalidConfig::new(field, name, rule));
            }
        }
        let table = Table::parse(&self.table)?;
        let shared = Arc::new(Shared {
            statements: DB::statements(&table, self.locks, self.notifies),
            name: self.name,
            stream,
            source: self.source,
            event_type: self.event_type,
            schema: self.schema,
            trace: self.trace,
            notifies: self.notifies,
            wakers: std::sync::Mutex::default(),
            totals: OutboxTotals::default(),
            retire: retire::<DB>,
            database: PhantomData,
        });
        telemetry::register(&shared);
        Ok(Outbox {
            shared,
            codec: self.codec,
        })
    }
}

#[cfg(feature = "sqlx-postgres")]
impl<E> OutboxBuilder<::sqlx::Postgres, E> {
    /// Makes publishes with one key wait for each other: the second for the end of the first one's transaction, by an
    /// advisory lock. So the order of events with one key is that of commits, whatever else the transactions do; see the
    /// [table](super#order).
    ///
    /// Publish as late in the transaction as possible. Transactions that publish with several keys, in several calls and in
    /// different orders, can wait for each other: PostgreSQL ends one of them (`40P01`), which then has to be repeated.
    pub const fn lock_keys(mut self) -> Self {
        self.locks = true;
        self
    }

    /// Whether a publish notifies the relays when it commits. Without, they find it with their next
    /// [poll](super::RelayBuilder::poll). Off for transactions that are prepared (two-phase commit): PostgreSQL refuses to.
    pub const fn notify(mut self, yes: bool) -> Self {
        self.notifies = yes;
        self
    }
}

impl<DB, E> fmt::Debug for OutboxBuilder<DB, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxBuilder")
            .field("name", &self.name)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}
