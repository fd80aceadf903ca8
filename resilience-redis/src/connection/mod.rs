//! The connection of a process to Redis, and the tasks that keep it alive.
//!
//! The client crate's own connection manager lets calls hang for seconds while it reconnects, and never notices a
//! server that stopped answering. Here a command either has a connection or fails at once; every command has a budget; and
//! one background task ([`supervisor`])
//!
//! - connects, with capped and jittered backoff, as long as the handle lives; a connection counts once the server has
//!   answered a TIME within the budget;
//! - prepares a connection for its [`Session`], if it has one, before any other command is sent over it;
//! - sends a PING after [`SUSPICIOUS`](guards::SUSPICIOUS) timeouts in a row, and after some time without commands, and
//!   drops the connection if that is not answered either;
//! - connects again before the login ends, with the old connection in use meanwhile;
//! - connects again when the server refuses what another one may accept (it is a replica, or accepts no writes), with the
//!   old connection in use meanwhile;
//! - connects again when an answer belongs to another command;
//! - under Sentinel, uses a master for as long as the sentinels confirm it (see [`quorum`]), and not one command longer.
//!
//! An answer is believed once it has named its command (see [`Nonce`]), or is a record that names its key (see
//! [`Connection::read`]). Subscriptions use a connection of their own (see
//! [`pubsub`]): a client that loses count of the confirmations of subscriptions takes every later answer for that of another
//! command. A session subscribes once, while a connection is prepared; the right answer to a PING then shows that the client
//! has not.

mod advice;
mod budget;
mod clock;
mod command;
mod destination;
mod guards;
mod nonce;
mod pubsub;
mod quorum;
mod reconnect;
mod sentinel;
mod session;
mod shared;
mod status;
mod supervisor;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use redis::{Cmd, Pipeline, Value};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::status::Status;
use self::{
    budget::Budget,
    clock::ServerClock,
    command::Failure,
    destination::Destination,
    guards::Guards,
    nonce::Nonces,
    pubsub::Pubsub,
    sentinel::Sentinels,
    shared::{Ended, Shared},
    status::Subscriber,
};
pub(crate) use self::{clock::STEP, guards::GUARD, nonce::Nonce, session::Session, status::Push};
#[cfg(feature = "cluster")]
use crate::url::{Address, at};
use crate::{dialer::Dialer, error::CommandError, transport::Transport, url::Endpoint};
#[cfg(feature = "cluster")]
use tokio_util::sync::DropGuard;

/// Longest time between the PINGs over a connection that has a session.
pub(crate) const SESSION_PING: Duration = Duration::from_secs(2);

/// A connection for commands, and one for subscriptions while there are any. Closed when it is dropped.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    pubsub: Arc<Pubsub>,
    lifetime: Lifetime,
}

/// The end of a connection and of those made from it, and the tasks that it ends.
struct Lifetime {
    closing: CancellationToken,
    running: TaskTracker,
    /// The runtime that the connection was started in; connections made from it start on any thread.
    runtime: Handle,
}

impl Lifetime {
    /// Of a connection that ends with this one at the latest.
    fn child(&self) -> Self {
        Self {
            closing: self.closing.child_token(),
            running: self.running.clone(),
            runtime: self.runtime.clone(),
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.running.spawn_on(task, &self.runtime));
    }
}

/// Settings of a connection.
#[derive(Clone)]
pub(crate) struct Settings {
    /// Maximum time for one answer.
    pub(crate) budget: Duration,
    /// Time without commands after which a PING is sent.
    pub(crate) keepalive: Duration,
    /// Under Sentinel, maximum time that a master is used after a majority of the sentinels confirmed it.
    pub(crate) master_lease: Duration,
    pub(crate) dialer: Dialer,
}

#[cfg(test)]
impl Settings {
    /// Each step may take this time.
    pub(crate) fn all_within(limit: Duration) -> Self {
        Self {
            budget: limit,
            keepalive: limit,
            master_lease: limit,
            dialer: Dialer::new(limit),
        }
    }
}

