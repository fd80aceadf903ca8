//! The task that keeps a connection alive.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use redis::{PushInfo, PushKind};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    guards::{GUARD, SUSPICIOUS},
    reconnect::{PROVEN, backoff, opened_within},
    shared::{Live, Shared},
    status::Status,
};
use crate::{
    dialer::OnPush,
    error::is_broken,
    transport::{Server, Transport},
};

/// Time after which the status tells that there is no server to connect to.
const PATIENCE: Duration = Duration::from_millis(500);

/// Maximum number of PINGs without an answer, one after the other, after which a connection that is given more time is lost.
pub(crate) const PINGS: u32 = 3;

/// Number of budgets for the preparation of a connection: its commands are sent one after the other.
const PREPARATION: u32 = 3;

/// Minimum time between two questions for the masters of a Cluster.
const TOPOLOGY_AGAIN: Duration = Duration::from_millis(250);

/// Why a connection is replaced.
enum End {
    Lost(String),
    /// It works, but the server refuses what another one may accept, or the login ends soon.
    Elsewhere,
}

impl Shared {
    pub(super) async fn supervise(self: &Arc<Self>) {
        let work = async {
            self.keep_connected().await;
            self.end("shut down");
            self.budget.close().await;
        };
        tokio::select! {
            () = work => {}
            never = self.budget.watch() => match never {},
        }
    }

