//! Commands on one connection to a server or a Cluster.
//!
//! # References
//! The [Cluster specification](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).

use std::time::Duration;

use redis::{
    Cmd, ConnectionInfo, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::time::sleep;

use crate::{
    dialer::{Dialer, OnPush, invalid},
    url::Address,
};

/// Consecutive slots of a Cluster, up to and with `last`, that one master holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotRange {
    pub(crate) last: u16,
    pub(crate) master: Address,
}

/// How often a command is sent again because its slot is elsewhere, or partly.
const REDIRECTIONS: u32 = 4;
/// Pause while some keys of a slot that moves are at one node, and some at another.
const MOVING: Duration = Duration::from_millis(5);

/// What a connection leads to.
pub(crate) enum Server {
    Single(Box<ConnectionInfo>),
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

    /// Sends `cmd`, about `key`, and returns its answer. A slot that moves is followed.
    pub(crate) async fn send(&mut self, key: &str, cmd: &Cmd) -> RedisResult<Value> {
        let answer = match self {
            Self::Single(conn) => conn.send_packed_command(cmd).await,
            #[cfg(feature = "cluster")]
            Self::Cluster(conn) => conn.req_packed_command(cmd).await,
        };
        match answer.and_then(Value::extract_error) {
            // What seldom runs is boxed, so that the future of each command is small.
            Err(error) if is_redirection(&error) => {
                let mut answers = Box::pin(self.follow(key, error, &[cmd])).await?;
                Ok(answers.pop().unwrap_or(Value::Nil))
            }
            answer => answer,
        }
    }

    /// Sends commands about `key`, one right behind the other, to the node that holds it. Returns all answers, in order. A slot
    /// that moves is followed.
    pub(crate) async fn send_in_order(
        &mut self,
        key: &str,
        cmds: &[&Cmd],
    ) -> RedisResult<Vec<Value>> {
        match self.send_together(key, cmds).await {
            Err(error) if is_redirection(&error) => Box::pin(self.follow(key, error, cmds)).await,
            answers => answers,
        }
    }

    /// Sends commands in one piece to the node that holds `key`.
    async fn send_together(&mut self, key: &str, cmds: &[&Cmd]) -> RedisResult<Vec<Value>> {
        let mut pipeline = redis::pipe();
        for cmd in cmds {
            pipeline.add_command((*cmd).clone());
        }
        answered(self.send_each(key, pipeline).await?)
    }

    /// As [`send_together`](Self::send_together); errors are among the answers.
    pub(crate) async fn send_each(
        &mut self,
        key: &str,
        pipeline: Pipeline,
    ) -> RedisResult<Vec<Value>> {
        let many = pipeline.len();
        match self {
            Self::Single(conn) => {
                // Only a Cluster routes by key.
                let _ = key;
                conn.req_packed_commands(&pipeline, 0, many).await
            }
            #[cfg(feature = "cluster")]
            Self::Cluster(conn) => {
                use redis::cluster_routing::{Route, SingleNodeRoutingInfo, SlotAddr};
                let master = Route::with_key(key, SlotAddr::Master);
                let node = SingleNodeRoutingInfo::SpecificNode(master);
                conn.route_pipeline(pipeline, 0, many, node).await
            }
        }
    }

    /// Sends commands again, to where the `error` of the last attempt says that the slot of `key` is, or is moving to. The
    /// client would send ASKING apart from its command, so that commands of other callers come between them.
    #[cold]
    async fn follow(
        &mut self,
        key: &str,
        mut error: RedisError,
        cmds: &[&Cmd],
    ) -> RedisResult<Vec<Value>> {
        for _ in 0..REDIRECTIONS {
            let answers = match (error.kind(), error.redirect_node()) {
                (ErrorKind::Server(ServerErrorKind::Ask), Some((node, _))) => {
                    let node = node.to_owned();
                    self.send_asking(&node, cmds).await
                }
                (ErrorKind::Server(ServerErrorKind::TryAgain), _) => {
                    sleep(MOVING).await;
                    self.send_together(key, cmds).await
                }
                // The client has asked for the map of slots meanwhile.
                _ => self.send_together(key, cmds).await,
            };
            error = match answers {
                Err(next) if is_redirection(&next) => next,
                answers => return answers,
            };
        }
        Err(error)
    }

