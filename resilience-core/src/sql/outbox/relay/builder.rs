//! The builder of a relay.

use std::{fmt, sync::Arc, time::Duration};

use ::sqlx::Pool;

use super::{OutboxRelay, Shared, agent::Work, steps::Database};
use crate::{
    backoff::Backoff,
    error::{InvalidConfig, Pattern},
    fleet::{self, FleetDefaults, FleetOptions, OnOutage, StoreHandle, Waker, millis, runtime},
    sql::outbox::{dialect::Dialect, handle},
    stream::{
        Retention,
        broker::{StreamBroker, StreamClient, validate},
    },
    telemetry,
};

/// Settings of an [`OutboxRelay`]; checked in [`build`](Self::build).
///
/// # Default
/// | setting | value |
/// |---|---|
/// | [`lease`](Self::lease), [`poll`](Self::poll) | 15 s, 1 s |
/// | [`batch`](Self::batch) | 500 events, and about 8 MiB |
/// | [`max_attempts`](Self::max_attempts) | 5 |
/// | [`backoff`](Self::backoff) | 50 ms to 10 s, decorrelated jitter |
/// | [`remember`](Self::remember) | 7 days |
/// | [`retention`](Self::retention) | 7 days |
/// | [`listen`](Self::listen) (PostgreSQL) | yes, unless the outbox does not notify |
/// | time budget of a step of the broker | 1 s |
/// | time budget of a step in the database | a quarter of the lease, at most 5 s |
#[must_use = "a builder does nothing before `build`"]
pub struct RelayBuilder<DB: Dialect> {
    outbox: Arc<handle::Shared<DB>>,
    pool: Pool<DB>,
    broker: Arc<dyn StreamBroker>,
    fleet: FleetOptions,
    settings: Settings,
    listens: bool,
    listen_on: Option<Pool<DB>>,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) lease: Duration,
    pub(super) poll: Duration,
    pub(super) batch: usize,
    pub(super) max_attempts: u32,
    pub(super) backoff: Backoff,
    pub(super) remember: Duration,
    pub(super) retention: Retention,
}

const DAY: Duration = Duration::from_secs(86_400);
const LONGEST: Duration = Duration::from_secs(86_400 * 365 * 10);
const LONGEST_STEP: Duration = Duration::from_secs(5);

const FLEET: FleetDefaults = FleetDefaults {
    budget: Duration::from_secs(1),
    heartbeat: None,
    no_heartbeat: "a relay renews its lease instead; see `lease`",
    on_outage: OnOutage::FailClosed,
    accepts: &[OnOutage::FailClosed],
    rule: "must be `FailClosed`: what the broker did not take stays in the outbox",
};

impl<DB: Dialect> RelayBuilder<DB> {
    pub(in crate::sql::outbox) fn new(
        outbox: Arc<handle::Shared<DB>>,
        pool: Pool<DB>,
        broker: Arc<dyn StreamBroker>,
    ) -> Self {
        Self {
            listens: outbox.notifies,
            outbox,
            pool,
            broker,
            fleet: FleetOptions::new(),
            settings: Settings {
                lease: Duration::from_secs(15),
                poll: Duration::from_secs(1),
                batch: 500,
                max_attempts: 5,
                backoff: Backoff::decorrelated_jitter(
                    Duration::from_millis(50),
                    Duration::from_secs(10),
                ),
                remember: DAY * 7,
                retention: Retention {
                    max_age_ms: Some(millis(DAY * 7)),
                    max_length: None,
                    settled: None,
                    keep_ms: millis(DAY * 7),
                },
            },
            listen_on: None,
        }
    }

    /// How long the lease lasts without being renewed. When the relay that has it dies, another one goes on after this time,
    /// and at most half of it more. At least four times the time budget of a step of the broker. The same in all instances.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How often the table is looked at when no notification comes. Each look is one short transaction that reads.
    pub const fn poll(mut self, interval: Duration) -> Self {
        self.settings.poll = interval;
        self
    }

    /// Maximum number of events that are published in one step; 1 to [`MAX_BATCH`](validate::MAX_BATCH).
    pub const fn batch(mut self, events: usize) -> Self {
        self.settings.batch = events;
        self
    }

