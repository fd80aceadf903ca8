//! The handle that stores are made from.

use std::{fmt, sync::Arc, time::Duration};

use resilience_core::{
    Pattern,
    fleet::{StillRunning, StoreHandle},
};
use tokio::{runtime::Handle, sync::watch, time::Instant};

use crate::{
    RedisBuilder,
    breaker::RedisBreakers,
    builder::DEFAULT_PREFIX,
    bulkhead::RedisBulkheads,
    cache::RedisCache,
    connection::{Connection, Settings, Status},
    error::{CommandError, ConnectError},
    idempotency::RedisIdempotency,
    limit::RedisLimits,
    members::RedisMembers,
    regions::RedisRegion,
    store::StoreContext,
    stream::RedisStreams,
    url::Endpoint,
    write_behind::RedisWriteBehind,
};

/// A supervised connection to Redis (or Valkey), shared by all stores made from it.
///
/// Commands use one multiplexed RESP3 connection, whatever the number of breakers and limits; subscriptions use a second
/// one, opened while there are any. An answer counts only if it names the command that it belongs to. While Redis is
/// unavailable, commands fail at once, and the connection is remade in the background.
///
/// URLs:
///
/// | what | URL |
/// |---|---|
/// | one server | `redis://[user:password@]host[:6379][/database]` |
/// | over TLS (feature `tls`) | `rediss://..` |
/// | a Unix socket | `unix:///path[?db=1&user=..&pass=..]` |
/// | Sentinel (feature `sentinel`) | `redis-sentinel://[user:password@]host[:26379],host,../service[/database][?sentinel_password=..]` |
/// | Cluster (feature `cluster`) | `redis-cluster://[user:password@]host[:6379],host,..` |
///
/// `rediss-sentinel` and `rediss-cluster` use TLS to every node. Special characters in user and password are
/// percent-encoded.
///
/// Cheap to clone; the connection is closed with the last clone and the last store, or by [`shutdown`](Self::shutdown). All
/// clones, and all stores made from them, are one instance of the fleet, with one heartbeat; a second `Redis` in the same
/// process is a second instance.
#[derive(Clone)]
pub struct Redis {
    context: StoreContext,
}

impl Redis {
    /// Starts connecting to `url` with the defaults of [`builder`](Self::builder), and returns at once, so that a service
    /// can start while Redis is unavailable. [`ready`](Self::ready) waits for the connection.
    ///
    /// # Errors
    /// [`ConnectError`] when the URL cannot work, and outside of a tokio runtime. A server that does not answer is not an error
    /// here.
    pub fn connect(url: &str) -> Result<Self, ConnectError> {
        RedisBuilder::new(url).connect()
    }

    /// Starts building a connection with settings of its own.
    pub fn builder(url: &str) -> RedisBuilder {
        RedisBuilder::new(url)
    }

    /// Waits until the connection is up, for at most `within`. Cancel safe.
    ///
    /// # Errors
    /// The last status, when it is not up by then.
    pub async fn ready(&self, within: Duration) -> Result<(), Status> {
        self.context.ready(within).await
    }

    /// Returns the current state of the connection.
    #[must_use]
    pub fn status(&self) -> Status {
        self.context.connection.status().borrow().clone()
    }

