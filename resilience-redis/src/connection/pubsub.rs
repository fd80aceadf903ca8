//! The connection for subscriptions, and the task that keeps it alive. It carries nothing else, and exists only while there
//! are subscriptions.
//!
//! # References
//! [Redis Pub/Sub](https://redis.io/docs/latest/develop/pubsub/) and the push messages of
//! [RESP3](https://redis.io/docs/latest/develop/reference/protocol-spec/).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{join, join_all},
};
use redis::{ConnectionInfo, PushInfo, PushKind, RedisResult, Value};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    destination::Destination,
    reconnect::{PROVEN, backoff, opened_within},
    status::{Push, Status, Subscriber},
};
use crate::{
    dialer::OnPush,
    error::CommandError,
    transport::{PubsubTransport, Server},
    url::{Endpoint, at},
};

/// Interval of the PINGs that check the connection.
const PING_EVERY: Duration = Duration::from_secs(2);
/// The connection is closed after this time without subscriptions.
const IDLE: Duration = Duration::from_secs(60);
/// Number of failed attempts after which an event is emitted.
const FAILURES: u32 = 4;

/// The subscribed channels, and the connection for them.
pub(super) struct Pubsub {
    destination: Destination,
    /// Maximum time for one answer.
    limit: Duration,
    subscribers: Mutex<HashMap<String, Subscriber>>,
    /// The nodes of a Cluster; the first is the next to try.
    nodes: Mutex<VecDeque<ConnectionInfo>>,
    /// Wakes the task when channels were added or removed.
    wanted: Notify,
    /// Wakes the task when another server may be the right one.
    elsewhere: Notify,
    closing: CancellationToken,
    /// State of the connection for commands, which has events of its own.
    commands: watch::Receiver<Status>,
    /// Whether the event about refused subscriptions was emitted.
    told_of_refusal: AtomicBool,
}

/// Why a connection is closed.
enum End {
    Lost(String),
    /// It works, but another server may be the right one.
    Elsewhere,
    /// There are no subscriptions.
    Idle,
}

impl Pubsub {
    pub(super) fn new(
        destination: Destination,
        budget: Duration,
        commands: watch::Receiver<Status>,
        closing: CancellationToken,
    ) -> Self {
        let mut nodes = match &destination.endpoint {
            Endpoint::Cluster(nodes) => nodes.clone(),
            _ => Vec::new(),
        };
        fastrand::shuffle(&mut nodes);
        Self {
            limit: budget.max(destination.dialer.connect),
            destination,
            subscribers: Mutex::default(),
            nodes: Mutex::new(nodes.into()),
            wanted: Notify::new(),
            elsewhere: Notify::new(),
            closing,
            commands,
            told_of_refusal: AtomicBool::new(false),
        }
    }

    pub(super) fn subscribe(&self, channel: &str, subscriber: Subscriber) {
        self.lock_subscribers()
            .insert(channel.to_owned(), subscriber);
        self.wanted.notify_one();
    }

    pub(super) fn unsubscribe(&self, channel: &str) {
        self.lock_subscribers().remove(channel);
        self.wanted.notify_one();
    }

    /// Connects again, because commands use a new connection, possibly to another server, and messages come from there.
    /// Without effect in a Cluster, where every node passes on all messages.
    pub(super) fn follow(&self) {
        if !self.destination.is_cluster() {
            self.elsewhere.notify_one();
        }
    }

    /// Runs until the connection is closed.
    pub(super) async fn supervise(self: Arc<Self>) {
        tokio::select! {
            () = self.closing.cancelled() => {}
            never = self.keep_connected() => match never {},
        }
    }

    async fn keep_connected(self: &Arc<Self>) -> Infallible {
        let mut failures: u32 = 0;
        loop {
            while self.lock_subscribers().is_empty() {
                self.wanted.notified().await;
            }
            let started = Instant::now();
            let (end, worked) = match self.connect().await {
                Ok((conn, lost)) => (self.serve(&conn, &lost).await, true),
                Err(why) => (End::Lost(why), false),
            };
            let proven = worked && started.elapsed() >= PROVEN;
            match end {
                End::Idle => failures = 0,
                End::Elsewhere if proven => failures = 0,
                End::Elsewhere | End::Lost(_) if proven => failures = 1,
                End::Elsewhere | End::Lost(_) => failures = failures.saturating_add(1),
            }
            if let End::Lost(why) = end {
                if failures == FAILURES && *self.commands.borrow() == Status::Up {
                    tracing::warn!(target: "resilience", redis = ?self.destination.endpoint, reason = %why, "no pushes from Redis");
                }
                tokio::time::sleep(backoff(failures)).await;
            } else if failures > 0 {
                tokio::time::sleep(backoff(failures)).await;
            }
        }
    }

    /// Opens a connection; the `Notify` fires when it is lost.
    async fn connect(self: &Arc<Self>) -> Result<(PubsubTransport, Arc<Notify>), String> {
        // The server to connect to is looked up now: earlier notifications are settled.
        let _ = self.elsewhere.notified().now_or_never();
        let server = match self.next_node() {
            Some(node) => Server::Single(Box::new(node)),
            None => self.destination.find().await,
        };
        let (Server::Single(server), _) = self.destination.log_in(server).await? else {
            return Err("the Cluster has no nodes".into());
        };
        let lost = Arc::new(Notify::new());
        let dialer = &self.destination.dialer;
        let opening = PubsubTransport::open(dialer, &server, self.on_push(&lost));
        let conn = opened_within(dialer, opening).await?;
        if self.destination.is_cluster() {
            self.learn_nodes(&conn, &server).await;
        }
        Ok((conn, lost))
    }

