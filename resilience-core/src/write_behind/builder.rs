//! The builder of a write-behind. Invalid settings are errors when it is built.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use super::{
    Owner, Shared, WriteBehind,
    change::Batch,
    record::Bounds,
    seen::Seen,
    sink::{Sink, sink},
    sinker,
    snapshot::Totals,
    store::{Client, WriteBehindStore, validate},
};
use crate::{
    backoff::Backoff,
    classify::{Classify, Standard},
    codec::Codec,
    error::{InvalidConfig, Pattern},
    fleet::{FleetDefaults, FleetOptions, OnOutage, StoreHandle, Waker, millis, runtime},
    telemetry::{self, Scope},
};

/// Settings of a [`WriteBehind`].
///
/// # Default
/// | setting | value |
/// |---|---|
/// | [`sink`](Self::sink) | none: this handle writes and reads, and another process sinks |
/// | [`shards`](Self::shards) | 8 |
/// | [`batch`](Self::batch) | 100 changes, or those of 100 ms |
/// | [`sink_timeout`](Self::sink_timeout), [`lease`](Self::lease), [`poll`](Self::poll) | 30 s, 15 s, 1 s |
/// | [`backoff`](Self::backoff) | decorrelated jitter, 100 ms to 30 s |
/// | [`max_attempts`](Self::max_attempts) | 8 |
/// | [`max_entries`](Self::max_entries), [`max_age`](Self::max_age) | 100,000, 10 minutes; then writes are rejected |
/// | [`timeout`](Self::timeout) | 5 s |
/// | [`keep`](Self::keep) | 30 days |
/// | codec | [`Json`](crate::codec::Json) |
/// | [`fleet`](Self::fleet) | budget: 1 s; on outage: `FailClosed` |
#[must_use]
pub struct WriteBehindBuilder<V> {
    name: Arc<str>,
    store: Arc<dyn WriteBehindStore>,
    codec: Arc<dyn Codec<V>>,
    sink: Option<Sink<V>>,
    fleet: FleetOptions,
    shards: u32,
    batch: usize,
    max_wait: Duration,
    sink_timeout: Duration,
    lease: Duration,
    poll: Duration,
    backoff: Backoff,
    max_attempts: u32,
    max_entries: u64,
    max_age: Duration,
    write_through: bool,
    timeout: Duration,
    keep: Duration,
}

/// Checked settings.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) shards: u32,
    pub(super) batch: usize,
    pub(super) max_wait: Duration,
    pub(super) sink_timeout: Duration,
    pub(super) lease: Duration,
    pub(super) poll: Duration,
    pub(super) backoff: Backoff,
    pub(super) max_attempts: u32,
    pub(super) bounds: Bounds,
    pub(super) timeout: Duration,
    pub(super) keep_ms: u64,
    /// Name of this process.
    pub(super) holder: Arc<str>,
    pub(super) sinks: bool,
}

const DAY: Duration = Duration::from_secs(86_400);
const MS: Duration = Duration::from_millis(1);
const TIME_RULE: &str = "must be between 1 millisecond and 1 day";

const FLEET: FleetDefaults = FleetDefaults {
    budget: Duration::from_secs(1),
    heartbeat: None,
    no_heartbeat: "a write-behind has no heartbeat: its leases are renewed by `lease`",
    on_outage: OnOutage::FailClosed,
    accepts: &[OnOutage::FailClosed, OnOutage::FailOpen],
    rule: "must be `FailClosed` or `FailOpen`",
};

