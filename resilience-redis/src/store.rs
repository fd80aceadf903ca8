//! What every store gets from the [`Redis`](crate::Redis) that it is made from.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use resilience_core::{
    InvalidConfig,
    cache::store::Observer,
    fleet::{StoreError, StoreHandle, Subscription},
};
use tokio::time::Instant;

use crate::{
    connection::{Connection, Status},
    error::CommandError,
    name_index::NameIndex,
    pubsub::Subscriptions,
    tracking::Tracking,
};

/// The connection, the prefix of the keys, the subscriptions, the observers, the handle of the process, and the names that it has
/// announced. Clones share all of them.
#[derive(Clone)]
pub(crate) struct StoreContext {
    pub(crate) connection: Arc<Connection>,
    pub(crate) prefix: Arc<str>,
    pub(crate) pubsub: Arc<Subscriptions>,
    /// Reports changes of cached values.
    pub(crate) tracking: Arc<Tracking>,
    pub(crate) handle: StoreHandle,
    /// Which names this process has announced.
    pub(crate) index: Arc<NameIndex>,
}

impl StoreContext {
    /// Subscribes to `channel`; `read` decodes its messages, on the connection's task. A message that it cannot decode, and
    /// a new connection, arrive as [`Pushed::Missed`](resilience_core::fleet::Pushed::Missed).
    ///
    /// All subscriptions to a channel share one SUBSCRIBE; dropping the last one unsubscribes. All must be of one `T`.
    pub(crate) fn subscribe<T: Send + Sync + 'static>(
        &self,
        channel: &str,
        read: fn(&[u8]) -> Option<T>,
    ) -> Subscription<T> {
        Subscriptions::subscribe(&self.pubsub, &self.connection, channel, read)
    }

    /// Whether this process is subscribed to a channel. `channel` is only called when there are subscriptions at all.
    pub(crate) fn is_subscribed(&self, channel: impl FnOnce() -> String) -> bool {
        self.pubsub.contains(channel)
    }

    /// Reports changes of cached values to `observer`, until the returned value is dropped.
    pub(crate) fn observe(&self, observer: Weak<dyn Observer>) -> Arc<dyn Any + Send + Sync> {
        Tracking::observe(&self.tracking, &self.connection, &self.prefix, observer)
    }

    /// The connection for all steps about cached values: over it, or beside it, changes are reported to observers.
    pub(crate) fn cache_connection(&self) -> Arc<Connection> {
        self.tracking.reads(&self.connection)
    }

    /// The error of a step about one of many keys: in a Cluster, the other keys may be well.
    pub(crate) fn of_key(&self, error: CommandError) -> StoreError {
        let is_part = self.connection.is_cluster() && error != CommandError::Down;
        let error = StoreError::from(error);
        if is_part { error.partial() } else { error }
    }

    /// Notes a time, in microseconds, that the server's clock has shown since `sent`. In a Cluster each name has a clock of
    /// its own: those of different nodes are not compared.
    pub(crate) fn shown(&self, sent: Instant, micros: u64) {
        if !self.connection.is_cluster() {
            self.connection.shown(sent, micros);
        }
    }

    /// Waits until the connection is up, for at most `within`.
    pub(crate) async fn ready(&self, within: Duration) -> Result<(), Status> {
        self.connection.ready(within).await
    }
}

impl fmt::Debug for StoreContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreContext")
            .field("connection", &self.connection)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Number of replicas that must have a write before it counts, and the connection that waits for them.
#[derive(Clone)]
pub(crate) struct Durable {
    pub(crate) replicas: u32,
    pub(crate) within: Duration,
    pub(crate) connection: Arc<Connection>,
}

impl Durable {
    /// With a connection of its own.
    pub(crate) fn new(
        context: &StoreContext,
        replicas: u32,
        within: Duration,
    ) -> Result<Self, InvalidConfig> {
        if replicas == 0 {
            let rule = "must be above zero";
            return Err(InvalidConfig::new("replicas", replicas, rule));
        }
        if within < Duration::from_millis(1) || within >= context.connection.budget() {
            let rule = "must be a millisecond at least, and below the connection's budget";
            return Err(InvalidConfig::new("within", within, rule));
        }
        Ok(Self {
            replicas,
            within,
            connection: Arc::new(context.connection.another()),
        })
    }
}