impl Connection {
    /// Starts connecting in the background, on `runtime`.
    pub(crate) fn start(endpoint: Endpoint, settings: Settings, runtime: Handle) -> Self {
        let Settings {
            budget,
            keepalive,
            master_lease,
            mut dialer,
        } = settings;
        dialer.answer = budget;
        let lifetime = Lifetime {
            closing: CancellationToken::new(),
            running: TaskTracker::new(),
            runtime,
        };
        let sentinels = Sentinels::start(&endpoint, &dialer, master_lease, &lifetime);
        let destination = Destination {
            endpoint,
            dialer,
            sentinels,
        };
        Self::start_within(destination, budget, keepalive, None, lifetime)
    }

    fn start_within(
        destination: Destination,
        budget: Duration,
        keepalive: Duration,
        session: Option<Arc<dyn Session>>,
        lifetime: Lifetime,
    ) -> Self {
        let status = watch::Sender::new(Status::Connecting);
        let pubsub = Arc::new(Pubsub::new(
            destination.clone(),
            budget,
            status.subscribe(),
            lifetime.closing.clone(),
        ));
        let shared = Arc::new(Shared {
            destination,
            budget: Budget::new(budget),
            keepalive,
            guards: Guards::new(),
            current: ArcSwapOption::empty(),
            nonces: Nonces::new(),
            pubsub: Arc::clone(&pubsub),
            clock: ServerClock::new(),
            status,
            timed_out: AtomicU32::new(0),
            lost: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            // The connection that this one was made from has told.
            advised: AtomicBool::new(session.is_some()),
            session,
            topology: Notify::new(),
            trouble: Notify::new(),
            closing: lifetime.closing.clone(),
        });
        let ended = Ended(Arc::clone(&shared));
        lifetime.spawn(async move { ended.0.supervise().await });
        lifetime.spawn(Arc::clone(&pubsub).supervise());
        Self {
            shared,
            pubsub,
            lifetime,
        }
    }

    /// Starts another connection to the same server, with the same settings. It ends with this one at the latest.
    pub(crate) fn another(&self) -> Self {
        self.made_from(self.shared.destination.clone(), None)
    }

    /// As [`another`](Self::another), with another budget for each command.
    pub(crate) fn another_within(&self, budget: Duration) -> Self {
        let mut destination = self.shared.destination.clone();
        destination.dialer.answer = budget;
        let shared = &self.shared;
        let lifetime = self.lifetime.child();
        Self::start_within(destination, budget, shared.keepalive, None, lifetime)
    }

    /// Starts another connection to the same server, for a session: checked with a PING at least every
    /// [`SESSION_PING`]. It ends with this one at the latest.
    pub(crate) fn another_for(&self, session: Arc<dyn Session>) -> Self {
        self.made_from(self.shared.destination.clone(), Some(session))
    }

    /// As [`another_for`](Self::another_for), to one node of the Cluster that this connection leads to. `None`: to no Cluster.
    #[cfg(feature = "cluster")]
    pub(crate) fn to_node(&self, node: Address, session: Arc<dyn Session>) -> Option<Self> {
        let Endpoint::Cluster(nodes) = &self.shared.destination.endpoint else {
            return None;
        };
        let known = nodes.first()?.clone();
        let addr = at(known.addr(), node);
        let destination = Destination {
            endpoint: Endpoint::Single(known.set_addr(addr)),
            ..self.shared.destination.clone()
        };
        Some(self.made_from(destination, Some(session)))
    }

    fn made_from(&self, destination: Destination, session: Option<Arc<dyn Session>>) -> Self {
        let shared = &self.shared;
        let keepalive = match session {
            Some(_) => shared.keepalive.min(SESSION_PING),
            None => shared.keepalive,
        };
        let lifetime = self.lifetime.child();
        Self::start_within(
            destination,
            shared.budget.limit(),
            keepalive,
            session,
            lifetime,
        )
    }