    /// How often an event is refused by the broker, with pauses, before it is a [dead
    /// letter](super::super::Outbox::dead_letters).
    ///
    /// Counted is a refusal of the event alone by a broker that answers, and that stores another event afterwards: while the
    /// broker takes nothing, for example because its memory is full, nothing is counted. Meanwhile later events of the same
    /// key wait; other keys go on. An event that no broker can take (too large, unreadable) is a dead letter at once.
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.settings.max_attempts = attempts;
        self
    }

    /// Pauses while the broker or the database does not answer, and between attempts at an event that is refused.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.settings.backoff = backoff;
        self
    }

    /// How long the broker remembers the numbers of a relay after its last publish: so long, what is sent again is stored
    /// once. At least twice the lease.
    pub const fn remember(mut self, time: Duration) -> Self {
        self.settings.remember = time;
        self
    }

    /// How long the stream keeps its messages; see [`Retention`]. The relay that has the lease trims the stream every few
    /// seconds.
    pub const fn retention(mut self, retention: Retention) -> Self {
        self.settings.retention = retention;
        self
    }

    /// The time budget of a step of the broker, and the name of this instance.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = options;
        self
    }

    /// Builds the relay, and starts its task.
    ///
    /// # Errors
    /// [`InvalidConfig`] if a value is out of bounds, or there is no tokio runtime.
    pub fn build(self) -> Result<OutboxRelay, InvalidConfig> {
        let settings = &self.settings;
        let fleet = self.fleet.resolve(&FLEET)?;
        let least = (fleet.budget * 4).max(Duration::from_millis(100));
        let rule = "must be at least 100 ms and four times the time budget of a step of the broker, and at most a day";
        InvalidConfig::check_time("lease", settings.lease, least..=DAY, rule)?;
        let rule = "must be between 1 millisecond and 1 day";
        InvalidConfig::check_time("poll", settings.poll, Duration::from_millis(1)..=DAY, rule)?;
        let rule = "must be between twice the `lease` and 10 years";
        InvalidConfig::check_time(
            "remember",
            settings.remember,
            settings.lease * 2..=LONGEST,
            rule,
        )?;
        if !(1..=validate::MAX_BATCH).contains(&settings.batch) {
            return Err(InvalidConfig::new(
                "batch",
                settings.batch,
                "must be between 1 and 1000",
            ));
        }
        if settings.max_attempts == 0 {
            return Err(InvalidConfig::new("max_attempts", 0, "must be at least 1"));
        }
        if validate::retention(&settings.retention).is_err() {
            let rule = "must have times between 1 millisecond and 30 years";
            return Err(InvalidConfig::new(
                "retention",
                format_args!("{:?}", settings.retention),
                rule,
            ));
        }
        let runtime = runtime()?;
        Ok(self.start(&fleet, &runtime))
    }

    fn start(self, fleet: &fleet::FleetSettings, runtime: &tokio::runtime::Handle) -> OutboxRelay {
        let store = self
            .broker
            .handle()
            .cloned()
            .unwrap_or_else(StoreHandle::new);
        let name = Arc::clone(&self.outbox.name);
        let client = StreamClient::new(self.broker, Pattern::Stream, Arc::clone(&name), fleet);
        let shared = Arc::new(Shared::new(Arc::clone(&name), client));
        telemetry::register(&shared);
        let waker = Arc::new(Waker::new());
        crate::sync::lock(&self.outbox.wakers).push(Arc::downgrade(&waker));
        let listen_on = self
            .listens
            .then(|| self.listen_on.unwrap_or_else(|| DB::apart(&self.pool)));
        let database = Database {
            budget: (self.settings.lease / 4).min(LONGEST_STEP),
            pool: self.pool,
            outbox: self.outbox,
        };
        let work = Work::new(
            database,
            Arc::clone(&shared),
            self.settings,
            &fleet.instance,
        );
        let agent = fleet::spawn(work, None, (*waker).clone(), &store, runtime);
        if let Some(pool) = listen_on {
            let (tasks, waker) = (agent.tasks().clone(), (*waker).clone());
            agent.tasks().spawn(runtime, async move {
                tokio::select! {
                    () = tasks.closing() => {}
                    () = DB::listen(pool, name, move || waker.wake()) => {}
                }
            });
        }
        OutboxRelay {
            shared,
            agent: Arc::new(agent),
            _waker: waker,
        }
    }
}

#[cfg(feature = "sqlx-postgres")]
impl RelayBuilder<::sqlx::Postgres> {
    /// Whether the relay listens for notifications, on a connection of its own to where the pool leads. Off behind a pooler
    /// that gives the server's connection to another client after each transaction: `LISTEN` does not work there.
    pub const fn listen(mut self, yes: bool) -> Self {
        self.listens = yes;
        self
    }

    /// Listens on a connection of this pool, which is to lead to the server past the pooler. Takes one connection for as long
    /// as the relay runs.
    pub fn listen_on(mut self, pool: Pool<::sqlx::Postgres>) -> Self {
        (self.listens, self.listen_on) = (true, Some(pool));
        self
    }
}

impl<DB: Dialect> fmt::Debug for RelayBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayBuilder")
            .field("outbox", &self.outbox.name)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
