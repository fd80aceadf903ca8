//! The handle that stores are made from.

use std::{fmt, sync::Arc, time::Duration};

use resilience_core::{InvalidConfig, bulkhead::fleet::Wakeup};
use tokio::sync::watch;

use crate::{
    breaker::{BreakerIndex, RedisBreakers},
    bulkhead::RedisBulkheads,
    connection::{Connection, Status},
    error::CommandError,
    idempotency::{RedisIdempotency, Waiting},
    limit::RedisLimits,
    pubsub::Subscriptions,
    regions::RedisRegion,
    transport::{RootCertificates, Timeouts},
    url::{Endpoint, InvalidUrl},
};

/// A supervised connection to Redis (or Valkey), shared by all stores made from it.
///
/// One multiplexed RESP3 connection for commands, whatever the number of breakers, and a second one for what is pushed,
/// while something is listened to. An answer is only believed if it names the command that it is to. It never stands between a call and its
/// dependency: while Redis is away everything that needs it fails at once, and the connection is remade in the
/// background.
///
/// URLs:
///
/// | what | URL |
/// |---|---|
/// | one server | `redis://[user:password@]host[:6379][/database]` |
/// | over TLS (feature `tls`) | `rediss://..` |
/// | a Unix socket | `unix:///path[?db=1&user=..&pass=..]` |
/// | Sentinel (feature `sentinel`) | `redis-sentinel://[user:password@]host[:26379],host,../service[/database]` |
/// | Cluster (feature `cluster`) | `redis-cluster://[user:password@]host[:6379],host,..` |
///
/// `rediss-sentinel` and `rediss-cluster` speak TLS to every node. Special characters in user and password are
/// percent-encoded. Cheap to clone; the connection is closed with the last clone and the last store.
#[derive(Clone)]
pub struct Redis {
    connection: Arc<Connection>,
    prefix: Arc<str>,
    known: Arc<BreakerIndex>,
    bulkheads: Arc<Subscriptions<Wakeup>>,
    waiting: Arc<Waiting>,
}

impl Redis {
    /// Starts connecting to `url` with the defaults of [`builder`](Self::builder), and returns at once: a service
    /// must be able to start while Redis is away. Wait with [`ready`](Self::ready) where that matters.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] when the URL cannot work. A server that does not answer is not an error here.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn connect(url: &str) -> Result<Self, InvalidUrl> {
        Ok(Self::start(Endpoint::parse(url)?, &RedisBuilder::new(url)))
    }

    /// A connection with other settings than the defaults.
    pub fn builder(url: &str) -> RedisBuilder {
        RedisBuilder::new(url)
    }

    /// Waits until the connection is up, but no longer than `within`.
    ///
    /// # Errors
    ///
    /// The last status, when it is not up by then.
    pub async fn ready(&self, within: Duration) -> Result<(), Status> {
        self.connection.ready(within).await
    }

    /// How the connection fares now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.connection.status().borrow().clone()
    }

    /// How the connection fares, as it changes.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.connection.status()
    }

    /// The store for shared circuit breakers: `CircuitBreaker::builder("payments").store(redis.breakers())`.
    #[must_use]
    pub fn breakers(&self) -> RedisBreakers {
        RedisBreakers::new(
            self.clone(),
            Arc::clone(&self.prefix),
            Arc::clone(&self.known),
        )
    }

    /// The store for bulkheads that a fleet shares:
    /// `FleetBulkhead::builder("reports", redis.bulkheads())`.
    #[must_use]
    pub fn bulkheads(&self) -> RedisBulkheads {
        RedisBulkheads::new(
            self.clone(),
            Arc::clone(&self.prefix),
            Arc::clone(&self.bulkheads),
        )
    }

    /// The store for rate limits that a fleet shares: see [`LimitStore`](resilience_core::limit::store::LimitStore).
    #[must_use]
    pub fn limits(&self) -> RedisLimits {
        RedisLimits::new(self.clone(), Arc::clone(&self.prefix))
    }

    /// The store for idempotency records that a fleet shares: see
    /// [`IdempotencyStore`](resilience_core::idempotency::IdempotencyStore).
    #[must_use]
    pub fn idempotency(&self) -> RedisIdempotency {
        let prefix = Arc::clone(&self.prefix);
        RedisIdempotency::new(self.clone(), prefix, Arc::clone(&self.waiting))
    }

    /// The ledger of the region that this Redis is in, for limits that are divided between regions: see
    /// [`RegionalLimits`](resilience_core::limit::regions::RegionalLimits).
    #[must_use]
    pub fn regions(&self) -> RedisRegion {
        RedisRegion::new(self.clone(), Arc::clone(&self.prefix))
    }

    /// One round trip to the server; of a Cluster, to all masters.
    ///
    /// # Errors
    ///
    /// Whatever kept the answer away.
    pub async fn ping(&self) -> Result<(), CommandError> {
        self.connection.ping().await
    }

    fn start(target: Endpoint, builder: &RedisBuilder) -> Self {
        let time_limits = Timeouts {
            connect: builder.connect_timeout,
            unacknowledged: builder.connect_timeout * 2,
        };
        Self {
            connection: Arc::new(Connection::start(
                target,
                builder.budget,
                time_limits,
                builder.roots.clone(),
            )),
            prefix: builder.prefix.as_str().into(),
            known: Arc::default(),
            bulkheads: Arc::default(),
            waiting: Arc::default(),
        }
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) const fn shared_link(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// A further connection, for what would hold up everybody else on the first.
    pub(crate) fn another_connection(&self) -> Connection {
        self.connection.another()
    }

    pub(crate) fn budget(&self) -> Duration {
        self.connection.budget()
    }
}

/// Settings of a [`Redis`] connection.
#[derive(Clone)]
#[must_use]
pub struct RedisBuilder {
    url: String,
    prefix: String,
    budget: Duration,
    connect_timeout: Duration,
    roots: Option<RootCertificates>,
}

impl RedisBuilder {
    fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            prefix: "resilience".to_owned(),
            budget: Duration::from_millis(100),
            connect_timeout: Duration::from_millis(500),
            roots: None,
        }
    }

    /// What every key starts with: instances that share state have the same prefix. Default `resilience`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long any one command may take before it counts as unanswered; up to an eighth less, because commands are watched
    /// together and not by a timer each. Default 100 ms.
    pub const fn budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// How long one attempt to connect may take. Default 500 ms.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Over TLS, trusts servers whose certificate leads back to one of these, in PEM, and no others. Default: those
    /// that the system trusts.
    #[cfg(feature = "tls")]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots = Some(RootCertificates(pem.into()));
        self
    }

    /// Starts connecting; see [`Redis::connect`].
    ///
    /// # Errors
    ///
    /// When the URL or a setting cannot work.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn connect(self) -> Result<Redis, Box<dyn std::error::Error + Send + Sync>> {
        for (field, value) in [
            ("budget", self.budget),
            ("connect_timeout", self.connect_timeout),
        ] {
            if value.is_zero() {
                return Err(InvalidConfig::new(field, value, "must be above zero").into());
            }
        }
        if self.prefix.is_empty() || self.prefix.len() > 64 {
            let rule = "must have 1 to 64 bytes";
            return Err(InvalidConfig::new("prefix", &self.prefix, rule).into());
        }
        Ok(Redis::start(Endpoint::parse(&self.url)?, &self))
    }
}

impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("RedisBuilder")
            .field("prefix", &self.prefix)
            .field("budget", &self.budget)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("link", &self.connection)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
