//! One connection to the server, the Sentinel group or the Cluster of a URL. The only file that knows how the client crate
//! connects.
//!
//! # References
//! [Guidelines for Redis clients with support for Sentinel](https://redis.io/docs/latest/develop/reference/sentinel-clients/)
//! and the [Cluster specification](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, Cmd, PushInfo, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    io::tcp::TcpSettings,
};

use crate::url::Endpoint;

/// A live connection; clones share the socket.
#[derive(Clone)]
pub(crate) enum Transport {
    Single(MultiplexedConnection),
    #[cfg(feature = "cluster")]
    Cluster(redis::cluster_async::ClusterConnection),
}

pub(crate) type OnPush = std::sync::Arc<dyn Fn(PushInfo) + Send + Sync>;

/// Time limits of sockets.
#[derive(Clone, Copy)]
pub(crate) struct Timeouts {
    /// Maximum time for connecting.
    pub(crate) connect: Duration,
    /// Maximum time that a packet may stay unacknowledged before the kernel closes the connection.
    pub(crate) unacknowledged: Duration,
}

/// Certificates of authorities, in PEM, in place of the system's.
#[derive(Clone)]
pub(crate) struct RootCertificates(
    #[cfg_attr(not(feature = "tls"), allow(dead_code))] pub(crate) Vec<u8>,
);

impl RootCertificates {
    #[cfg(feature = "tls")]
    fn certificates(&self) -> redis::TlsCertificates {
        redis::TlsCertificates {
            client_tls: None,
            root_cert: Some(self.0.clone()),
        }
    }

    #[cfg(feature = "tls")]
    fn client(&self, info: redis::ConnectionInfo) -> RedisResult<Client> {
        Client::build_with_tls(info, self.certificates())
    }

    #[cfg(not(feature = "tls"))]
    fn client(&self, _: redis::ConnectionInfo) -> RedisResult<Client> {
        Err(invalid("TLS needs the feature `tls`"))
    }
}

impl Transport {
    pub(crate) async fn open(
        endpoint: &Endpoint,
        timeouts: Timeouts,
        roots: Option<&RootCertificates>,
        on_push: OnPush,
    ) -> RedisResult<Self> {
        match endpoint {
            Endpoint::Single(info) => {
                let info = info.clone().set_tcp_settings(tcp(timeouts));
                let client = match roots {
                    None => Client::open(info)?,
                    Some(roots) => roots.client(info)?,
                };
                Self::single(&client, timeouts, on_push).await
            }
            Endpoint::Sentinel { .. } => Self::sentinel(endpoint, timeouts, roots, on_push).await,
            Endpoint::Cluster(nodes) => Self::cluster(nodes, timeouts, roots).await,
        }
    }