    /// Returns the state of the connection as it changes.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.context.connection.status()
    }

    /// Returns the store for shared circuit breakers: `CircuitBreaker::builder("payments").store(redis.breakers())`.
    #[must_use]
    pub fn breakers(&self) -> RedisBreakers {
        RedisBreakers::new(self.context.clone())
    }

    /// Returns the store for bulkheads of a fleet: `FleetBulkhead::builder("reports").store(redis.bulkheads())`.
    #[must_use]
    pub fn bulkheads(&self) -> RedisBulkheads {
        RedisBulkheads::new(self.context.clone())
    }

    /// Returns the store for rate limits of a fleet: see [`LimitStore`](resilience_core::limit::store::LimitStore).
    #[must_use]
    pub fn limits(&self) -> RedisLimits {
        RedisLimits::new(self.context.clone())
    }

    /// Returns the store for idempotency records of a fleet: see
    /// [`IdempotencyStore`](resilience_core::idempotency::IdempotencyStore).
    ///
    /// Under the [default prefix](RedisBuilder::prefix), which every service has, handles of one name in two services
    /// find each other's outcomes: reported by an event. [`RedisBuilder::service`] gives a service keys of its own.
    #[must_use]
    pub fn idempotency(&self) -> RedisIdempotency {
        if &*self.context.prefix == DEFAULT_PREFIX {
            tracing::warn!(
                target: "resilience",
                pattern = Pattern::Idempotency.as_str(),
                prefix = DEFAULT_PREFIX,
                "idempotency records are under the default prefix, which services that share this Redis share too: set a service"
            );
        }
        RedisIdempotency::new(self.context.clone())
    }

    /// Returns the store for cached values of a fleet: see [`CacheStore`](resilience_core::cache::CacheStore).
    #[must_use]
    pub fn cache(&self) -> RedisCache {
        RedisCache::new(self.context.clone())
    }

    /// Returns the broker for streams of a fleet: see [`StreamBroker`](resilience_core::stream::StreamBroker).
    ///
    /// Streams have connections of their own, beside that for commands, while reads wait for messages; clones of the broker
    /// share them.
    #[must_use]
    pub fn streams(&self) -> RedisStreams {
        RedisStreams::new(self.context.clone())
    }

    /// Returns the store for write-behinds of a fleet: see
    /// [`WriteBehindStore`](resilience_core::write_behind::WriteBehindStore).
    #[must_use]
    pub fn write_behind(&self) -> RedisWriteBehind {
        RedisWriteBehind::new(self.context.clone())
    }

    /// Returns the ledger of the region that this Redis is in, for limits that are divided between regions: see
    /// [`RegionalLimits`](resilience_core::limit::regions::RegionalLimits).
    #[must_use]
    pub fn regions(&self) -> RedisRegion {
        RedisRegion::new(self.context.clone())
    }

    /// Sends a PING and waits for its answer; in a Cluster, to all masters.
    ///
    /// # Errors
    /// Why there was no answer.
    pub async fn ping(&self) -> Result<(), CommandError> {
        self.context.connection.ping().await
    }

    /// Returns the number of live instances of the fleet, this one included, as of the last answered heartbeat. `None`: not
    /// known yet.
    ///
    /// The heartbeat starts with the first handle that needs it (a shared breaker, for example).
    #[must_use]
    pub fn live_instances(&self) -> Option<u64> {
        self.context.handle.live_instances()
    }

    /// Ends everything that uses this connection, in order, and waits for it, for at most `within`.
    ///
    /// First all handles built on stores of this `Redis` end: breakers, limits, bulkheads and idempotency write what must
    /// be written (results, leases and places that go back), and this instance leaves the fleet. Then the connection is
    /// closed, with the connections of [durable](RedisIdempotency::durable) stores; commands fail with
    /// [`CommandError::Down`] from then on. Cancel safe: the tasks end all the same, but the connection stays open until the
    /// last clone and the last store are dropped.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn stop(redis: resilience_redis::Redis) {
    /// if let Err(late) = redis.shutdown(Duration::from_secs(5)).await {
    ///     eprintln!("not everything was written: {late}");
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`StillRunning`] when some tasks had not ended by then. They continue in the background; if they are tasks of
    /// handles, the connection stays open for them.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        let started = Instant::now();
        self.context.handle.shutdown(within).await?;
        let left = within.saturating_sub(started.elapsed());
        let closed = self.context.connection.shutdown(left).await;
        closed.map_err(StillRunning::new)
    }

    pub(crate) fn start(
        endpoint: Endpoint,
        prefix: &str,
        settings: Settings,
        runtime: Handle,
    ) -> Self {
        let connection = Arc::new(Connection::start(endpoint, settings, runtime));
        let members = RedisMembers::new(Arc::clone(&connection), prefix);
        Self {
            context: StoreContext {
                connection,
                prefix: prefix.into(),
                pubsub: Arc::default(),
                tracking: Arc::default(),
                handle: StoreHandle::with_members(Arc::new(members)),
                index: Arc::default(),
            },
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("connection", &self.context.connection)
            .field("prefix", &self.context.prefix)
            .finish_non_exhaustive()
    }
}
