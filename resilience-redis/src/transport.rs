//! Commands on one connection to a server or a Cluster.
//!
//! # References
//! The [Cluster specification](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).

use redis::{
    Cmd, ConnectionInfo, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};

#[cfg(not(feature = "cluster"))]
use crate::dialer::invalid;
use crate::{
    dialer::{Dialer, OnPush},
    url::Address,
};

/// What a connection leads to.
pub(crate) enum Server {
    Single(ConnectionInfo),
    /// Some nodes of a Cluster.
    Cluster(Vec<ConnectionInfo>),
}

/// A live connection; clones share the socket.
#[derive(Clone)]
pub(crate) enum Transport {
    Single(MultiplexedConnection),
    #[cfg(feature = "cluster")]
    Cluster(redis::cluster_async::ClusterConnection),
}

impl Transport {
    pub(crate) async fn open(
        dialer: &Dialer,
        server: &Server,
        on_push: OnPush,
    ) -> RedisResult<Self> {
        match server {
            Server::Single(info) => Ok(Self::Single(dialer.single(info, on_push).await?)),
            #[cfg(feature = "cluster")]
            Server::Cluster(nodes) => Ok(Self::Cluster(dialer.cluster(nodes).await?)),
            #[cfg(not(feature = "cluster"))]
            Server::Cluster(_) => Err(invalid("Cluster needs the feature `cluster`")),
        }
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

    /// Whether the server says that it is a master.
    pub(crate) async fn is_master(&mut self) -> RedisResult<bool> {
        let answer = self.ask_any(redis::cmd("ROLE")).await?;
        let role = match answer {
            Value::Array(mut items) if !items.is_empty() => items.swap_remove(0),
            other => other,
        };
        Ok(redis::from_redis_value::<String>(role)? == "master")
    }

    /// Reads a setting of the server, or of any one node of a Cluster.
    pub(crate) async fn setting(&mut self, name: &str) -> RedisResult<Option<String>> {
        let mut get = redis::cmd("CONFIG");
        get.arg("GET").arg(name);
        let answer = self.ask_any(get).await?;
        let mut settings: std::collections::HashMap<String, String> =
            redis::from_redis_value(answer)?;
        Ok(settings.remove(name))
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
    /// Opens the connection. In a Cluster, `server` is one of its nodes: each passes on all messages.
    pub(crate) async fn open(
        dialer: &Dialer,
        server: &ConnectionInfo,
        on_push: OnPush,
    ) -> RedisResult<Self> {
        Ok(Self(dialer.single(server, on_push).await?))
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
    pub(crate) async fn cluster_nodes(&self) -> RedisResult<Vec<Address>> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        let answer = self.0.clone().send_packed_command(&slots).await?;
        Ok(nodes(&answer.extract_error()?))
    }
}

/// Parses the answer to CLUSTER SLOTS: ranges of slots, each `first, last, node, node..`, each node `host, port, id..`.
fn nodes(slots: &Value) -> Vec<Address> {
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