    /// The node of the Cluster to connect to, another one each time.
    fn next_node(&self) -> Option<ConnectionInfo> {
        let mut nodes = self.lock_nodes();
        let node = nodes.pop_front()?;
        nodes.push_back(node.clone());
        Some(node)
    }

    /// Adds nodes that the URL does not name.
    async fn learn_nodes(&self, conn: &PubsubTransport, this: &ConnectionInfo) {
        let Ok(Ok(found)) = timeout(self.limit, conn.cluster_nodes()).await else {
            return;
        };
        let mut nodes = self.lock_nodes();
        for address in found {
            let addr = at(this.addr(), address);
            if nodes.iter().all(|node| *node.addr() != addr) {
                nodes.push_front(this.clone().set_addr(addr));
            }
        }
    }

    /// Keeps the subscriptions of a connection in line with the wanted ones, until its end. One task only: the commands of two
    /// could overtake each other.
    async fn serve(&self, conn: &PubsubTransport, lost: &Notify) -> End {
        let mut subscribed = HashSet::new();
        let mut used = Instant::now();
        let mut ping = interval_at(used + PING_EVERY, PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(error) = self.match_subscriptions(conn, &mut subscribed).await {
                // A command without an answer may have been executed or not; a new connection starts without subscriptions.
                return End::Lost(error.to_string());
            }
            if !subscribed.is_empty() {
                used = Instant::now();
            } else if used.elapsed() >= IDLE {
                return End::Idle;
            }
            tokio::select! {
                () = lost.notified() => return End::Lost("the connection broke".into()),
                () = self.elsewhere.notified() => return End::Elsewhere,
                () = self.wanted.notified() => {}
                _ = ping.tick() => if let Err(why) = self.is_well(conn).await {
                    return End::Lost(why.into());
                },
            }
        }
    }

    /// Checks that the server answers, and that a node of a Cluster is not cut off from it.
    async fn is_well(&self, conn: &PubsubTransport) -> Result<(), &'static str> {
        let silent = "the server stopped answering";
        if !self.destination.is_cluster() {
            return match timeout(self.limit, conn.ping()).await {
                Ok(Ok(())) => Ok(()),
                _ => Err(silent),
            };
        }
        match timeout(self.limit, conn.cluster_info()).await {
            Ok(Ok(info)) if info.contains("cluster_state:fail") => {
                Err("the node is cut off from its Cluster")
            }
            Ok(Err(error)) if matches!(CommandError::from_redis(&error), CommandError::Lost(_)) => {
                Err(silent)
            }
            // An error of the server is an answer: the ACL may not allow the command.
            Ok(_) => Ok(()),
            Err(_) => Err(silent),
        }
    }

    /// Subscribes and unsubscribes until the connection is `subscribed` to the wanted channels.
    async fn match_subscriptions(
        &self,
        conn: &PubsubTransport,
        subscribed: &mut HashSet<String>,
    ) -> Result<(), CommandError> {
        let (new, gone): (Vec<String>, Vec<String>) = {
            let wanted = self.lock_subscribers();
            let new = wanted
                .keys()
                .filter(|&channel| !subscribed.contains(channel));
            let gone = subscribed
                .iter()
                .filter(|&channel| !wanted.contains_key(channel));
            (new.cloned().collect(), gone.cloned().collect())
        };
        let subscribing = new
            .iter()
            .map(|channel| self.answered(conn.subscribe(channel)));
        let unsubscribing = gone
            .iter()
            .map(|channel| self.answered(conn.unsubscribe(channel)));
        let (new_answers, gone_answers) =
            join(join_all(subscribing), join_all(unsubscribing)).await;
        for (channel, answer) in gone.iter().zip(gone_answers) {
            answer?;
            subscribed.remove(channel);
        }
        for (channel, answer) in new.into_iter().zip(new_answers) {
            if answer? {
                self.push(&channel, Push::Restored);
            }
            subscribed.insert(channel);
        }
        Ok(())
    }

    /// Whether the server executed `command`. A refusal, e.g. by the ACL, is no error: the patterns then read, somewhat later,
    /// what is not pushed.
    async fn answered(
        &self,
        command: impl Future<Output = RedisResult<()>>,
    ) -> Result<bool, CommandError> {
        let error = match timeout(self.limit, command).await {
            Ok(Ok(())) => return Ok(true),
            Ok(Err(error)) => CommandError::from_redis(&error),
            Err(_) => CommandError::TimedOut,
        };
        let CommandError::Refused(reason) = error else {
            return Err(error);
        };
        if !self.told_of_refusal.swap(true, Relaxed) {
            tracing::warn!(target: "resilience", redis = ?self.destination.endpoint, reason, "no pushes from Redis");
        }
        Ok(false)
    }

    /// Called for every push.
    fn on_push(self: &Arc<Self>, lost: &Arc<Notify>) -> OnPush {
        let (pubsub, lost) = (Arc::downgrade(self), Arc::clone(lost));
        Arc::new(move |push: PushInfo| match push.kind {
            PushKind::Disconnection => lost.notify_one(),
            PushKind::Message => {
                if let [Value::BulkString(channel), Value::BulkString(message)] = &push.data[..]
                    && let Some(pubsub) = pubsub.upgrade()
                {
                    pubsub.push(&String::from_utf8_lossy(channel), Push::Message(message));
                }
            }
            _ => {}
        })
    }

    pub(super) fn push(&self, channel: &str, push: Push<'_>) {
        let subscriber = self.lock_subscribers().get(channel).cloned();
        if let Some(subscriber) = subscriber {
            subscriber(push);
        }
    }

    fn lock_subscribers(&self) -> MutexGuard<'_, HashMap<String, Subscriber>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_nodes(&self) -> MutexGuard<'_, VecDeque<ConnectionInfo>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
