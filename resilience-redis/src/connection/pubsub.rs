//! The connection that messages come over, and the task that keeps it alive. It carries nothing but
//! subscriptions, and there is none while nothing is listened to.

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
use redis::{ConnectionAddr, ConnectionInfo, PushInfo, PushKind, RedisResult, Value};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    reconnect::{PROVEN, backoff, opened_within},
    status::{Push, Status, Subscriber},
};
use crate::{
    error::CommandError,
    transport::{OnPush, PushConn, RootCertificates, Timeouts},
    url::Endpoint,
};

/// Time from one sign of life that is asked for to the next.
const PING_EVERY: Duration = Duration::from_secs(2);
/// The connection is closed when nothing has been listened to for this long.
const IDLE: Duration = Duration::from_secs(60);
/// Attempts to connect that fail before an event says so.
const FAILURES: u32 = 4;

/// Who listens to which channel, and the connection that it takes.
pub(super) struct Pubsub {
    target: Endpoint,
    time_limits: Timeouts,
    /// Maximum time for one answer.
    limit: Duration,
    roots: Option<RootCertificates>,
    subscribers: Mutex<HashMap<String, Subscriber>>,
    /// The nodes of a Cluster; the next one to try is in front.
    nodes: Mutex<VecDeque<ConnectionInfo>>,
    /// Rings when channels came or went.
    wanted: Notify,
    /// Rings when another server may be the right one.
    elsewhere: Notify,
    closing: CancellationToken,
    /// How the connection for commands fares, which has events of its own.
    commands: watch::Receiver<Status>,
    /// Said once that the server allows no subscriptions.
    told_of_refusal: AtomicBool,
}

/// Why a connection is given up.
enum End {
    Lost(String),
    /// It works, but another server may be the right one.
    Elsewhere,
    /// Nothing is listened to.
    Idle,
}

impl Pubsub {
    pub(super) fn new(
        target: Endpoint,
        budget: Duration,
        time_limits: Timeouts,
        roots: Option<RootCertificates>,
        commands: watch::Receiver<Status>,
        closing: CancellationToken,
    ) -> Self {
        let mut nodes = match &target {
            Endpoint::Cluster(nodes) => nodes.clone(),
            _ => Vec::new(),
        };
        fastrand::shuffle(&mut nodes);
        Self {
            target,
            time_limits,
            limit: budget.max(time_limits.connect),
            roots,
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

    /// The commands go over a new connection, maybe to another server: messages come from there. Of a Cluster, any
    /// node will do.
    pub(super) fn follow(&self) {
        if !matches!(self.target, Endpoint::Cluster(_)) {
            self.elsewhere.notify_one();
        }
    }

    /// Until it is closed.
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
                    tracing::warn!(target: "resilience", redis = ?self.target, reason = %why, "no pushes from Redis");
                }
                tokio::time::sleep(backoff(failures)).await;
            } else if failures > 0 {
                tokio::time::sleep(backoff(failures)).await;
            }
        }
    }

    /// A connection, and what rings when it is lost.
    async fn connect(self: &Arc<Self>) -> Result<(PushConn, Arc<Notify>), String> {
        let target = self.next_target();
        // Where to connect to is found out now.
        let _ = self.elsewhere.notified().now_or_never();
        let lost = Arc::new(Notify::new());
        let on_push = self.on_push(&lost);
        let opening = PushConn::open(&target, self.time_limits, self.roots.as_ref(), on_push);
        let conn = opened_within(self.time_limits, opening).await?;
        if matches!(self.target, Endpoint::Cluster(_)) {
            self.learn_nodes(&conn, &target).await;
        }
        Ok((conn, lost))
    }

    /// Where to connect to; of a Cluster, another node each time.
    fn next_target(&self) -> Endpoint {
        let mut nodes = self.lock_nodes();
        match nodes.pop_front() {
            None => self.target.clone(),
            Some(node) => {
                nodes.push_back(node.clone());
                Endpoint::Single(node)
            }
        }
    }

    /// Nodes that the URL does not name are tried too.
    async fn learn_nodes(&self, conn: &PushConn, target: &Endpoint) {
        let Endpoint::Single(this) = target else {
            return;
        };
        let Ok(Ok(found)) = timeout(self.limit, conn.cluster_nodes()).await else {
            return;
        };
        let mut nodes = self.lock_nodes();
        for (host, port) in found {
            let addr = at(this.addr(), host, port);
            if nodes.iter().all(|node| *node.addr() != addr) {
                nodes.push_front(this.clone().set_addr(addr));
            }
        }
    }

    /// Keeps the connection subscribed to what is listened to, for as long as it lives. One task does it all: two would
    /// overtake each other.
    async fn serve(&self, conn: &PushConn, lost: &Notify) -> End {
        let mut subscribed = HashSet::new();
        let mut used = Instant::now();
        let mut ping = interval_at(used + PING_EVERY, PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(error) = self.match_subscriptions(conn, &mut subscribed).await {
                // What has no answer may have been done, or not: a new connection is subscribed to nothing.
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

    /// Whether the server answers; a node of a Cluster must not be cut off from it either.
    async fn is_well(&self, conn: &PushConn) -> Result<(), &'static str> {
        let silent = "the server stopped answering";
        if !matches!(self.target, Endpoint::Cluster(_)) {
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
            // An error of the server is an answer: the ACL may not allow it.
            Ok(_) => Ok(()),
            Err(_) => Err(silent),
        }
    }

    /// Brings what the connection is `subscribed` to in line with what is wanted.
    async fn match_subscriptions(
        &self,
        conn: &PushConn,
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

    /// Whether the server did it. Without the right to subscribe the store is still of use: what is pushed is asked for,
    /// somewhat later.
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
            tracing::warn!(target: "resilience", redis = ?self.target, reason, "no pushes from Redis");
        }
        Ok(false)
    }

    /// What the connection calls for every push.
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

/// Another node, reached in the same way as `this` one.
fn at(this: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    let mut addr = this.clone();
    match &mut addr {
        ConnectionAddr::Tcp(own_host, own_port) => {
            if !host.is_empty() {
                *own_host = host;
            }
            *own_port = port;
        }
        ConnectionAddr::TcpTls {
            host: own_host,
            port: own_port,
            ..
        } => {
            if !host.is_empty() {
                *own_host = host;
            }
            *own_port = port;
        }
        _ => {}
    }
    addr
}