    /// Runs `task` until it ends, the result is dropped, or this connection is closed.
    #[cfg(feature = "cluster")]
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> DropGuard {
        let closing = self.lifetime.closing.child_token();
        let guard = closing.clone().drop_guard();
        self.lifetime.spawn(async move {
            closing.run_until_cancelled(task).await;
        });
        guard
    }

    /// Closes this connection and those made from it, and waits for their tasks to end, for at most `within`: commands
    /// in progress end within the budget, and later ones fail with [`CommandError::Down`]. The error is the number of tasks
    /// that still run.
    pub(crate) async fn shutdown(&self, within: Duration) -> Result<(), usize> {
        let Lifetime {
            closing, running, ..
        } = &self.lifetime;
        closing.cancel();
        running.close();
        let ended = timeout(within, running.wait()).await;
        ended.map_err(|_| running.len())
    }

    /// The nonce of the next command.
    pub(crate) fn nonce(&self) -> Nonce {
        self.shared.nonces.next()
    }

    /// Sends the command of a script about `key` that was given `nonce`, and returns the answer that carries it. Fails at
    /// once when there is no connection, and after the budget when there is no answer.
    pub(crate) async fn ask(
        &self,
        key: &str,
        cmd: &Cmd,
        nonce: &Nonce,
    ) -> Result<Value, CommandError> {
        let ask = |mut transport: Transport| async move {
            match transport.send(key, cmd).await {
                Ok(answer) => nonce.open(answer).ok_or(Failure::Misplaced),
                Err(error) => Err(Box::pin(self.shared.confirm(transport, key, error)).await),
            }
        };
        self.shared.carry(Some(key), ask).await
    }

    /// Sends a plain read about `key`, whose answer carries no nonce: `is_its` tells whether the answer proves by its content
    /// that it belongs to `key`, or is harmless if it does not. After an answer that does not, the read is repeated between two
    /// PINGs, and that answer is returned, whatever it is.
    pub(crate) async fn read(
        &self,
        key: &str,
        cmd: &Cmd,
        is_its: impl FnOnce(&Value) -> bool,
    ) -> Result<Value, CommandError> {
        let read = |mut transport: Transport| async move {
            match transport.send(key, cmd).await {
                Ok(answer) if is_its(&answer) => Ok(answer),
                Ok(_) => Box::pin(self.shared.read_in_place(transport, key, cmd)).await,
                Err(error) => Err(Box::pin(self.shared.confirm(transport, key, error)).await),
            }
        };
        self.shared.carry(Some(key), read).await
    }

    /// As [`read`](Self::read), for a command that must not be repeated: an answer that proves nothing is not believed.
    pub(crate) async fn read_once(
        &self,
        key: &str,
        cmd: &Cmd,
        is_its: impl FnOnce(&Value) -> bool,
    ) -> Result<Value, CommandError> {
        let read = |mut transport: Transport| async move {
            match transport.send(key, cmd).await {
                Ok(answer) if is_its(&answer) => Ok(answer),
                Ok(_) => Err(Failure::Misplaced),
                Err(error) => Err(Box::pin(self.shared.confirm(transport, key, error)).await),
            }
        };
        self.shared.carry(Some(key), read).await
    }

    /// Sends commands about `key` in one piece, and a PING behind them. Returns the answer to each, errors among them, once that
    /// has shown that they belong to their commands. Not for a Cluster, whose client returns one redirection in place of all answers.
    pub(crate) async fn ask_each(
        &self,
        key: &str,
        mut cmds: Pipeline,
    ) -> Result<Vec<Value>, CommandError> {
        let nonce = self.nonce();
        cmds.cmd("PING").arg(nonce.as_bytes());
        let ask = |mut transport: Transport| async move {
            let mut answers = transport.send_each(key, cmds).await?;
            match answers.pop() {
                Some(echo) if nonce.is_echoed(&echo) => Ok(answers),
                Some(refusal) => Err(command::refused_alike(refusal, answers)),
                None => Err(Failure::Misplaced),
            }
        };
        self.shared.carry(Some(key), ask).await
    }