    /// Sends commands in one piece to the node that a slot is moving to.
    async fn send_asking(&mut self, node: &str, cmds: &[&Cmd]) -> RedisResult<Vec<Value>> {
        match self {
            Self::Single(_) => {
                let _ = (node, cmds);
                Err(invalid("only a Cluster moves slots"))
            }
            #[cfg(feature = "cluster")]
            Self::Cluster(conn) => {
                use redis::cluster_routing::SingleNodeRoutingInfo;
                let (host, port) = node.rsplit_once(':').unwrap_or((node, ""));
                let node = SingleNodeRoutingInfo::ByAddress {
                    host: host.to_owned(),
                    port: port.parse().unwrap_or(0),
                };
                let mut pipeline = redis::pipe();
                pipeline.add_command(redis::cmd("ASKING"));
                for cmd in cmds {
                    pipeline.add_command((*cmd).clone());
                }
                answered(conn.route_pipeline(pipeline, 1, cmds.len(), node).await?)
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

    /// Sends a PING with `nonce`; in a Cluster, to all masters, of which one has to answer, since the loss of a shard leaves the
    /// others in use.
    pub(crate) async fn ping(&mut self, nonce: &[u8]) -> RedisResult<Value> {
        let mut ping = redis::cmd("PING");
        ping.arg(nonce);
        self.ask_any(ping).await
    }

    /// Sends a PING with `nonce`; in a Cluster, to all masters, all of which have to answer.
    pub(crate) async fn ping_all(&mut self, nonce: &[u8]) -> RedisResult<Value> {
        let mut ping = redis::cmd("PING");
        ping.arg(nonce);
        let answer = match self {
            Self::Single(conn) => conn.send_packed_command(&ping).await,
            #[cfg(feature = "cluster")]
            Self::Cluster(conn) => conn.req_packed_command(&ping).await,
        };
        answer.and_then(Value::extract_error)
    }

    /// Reads which master of the Cluster holds which slots, as any one of them sees it.
    pub(crate) async fn slots(&mut self) -> RedisResult<Vec<SlotRange>> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        Ok(ranges(&self.ask_any(slots).await?))
    }

    /// Reads the addresses of all nodes of the Cluster, as any one of its masters sees them.
    #[cfg(feature = "cluster")]
    pub(crate) async fn nodes(&mut self) -> RedisResult<Vec<Address>> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        Ok(nodes(&self.ask_any(slots).await?))
    }

    /// Has the server push which keys change: those that are read over this connection from now on, or all with `prefix`.
    pub(crate) async fn track(&mut self, prefix: Option<&str>) -> RedisResult<()> {
        let mut tracking = redis::cmd("CLIENT");
        tracking.arg("TRACKING").arg("ON");
        if let Some(prefix) = prefix {
            tracking.arg("BCAST").arg("PREFIX").arg(prefix);
        }
        self.single()?
            .req_packed_command(&tracking)
            .await?
            .extract_error()
            .map(drop)
    }

    /// Subscribes to one channel.
    pub(crate) async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        self.single()?.subscribe(channel).await
    }

    fn single(&mut self) -> RedisResult<&mut MultiplexedConnection> {
        match self {
            Self::Single(conn) => Ok(conn),
            #[cfg(feature = "cluster")]
            Self::Cluster(_) => Err(invalid("a connection to a Cluster is several")),
        }
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

    /// Asks the server, or all masters of a Cluster; the first answer counts.
    async fn ask_any(&mut self, cmd: Cmd) -> RedisResult<Value> {
        let answer = match self {
            Self::Single(conn) => conn.req_packed_command(&cmd).await,
            #[cfg(feature = "cluster")]
            Self::Cluster(conn) => {
                use redis::cluster_routing::{
                    MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo,
                };
                let first = Some(ResponsePolicy::OneSucceeded);
                let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, first));
                conn.route_command(cmd, masters).await
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

/// Whether the slot of a key is elsewhere.
fn is_redirection(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, Moved, TryAgain};
    matches!(error.kind(), ErrorKind::Server(Ask | Moved | TryAgain))
}

/// The answers to commands that were sent together, or the first error among them.
fn answered(answers: Vec<Value>) -> RedisResult<Vec<Value>> {
    answers.into_iter().map(Value::extract_error).collect()
}

/// Parses the answer to CLUSTER SLOTS: ranges of slots, each `first, last, master, replica..`, each node `host, port, id..`.
fn nodes(slots: &Value) -> Vec<Address> {
    let ranges = list(slots).iter();
    let nodes = ranges.flat_map(|range| list(range).iter().skip(2));
    let mut nodes: Vec<_> = nodes.filter_map(node).collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

/// The masters in the answer to CLUSTER SLOTS.
fn ranges(slots: &Value) -> Vec<SlotRange> {
    let range = |range: &Value| match list(range) {
        [_, Value::Int(last), master, ..] => Some(SlotRange {
            last: u16::try_from(*last).ok()?,
            master: node(master)?,
        }),
        _ => None,
    };
    list(slots).iter().filter_map(range).collect()
}

fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        _ => &[],
    }
}

fn node(node: &Value) -> Option<Address> {
    let (host, port) = match list(node) {
        [Value::BulkString(host), Value::Int(port), ..] => (host.as_slice(), port),
        [Value::Nil, Value::Int(port), ..] => (&b""[..], port),
        _ => return None,
    };
    let host = String::from_utf8(host.to_vec()).ok()?;
    Some((host, u16::try_from(*port).ok()?))
}
