//! The builder of a producer. Invalid settings are errors when it is built.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    Producer, Shared,
    event::{Defaults, TraceContext},
    sequences::Sequences,
    task,
};
use crate::{
    codec::Codec,
    error::{InvalidConfig, Pattern},
    fleet::{FleetDefaults, FleetOptions, OnOutage, millis, runtime},
    stream::{
        broker::{StreamBroker, StreamClient},
        names::check_name,
        snapshot::ProducerTotals,
        steps::Retention,
    },
    telemetry::{self, Scope},
};

/// Settings of a [`Producer`].
///
/// # Default
/// | setting | value |
/// |---|---|
/// | codec | [`Json`](crate::codec::Json) |
/// | [`source`](Self::source), [`event_type`](Self::event_type), [`schema`](Self::schema) | empty, empty, 0 |
/// | [`idempotent`](Self::idempotent), [`remember`](Self::remember) | yes, 10 minutes |
/// | [`timeout`](Self::timeout) | 5 s |
/// | [`max_age`](Self::max_age), [`max_length`](Self::max_length), [`drop_settled`](Self::drop_settled) | 7 days, none, no |
/// | [`max_backlog`](Self::max_backlog) | none |
/// | time budget of a step | 1 s |
#[must_use]
pub struct ProducerBuilder<T> {
    stream: Arc<str>,
    broker: Arc<dyn StreamBroker>,
    codec: Arc<dyn Codec<T>>,
    fleet: FleetOptions,
    defaults: Defaults,
    trace: Option<Arc<TraceWith>>,
    idempotent: bool,
    remember: Duration,
    timeout: Duration,
    max_age: Option<Duration>,
    max_length: Option<u64>,
    settled: Option<Duration>,
    max_backlog: Option<u64>,
}

type TraceWith = dyn Fn() -> TraceContext + Send + Sync;

/// Checked settings.
pub(super) struct Settings {
    pub(super) defaults: Defaults,
    trace: Option<Arc<TraceWith>>,
    pub(super) idempotent: bool,
    pub(super) remember_ms: u64,
    pub(super) timeout: Duration,
    pub(super) retention: Retention,
    pub(super) max_backlog: Option<u64>,
}

impl Settings {
    pub(super) fn trace_context(&self) -> TraceContext {
        self.trace
            .as_ref()
            .map_or_else(TraceContext::default, |it| it())
    }
}

const DAY: Duration = Duration::from_secs(86_400);
const LONGEST: Duration = Duration::from_secs(86_400 * 365 * 10);
const AGE_RULE: &str = "must be between 1 second and 10 years";
const TIME_RULE: &str = "must be between 1 millisecond and 1 day";

const FLEET: FleetDefaults = FleetDefaults {
    budget: Duration::from_secs(1),
    heartbeat: None,
    no_heartbeat: "a producer has no heartbeat",
    on_outage: OnOutage::FailClosed,
    accepts: &[OnOutage::FailClosed],
    rule: "must be `FailClosed`: what the broker did not take is not published",
};