    async fn single(client: &Client, timeouts: Timeouts, on_push: OnPush) -> RedisResult<Self> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeouts.connect))
            // Every command has a timeout of this crate's own.
            .set_response_timeout(None)
            .set_push_sender(sender(on_push));
        Ok(Self::Single(
            client
                .get_multiplexed_async_connection_with_config(&config)
                .await?,
        ))
    }

    /// Asks the sentinels again for the master: the previous one may be the server that failed.
    #[cfg(feature = "sentinel")]
    async fn sentinel(
        endpoint: &Endpoint,
        timeouts: Timeouts,
        roots: Option<&RootCertificates>,
        on_push: OnPush,
    ) -> RedisResult<Self> {
        use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
        let Endpoint::Sentinel {
            nodes,
            service,
            settings,
            tls,
        } = endpoint
        else {
            return Err(invalid("not a Sentinel URL"));
        };
        // The sentinels are asked one after the other: a silent one must not be the first in every attempt.
        let mut nodes = nodes.clone();
        fastrand::shuffle(&mut nodes);
        let mut builder = SentinelClientBuilder::new(nodes, service, SentinelServerType::Master)?
            .set_client_to_redis_db(settings.db())
            .set_client_to_redis_protocol(settings.protocol())
            .set_client_to_redis_tcp_settings(tcp(timeouts))
            .set_client_to_sentinel_tcp_settings(tcp(timeouts));
        if let Some(username) = settings.username() {
            builder = builder.set_client_to_redis_username(username);
        }
        if let Some(password) = settings.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(tls) = tls {
            builder = builder
                .set_client_to_redis_tls_mode(*tls)
                .set_client_to_sentinel_tls_mode(*tls);
        }
        #[cfg(feature = "tls")]
        if let Some(roots) = roots {
            builder = builder
                .set_client_to_redis_certificates(roots.certificates())
                .set_client_to_sentinel_certificates(roots.certificates());
        }
        #[cfg(not(feature = "tls"))]
        let _ = roots;
        let client = builder.build()?.async_get_client().await?;
        Self::single(&client, timeouts, on_push).await
    }

    #[cfg(not(feature = "sentinel"))]
    async fn sentinel(
        _: &Endpoint,
        _: Timeouts,
        _: Option<&RootCertificates>,
        _: OnPush,
    ) -> RedisResult<Self> {
        Err(invalid("Sentinel needs the feature `sentinel`"))
    }

    #[cfg(feature = "cluster")]
    async fn cluster(
        nodes: &[redis::ConnectionInfo],
        timeouts: Timeouts,
        roots: Option<&RootCertificates>,
    ) -> RedisResult<Self> {
        let builder = redis::cluster::ClusterClient::builder(nodes.to_vec())
            .use_protocol(redis::ProtocolVersion::RESP3)
            .connection_timeout(timeouts.connect)
            .tcp_settings(tcp(timeouts))
            // Enough for redirections; a shard that is gone is not waited for here, since callers have a budget.
            .retries(2);
        #[cfg(feature = "tls")]
        let builder = match roots {
            Some(roots) => builder.certs(roots.certificates()),
            None => builder,
        };
        #[cfg(not(feature = "tls"))]
        let _ = roots;
        let client = builder.build()?;
        Ok(Self::Cluster(client.get_async_connection().await?))
    }

    #[cfg(not(feature = "cluster"))]
    async fn cluster(
        _: &[redis::ConnectionInfo],
        _: Timeouts,
        _: Option<&RootCertificates>,
    ) -> RedisResult<Self> {
        Err(invalid("Cluster needs the feature `cluster`"))
    }

    pub(crate) async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Single(conn) => conn.send_packed_command(cmd).await,
            #[cfg(feature = "cluster")]
            Self::Cluster(conn) => conn.req_packed_command(cmd).await,
        }
    }

    /// Sends `cmd`, about `key`, and right behind it `wait`, to the node that holds the key. Returns both answers.
    pub(crate) async fn send_pair(
        &mut self,
        key: &str,
        cmd: &Cmd,
        wait: &Cmd,
    ) -> RedisResult<Vec<Value>> {
        let mut pair = redis::pipe();
        pair.add_command(cmd.clone()).add_command(wait.clone());
        match self {
            Self::Single(conn) => {
                // Only a Cluster routes by key.
                let _ = key;
                conn.req_packed_commands(&pair, 0, 2).await
            }
            #[cfg(feature = "cluster")]
            Self::Cluster(conn) => {
                use redis::cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr};
                let master = Route::with_key(key, SlotAddr::Master);
                let node = SingleNodeRoutingInfo::SpecificNode(master);
                conn.route_pipeline(pair, 0, 2, node).await
            }
        }
    }

    /// Sends a PING with `nonce`; in a Cluster, to the node that holds `key`.
    pub(crate) async fn echo(&mut self, key: &str, nonce: &[u8]) -> RedisResult<Value> {
        let mut ping = redis::cmd("PING");
        ping.arg(nonce);
        let answer = match self {
            Self::Single(conn) => {
                let _ = key;
                conn.req_packed_command(&ping).await
            }
            #[cfg(feature = "cluster")]
            Self::Cluster(conn) => {
                use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
                let master = Route::with_key(key, SlotAddr::Master);
                let node = SingleNodeRoutingInfo::SpecificNode(master);
                conn.route_command(ping, RoutingInfo::SingleNode(node))
                    .await
            }
        };
        answer.and_then(Value::extract_error)
    }

    /// Sends a PING with `nonce`; in a Cluster, to any one node, since the loss of a shard leaves the others in use.
    pub(crate) async fn ping(&mut self, nonce: &[u8]) -> RedisResult<Value> {
        let mut ping = redis::cmd("PING");
        ping.arg(nonce);
        self.ask_any(ping).await
    }

    /// Reads the clock of the server, or of any one node of a Cluster, in microseconds.
    pub(crate) async fn time(&mut self) -> RedisResult<u64> {
        let answer = self.ask_any(redis::cmd("TIME")).await?;
        let (seconds, micros): (u64, u64) = redis::from_redis_value(answer)?;
        Ok(seconds.saturating_mul(1_000_000).saturating_add(micros))
    }

    /// Reads the section `memory` of INFO from the server, or from any one node of a Cluster.
    pub(crate) async fn memory(&mut self) -> RedisResult<String> {
        let mut info = redis::cmd("INFO");
        info.arg("memory");
        let answer = self.ask_any(info).await?;
        Ok(redis::from_redis_value(answer)?)
    }

    async fn ask_any(&mut self, cmd: Cmd) -> RedisResult<Value> {
        let answer = match self {
            Self::Single(conn) => conn.req_packed_command(&cmd).await,
            #[cfg(feature = "cluster")]
            Self::Cluster(conn) => {
                use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
                let any_node = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
                conn.route_command(cmd, any_node).await
            }
        };
        answer.and_then(Value::extract_error)
    }
}