    /// Sends `cmd`, of a script about `key` that was given `nonce`, and a WAIT right behind it. Returns the answer, and the
    /// number of replicas that have what it wrote.
    pub(crate) async fn ask_and_wait(
        &self,
        key: &str,
        cmd: &Cmd,
        nonce: &Nonce,
        wait: &Cmd,
    ) -> Result<(Value, u64), CommandError> {
        let pair = |mut transport: Transport| async move {
            let answers = match transport.send_in_order(key, &[cmd, wait]).await {
                Ok(answers) => answers,
                Err(error) => {
                    return Err(Box::pin(self.shared.confirm(transport, key, error)).await);
                }
            };
            let Ok([answer, waited]) = <[Value; 2]>::try_from(answers) else {
                return Err(Failure::Misplaced);
            };
            let answer = nonce.open(answer).ok_or(Failure::Misplaced)?;
            // WAIT takes no nonce. It was sent in one piece with the script, so its answer follows the script's.
            match waited {
                Value::Int(replicas) if replicas >= 0 => Ok((answer, replicas.unsigned_abs())),
                _ => Err(Failure::Misplaced),
            }
        };
        self.shared.carry(Some(key), pair).await
    }

    /// Sends a PING and waits for its answer; in a Cluster, to all masters.
    pub(crate) async fn ping(&self) -> Result<(), CommandError> {
        let nonce = self.nonce();
        let ping = |mut transport: Transport| async move {
            let answer = transport.ping_all(nonce.as_bytes()).await?;
            if nonce.is_echoed(&answer) {
                Ok(())
            } else {
                Err(Failure::Misplaced)
            }
        };
        self.shared.carry(None, ping).await
    }

    /// Reads the addresses of all nodes of the Cluster, as any one of its masters sees them.
    #[cfg(feature = "cluster")]
    pub(crate) async fn nodes(&self) -> Result<Vec<Address>, CommandError> {
        let nodes = |mut transport: Transport| async move { Ok(transport.nodes().await?) };
        self.shared.carry(None, nodes).await
    }

    /// Whether there is a connection at the moment.
    pub(crate) fn is_up(&self) -> bool {
        self.shared.current.load().is_some()
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.shared.destination.endpoint
    }

    pub(crate) fn budget(&self) -> Duration {
        self.shared.budget.limit()
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.shared.destination.is_cluster()
    }

    pub(crate) fn clock(&self) -> &ServerClock {
        &self.shared.clock
    }

    /// Notes a time `micros` that the server's clock has shown since `sent`, and emits an event if it was set.
    pub(crate) fn shown(&self, sent: Instant, micros: u64) {
        if let Some(step) = self.shared.clock.sample(sent, micros) {
            self.shared.tell_of_step(step);
        }
    }

    /// Calls `subscriber` for every message on `channel`, on the connection's own task: it must be quick. One
    /// subscriber per channel; a second one replaces the first.
    pub(crate) fn subscribe(&self, channel: &str, subscriber: Subscriber) {
        self.pubsub.subscribe(channel, subscriber);
    }

    pub(crate) fn unsubscribe(&self, channel: &str) {
        self.pubsub.unsubscribe(channel);
    }

    /// Acts as if the server had pushed something.
    #[cfg(test)]
    pub(crate) fn push(&self, channel: &str, push: Push<'_>) {
        self.pubsub.push(channel, push);
    }

    /// Sends one command, whose second word is a key, and returns its answer, whatever it answers.
    #[cfg(test)]
    pub(crate) async fn raw(&self, words: &[&str]) -> Result<Value, CommandError> {
        let mut cmd = redis::cmd(words[0]);
        cmd.arg(&words[1..]);
        let key = words.get(1).copied().unwrap_or_default();
        let send = |mut transport: Transport| async move { Ok(transport.send(key, &cmd).await?) };
        self.shared.carry(Some(key), send).await
    }

    /// Waits until the connection is up, for at most `within`.
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
        self.lifetime.closing.cancel();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("endpoint", &self.shared.destination.endpoint)
            .field("status", &*self.shared.status.borrow())
            .finish_non_exhaustive()
    }
}
