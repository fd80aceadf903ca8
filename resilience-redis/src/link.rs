//! The one connection of a process to Redis, and the task that keeps it alive.
//!
//! The client crate's own connection manager lets calls hang for seconds while it reconnects, and never notices a
//! peer that stopped answering. Here a call either has a connection or fails at once; every call has a budget; and
//! one background task
//!
//! - connects, with capped and jittered backoff, for as long as the handle lives;
//! - after [`SUSPICIOUS`] timeouts in a row sends a PING, and drops the connection if that is not answered either;
//! - restores subscriptions on every new connection and tells subscribers that messages may have been missed.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use redis::{Cmd, PushInfo, PushKind, Value};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::{
    conn::{Conn, OnPush, Patience},
    error::{StoreError, is_broken},
    target::Target,
};

/// So many timeouts in a row make the connection suspicious.
const SUSPICIOUS: u32 = 3;
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// How the connection fares.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// The first connection is being made.
    Connecting,
    /// Connected.
    Up,
    /// Not connected, for this reason; trying again in the background.
    Down(String),
}

/// What a subscriber is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Push<'a> {
    Message(&'a [u8]),
    /// The subscription stands on a new connection: what was published meanwhile is lost.
    Restored,
}

type Subscriber = Arc<dyn Fn(Push<'_>) + Send + Sync>;

pub(crate) struct Link {
    shared: Arc<Shared>,
}

/// What the background task needs; it must not keep the link itself alive.
struct Shared {
    target: Target,
    budget: Duration,
    patience: Patience,
    current: ArcSwapOption<Live>,
    status: watch::Sender<Status>,
    /// Timeouts in a row.
    timeouts: AtomicU32,
    /// The newest connection that is known to be lost, by number.
    lost: AtomicU64,
    /// Rings when `timeouts` or `lost` should be looked at.
    trouble: Notify,
    closed: Notify,
    subscribers: Mutex<HashMap<String, Subscriber>>,
}

/// A connection and its number: trouble on an old one is not taken for trouble on its successor.
struct Live {
    conn: Conn,
    number: u64,
}

impl Link {
    /// Starts connecting in the background; must be called within a tokio runtime.
    pub(crate) fn start(target: Target, budget: Duration, patience: Patience) -> Self {
        let shared = Arc::new(Shared {
            target,
            budget,
            patience,
            current: ArcSwapOption::empty(),
            status: watch::Sender::new(Status::Connecting),
            timeouts: AtomicU32::new(0),
            lost: AtomicU64::new(0),
            trouble: Notify::new(),
            closed: Notify::new(),
            subscribers: Mutex::default(),
        });
        tokio::spawn(Arc::clone(&shared).supervise());
        Self { shared }
    }

    /// Sends one command. Fails at once when there is no connection, and after the budget when there is no answer.
    pub(crate) async fn send(&self, cmd: &Cmd) -> Result<Value, StoreError> {
        self.shared.send(cmd).await
    }

    /// Calls `subscriber` for every message on `channel`, on the connection's own task: it must be quick. One
    /// subscriber per channel; a second one replaces the first.
    pub(crate) fn subscribe(&self, channel: &str, subscriber: Subscriber) {
        self.shared
            .lock_subscribers()
            .insert(channel.to_owned(), subscriber);
        let (shared, channel) = (Arc::clone(&self.shared), channel.to_owned());
        tokio::spawn(async move {
            // On failure nothing is lost: the next connection subscribes to everything.
            let _ = shared.subscribe_now(&channel).await;
        });
    }

    pub(crate) fn unsubscribe(&self, channel: &str) {
        self.shared.lock_subscribers().remove(channel);
        let (shared, channel) = (Arc::clone(&self.shared), channel.to_owned());
        tokio::spawn(async move {
            if let Some(live) = shared.current.load_full() {
                let _ = timeout(shared.budget, live.conn.clone().unsubscribe(&channel)).await;
            }
        });
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.closed.notify_one();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("target", &self.shared.target)
            .field("status", &*self.shared.status.borrow())
            .finish_non_exhaustive()
    }
}

impl Shared {
    async fn send(&self, cmd: &Cmd) -> Result<Value, StoreError> {
        let live = self.current.load_full().ok_or(StoreError::Down)?;
        let answer = match timeout(self.budget, live.conn.clone().send(cmd)).await {
            Ok(answer) => answer.and_then(Value::extract_error),
            Err(_) => {
                self.timed_out();
                return Err(StoreError::TimedOut);
            }
        };
        match &answer {
            Err(error) if error.is_timeout() => self.timed_out(),
            Err(error) if is_broken(error) => self.lose(live.number),
            _ => self.answered(),
        }
        answer.map_err(|error| StoreError::from_redis(&error))
    }

    fn answered(&self) {
        if self.timeouts.load(Relaxed) != 0 {
            self.timeouts.store(0, Relaxed);
        }
    }

    fn timed_out(&self) {
        if self.timeouts.fetch_add(1, Relaxed) + 1 >= SUSPICIOUS {
            self.trouble.notify_one();
        }
    }

    fn lose(&self, number: u64) {
        self.lost.fetch_max(number, Relaxed);
        self.trouble.notify_one();
    }

    async fn supervise(self: Arc<Self>) {
        let mut failures = 0;
        for number in 1.. {
            let life = async {
                match self.connect(number).await {
                    Ok(()) => (0, self.until_lost(number).await),
                    Err(why) => (failures + 1, why),
                }
            };
            let (failed, why) = tokio::select! {
                () = self.closed.notified() => return,
                end = life => end,
            };
            failures = failed;
            self.down(why);
            tokio::select! {
                () = self.closed.notified() => return,
                () = tokio::time::sleep(backoff(failures)) => {}
            }
        }
    }

    async fn connect(self: &Arc<Self>, number: u64) -> Result<(), String> {
        let opening = Conn::open(&self.target, self.patience, self.on_push(number));
        // The client's own timeout covers the socket, not the lookup and the handshake.
        let conn = match timeout(self.patience.connect * 2, opening).await {
            Ok(Ok(conn)) => conn,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("no answer while connecting".into()),
        };
        self.timeouts.store(0, Relaxed);
        self.current.store(Some(Arc::new(Live { conn, number })));
        let channels: Vec<String> = self.lock_subscribers().keys().cloned().collect();
        for channel in channels {
            if let Err(error) = self.subscribe_now(&channel).await {
                self.current.store(None);
                return Err(error.to_string());
            }
        }
        tracing::info!(target: "resilience", redis = ?self.target, "connected to Redis");
        self.status.send_replace(Status::Up);
        Ok(())
    }

    async fn subscribe_now(&self, channel: &str) -> Result<(), StoreError> {
        let live = self.current.load_full().ok_or(StoreError::Down)?;
        match timeout(
            self.budget.max(self.patience.connect),
            live.conn.clone().subscribe(channel),
        )
        .await
        {
            Ok(Ok(())) => self.push(channel, Push::Restored),
            Ok(Err(error)) => return Err(StoreError::from_redis(&error)),
            Err(_) => return Err(StoreError::TimedOut),
        }
        Ok(())
    }

    /// Returns when connection `number` is of no more use, with the reason.
    async fn until_lost(&self, number: u64) -> String {
        loop {
            if self.lost.load(Relaxed) >= number {
                return "the connection broke".into();
            }
            if self.timeouts.load(Relaxed) >= SUSPICIOUS && !self.answers_ping().await {
                return "the server stopped answering".into();
            }
            self.trouble.notified().await;
        }
    }

    async fn answers_ping(&self) -> bool {
        let Some(live) = self.current.load_full() else {
            return false;
        };
        let pong = timeout(
            self.budget.max(Duration::from_millis(100)),
            live.conn.clone().send(&redis::cmd("PING")),
        )
        .await;
        let answered = matches!(pong, Ok(Ok(_)));
        if answered {
            self.timeouts.store(0, Relaxed);
        }
        answered
    }

    fn down(&self, why: String) {
        self.current.store(None);
        let news = !matches!(&*self.status.borrow(), Status::Down(_));
        if news {
            tracing::warn!(target: "resilience", redis = ?self.target, reason = %why, "no connection to Redis");
        }
        self.status.send_replace(Status::Down(why));
    }

    /// What the connection calls for every push, in order with the replies.
    fn on_push(self: &Arc<Self>, number: u64) -> OnPush {
        let shared = Arc::downgrade(self);
        Arc::new(move |push: PushInfo| {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            match push.kind {
                // A Cluster connection mends the loss of a node by itself.
                PushKind::Disconnection if matches!(shared.target, Target::Cluster(_)) => {}
                PushKind::Disconnection => shared.lose(number),
                PushKind::Message => {
                    if let [Value::BulkString(channel), Value::BulkString(message)] = &push.data[..]
                    {
                        shared.push(&String::from_utf8_lossy(channel), Push::Message(message));
                    }
                }
                _ => {}
            }
        })
    }

    fn push(&self, channel: &str, push: Push<'_>) {
        let subscriber = self.lock_subscribers().get(channel).cloned();
        if let Some(subscriber) = subscriber {
            subscriber(push);
        }
    }

    fn lock_subscribers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Subscriber>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Doubles from [`FIRST_RETRY`] to [`LAST_RETRY`], less up to a half: instances that lost Redis together do not come
/// back together.
fn backoff(attempt: u32) -> Duration {
    let full = FIRST_RETRY
        .saturating_mul(1 << attempt.min(10))
        .min(LAST_RETRY);
    full.mul_f64(1.0 - fastrand::f64() / 2.0)
}
