//! The handle that handles messages.

mod builder;
mod decision;
mod driver;
mod handling;
mod held;
mod lanes;
mod losses;
mod message;
mod outcomes;
mod requests;
mod settings;
mod settled;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{runtime::Handle, sync::oneshot};
use tower_service::Service;
use tracing::instrument::{Instrument, WithSubscriber};

pub use self::{builder::ConsumerBuilder, message::Message, settings::OnLoss};
use self::{driver::Driver, settings::Settings};
use super::{
    broker::{StoreError, StreamBroker, StreamClient},
    snapshot::{ConsumerSnapshot, ConsumerTotals},
    steps::{GroupState, Pause, Start},
};
use crate::{
    classify::{Classify, Standard},
    codec::Codec,
    error::{Error, Pattern, ServiceError},
    fleet::{HandleTasks, IntoStore, StillRunning, StoreHandle, Waker},
    telemetry::{self, FLEET_DEGRADED, Reading, Source},
};

/// Handles the messages of a group, by driving a tower service or a closure.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{retry::Backoff, stream::{Consumer, InProcessStreams, Message, Producer}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = InProcessStreams::new(); // or `redis.streams()`
/// let orders = Producer::<u64>::builder("orders", broker.clone()).build()?;
/// orders.publish("customer-3", &7).await?;
///
/// let billing = Consumer::<u64>::builder("orders", broker)
///     .group("billing")
///     .concurrency(32)
///     .lanes(|message| message.key.clone()) // in order per key, keys side by side
///     .lease(Duration::from_secs(30))
///     .max_deliveries(5)
///     .retry(Backoff::exponential(Duration::from_secs(1), Duration::from_secs(60)))
///     .effect_once()
///     .build()?;
///
/// let (bill, mut billed) = tokio::sync::mpsc::channel(1);
/// let serving = billing.run(move |order: Message<u64>| {
///     let bill = bill.clone();
///     async move { bill.send(*order.event()).await }
/// });
/// let until_billed = async { billed.recv().await };
/// tokio::select! {
///     ended = serving => ended?,
///     order = until_billed => assert_eq!(order, Some(7)),
/// }
/// billing.shutdown(Duration::from_secs(5)).await?; // what was prefetched goes back, what runs ends
/// # Ok(()) }
/// ```
///
/// # What the service sees
/// Each [`Message`] is a call of a clone of the service, driven to readiness first, in a task of its own. Layers compose as on calls: a
/// breaker that is open, a bulkhead that is full or a rate limit reject the message; it is then given back without counting as a
/// delivery, and the consumer pauses. What other results do is said by [`classify`](ConsumerBuilder::classify).
///
/// # Cancellation
/// Dropping the future of [`serve`](Self::serve) or [`run`](Self::run) begins a shutdown in the background: no further messages,
/// those that wait in the process go back, running handlers end. [`shutdown`](Self::shutdown) waits for that; handlers that still run
/// in the last tenth of its time are cancelled, and their messages delivered again.
///
/// # Cost
/// One task per message, and per batch of messages a read, a settlement, and with
/// [`effect_once`](ConsumerBuilder::effect_once) a beginning. Idle: one blocking read, and one claim per
/// [`poll`](ConsumerBuilder::poll).
pub struct Consumer<T, C = Standard> {
    shared: Arc<Shared>,
    codec: Arc<dyn Codec<T>>,
    classifier: C,
}

struct Shared {
    stream: Arc<str>,
    group: Arc<str>,
    consumer: Arc<str>,
    settings: Settings,
    client: StreamClient,
    totals: ConsumerTotals,
    served: AtomicBool,
    /// No messages are started: by an operator, or after a rejection.
    paused: AtomicBool,
    /// Makes the driver look for messages.
    look: Waker,
    tasks: HandleTasks,
    _store: StoreHandle,
    runtime: Handle,
}

impl<T: Send + Sync + 'static> Consumer<T> {
    /// Settings of a consumer of `stream`.
    pub fn builder(
        stream: impl Into<Arc<str>>,
        broker: impl IntoStore<dyn StreamBroker>,
    ) -> ConsumerBuilder<T>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        ConsumerBuilder::new(
            stream.into(),
            broker.into_store(),
            Arc::new(crate::codec::Json),
        )
    }
}