impl<T: Send + Sync + 'static> ProducerBuilder<T> {
    pub(super) fn new(
        stream: Arc<str>,
        broker: Arc<dyn StreamBroker>,
        codec: Arc<dyn Codec<T>>,
    ) -> Self {
        Self {
            stream,
            broker,
            codec,
            fleet: FleetOptions::new(),
            defaults: Defaults::default(),
            trace: None,
            idempotent: true,
            remember: Duration::from_secs(600),
            timeout: Duration::from_secs(5),
            max_age: Some(DAY * 7),
            max_length: None,
            settled: None,
            max_backlog: None,
        }
    }

    /// How events become bytes.
    pub fn codec(mut self, codec: impl Codec<T>) -> Self {
        self.codec = Arc::new(codec);
        self
    }

    /// What publishes the events, as a URI reference; CloudEvents' `source`.
    pub fn source(mut self, source: impl Into<Arc<str>>) -> Self {
        self.defaults.source = source.into();
        self
    }

    /// Kind of the events; CloudEvents' `type`.
    pub fn event_type(mut self, event_type: impl Into<Arc<str>>) -> Self {
        self.defaults.event_type = event_type.into();
        self
    }

    /// Version of the type of the events: raise it with every change that older consumers cannot read. Consumers see it in the
    /// envelope, and refuse versions that they do not [accept](crate::stream::ConsumerBuilder::schemas).
    pub const fn schema(mut self, version: u32) -> Self {
        self.defaults.schema = version;
        self
    }

    /// Where the trace of the running code is found, asked once per publish.
    pub fn trace_with(mut self, find: impl Fn() -> TraceContext + Send + Sync + 'static) -> Self {
        self.trace = Some(Arc::new(find));
        self
    }

    /// Whether publishes are numbered, so that one that is repeated after a lost answer is stored once. Without, such a publish ends
    /// with [`PublishError::Unknown`](super::PublishError::Unknown), a batch may be stored in part, and the broker has less to do.
    pub const fn idempotent(mut self, yes: bool) -> Self {
        self.idempotent = yes;
        self
    }

    /// How long the broker remembers the numbers of a producer after its last publish; at least twice the
    /// [timeout](Self::timeout).
    pub const fn remember(mut self, time: Duration) -> Self {
        self.remember = time;
        self
    }

    /// How long a publish is repeated while the broker does not answer; shorter, if the current deadline is earlier.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long messages are kept. Longer than the longest way of a message through retries and dead letters, and than the
    /// longest time for which no consumer runs.
    pub const fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// How many messages are kept, about.
    pub const fn max_length(mut self, messages: u64) -> Self {
        self.max_length = Some(messages);
        self
    }

    /// Removes messages that every group has settled. A group none of whose consumers was seen for `dead_after` is not waited for,
    /// so that a group that was given up does not keep everything; what it misses is counted as skipped.
    pub const fn drop_settled(mut self, dead_after: Duration) -> Self {
        self.settled = Some(dead_after);
        self
    }

    /// Rejects publishes while a group has this many messages that it has not settled, with
    /// [`Reason::Full`](crate::Reason::Full). Looked at once a second: a bound on how far producers run ahead, not an exact one.
    pub const fn max_backlog(mut self, messages: u64) -> Self {
        self.max_backlog = Some(messages);
        self
    }

    /// The time budget of a step, and the name of this instance. The outage policy is
    /// [`FailClosed`](OnOutage::FailClosed), and there is no other.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = options;
        self
    }

    /// Builds the handle, and starts the task that trims the stream.
    ///
    /// # Errors
    /// [`InvalidConfig`] if a value is out of bounds, or there is no tokio runtime.
    pub fn build(self) -> Result<Producer<T>, InvalidConfig> {
        check_name("stream", &self.stream)?;
        let fleet = self.fleet.resolve(&FLEET)?;
        let bounds = Duration::from_millis(1)..=DAY;
        InvalidConfig::check_time("timeout", self.timeout, bounds, TIME_RULE)?;
        let rule = "must be between twice the `timeout` and 10 years";
        InvalidConfig::check_time("remember", self.remember, self.timeout * 2..=LONGEST, rule)?;
        let ages = [("max_age", self.max_age), ("drop_settled", self.settled)];
        for (field, age) in ages {
            let age = age.unwrap_or(DAY);
            InvalidConfig::check_time(field, age, Duration::from_secs(1)..=LONGEST, AGE_RULE)?;
        }
        if self.max_backlog == Some(0) {
            return Err(InvalidConfig::new("max_backlog", 0, "must be at least 1"));
        }
        let runtime = runtime()?;
        let retention = Retention {
            max_age_ms: self.max_age.map(millis),
            max_length: self.max_length,
            settled: self.settled.map(millis),
            keep_ms: millis(self.max_age.unwrap_or(DAY * 7).max(self.remember).max(DAY)),
        };
        let client = StreamClient::new(
            self.broker,
            Pattern::Stream,
            Arc::clone(&self.stream),
            &fleet,
        );
        let shared = Arc::new(Shared {
            scope: Scope::new(Pattern::Stream, &self.stream),
            stream: self.stream,
            settings: Settings {
                defaults: self.defaults,
                trace: self.trace,
                idempotent: self.idempotent,
                remember_ms: millis(self.remember),
                timeout: self.timeout,
                retention,
                max_backlog: self.max_backlog,
            },
            client,
            sequences: Sequences::default(),
            totals: ProducerTotals::default(),
            backlog: std::sync::atomic::AtomicU64::new(0),
            agent: std::sync::OnceLock::new(),
        });
        telemetry::register(&shared);
        task::start(&shared, &runtime);
        Ok(Producer {
            shared,
            codec: self.codec,
        })
    }
}

impl<T> fmt::Debug for ProducerBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerBuilder")
            .field("stream", &self.stream)
            .field("broker", &self.broker)
            .finish_non_exhaustive()
    }
}