    /// Connects again and again, until the connection is closed.
    async fn keep_connected(self: &Arc<Self>) {
        let mut failures: u32 = 0;
        for number in 1.. {
            let end = tokio::select! {
                () = self.closing.cancelled() => return,
                end = self.live(number) => end,
            };
            let current = self.current.load();
            let proven = current.as_ref().is_some_and(|live| {
                // An old connection that is still in use proves nothing.
                live.number == number && live.since.elapsed() >= PROVEN
            });
            drop(current);
            failures = if proven {
                0
            } else {
                failures.saturating_add(1)
            };
            match end {
                End::Lost(why) => self.down(why),
                // The old connection stays in use meanwhile.
                End::Elsewhere => {}
            }
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = sleep(backoff(failures)) => {}
            }
        }
    }

    /// One connection: from the search for its server to the reason why it is replaced.
    async fn live(self: &Arc<Self>, number: u64) -> End {
        let server = self.find().await;
        let (server, renewal) = match self.destination.log_in(server).await {
            Ok(login) => login,
            Err(why) => return self.failed(why),
        };
        if let Err(why) = self.connect(number, &server).await {
            return self.failed(why);
        }
        let advised = async {
            let (end, ()) = tokio::join!(self.until_lost(number), self.advise());
            end
        };
        tokio::select! {
            end = advised => end,
            why = self.destination.left(&server) => End::Lost(why),
            () = self.destination.renewed(renewal) => End::Elsewhere,
            () = self.masters_change() => End::Elsewhere,
        }
    }

    /// What an attempt to connect that failed comes to. An older connection that still works is better than none.
    fn failed(&self, why: String) -> End {
        let current = self.current.load();
        let works = current.as_ref().is_some_and(|live| {
            let timed_out = self.timed_out.load(Relaxed) >= SUSPICIOUS;
            self.lost.load(Relaxed) < live.number && !timed_out
        });
        if works {
            End::Elsewhere
        } else {
            End::Lost(why)
        }
    }

    /// Keeps the guards in line with the masters of a Cluster; returns when another node has become one. The client finds that
    /// by itself when a master says so or breaks its connections, and not when one is frozen.
    async fn masters_change(&self) {
        if !self.destination.is_cluster() {
            return std::future::pending().await;
        }
        loop {
            if let Some(live) = self.current.load_full() {
                let mut transport = live.transport.clone();
                let slots = timeout(self.budget.limit(), transport.slots()).await;
                if let Ok(Ok(slots)) = slots
                    && self.guards.note(slots)
                {
                    return;
                }
            }
            sleep(TOPOLOGY_AGAIN).await;
            self.topology.notified().await;
        }
    }

    /// The server to connect to. The status tells why there is none for some time.
    async fn find(&self) -> Server {
        loop {
            if let Ok(server) = timeout(PATIENCE, self.destination.find()).await {
                return server;
            }
            if let Some(why) = self.destination.sentinels.doubt() {
                self.down(why);
            }
        }
    }

    async fn connect(self: &Arc<Self>, number: u64, server: &Server) -> Result<(), String> {
        let dialer = &self.destination.dialer;
        let opening = Transport::open(dialer, server, self.on_push(number));
        let mut transport = opened_within(dialer, opening).await?;
        self.try_out(&mut transport).await?;
        self.prepare(&mut transport).await?;
        self.timed_out.store(0, Relaxed);
        self.publish(Live {
            transport,
            number,
            since: Instant::now(),
        });
        if number > 1 {
            self.pubsub.follow();
        }
        // The guard stays as it is: a server may answer TIME on every new connection, and nothing else.
        if *self.status.borrow() != Status::Up {
            tracing::info!(target: "resilience", redis = ?self.destination.endpoint, "connected to Redis");
            self.status.send_replace(Status::Up);
        }
        Ok(())
    }

    /// Nothing else is sent before this is answered: a server that takes connections and answers nothing is of no use, and
    /// neither is one that the sentinels name and that is a replica.
    async fn try_out(&self, transport: &mut Transport) -> Result<(), String> {
        let checks = async {
            self.clock.shows(transport.time().await?);
            if !self.destination.is_watched_by_sentinels() {
                return Ok(true);
            }
            match transport.is_master().await {
                // Skipped when the ACL does not allow `ROLE`.
                Err(error) if !is_broken(&error) => Ok(true),
                role => role,
            }
        };
        match timeout(self.budget.limit(), checks).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err("the server that the sentinels name is a replica".into()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("connected, but no answer within the budget".into()),
        }
    }

    /// Prepares a connection for its session. Its answers must be those to its commands afterwards.
    async fn prepare(&self, transport: &mut Transport) -> Result<(), String> {
        let Some(session) = &self.session else {
            return Ok(());
        };
        let nonce = self.nonces.next();
        let prepared = async {
            session.prepare(transport).await?;
            let echo = transport.ping(nonce.as_bytes()).await;
            echo.map_err(|error| error.to_string())
        };
        match timeout(self.budget.limit() * PREPARATION, prepared).await {
            Ok(Ok(echo)) if nonce.is_echoed(&echo) => Ok(()),
            Ok(Ok(_)) => Err("an answer belongs to another command".into()),
            Ok(Err(why)) => Err(why),
            Err(_) => Err("no answer in time while the connection is prepared".into()),
        }
    }

    /// Emits an event about a step of the server's clock. An interruption of this process in which its own clock stood still
    /// (a suspended machine) looks the same.
    pub(super) fn tell_of_step(&self, micros: i64) {
        let by_ms = micros / 1000;
        let message = if micros < 0 {
            "the clock of Redis was set back: what it holds goes on at its own pace"
        } else {
            "the clock of Redis was set forward: what it holds may end early"
        };
        tracing::warn!(target: "resilience", name = GUARD, redis = ?self.destination.endpoint, by_ms, "{message}");
    }

    /// Returns when connection `number` has to be replaced.
    async fn until_lost(&self, number: u64) -> End {
        let mut drawn = self.nonces.drawn();
        let mut due = Instant::now() + self.keepalive;
        loop {
            if self.lost.load(Relaxed) >= number {
                return End::Lost("the connection broke".into());
            }
            if self.timed_out.load(Relaxed) >= SUSPICIOUS && !self.answers_ping().await {
                return End::Lost("the server stopped answering".into());
            }
            if self.refused.load(Relaxed) >= number {
                return End::Elsewhere;
            }
            tokio::select! {
                () = self.trouble.notified() => {}
                () = sleep_until(due) => {
                    // That commands were sent says nothing of when the last answer came, which a session relies on.
                    let idle = self.session.is_some() || self.nonces.drawn() == drawn;
                    if idle && !self.is_kept_alive().await {
                        return End::Lost("the server stopped answering".into());
                    }
                    drawn = self.nonces.drawn();
                    due = Instant::now() + self.keepalive;
                }
            }
        }
    }

    /// Sends a PING over a connection that is idle. A Cluster connection reconnects to single nodes by itself.
    async fn is_kept_alive(&self) -> bool {
        if !self.destination.is_cluster() {
            return self.answers_ping().await;
        }
        if let Some(live) = self.current.load_full() {
            let (mut transport, nonce) = (live.transport.clone(), self.nonces.next());
            let _ = timeout(self.budget.limit(), transport.ping_all(nonce.as_bytes())).await;
        }
        true
    }

    async fn answers_ping(&self) -> bool {
        let Some(live) = self.current.load_full() else {
            return false;
        };
        // A Cluster may be slow to answer while its masters change, and calls about single shards go on meanwhile. The end of a
        // session costs more than a late answer.
        let is_patient = self.destination.is_cluster() || self.session.is_some();
        let attempts = if is_patient { PINGS } else { 1 };
        for _ in 0..attempts {
            let nonce = self.nonces.next();
            let mut transport = live.transport.clone();
            let pong = timeout(self.budget.limit(), transport.ping(nonce.as_bytes())).await;
            if matches!(pong, Ok(Ok(echo)) if nonce.is_echoed(&echo)) {
                self.timed_out.store(0, Relaxed);
                return true;
            }
        }
        false
    }

    fn down(&self, why: String) {
        self.withdraw();
        let is_news = !matches!(&*self.status.borrow(), Status::Down(_));
        if is_news {
            tracing::warn!(target: "resilience", redis = ?self.destination.endpoint, reason = %why, "no connection to Redis");
        }
        self.status.send_replace(Status::Down(why));
    }

    /// Called for every push: the connection to a single server reports its own end that way.
    fn on_push(self: &Arc<Self>, number: u64) -> OnPush {
        let shared = Arc::downgrade(self);
        Arc::new(move |push: PushInfo| {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            if push.kind == PushKind::Disconnection {
                shared.lose(number);
            } else if let Some(session) = &shared.session {
                session.pushed(&push);
            }
        })
    }
}
