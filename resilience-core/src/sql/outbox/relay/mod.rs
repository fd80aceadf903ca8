//! The relay: publishes what is committed.

mod agent;
mod builder;
mod leading;
mod set_aside;
mod steps;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub use self::builder::RelayBuilder;
use super::{
    dialect::Waiting,
    snapshot::{RelaySnapshot, RelayTotals},
};
use crate::{
    error::Pattern,
    fleet::{AgentHandle, StillRunning, Waker},
    stream::broker::StreamClient,
    telemetry::{
        self, FLEET_DEGRADED, OUTBOX_DEAD, OUTBOX_LEADING, OUTBOX_OLDEST, OUTBOX_WAITING, Reading,
        Source,
    },
};

/// Publishes the events of one [outbox](super::Outbox) while it has the lease, in a task of its own; from
/// [`Outbox::relay`](super::Outbox::relay). Clones are the same relay. The last one that is dropped ends it, as
/// [`shutdown`](Self::shutdown) does.
///
/// A database or a broker that is away does not end it: it tries again, with jittered pauses.
///
/// # Events
/// `INFO` `outbox relay leads` when it takes the lease, `WARN` `outbox relay lost its lease` when another one takes it,
/// `WARN` `outbox database unavailable` and `INFO` `outbox database available`, `WARN` `event refused by the broker`, `WARN`
/// `event became a dead letter`, each with `pattern` and `name`. On the broker: see [`fleet`](crate::fleet#events).
#[derive(Clone)]
pub struct OutboxRelay {
    shared: Arc<Shared>,
    agent: Arc<AgentHandle>,
    /// Kept as long as the relay: the outbox wakes it.
    _waker: Arc<Waker>,
}

/// What the handle and the task have in common.
struct Shared {
    name: Arc<str>,
    client: StreamClient,
    totals: RelayTotals,
    leading: AtomicBool,
    database_failures: AtomicU64,
    waiting: AtomicU64,
    /// In milliseconds; see [`NONE`].
    oldest_ms: AtomicU64,
    dead: AtomicU64,
}

const NONE: u64 = u64::MAX;
/// Failures in a row after which the database is unavailable, as stores are.
const UNAVAILABLE: u64 = 3;

impl OutboxRelay {
    /// Name of the outbox.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The state of the relay.
    #[must_use]
    pub fn snapshot(&self) -> RelaySnapshot {
        let shared = &*self.shared;
        let oldest = Some(shared.oldest_ms.load(Relaxed)).filter(|&ms| ms != NONE);
        RelaySnapshot {
            name: shared.name.to_string(),
            leading: shared.leading.load(Relaxed),
            broker_available: shared.client.is_available(),
            database_available: shared.database_is_available(),
            waiting: shared.waiting.load(Relaxed),
            oldest: oldest.map(Duration::from_millis),
            dead_letters: shared.dead.load(Relaxed),
            totals: shared.totals.snapshot(),
        }
    }

    /// Ends the relay: what was sent is noted, and the lease given back, so that another relay goes on at once. Waits for it,
    /// for at most `within`. What waits in the table stays there.
    ///
    /// # Errors
    /// [`StillRunning`] if it did not end within that time. It goes on to end.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.agent.shutdown(within).await
    }
}

impl Shared {
    fn new(name: Arc<str>, client: StreamClient) -> Self {
        Self {
            name,
            client,
            totals: RelayTotals::default(),
            leading: AtomicBool::new(false),
            database_failures: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            oldest_ms: AtomicU64::new(NONE),
            dead: AtomicU64::new(0),
        }
    }

    fn database_is_available(&self) -> bool {
        self.database_failures.load(Relaxed) < UNAVAILABLE
    }

    /// Notes what a step in the database says of it.
    fn note_database(&self, error: Option<&::sqlx::Error>) {
        let Some(error) = error else {
            if self.database_failures.swap(0, Relaxed) >= UNAVAILABLE {
                tracing::info!(target: "resilience", pattern = PATTERN, name = &*self.name, "outbox database available");
            }
            return;
        };
        self.totals.database_errors.fetch_add(1, Relaxed);
        if self.database_failures.fetch_add(1, Relaxed) + 1 == UNAVAILABLE {
            tracing::warn!(target: "resilience", pattern = PATTERN, name = &*self.name, %error, "outbox database unavailable");
        }
    }

    fn note_waiting(&self, waiting: Waiting) {
        let number = |it: i64| it.max(0).cast_unsigned();
        self.waiting.store(number(waiting.rows), Relaxed);
        self.oldest_ms
            .store(waiting.oldest_ms.map_or(NONE, number), Relaxed);
        self.dead.store(number(waiting.dead), Relaxed);
    }

    fn leads(&self, yes: bool) {
        self.leading.store(yes, Relaxed);
        if !yes {
            self.note_waiting(Waiting::default());
        }
    }
}

const PATTERN: &str = Pattern::Stream.as_str();

impl Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::Stream
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.totals.read(out);
        let oldest_ms = Some(self.oldest_ms.load(Relaxed)).filter(|&ms| ms != NONE);
        let gauges = [
            (&OUTBOX_WAITING, self.waiting.load(Relaxed)),
            (&OUTBOX_OLDEST, oldest_ms.unwrap_or(0).div_ceil(1_000)),
            (&OUTBOX_DEAD, self.dead.load(Relaxed)),
            (&OUTBOX_LEADING, u64::from(self.leading.load(Relaxed))),
        ];
        for (metric, value) in gauges {
            out(Reading {
                metric,
                attribute: "",
                value,
            });
        }
        out(Reading {
            metric: &FLEET_DEGRADED,
            attribute: PATTERN,
            value: u64::from(!self.client.is_available()),
        });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

impl fmt::Debug for OutboxRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxRelay")
            .field("name", &self.shared.name)
            .field("leading", &self.shared.leading)
            .finish_non_exhaustive()
    }
}
