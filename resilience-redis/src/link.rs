//! The one connection of a process to Redis, and the task that keeps it alive.
//!
//! The client crate's own connection manager lets calls hang for seconds while it reconnects, and never notices a
//! peer that stopped answering. Here a call either has a connection or fails at once; every call has a budget; and
//! one background task
//!
//! - connects, with capped and jittered backoff, for as long as the handle lives; a server that does not answer a
//!   TIME within the budget is of no use, however well it takes connections;
//! - after [`SUSPICIOUS`] timeouts in a row sends a PING, and drops the connection if that is not answered either;
//! - connects anew, the old connection meanwhile in use, when the server turns out to be a replica;
//! - keeps the connection subscribed to what is listened to, restores that on every new connection and tells
//!   subscribers that messages may have been missed.

mod budget;
mod clock;
mod subscriptions;

use std::{
    any::Any,
    collections::{HashMap, HashSet},
    convert::Infallible,
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use redis::{Cmd, ErrorKind, PushInfo, PushKind, RedisError, RedisResult, Value};
use resilience_core::{
    Verdict,
    breaker::{CircuitBreaker, Dropped, HalfOpen, OpenFor},
    completion::Guard,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

use self::{budget::Budget, clock::ServerClock};
use crate::{
    conn::{Conn, OnPush, Patience, Roots},
    error::{StoreError, is_broken, is_read_only},
    target::Target,
};

/// So many timeouts in a row make the connection suspicious.
const SUSPICIOUS: u32 = 3;
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// A connection that was lost before this age does not make the next attempt come sooner.
const PROVEN: Duration = Duration::from_secs(1);
/// A server that turned out to be a replica is asked again so often, at most, whether that has changed.
const REPLICA_AGAIN: Duration = Duration::from_secs(2);

/// The name of the connection's own breaker and events.
const GUARD: &str = "resilience.redis";

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
    budget: Budget,
    patience: Patience,
    roots: Option<Roots>,
    /// Between its callers and a server that has stopped answering: of many that would each wait for their budget to
    /// run out, a few do, now and then.
    guard: CircuitBreaker,
    current: ArcSwapOption<Live>,
    clock: ServerClock,
    status: watch::Sender<Status>,
    /// Timeouts in a row.
    timeouts: AtomicU32,
    /// The newest connection that is known to be lost, by number.
    lost: AtomicU64,
    /// The newest connection that is known to lead to a replica, by number.
    replica: AtomicU64,
    /// Told once that there are no pushes.
    without_pushes: AtomicBool,
    /// Told once that keys may be evicted.
    told_of_eviction: AtomicBool,
    /// Rings when `timeouts` or `lost` should be looked at.
    trouble: Notify,
    closed: Notify,
    subscribers: Mutex<HashMap<String, Subscriber>>,
    /// Rings when channels came or went.
    wanted: Notify,
}

/// A connection and its number: trouble on an old one is not taken for trouble on its successor.
struct Live {
    conn: Conn,
    number: u64,
    since: Instant,
}

/// Why a connection is of no more use.
enum End {
    Lost(String),
    /// It works, but another server would be the right one.
    Replica,
}

impl Link {
    /// Starts connecting in the background; must be called within a tokio runtime.
    pub(crate) fn start(
        target: Target,
        budget: Duration,
        patience: Patience,
        roots: Option<Roots>,
    ) -> Self {
        let shared = Arc::new(Shared {
            target,
            budget: Budget::new(budget),
            patience,
            roots,
            guard: guard(),
            current: ArcSwapOption::empty(),
            clock: ServerClock::new(),
            status: watch::Sender::new(Status::Connecting),
            timeouts: AtomicU32::new(0),
            lost: AtomicU64::new(0),
            replica: AtomicU64::new(0),
            without_pushes: AtomicBool::new(false),
            told_of_eviction: AtomicBool::new(false),
            trouble: Notify::new(),
            closed: Notify::new(),
            subscribers: Mutex::default(),
            wanted: Notify::new(),
        });
        tokio::spawn(Arc::clone(&shared).supervise());
        Self { shared }
    }

    /// Sends one command. Fails at once when there is no connection, and after the budget when there is no answer.
    pub(crate) async fn send(&self, cmd: &Cmd) -> Result<Value, StoreError> {
        self.shared.send(cmd).await
    }

    /// Sends `cmd`, about `key`, and a WAIT right behind it: the answer, and how many replicas have what it wrote.
    pub(crate) async fn send_and_wait(
        &self,
        key: &str,
        cmd: &Cmd,
        wait: &Cmd,
    ) -> Result<(Value, u64), StoreError> {
        let pair = |mut conn: Conn| async move {
            let answers = conn.send_pair(key, cmd, wait).await?;
            let Ok([answer, waited]) = <[Value; 2]>::try_from(answers) else {
                let what = "a pair of commands has another number of answers";
                return Err((ErrorKind::UnexpectedReturnType, what).into());
            };
            let answer = answer.extract_error()?;
            Ok((answer, redis::from_redis_value(waited.extract_error()?)?))
        };
        let first = self.shared.carry(pair).await;
        if !matches!(&first, Err(StoreError::Refused(error)) if is_elsewhere(error)) {
            return first;
        }
        // Single commands follow the slot to where it has gone, and take the map of slots along. Steps can be repeated.
        self.send(cmd).await?;
        self.shared.carry(pair).await
    }

    /// Another connection to the same place, with the same settings.
    pub(crate) fn another(&self) -> Self {
        let shared = &self.shared;
        Self::start(
            shared.target.clone(),
            shared.budget.limit(),
            shared.patience,
            shared.roots.clone(),
        )
    }

    pub(crate) fn budget(&self) -> Duration {
        self.shared.budget.limit()
    }

    pub(crate) fn clock(&self) -> &ServerClock {
        &self.shared.clock
    }

    /// Calls `subscriber` for every message on `channel`, on the connection's own task: it must be quick. One
    /// subscriber per channel; a second one replaces the first.
    pub(crate) fn subscribe(&self, channel: &str, subscriber: Subscriber) {
        self.shared
            .lock_subscribers()
            .insert(channel.to_owned(), subscriber);
        self.shared.wanted.notify_one();
    }

    pub(crate) fn unsubscribe(&self, channel: &str) {
        self.shared.lock_subscribers().remove(channel);
        self.shared.wanted.notify_one();
    }

    /// Waits until the connection is up, but no longer than `within`.
    pub(crate) async fn ready(&self, within: Duration) -> Result<(), Status> {
        let mut status = self.status();
        match timeout(within, status.wait_for(|status| *status == Status::Up)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.status().borrow().clone()),
        }
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
        let send = |mut conn: Conn| async move {
            let answer = conn.send(cmd).await;
            answer.and_then(Value::extract_error)
        };
        self.carry(send).await
    }

    /// Does `work` on the connection, within the budget.
    async fn carry<T, F>(&self, work: impl FnOnce(Conn) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let live = self.current.load_full().ok_or(StoreError::Down)?;
        let mut call = self.guard.acquire().map_err(|_| StoreError::LeftAlone)?;
        let Some(answer) = self.budget.within(work(live.conn.clone())).await else {
            call.settle(Verdict::transient());
            self.in_trouble();
            return Err(StoreError::TimedOut);
        };
        let answer = answer.map_err(|error| self.look_into(&live, &error));
        match &answer {
            Err(StoreError::TimedOut | StoreError::Lost(_)) => call.settle(Verdict::transient()),
            // An error that Redis sends is an answer.
            _ => {
                call.settle(Verdict::Success);
                self.answered();
            }
        }
        answer
    }

    /// What an error says about the connection that it came over.
    fn look_into(&self, live: &Live, error: &RedisError) -> StoreError {
        let is_cluster = matches!(self.target, Target::Cluster(_));
        if error.is_timeout() || (is_cluster && is_broken(error)) {
            // A Cluster connection mends the loss of a node by itself.
            self.in_trouble();
        } else if is_broken(error) {
            self.lose(live.number);
        } else if is_read_only(error) && !is_cluster && live.since.elapsed() >= REPLICA_AGAIN {
            self.replica.fetch_max(live.number, Relaxed);
            self.trouble.notify_one();
        }
        StoreError::from_redis(error)
    }

    fn answered(&self) {
        if self.timeouts.load(Relaxed) != 0 {
            self.timeouts.store(0, Relaxed);
        }
    }

    fn in_trouble(&self) {
        if self.timeouts.fetch_add(1, Relaxed) + 1 >= SUSPICIOUS {
            self.trouble.notify_one();
        }
    }

    fn lose(&self, number: u64) {
        self.lost.fetch_max(number, Relaxed);
        self.trouble.notify_one();
    }

    async fn supervise(self: Arc<Self>) {
        tokio::select! {
            () = self.keep_connected() => {}
            never = self.budget.watch() => match never {},
        }
    }

    /// Until the link is closed.
    async fn keep_connected(self: &Arc<Self>) {
        let mut failures: u32 = 0;
        for number in 1.. {
            let started = Instant::now();
            let life = async {
                match self.connect(number).await {
                    Ok(subscribed) => tokio::select! {
                        end = self.until_lost(number) => end,
                        never = self.look_after(subscribed) => match never {},
                    },
                    Err(why) => End::Lost(why),
                }
            };
            let end = tokio::select! {
                () = self.closed.notified() => return,
                end = life => end,
            };
            // An attempt that takes its time is no proof either.
            let proven = self.current.load().is_some() && started.elapsed() >= PROVEN;
            failures = if proven {
                0
            } else {
                failures.saturating_add(1)
            };
            match end {
                End::Lost(why) => self.down(why),
                End::Replica => {}
            }
            tokio::select! {
                () = self.closed.notified() => return,
                () = tokio::time::sleep(backoff(failures)) => {}
            }
        }
    }

    /// The channels that the new connection is subscribed to.
    async fn connect(self: &Arc<Self>, number: u64) -> Result<HashSet<String>, String> {
        let on_push = self.on_push(number);
        let opening = Conn::open(&self.target, self.patience, self.roots.as_ref(), on_push);
        // The client's own timeout covers the socket, not the lookup and the handshake.
        // The TLS library panics in a program that has to choose how it encrypts, and has not: as an error, that can be seen
        // from outside, and ends when it is chosen.
        let opening = AssertUnwindSafe(opening).catch_unwind();
        let mut conn = match timeout(self.patience.connect * 2, opening).await {
            Ok(Ok(Ok(conn))) => conn,
            Ok(Ok(Err(error))) => return Err(error.to_string()),
            Ok(Err(panic)) => return Err(format!("panicked: {}", said(&*panic))),
            Err(_) => return Err("no answer while connecting".into()),
        };
        match timeout(self.budget.limit(), conn.time()).await {
            Ok(Ok(micros)) => self.clock.shows(micros),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("connected, but no answer within the budget".into()),
        }
        self.timeouts.store(0, Relaxed);
        let since = Instant::now();
        self.current.store(Some(Arc::new(Live {
            conn,
            number,
            since,
        })));
        let mut subscribed = HashSet::new();
        if let Err(error) = self.match_subscriptions(&mut subscribed).await {
            self.current.store(None);
            return Err(error.to_string());
        }
        // The guard is left as it is: a server may tell the TIME on every new connection, and do nothing else.
        if *self.status.borrow() != Status::Up {
            tracing::info!(target: "resilience", redis = ?self.target, "connected to Redis");
            self.status.send_replace(Status::Up);
        }
        Ok(subscribed)
    }

    /// What there is to do while the connection lives.
    async fn look_after(&self, subscribed: HashSet<String>) -> Infallible {
        self.tell_of_eviction().await;
        self.keep_subscribed(subscribed).await
    }

    /// A server that evicts keys when its memory is full forgets limits and records that are in use, and says nothing.
    /// Who may not look is not told.
    async fn tell_of_eviction(&self) {
        let Some(live) = self.current.load_full() else {
            return;
        };
        let Ok(Ok(memory)) = timeout(self.budget.limit(), live.conn.clone().memory()).await else {
            return;
        };
        let Some(policy) = evicts(&memory) else {
            return;
        };
        if !self.told_of_eviction.swap(true, Relaxed) {
            tracing::warn!(
                target: "resilience",
                name = GUARD,
                redis = ?self.target,
                policy,
                "this Redis evicts keys when it is full: limits and idempotency records would be forgotten"
            );
        }
    }

    /// Returns when connection `number` is of no more use.
    async fn until_lost(&self, number: u64) -> End {
        loop {
            if self.lost.load(Relaxed) >= number {
                return End::Lost("the connection broke".into());
            }
            if self.timeouts.load(Relaxed) >= SUSPICIOUS && !self.answers_ping().await {
                return End::Lost("the server stopped answering".into());
            }
            if self.replica.load(Relaxed) >= number {
                return End::Replica;
            }
            self.trouble.notified().await;
        }
    }

    async fn answers_ping(&self) -> bool {
        let Some(live) = self.current.load_full() else {
            return false;
        };
        let pong = timeout(self.budget.limit(), live.conn.clone().ping()).await;
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
                // A Cluster connection mends the loss of a node by itself, and subscribes anew.
                PushKind::Disconnection | PushKind::Subscribe
                    if matches!(shared.target, Target::Cluster(_)) =>
                {
                    shared.push_to_all(Push::Restored);
                }
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

    fn push_to_all(&self, push: Push<'_>) {
        let all: Vec<Subscriber> = self.lock_subscribers().values().cloned().collect();
        all.iter().for_each(|subscriber| subscriber(push));
    }

    fn lock_subscribers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Subscriber>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a slot of a Cluster is not where it was looked for.
fn is_elsewhere(error: &str) -> bool {
    ["MOVED", "ASK", "Moved", "Ask"]
        .iter()
        .any(|word| error.starts_with(word))
}

/// Opens after as many silences in a row as make the connection suspicious. Its events and metrics have the name
/// `resilience.redis`.
fn guard() -> CircuitBreaker {
    CircuitBreaker::builder(GUARD)
        .no_failure_rate()
        .consecutive_failures(SUSPICIOUS)
        .open_for(OpenFor::exponential(
            Duration::from_millis(200),
            Duration::from_secs(1),
        ))
        .half_open(HalfOpen::probes(1))
        .dropped(Dropped::Ignored)
        .build()
        .expect("fixed settings that are good")
}

/// What a panic has to say.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a word").trim()
}

/// The policy by which a server with this `INFO memory` drops keys that have not expired, if it does.
fn evicts(memory: &str) -> Option<&str> {
    let value = |field: &str| {
        let mut lines = memory.lines();
        lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
    };
    let policy = value("maxmemory_policy")?;
    (value("maxmemory")? != "0" && policy != "noeviction").then_some(policy)
}

/// Doubles from [`FIRST_RETRY`] to [`LAST_RETRY`], less up to a half: instances that lost Redis together do not come
/// back together.
fn backoff(attempt: u32) -> Duration {
    let full = FIRST_RETRY
        .saturating_mul(1 << attempt.min(10))
        .min(LAST_RETRY);
    full.mul_f64(1.0 - fastrand::f64() / 2.0)
}
