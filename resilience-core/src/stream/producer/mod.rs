//! The handle that publishes.

mod builder;
mod error;
mod event;
mod sequences;
mod task;
mod wall_clock;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use self::builder::Settings;
pub(crate) use self::sequences::Sequences;
pub use self::{
    builder::ProducerBuilder,
    error::PublishError,
    event::{Event, TraceContext},
};
use super::{
    broker::{StoreError, StreamBroker, StreamClient, validate},
    snapshot::{ProducerSnapshot, ProducerTotals},
    steps::{Outgoing, ProducerSequence, Publish, Published},
};
use crate::{
    codec::Codec,
    deadline,
    error::{Pattern, Reason},
    fleet::{AgentHandle, IntoStore, StillRunning},
    telemetry::{self, FLEET_DEGRADED, Reading, Scope, Source},
};

/// Publishes events of one type to a stream. Cheap to clone; clones share it.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::stream::{Event, InProcessStreams, Producer};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Placed { order: u64, total: u32 }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = InProcessStreams::new(); // or `redis.streams()`
/// let orders = Producer::<Placed>::builder("orders", broker)
///     .source("/shop")
///     .event_type("order.placed")
///     .max_age(Duration::from_secs(7 * 86_400))
///     .build()?;
///
/// let placed = Placed { order: 7, total: 1200 };
/// orders.publish("order-7", &placed).await?;
/// // Many in one round trip, with more about each; this one is there in an hour.
/// let reminder = Event::new(&placed).key("order-7").event_type("order.reminder").after(Duration::from_secs(3600));
/// orders.publish_all([reminder]).await?;
/// # Ok(()) }
/// ```
///
/// # Repeated publishes
/// A publish whose answer is lost is repeated until its [timeout](ProducerBuilder::timeout), or the current
/// [deadline]. Each carries a name and a number that the broker remembers, so that a repetition is stored once. That
/// ends with the call: a caller that publishes again after an error publishes another event, unless it gives it the same
/// [id](Event::id), or [numbers](Self::publish_numbered) its events.
///
/// # Cancellation
/// A dropped call may or may not have published its events.
///
/// # Cost
/// One round trip per publish, whatever the number of events, up to [`MAX_BATCH`](validate::MAX_BATCH).
pub struct Producer<T> {
    shared: Arc<Shared>,
    codec: Arc<dyn Codec<T>>,
}

pub(super) struct Shared {
    stream: Arc<str>,
    scope: Scope,
    settings: Settings,
    client: StreamClient,
    sequences: Sequences,
    totals: ProducerTotals,
    /// The largest backlog of a group, as it was last read.
    backlog: AtomicU64,
    agent: std::sync::OnceLock<AgentHandle>,
}

impl<T: Send + Sync + 'static> Producer<T> {
    /// Settings of a producer for `stream`.
    pub fn builder(
        stream: impl Into<Arc<str>>,
        broker: impl IntoStore<dyn StreamBroker>,
    ) -> ProducerBuilder<T>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        ProducerBuilder::new(
            stream.into(),
            broker.into_store(),
            Arc::new(crate::codec::Json),
        )
    }

    /// Publishes one event. Events of one `key` are handled in the order of their positions, by consumers with lanes; the empty key
    /// is none.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish(&self, key: &str, event: &T) -> Result<Published, PublishError> {
        self.publish_event(Event::new(event).key(key)).await
    }

    /// Publishes one event `delay` from now. It has no position, and no place in the order, before. Precision: about a
    /// second, while a consumer is running; without one it waits.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn after(
        &self,
        delay: Duration,
        key: &str,
        event: &T,
    ) -> Result<Published, PublishError> {
        self.publish_event(Event::new(event).key(key).after(delay))
            .await
    }

    /// Publishes one event with all that is known of it.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish_event(&self, event: Event<'_, T>) -> Result<Published, PublishError> {
        let published = self.publish_all([event]).await?;
        let first = published.into_iter().next();
        first.ok_or_else(|| PublishError::Unknown(short_answer()))
    }

    /// Publishes events, in order and in one step: all or none, unless publishes are not
    /// [numbered](ProducerBuilder::idempotent).
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish_all<'a>(
        &self,
        events: impl IntoIterator<Item = Event<'a, T>>,
    ) -> Result<Vec<Published>, PublishError>
    where
        T: 'a,
    {
        let messages = self.encode(events)?;
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let shared = &self.shared;
        if !shared.settings.idempotent {
            return shared.send(messages, None).await;
        }
        // Not given back when the call is dropped, or its outcome is not known: what was sent may still arrive.
        let sequence = shared.sequences.take();
        let numbers = ProducerSequence {
            producer: Arc::clone(&sequence.producer),
            first: sequence.next,
            keep_ms: shared.settings.remember_ms,
        };
        let many = messages.len() as u64;
        let published = shared.send(messages, Some(numbers)).await;
        if published.is_ok() {
            shared.sequences.give_back(sequence, many);
        }
        published
    }

    /// Publishes events with numbers of the caller's: the first has `first`, the others follow. Numbers are remembered
    /// under `producer`, a name that is used by one caller at a time, for example that of a table whose rows are published. An event
    /// whose number is not above the highest one is not stored ([`Published::Duplicate`]), also after a restart, for as long as the
    /// broker [remembers](ProducerBuilder::remember).
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish_numbered<'a>(
        &self,
        producer: &str,
        first: u64,
        events: impl IntoIterator<Item = Event<'a, T>>,
    ) -> Result<Vec<Published>, PublishError>
    where
        T: 'a,
    {
        let messages = self.encode(events)?;
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let numbers = ProducerSequence {
            producer: producer.into(),
            first,
            keep_ms: self.shared.settings.remember_ms,
        };
        self.shared.send(messages, Some(numbers)).await
    }

    fn encode<'a>(
        &self,
        events: impl IntoIterator<Item = Event<'a, T>>,
    ) -> Result<Vec<Outgoing>, PublishError>
    where
        T: 'a,
    {
        let now_ms = wall_clock::unix_ms();
        let mut trace = None;
        let encode = |event: Event<'a, T>| {
            let settings = &self.shared.settings;
            let trace = trace.get_or_insert_with(|| settings.trace_context());
            event.encode(&*self.codec, &settings.defaults, trace, now_ms)
        };
        events.into_iter().map(encode).collect()
    }
}