impl<V: Send + Sync + 'static> WriteBehindBuilder<V> {
    pub(super) fn new(
        name: Arc<str>,
        store: Arc<dyn WriteBehindStore>,
        codec: Arc<dyn Codec<V>>,
    ) -> Self {
        Self {
            name,
            store,
            codec,
            sink: None,
            fleet: FleetOptions::new(),
            shards: 8,
            batch: 100,
            max_wait: Duration::from_millis(100),
            sink_timeout: Duration::from_secs(30),
            lease: Duration::from_secs(15),
            poll: Duration::from_secs(1),
            backoff: Backoff::decorrelated_jitter(
                Duration::from_millis(100),
                Duration::from_secs(30),
            ),
            max_attempts: 8,
            max_entries: 100_000,
            max_age: Duration::from_secs(600),
            write_through: false,
            timeout: Duration::from_secs(5),
            keep: DAY * 30,
        }
    }

    /// What writes batches to the database: see [what it must do](super#what-a-sink-must-do). Every error is taken for one of a
    /// database that is away: see [`sink_with`](Self::sink_with).
    pub fn sink<F, Fut, R, E>(self, sink: F) -> Self
    where
        F: Fn(Batch<V>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: 'static,
        E: fmt::Display + 'static,
    {
        self.sink_with(Standard, sink)
    }

    /// What writes batches to the database, and what its errors mean.
    ///
    /// | verdict | what happens |
    /// |---|---|
    /// | `Transient` | the database is away: the shard pauses, by the [backoff](Self::backoff) and at least for what the error asks, and no key is counted. After three pauses in a row the batch is divided, to find a key that makes the database seem away; it counts as refused if the sink takes another key after it |
    /// | `Permanent`, `Ignored` | something in the batch is refused: it is halved until the keys that are refused are alone. Each of them is tried again by the backoff, and is a dead letter after [`max_attempts`](Self::max_attempts) |
    ///
    /// A panic of the sink is `Permanent`. A call that takes longer than the [`sink_timeout`](Self::sink_timeout) is dropped, and is
    /// `Transient`.
    pub fn sink_with<F, Fut, R, E>(
        mut self,
        classifier: impl Classify<R, E> + Send + Sync + 'static,
        sink: F,
    ) -> Self
    where
        F: Fn(Batch<V>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: 'static,
        E: fmt::Display + 'static,
    {
        self.sink = Some(self::sink(sink, classifier));
        self
    }

    /// How values become bytes.
    pub fn codec(mut self, codec: impl Codec<V>) -> Self {
        self.codec = Arc::new(codec);
        self
    }

    /// In how many parts keys are divided; 1 to 1024. Each is sunk by one process at a time, so this is how many batches are in
    /// progress at most in the fleet. The same in all processes: a shard that has entries refuses writes of a handle with another
    /// number. To change it, let all entries be sunk first, and discard or redrive the dead letters.
    pub const fn shards(mut self, shards: u32) -> Self {
        self.shards = shards;
        self
    }

    /// The size of a batch (1 to 1000), and how long a smaller one waits for more.
    pub const fn batch(mut self, size: usize, max_wait: Duration) -> Self {
        (self.batch, self.max_wait) = (size, max_wait);
        self
    }

    /// The longest time that a call of the sink may take.
    pub const fn sink_timeout(mut self, timeout: Duration) -> Self {
        self.sink_timeout = timeout;
        self
    }

    /// How long a batch stays with a process that does not answer; at least 100 ms. Renewed by a third of it while the sink runs.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// How often a process with a sink looks for changes that other processes wrote, per shard.
    pub const fn poll(mut self, interval: Duration) -> Self {
        self.poll = interval;
        self
    }

    /// The waits after failures of the sink.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// How often a key is tried that the sink refuses, before it is a dead letter; at least 1. A key that is written again while it is
    /// refused goes on counting.
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// How many keys may wait to be sunk, over all shards: each takes its part. A key that waits already may be written again.
    pub const fn max_entries(mut self, entries: u64) -> Self {
        self.max_entries = entries;
        self
    }

    /// How old the oldest key that waits may be, before its shard takes no more writes. A clock of the store that steps ahead makes
    /// what waits older, until it is sunk.
    pub const fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// When it is full: a write is stored in front of all others, and the call waits until it is sunk, for up to the
    /// [`timeout`](Self::timeout). So callers are as slow as the sink is, and order and durability are kept. Up to
    /// twice [`max_entries`](Self::max_entries); above, writes are rejected.
    pub const fn write_through_when_full(mut self) -> Self {
        self.write_through = true;
        self
    }

    /// How long a write is repeated while the store does not answer; shorter, if the current deadline is earlier.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long the store keeps a shard in which nothing is written or sunk, dead letters included; at least a day.
    pub const fn keep(mut self, time: Duration) -> Self {
        self.keep = time;
        self
    }

    /// The time budget of a step, the name of this instance, and what becomes of reads while the store is unavailable:
    /// [`FailClosed`](OnOutage::FailClosed) is an error; with [`FailOpen`](OnOutage::FailOpen),
    /// [`read_or_load`](WriteBehind::read_or_load) loads, and may return a value that is older than one that waits. Writes fail under both.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = options;
        self
    }

    /// Builds the handle, and starts a task for each shard if it has a sink.
    ///
    /// # Errors
    /// [`InvalidConfig`] if a value is out of bounds, or there is no tokio runtime.
    pub fn build(self) -> Result<WriteBehind<V>, InvalidConfig> {
        self.check()?;
        let fleet = self.fleet.resolve(&FLEET)?;
        let runtime = runtime()?;
        let per_shard = self.max_entries.div_ceil(self.shards.into());
        let settings = Settings {
            shards: self.shards,
            batch: self.batch,
            max_wait: self.max_wait,
            sink_timeout: self.sink_timeout,
            lease: self.lease,
            poll: self.poll,
            backoff: self.backoff,
            max_attempts: self.max_attempts,
            bounds: Bounds {
                max_entries: per_shard,
                max_age_ms: millis(self.max_age),
                max_first: if self.write_through { per_shard * 2 } else { 0 },
            },
            timeout: self.timeout,
            keep_ms: millis(self.keep),
            holder: Arc::clone(&fleet.instance),
            sinks: self.sink.is_some(),
        };
        let pattern = Pattern::WriteBehind;
        let client = Client::new(self.store, pattern, Arc::clone(&self.name), &fleet);
        let store = client.store().handle();
        let store = store.cloned().unwrap_or_else(StoreHandle::new);
        let shared = Arc::new(Shared {
            scope: Scope::new(pattern, &self.name),
            name: self.name,
            seen: (0..settings.shards).map(|_| Seen::default()).collect(),
            wakers: (0..settings.shards).map(|_| Waker::new()).collect(),
            settings,
            client,
            writers: crate::stream::Sequences::default(),
            totals: Totals::default(),
            flushing: std::sync::atomic::AtomicUsize::new(0),
            dropped: std::sync::atomic::AtomicBool::new(false),
        });
        telemetry::register(&shared);
        let tasks = store.of_handle();
        sinker::start(&shared, self.sink, &self.codec, &tasks, &runtime);
        Ok(WriteBehind {
            owner: Arc::new(Owner {
                shared: Arc::clone(&shared),
                tasks,
                _store: store,
            }),
            shared,
            codec: self.codec,
        })
    }

    fn check(&self) -> Result<(), InvalidConfig> {
        if !(1..=validate::MAX_NAME).contains(&self.name.len()) {
            let rule = "must have 1 to 255 bytes";
            return Err(InvalidConfig::new("name", &self.name, rule));
        }
        if !(1..=validate::MAX_SHARDS).contains(&self.shards) {
            return Err(InvalidConfig::new(
                "shards",
                self.shards,
                "must be 1 to 1024",
            ));
        }
        if !(1..=validate::MAX_BATCH).contains(&self.batch) {
            return Err(InvalidConfig::new("batch", self.batch, "must be 1 to 1000"));
        }
        if self.max_attempts == 0 {
            return Err(InvalidConfig::new("max_attempts", 0, "must be at least 1"));
        }
        if !(1..=validate::BEYOND / 4).contains(&self.max_entries) {
            let rule = "must be between 1 and 2^51";
            return Err(InvalidConfig::new("max_entries", self.max_entries, rule));
        }
        let lease = (self.lease, "must be between 100 milliseconds and 1 day");
        let keep = "must be between 1 day and 10 years";
        let times = [
            (
                "batch",
                self.max_wait,
                Duration::ZERO..=DAY,
                "must wait for at most 1 day",
            ),
            ("sink_timeout", self.sink_timeout, MS..=DAY, TIME_RULE),
            ("lease", lease.0, MS * 100..=DAY, lease.1),
            ("poll", self.poll, MS..=DAY, TIME_RULE),
            ("timeout", self.timeout, MS..=DAY, TIME_RULE),
            (
                "max_age",
                self.max_age,
                MS..=DAY * 3650,
                "must be between 1 millisecond and 10 years",
            ),
            ("keep", self.keep, DAY..=DAY * 3650, keep),
        ];
        for (field, time, bounds, rule) in times {
            InvalidConfig::check_time(field, time, bounds, rule)?;
        }
        Ok(())
    }
}

impl<V> fmt::Debug for WriteBehindBuilder<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBehindBuilder")
            .field("name", &self.name)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}
