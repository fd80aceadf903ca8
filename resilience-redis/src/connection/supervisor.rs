//! The task that keeps a connection alive.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use redis::{PushInfo, PushKind};
use tokio::time::{Instant, timeout};

use super::{
    reconnect::{PROVEN, backoff, opened_within},
    shared::{GUARD, Live, SUSPICIOUS, Shared},
    status::Status,
};
use crate::transport::{OnPush, Transport};

/// Why a connection is replaced.
enum End {
    Lost(String),
    /// The server is a replica; another one is the master.
    Replica,
}

impl Shared {
    pub(super) async fn supervise(self: Arc<Self>) {
        let work = async {
            self.keep_connected().await;
            self.current.store(None);
            self.status.send_replace(Status::Down("shut down".into()));
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
                () = self.closing.cancelled() => return,
                end = life => end,
            };
            // A long attempt that failed proves nothing.
            let proven = self.current.load().is_some() && started.elapsed() >= PROVEN;
            failures = if proven {
                0
            } else {
                failures.saturating_add(1)
            };
            match end {
                End::Lost(why) => self.down(why),
                // The old connection stays in use meanwhile.
                End::Replica => {}
            }
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(backoff(failures)) => {}
            }
        }
    }

    async fn connect(self: &Arc<Self>, number: u64) -> Result<(), String> {
        let on_push = self.on_push(number);
        let opening = Transport::open(&self.endpoint, self.timeouts, self.roots.as_ref(), on_push);
        let mut transport = opened_within(self.timeouts, opening).await?;
        // Nothing else is sent before this is answered: a server that takes connections and answers nothing is of no use.
        match timeout(self.budget.limit(), transport.time()).await {
            Ok(Ok(micros)) => self.clock.shows(micros),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("connected, but no answer within the budget".into()),
        }
        self.timed_out.store(0, Relaxed);
        let since = Instant::now();
        self.current.store(Some(Arc::new(Live {
            transport,
            number,
            since,
        })));
        if number > 1 {
            self.pubsub.follow();
        }
        // The guard stays as it is: a server may answer TIME on every new connection, and nothing else.
        if *self.status.borrow() != Status::Up {
            tracing::info!(target: "resilience", redis = ?self.endpoint, "connected to Redis");
            self.status.send_replace(Status::Up);
        }
        Ok(())
    }

    /// Emits an event, once, when the server evicts keys: limits and records in use would be lost silently. Skipped when the
    /// ACL does not allow `INFO`; the answer to another command names no policy, and has no effect.
    async fn tell_of_eviction(&self) {
        let Some(live) = self.current.load_full() else {
            return;
        };
        let mut transport = live.transport.clone();
        let Ok(Ok(memory)) = timeout(self.budget.limit(), transport.memory()).await else {
            return;
        };
        let Some(policy) = eviction_policy(&memory) else {
            return;
        };
        if !self.told_of_eviction.swap(true, Relaxed) {
            tracing::warn!(
                target: "resilience",
                name = GUARD,
                redis = ?self.endpoint,
                policy,
                "this Redis evicts keys when it is full: limits and idempotency records would be forgotten"
            );
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
        tracing::warn!(target: "resilience", name = GUARD, redis = ?self.endpoint, by_ms, "{message}");
    }

    /// Returns when connection `number` has to be replaced.
    async fn until_lost(&self, number: u64) -> End {
        loop {
            if self.lost.load(Relaxed) >= number {
                return End::Lost("the connection broke".into());
            }
            if self.timed_out.load(Relaxed) >= SUSPICIOUS && !self.answers_ping().await {
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
        let mut transport = live.transport.clone();
        let pong = timeout(self.budget.limit(), transport.ping(nonce.as_bytes())).await;
        let answered = matches!(pong, Ok(Ok(echo)) if nonce.is_echoed(&echo));
        if answered {
            self.timed_out.store(0, Relaxed);
        }
        answered
    }

    fn down(&self, why: String) {
        self.current.store(None);
        let is_news = !matches!(&*self.status.borrow(), Status::Down(_));
        if is_news {
            tracing::warn!(target: "resilience", redis = ?self.endpoint, reason = %why, "no connection to Redis");
        }
        self.status.send_replace(Status::Down(why));
    }

    /// Called for every push: the connection to a single server reports its own end that way.
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

/// The policy by which a server with this `INFO memory` evicts keys that have not expired, if it does.
fn eviction_policy(memory: &str) -> Option<&str> {
    let value = |field: &str| {
        let mut lines = memory.lines();
        lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
    };
    let policy = value("maxmemory_policy")?;
    (value("maxmemory")? != "0" && policy != "noeviction").then_some(policy)
}