/// A live connection to one server for subscriptions. Nothing depends on the answers of its other commands.
#[derive(Clone)]
pub(crate) struct PubsubTransport(MultiplexedConnection);

impl PubsubTransport {
    /// Opens the connection. In a Cluster, `endpoint` is one of its nodes: each passes on all messages.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        timeouts: Timeouts,
        roots: Option<&RootCertificates>,
        on_push: OnPush,
    ) -> RedisResult<Self> {
        match Transport::open(endpoint, timeouts, roots, on_push).await? {
            Transport::Single(conn) => Ok(Self(conn)),
            #[cfg(feature = "cluster")]
            Transport::Cluster(_) => Err(invalid("subscriptions need a single node")),
        }
    }

    /// Subscribes to one channel: one command, one confirmation.
    pub(crate) async fn subscribe(&self, channel: &str) -> RedisResult<()> {
        self.0.clone().subscribe(channel).await
    }

    pub(crate) async fn unsubscribe(&self, channel: &str) -> RedisResult<()> {
        self.0.clone().unsubscribe(channel).await
    }

    pub(crate) async fn ping(&self) -> RedisResult<()> {
        let answer = self
            .0
            .clone()
            .send_packed_command(&redis::cmd("PING"))
            .await?;
        answer.extract_error().map(drop)
    }

    /// Reads the state of the Cluster as the node sees it.
    pub(crate) async fn cluster_info(&self) -> RedisResult<String> {
        let mut info = redis::cmd("CLUSTER");
        info.arg("INFO");
        let answer = self.0.clone().send_packed_command(&info).await?;
        Ok(redis::from_redis_value(answer.extract_error()?)?)
    }

    /// Reads the addresses of the nodes of the Cluster. An empty host means that of the node itself.
    pub(crate) async fn cluster_nodes(&self) -> RedisResult<Vec<(String, u16)>> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        let answer = self.0.clone().send_packed_command(&slots).await?;
        Ok(nodes(&answer.extract_error()?))
    }
}

/// Parses the answer to CLUSTER SLOTS: ranges of slots, each `first, last, node, node..`, each node `host, port, id..`.
fn nodes(slots: &Value) -> Vec<(String, u16)> {
    let list = |value: &Value| match value {
        Value::Array(items) => items.clone(),
        _ => Vec::new(),
    };
    let node = |node: Value| {
        let items = list(&node);
        let host = match items.first()? {
            Value::BulkString(host) => String::from_utf8(host.clone()).ok()?,
            Value::Nil => String::new(),
            _ => return None,
        };
        match items.get(1)? {
            Value::Int(port) => Some((host, u16::try_from(*port).ok()?)),
            _ => None,
        }
    };
    let ranges = list(slots).into_iter();
    let mut nodes: Vec<_> = ranges
        .flat_map(|range| list(&range).into_iter().skip(2).filter_map(node))
        .collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

fn sender(
    on_push: OnPush,
) -> impl Fn(PushInfo) -> Result<(), std::convert::Infallible> + Send + Sync + 'static {
    move |push| {
        on_push(push);
        Ok(())
    }
}

fn tcp(timeouts: Timeouts) -> TcpSettings {
    TcpSettings::default()
        .set_nodelay(true)
        .set_user_timeout(timeouts.unacknowledged)
}

fn invalid(rule: &'static str) -> redis::RedisError {
    (redis::ErrorKind::InvalidClientConfig, rule).into()
}