impl<T: Send + Sync + 'static, C> Consumer<T, C> {
    /// Handles messages with `service`, until a [shutdown](Self::shutdown). A handle serves once.
    ///
    /// # Errors
    /// [`ConsumeError`]: the handle has served before, or the group was lost and the policy is [`OnLoss::Stop`].
    pub async fn serve<S>(&self, service: S) -> Result<(), ConsumeError>
    where
        S: Service<Message<T>> + Clone + Send + 'static,
        S::Future: Send,
        S::Response: Send,
        S::Error: ServiceError + fmt::Display + Send,
        C: Classify<S::Response, S::Error> + Clone + Send + Sync + 'static,
    {
        let shared = &self.shared;
        if shared.served.swap(true, Relaxed) {
            return Err(ConsumeError::ServedBefore);
        }
        let (codec, classifier) = (Arc::clone(&self.codec), self.classifier.clone());
        let driver = Driver::new(Arc::clone(shared), codec, classifier, service);
        let (sender, ended) = oneshot::channel();
        let driving = async move {
            // The caller may be gone.
            let _ = sender.send(driver.run().await);
        };
        let driving = driving.in_current_span().with_current_subscriber();
        shared.tasks.spawn(&shared.runtime, driving);
        let _until_dropped = CloseOnDrop(&shared.tasks);
        ended.await.unwrap_or(Err(ConsumeError::Aborted))
    }

    /// As [`serve`](Self::serve), with a closure in place of a service.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    pub async fn run<F, Fut, R, E>(&self, handler: F) -> Result<(), ConsumeError>
    where
        F: Fn(Message<T>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Send + 'static,
        E: fmt::Display + Send + 'static,
        C: Classify<R, Error<E>> + Clone + Send + Sync + 'static,
    {
        self.serve(Closure(handler)).await
    }

    /// Name of the stream.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.stream
    }

    /// Name of this consumer in its group.
    #[must_use]
    pub fn consumer(&self) -> &str {
        &self.shared.consumer
    }

    /// The state of the handle.
    #[must_use]
    pub fn snapshot(&self) -> ConsumerSnapshot {
        let shared = &self.shared;
        shared.count_errors();
        ConsumerSnapshot {
            name: shared.stream.to_string(),
            group: shared.group.to_string(),
            consumer: shared.consumer.to_string(),
            available: shared.client.is_available(),
            consuming: !shared.paused.load(Relaxed),
            totals: shared.totals.snapshot(),
        }
    }

    /// The state of the group in the broker, if it exists: its lag, consumers, and dead letters.
    ///
    /// # Errors
    /// [`StoreError`] if the broker does not answer.
    pub async fn fleet_view(&self) -> Result<Option<GroupState>, StoreError> {
        let shared = &self.shared;
        let step = |broker| StreamBroker::state(broker, &shared.stream);
        let groups = shared.client.call(step).await?.map(|it| it.groups);
        let group = |it: &GroupState| it.group == shared.group;
        Ok(groups.and_then(|groups| groups.into_iter().find(group)))
    }

    /// Pauses the whole group, for a time or until it is resumed. Its consumers start no messages within a
    /// [`poll`](ConsumerBuilder::poll). Whether the group exists.
    ///
    /// # Errors
    /// [`StoreError`] if the broker does not answer.
    pub async fn pause(&self, pause: &Pause) -> Result<bool, StoreError> {
        self.set_pause(Some(pause)).await
    }

    /// Resumes the group. Whether it exists.
    ///
    /// # Errors
    /// [`StoreError`] if the broker does not answer.
    pub async fn resume(&self) -> Result<bool, StoreError> {
        self.set_pause(None).await
    }

    async fn set_pause(&self, pause: Option<&Pause>) -> Result<bool, StoreError> {
        let shared = &self.shared;
        let step = |broker| StreamBroker::pause(broker, &shared.stream, &shared.group, pause);
        let set = shared.client.call(step).await?;
        shared.look.wake();
        Ok(set)
    }

    /// Moves the whole group back or forth: see [`StreamBroker::seek`]. Whether the stream exists.
    ///
    /// # Errors
    /// [`StoreError`] if the broker does not answer.
    pub async fn seek(&self, to: Start) -> Result<bool, StoreError> {
        let shared = &self.shared;
        let step = |broker| StreamBroker::seek(broker, &shared.stream, &shared.group, to);
        shared.client.call(step).await
    }

    /// Ends the consumer, within that time: see [cancellation](Self#cancellation).
    ///
    /// # Errors
    /// [`StillRunning`] if it did not end within that time.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.shared.tasks.shutdown(within).await
    }
}

impl Shared {
    fn count_errors(&self) {
        let errors = self.client.errors();
        self.totals.store_errors.store(errors, Relaxed);
    }
}

impl Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::Stream
    }

    fn name(&self) -> &str {
        &self.stream
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.count_errors();
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

/// Begins a shutdown when it is dropped.
struct CloseOnDrop<'a>(&'a HandleTasks);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<T, C> fmt::Debug for Consumer<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("stream", &self.shared.stream)
            .field("group", &self.shared.group)
            .field("consumer", &self.shared.consumer)
            .finish_non_exhaustive()
    }
}

/// Why a consumer ended before it was shut down.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// The handle has served before: build another one.
    #[error("a consumer serves once; build another one")]
    ServedBefore,
    /// The group was lost, and the policy is [`OnLoss::Stop`].
    #[error("the group was lost in the broker, and the policy is to stop")]
    Lost,
    /// The runtime ended, or the broker or a codec panicked where it must not.
    #[error("the consumer was aborted")]
    Aborted,
}

/// A closure as a service.
#[derive(Clone)]
struct Closure<F>(F);

impl<F, Fut, T, R, E> Service<Message<T>> for Closure<F>
where
    F: Fn(Message<T>) -> Fut,
    Fut: Future<Output = Result<R, E>>,
{
    type Response = R;
    type Error = Error<E>;
    type Future = handling::Wrapped<Fut>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message<T>) -> Self::Future {
        handling::Wrapped::new((self.0)(message))
    }
}
