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
//! - connects anew when an answer turns out to be another command's.
//!
//! No answer is believed before it has named the command that it is to: see [`Nonce`]. What is pushed comes over a
//! connection of its own (see [`pubsub`]): a client that loses count of the confirmations of subscriptions takes
//! every later answer for another command's.

mod budget;
mod clock;
mod nonce;
mod pubsub;

use std::{
    any::Any,
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use redis::{Cmd, ErrorKind, PushInfo, PushKind, RedisError, RedisResult, ServerErrorKind, Value};
use resilience_core::{
    Verdict,
    breaker::{CircuitBreaker, Dropped, HalfOpen, OpenFor},
    completion::Guard,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

pub(crate) use self::nonce::Nonce;
use self::{budget::Budget, clock::ServerClock, nonce::Nonces, pubsub::Pubsub};
use crate::{
    error::{CommandError, is_broken, is_read_only},
    transport::{OnPush, RootCertificates, Timeouts, Transport},
    url::Endpoint,
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

pub(crate) struct Connection {
    shared: Arc<Shared>,
    pubsub: Arc<Pubsub>,
}

/// What the background task needs; it must not keep the link itself alive.
struct Shared {
    target: Endpoint,
    budget: Budget,
    time_limits: Timeouts,
    roots: Option<RootCertificates>,
    /// Between its callers and a server that has stopped answering: of many that would each wait for their budget to
    /// run out, a few do, now and then.
    guard: CircuitBreaker,
    current: ArcSwapOption<Live>,
    nonces: Nonces,
    /// Follows when the connection is remade, which may lead to another server.
    pubsub: Arc<Pubsub>,
    clock: ServerClock,
    status: watch::Sender<Status>,
    /// Timeouts in a row.
    timeouts: AtomicU32,
    /// The newest connection that is known to be lost, by number.
    lost: AtomicU64,
    /// The newest connection that is known to lead to a replica, by number.
    replica: AtomicU64,
    /// Told once that keys may be evicted.
    told_of_eviction: AtomicBool,
    /// Rings when `timeouts` or `lost` should be looked at.
    trouble: Notify,
    closed: Notify,
}

/// A connection and its number: trouble on an old one is not taken for trouble on its successor.
struct Live {
    conn: Transport,
    number: u64,
    since: Instant,
}

/// Why a connection is of no more use.
enum End {
    Lost(String),
    /// It works, but another server would be the right one.
    Replica,
}

/// Why a command has no answer that counts.
enum Failure {
    Redis(RedisError),
    /// What came is the answer to another command.
    Misplaced,
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

impl Connection {
    /// Starts connecting in the background; must be called within a tokio runtime.
    pub(crate) fn start(
        target: Endpoint,
        budget: Duration,
        time_limits: Timeouts,
        roots: Option<RootCertificates>,
    ) -> Self {
        let status = watch::Sender::new(Status::Connecting);
        let pubsub = Arc::new(Pubsub::new(
            target.clone(),
            budget,
            time_limits,
            roots.clone(),
            status.subscribe(),
        ));
        let shared = Arc::new(Shared {
            target,
            budget: Budget::new(budget),
            time_limits,
            roots,
            guard: guard(),
            current: ArcSwapOption::empty(),
            nonces: Nonces::new(),
            pubsub: Arc::clone(&pubsub),
            clock: ServerClock::new(),
            status,
            timeouts: AtomicU32::new(0),
            lost: AtomicU64::new(0),
            replica: AtomicU64::new(0),
            told_of_eviction: AtomicBool::new(false),
            trouble: Notify::new(),
            closed: Notify::new(),
        });
        tokio::spawn(Arc::clone(&shared).supervise());
        tokio::spawn(Arc::clone(&pubsub).supervise());
        Self { shared, pubsub }
    }

    /// What the next command is recognised by.
    pub(crate) fn nonce(&self) -> Nonce {
        self.shared.nonces.next()
    }

    /// Sends the command of a script about `key` that was given `nonce`, and takes the answer that has it. Fails at once
    /// when there is no connection, and after the budget when there is no answer.
    pub(crate) async fn ask(
        &self,
        key: &str,
        cmd: &Cmd,
        nonce: &Nonce,
    ) -> Result<Value, CommandError> {
        let ask = |mut conn: Transport| async move {
            match conn.send(cmd).await.and_then(Value::extract_error) {
                Ok(answer) => nonce.open(answer).ok_or(Failure::Misplaced),
                Err(error) => Err(self.shared.confirm(conn, key, error).await),
            }
        };
        self.shared.carry(ask).await
    }

    /// Sends `cmd`, of a script about `key` that was given `nonce`, and a WAIT right behind it: the answer, and how many
    /// replicas have what it wrote.
    pub(crate) async fn ask_and_wait(
        &self,
        key: &str,
        cmd: &Cmd,
        nonce: &Nonce,
        wait: &Cmd,
    ) -> Result<(Value, u64), CommandError> {
        let pair = |mut conn: Transport| async move {
            let answers = conn.send_pair(key, cmd, wait).await;
            let answers = answers.and_then(|both| {
                let both = both.into_iter().map(Value::extract_error);
                both.collect::<RedisResult<Vec<Value>>>()
            });
            let answers = match answers {
                Ok(answers) => answers,
                Err(error) => return Err(self.shared.confirm(conn, key, error).await),
            };
            let Ok([answer, waited]) = <[Value; 2]>::try_from(answers) else {
                return Err(Failure::Misplaced);
            };
            let answer = nonce.open(answer).ok_or(Failure::Misplaced)?;
            // WAIT takes no nonce. It was sent in one piece with the script, so that its answer stands behind the script's.
            match waited {
                Value::Int(replicas) if replicas >= 0 => Ok((answer, replicas.unsigned_abs())),
                _ => Err(Failure::Misplaced),
            }
        };
        let first = self.shared.carry(pair).await;
        if !matches!(&first, Err(CommandError::Refused(error)) if is_elsewhere(error)) {
            return first;
        }
        // Single commands follow the slot to where it has gone, and take the map of slots along. Steps can be repeated.
        self.ask(key, cmd, nonce).await?;
        self.shared.carry(pair).await
    }

    /// A round trip to the server; of a Cluster, to all masters.
    pub(crate) async fn ping(&self) -> Result<(), CommandError> {
        let nonce = self.nonce();
        let ping = |mut conn: Transport| async move {
            let mut ping = redis::cmd("PING");
            ping.arg(nonce.as_bytes());
            let answer = conn.send(&ping).await?.extract_error()?;
            if nonce.is_echoed(&answer) {
                Ok(())
            } else {
                Err(Failure::Misplaced)
            }
        };
        self.shared.carry(ping).await
    }

    /// Another connection to the same place, with the same settings.
    pub(crate) fn another(&self) -> Self {
        let shared = &self.shared;
        Self::start(
            shared.target.clone(),
            shared.budget.limit(),
            shared.time_limits,
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
        self.pubsub.subscribe(channel, subscriber);
    }

    pub(crate) fn unsubscribe(&self, channel: &str) {
        self.pubsub.unsubscribe(channel);
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

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.closed.notify_one();
        self.pubsub.close();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("target", &self.shared.target)
            .field("status", &*self.shared.status.borrow())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Does `work` on the connection, within the budget.
    async fn carry<T, F>(&self, work: impl FnOnce(Transport) -> F) -> Result<T, CommandError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let live = self.current.load_full().ok_or(CommandError::Down)?;
        let mut call = self
            .guard
            .acquire()
            .map_err(|_| CommandError::CircuitOpen)?;
        let Some(answer) = self.budget.within(work(live.conn.clone())).await else {
            call.settle(Verdict::transient());
            self.in_trouble();
            return Err(CommandError::TimedOut);
        };
        let answer = answer.map_err(|failure| match failure {
            Failure::Redis(error) => self.look_into(&live, &error),
            Failure::Misplaced => self.misplaced(&live),
        });
        match &answer {
            Err(CommandError::TimedOut | CommandError::Lost(_)) => {
                call.settle(Verdict::transient())
            }
            // An error that Redis sends is an answer.
            _ => {
                call.settle(Verdict::Success);
                self.answered();
            }
        }
        answer
    }

    /// What a command about `key` that ended in `error` comes to. An error names no command: it is believed when the
    /// connection then gives the right answer to a PING, or refuses that too, in the same way (busy, loading).
    async fn confirm(&self, mut conn: Transport, key: &str, error: RedisError) -> Failure {
        if !is_final_answer(&error) {
            return error.into();
        }
        let echo = self.nonces.next();
        match conn.echo(key, echo.as_bytes()).await {
            Ok(answer) if !echo.is_echoed(&answer) => Failure::Misplaced,
            Ok(_) => error.into(),
            Err(broken) if is_broken(&broken) => broken.into(),
            Err(refusal) if says_the_same(&refusal, &error) => error.into(),
            Err(_) => Failure::Misplaced,
        }
    }

    /// What an error says about the connection that it came over.
    fn look_into(&self, live: &Live, error: &RedisError) -> CommandError {
        let is_cluster = matches!(self.target, Endpoint::Cluster(_));
        if is_final_answer(error) && self.lost.load(Relaxed) >= live.number {
            // Meanwhile another caller has found that the answers are not where they belong.
            return CommandError::Misplaced;
        }
        if error.is_timeout() || (is_cluster && is_broken(error)) {
            // A Cluster connection mends the loss of a node by itself.
            self.in_trouble();
        } else if is_broken(error) {
            self.lose(live.number);
        } else if is_read_only(error) && !is_cluster && live.since.elapsed() >= REPLICA_AGAIN {
            self.replica.fetch_max(live.number, Relaxed);
            self.trouble.notify_one();
        }
        CommandError::from_redis(error)
    }

    /// Nothing that comes over this connection can be believed any more: no later call uses it.
    fn misplaced(&self, live: &Arc<Live>) -> CommandError {
        let was_in_use = self.current.compare_and_swap(live, None);
        if was_in_use
            .as_ref()
            .is_some_and(|used| Arc::ptr_eq(used, live))
        {
            tracing::warn!(
                target: "resilience",
                name = GUARD,
                redis = ?self.target,
                "an answer from Redis belongs to another command: it is not believed, and the connection is remade"
            );
        }
        self.lose(live.number);
        CommandError::Misplaced
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
                    Ok(()) => {
                        let (end, ()) =
                            tokio::join!(self.until_lost(number), self.tell_of_eviction());
                        end
                    }
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

    async fn connect(self: &Arc<Self>, number: u64) -> Result<(), String> {
        let on_push = self.on_push(number);
        let opening = Transport::open(&self.target, self.time_limits, self.roots.as_ref(), on_push);
        let mut conn = opened_within(self.time_limits, opening).await?;
        // Nothing else is sent before this has been answered.
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
        if number > 1 {
            self.pubsub.follow();
        }
        // The guard is left as it is: a server may tell the TIME on every new connection, and do nothing else.
        if *self.status.borrow() != Status::Up {
            tracing::info!(target: "resilience", redis = ?self.target, "connected to Redis");
            self.status.send_replace(Status::Up);
        }
        Ok(())
    }

    /// A server that evicts keys when its memory is full forgets limits and records that are in use, and says nothing.
    /// Skipped when the ACL does not allow `INFO`. Another command's answer names no policy, and tells of nothing.
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
        let nonce = self.nonces.next();
        let mut conn = live.conn.clone();
        let pong = timeout(self.budget.limit(), conn.ping(nonce.as_bytes())).await;
        let answered = matches!(pong, Ok(Ok(echo)) if nonce.is_echoed(&echo));
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

    /// What the connection calls for every push: of a single server, the client says so when the connection breaks.
    fn on_push(self: &Arc<Self>, number: u64) -> OnPush {
        let shared = Arc::downgrade(self);
        Arc::new(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection
                && let Some(shared) = shared.upgrade()
            {
                shared.lose(number);
            }
        })
    }
}

/// Whether `error` is an answer of the server that says nothing of where the slot is, or that the script is not there:
/// those are followed by further commands.
fn is_final_answer(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, CrossSlot, MasterDown, Moved, NoScript, TryAgain};
    match error.kind() {
        ErrorKind::Server(kind) => !matches!(
            kind,
            Ask | ClusterDown | CrossSlot | MasterDown | Moved | NoScript | TryAgain
        ),
        ErrorKind::Extension => true,
        _ => false,
    }
}

/// Whether a PING was refused for the reason that the command before it was, or for one that only concerns PINGs: the ACL,
/// or a node of a Cluster that cannot be reached at the moment.
fn says_the_same(refusal: &RedisError, error: &RedisError) -> bool {
    let ping_only = match refusal.kind() {
        ErrorKind::Server(kind) => kind == ServerErrorKind::NoPerm,
        ErrorKind::Extension => false,
        _ => true,
    };
    ping_only || refusal.code() == error.code()
}

/// A connection, or why there is none. The client's own timeout covers the socket, not the lookup and the handshake.
async fn opened_within<T>(
    time_limits: Timeouts,
    opening: impl Future<Output = RedisResult<T>>,
) -> Result<T, String> {
    // The TLS library panics in a program that has to choose how it encrypts, and has not: as an error, that can be seen
    // from outside, and ends when it is chosen.
    let opening = AssertUnwindSafe(opening).catch_unwind();
    match timeout(time_limits.connect * 2, opening).await {
        Ok(Ok(Ok(conn))) => Ok(conn),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        Ok(Err(panic)) => Err(format!("panicked: {}", said(&*panic))),
        Err(_) => Err("no answer while connecting".into()),
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