impl<T> Producer<T> {
    /// Name of the stream.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.stream
    }

    /// The state of the handle.
    #[must_use]
    pub fn snapshot(&self) -> ProducerSnapshot {
        ProducerSnapshot {
            name: self.shared.stream.to_string(),
            available: self.shared.client.is_available(),
            backlog: self.shared.backlog.load(Relaxed),
            totals: self.shared.totals.snapshot(),
        }
    }

    /// Ends the background task that trims the stream. Publishing goes on to work.
    ///
    /// # Errors
    /// [`StillRunning`] if it did not end within that time.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        match self.shared.agent.get() {
            Some(agent) => agent.shutdown(within).await,
            None => Ok(()),
        }
    }
}

impl Shared {
    async fn send(
        &self,
        messages: Vec<Outgoing>,
        sequence: Option<ProducerSequence>,
    ) -> Result<Vec<Published>, PublishError> {
        let publish = Publish { messages, sequence };
        validate::publish(&publish).map_err(PublishError::Invalid)?;
        self.check_backlog()?;
        if !self.client.accepts_calls() {
            return Err(self.reject(Reason::StoreUnreachable, None));
        }
        let many = publish.messages.len();
        match self.send_until(&publish, self.until()).await {
            Ok(published) if published.len() == many => {
                self.count(&published);
                Ok(published)
            }
            Ok(_) => Err(PublishError::Unknown(short_answer())),
            Err(error) => {
                self.totals.failed.fetch_add(many as u64, Relaxed);
                Err(if error.ambiguous {
                    PublishError::Unknown(error)
                } else {
                    self.reject(Reason::StoreUnreachable, None)
                })
            }
        }
    }

    async fn send_until(
        &self,
        publish: &Publish,
        until: Instant,
    ) -> Result<Vec<Published>, StoreError> {
        let step = |broker| StreamBroker::publish(broker, &self.stream, publish);
        if publish.sequence.is_some() {
            self.client.call_until(until, step).await
        } else {
            self.client.call_once_until(until, step).await
        }
    }

    fn until(&self) -> Instant {
        let until = Instant::now() + self.settings.timeout;
        deadline::current().map_or(until, |it| until.min(it.instant()))
    }

    fn check_backlog(&self) -> Result<(), PublishError> {
        let Some(most) = self.settings.max_backlog else {
            return Ok(());
        };
        if self.backlog.load(Relaxed) < most {
            return Ok(());
        }
        Err(self.reject(Reason::Full, Some(task::BACKLOG_INTERVAL)))
    }

    fn reject(&self, reason: Reason, retry_after: Option<Duration>) -> PublishError {
        self.totals.rejected.fetch_add(1, Relaxed);
        PublishError::Rejected(self.scope.reject(reason, retry_after))
    }

    fn count(&self, published: &[Published]) {
        for one in published {
            let total = match one {
                Published::Stored(_) => &self.totals.stored,
                Published::Delayed => &self.totals.delayed,
                Published::Duplicate => &self.totals.duplicates,
            };
            total.fetch_add(1, Relaxed);
        }
    }
}

fn short_answer() -> StoreError {
    StoreError::new("the answer does not fit what was published", true)
}

impl Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::Stream
    }

    fn name(&self) -> &str {
        &self.stream
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.totals.read(out);
        out(Reading {
            metric: &FLEET_DEGRADED,
            attribute: Pattern::Stream.as_str(),
            value: u64::from(!self.client.is_available()),
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

impl<T> Clone for Producer<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            codec: Arc::clone(&self.codec),
        }
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("stream", &self.shared.stream)
            .finish_non_exhaustive()
    }
}
