//! The builder of a consumer. Invalid settings are errors when it is built.

use std::{
    fmt,
    ops::RangeInclusive,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use super::{
    Consumer, Shared,
    settings::{FLEET, OnLoss, Settings},
};
use crate::{
    backoff::Backoff,
    classify::Standard,
    codec::Codec,
    error::{InvalidConfig, Pattern},
    fleet::{FleetOptions, StoreHandle, Waker, runtime},
    stream::{
        broker::{StreamBroker, StreamClient},
        message::Envelope,
        names::check_name,
        snapshot::ConsumerTotals,
        steps::Start,
    },
    telemetry,
};

/// Settings of a [`Consumer`].
///
/// # Default
/// | setting | value |
/// |---|---|
/// | [`group`](Self::group) | required |
/// | codec | [`Json`](crate::codec::Json) |
/// | [`start`](Self::start) | with the oldest message |
/// | [`concurrency`](Self::concurrency), [`prefetch`](Self::prefetch) | 16, twice the concurrency |
/// | [`lanes`](Self::lanes) | none: messages are handled side by side |
/// | [`lease`](Self::lease), [`longest_lease`](Self::longest_lease), [`deadline`](Self::deadline) | 30 s, 1 h, none |
/// | [`max_deliveries`](Self::max_deliveries) | 5 |
/// | [`retry`](Self::retry) | 0.5 s to 5 min, decorrelated jitter |
/// | [`classify`](Self::classify) | [`Standard`]: every error is transient |
/// | [`effect_once`](Self::effect_once), [`keep_effects`](Self::keep_effects) | no, 7 days |
/// | [`schemas`](Self::schemas) | all |
/// | [`on_loss`](Self::on_loss) | [`OnLoss::Resume`] |
/// | [`poll`](Self::poll), [`keep`](Self::keep) | 1 s, 7 days |
/// | time budget of a step | 1 s |
#[must_use]
pub struct ConsumerBuilder<T, C = Standard> {
    stream: Arc<str>,
    broker: Arc<dyn StreamBroker>,
    codec: Arc<dyn Codec<T>>,
    classifier: C,
    group: Option<Arc<str>>,
    fleet: FleetOptions,
    settings: Settings,
    keep_effects: Duration,
}

impl<T> ConsumerBuilder<T> {
    pub(super) fn new(
        stream: Arc<str>,
        broker: Arc<dyn StreamBroker>,
        codec: Arc<dyn Codec<T>>,
    ) -> Self {
        Self {
            stream,
            broker,
            codec,
            classifier: Standard,
            group: None,
            fleet: FleetOptions::new(),
            settings: Settings::default(),
            keep_effects: Duration::from_secs(7 * 86_400),
        }
    }
}

impl<T: Send + Sync + 'static, C> ConsumerBuilder<T, C> {
    /// The group: consumers of one group share its messages, each group is given all.
    pub fn group(mut self, group: impl Into<Arc<str>>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// How bytes become events. A message that cannot be decoded is a dead letter.
    pub fn codec(mut self, codec: impl Codec<T>) -> Self {
        self.codec = Arc::new(codec);
        self
    }

    /// Where the group begins, if it does not exist yet.
    pub const fn start(mut self, start: Start) -> Self {
        self.settings.start = start;
        self
    }

    /// How many messages are handled at a time.
    pub const fn concurrency(mut self, messages: usize) -> Self {
        self.settings.concurrency = messages;
        self
    }

    /// How many messages this process holds, running and waiting: about, since claims and reads do not wait for each other.
    /// Heartbeats keep their leases, so that waiting does not cost them; a shutdown gives them back.
    pub const fn prefetch(mut self, messages: usize) -> Self {
        self.settings.prefetch = Some(messages);
        self
    }

    /// Messages for which `lane` finds the same value are handled one at a time, in order, in this process; others side by side.
    /// Usually `|it| it.key.clone()`.
    ///
    /// Messages that are retried leave their place: the next one of the lane goes ahead. Consumers in other processes are not waited
    /// for: order over the whole group takes a group with one consumer.
    pub fn lanes(
        mut self,
        lane: impl Fn(&Envelope) -> Option<Arc<str>> + Send + Sync + 'static,
    ) -> Self {
        self.settings.lanes = Some(Arc::new(lane));
        self
    }

    /// How long a message of a process that dies is not delivered to another one; at least 100 ms. Renewed every third of it, for
    /// messages that wait and for those that are handled.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How long a message may be handled: then its handler is cancelled and the delivery has failed. Its lease is not renewed
    /// any longer, so that a handler that blocks its thread does not keep its message forever.
    pub const fn longest_lease(mut self, lease: Duration) -> Self {
        self.settings.longest_lease = lease;
        self
    }

    /// The deadline of each message, counted from when its handler starts: visible to everything in the handler
    /// ([`deadline::current`](crate::deadline::current)). A handler that is not done by then is cancelled, and the delivery has
    /// failed.
    pub const fn deadline(mut self, after: Duration) -> Self {
        self.settings.deadline = Some(after);
        self
    }

    /// How often a message is delivered before it is a dead letter. Deliveries that were given back are not counted.
    pub const fn max_deliveries(mut self, deliveries: u32) -> Self {
        self.settings.rules.max_deliveries = deliveries;
        self
    }

    /// How long a failed message waits for its next delivery, in the broker: a restart does not shorten it. When the backoff ends,
    /// the message is a dead letter. A longer wait that the [verdict](crate::Verdict::Transient) asks for is kept.
    pub fn retry(mut self, backoff: Backoff) -> Self {
        self.settings.rules.retry = backoff;
        self
    }

    /// What the results of the service say.
    ///
    /// | verdict | the message |
    /// |---|---|
    /// | success | is acknowledged |
    /// | transient failure | is [retried](Self::retry) |
    /// | permanent failure, ignored | is a dead letter: it will fail again, or is itself at fault |
    /// | (not asked) a layer [rejected](crate::Rejected) it | is given back; the consumer pauses for the rejection's `retry_after`, 50 ms to 30 s |
    /// | (not asked) a timeout of a layer | is retried |
    pub fn classify<C2>(self, classifier: C2) -> ConsumerBuilder<T, C2> {
        ConsumerBuilder {
            stream: self.stream,
            broker: self.broker,
            codec: self.codec,
            classifier,
            group: self.group,
            fleet: self.fleet,
            settings: self.settings,
            keep_effects: self.keep_effects,
        }
    }

    /// Records that a message took effect, under the [id](Envelope::id) of its event, in the same step as its
    /// acknowledgement. Copies of the event, and deliveries after a lost acknowledgement, are then acknowledged without being
    /// handled; a copy waits while the event is handled elsewhere. The [fence](super::Message::fence) guards effects elsewhere.
    ///
    /// The records belong to this group of this stream. They do not know of calls of an
    /// [`Idempotency`](crate::idempotency) handle, whatever its name.
    pub fn effect_once(mut self) -> Self {
        self.settings.effect_once = Some(Duration::ZERO);
        self
    }

    /// How long records of effects are kept: at least for as long as copies of an event may come, by retries, redrives or a
    /// [seek](Consumer::seek).
    pub const fn keep_effects(mut self, time: Duration) -> Self {
        self.keep_effects = time;
        self
    }

    /// The versions of the event's type that this consumer understands. Messages of others are dead letters; redrive them after a
    /// rollout.
    pub fn schemas(mut self, versions: RangeInclusive<u32>) -> Self {
        self.settings.schemas = versions;
        self
    }

    /// What happens when the group was lost.
    pub const fn on_loss(mut self, policy: OnLoss) -> Self {
        self.settings.on_loss = policy;
        self
    }

    /// How often the broker is asked for messages that are due for another delivery, at least: the precision of delays and
    /// retries of other processes.
    pub const fn poll(mut self, interval: Duration) -> Self {
        self.settings.poll = interval;
        self
    }

    /// How long the stream and the group are kept while nothing uses them.
    pub const fn keep(mut self, time: Duration) -> Self {
        self.settings.keep = time;
        self
    }

    /// The time budget of a step, and the name of this instance. The outage policy is
    /// [`FailClosed`](crate::OnOutage::FailClosed), and there is no other.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = options;
        self
    }

    /// Builds the handle. Nothing is asked of the broker yet.
    ///
    /// # Errors
    /// [`InvalidConfig`] if there is no [`group`](Self::group), a value is out of bounds, or there is no tokio runtime.
    pub fn build(mut self) -> Result<Consumer<T, C>, InvalidConfig> {
        check_name("stream", &self.stream)?;
        let rule = "is required: consumers of one group share its messages";
        let group = self
            .group
            .ok_or_else(|| InvalidConfig::new("group", format_args!("not set"), rule))?;
        check_name("group", &group)?;
        if let Some(keep) = &mut self.settings.effect_once {
            *keep = self.keep_effects;
        }
        self.settings.check()?;
        let fleet = self.fleet.resolve(&FLEET)?;
        let runtime = runtime()?;
        let handle = self.broker.handle();
        let store = handle.cloned().unwrap_or_else(StoreHandle::new);
        let client = StreamClient::new(
            self.broker,
            Pattern::Stream,
            Arc::clone(&self.stream),
            &fleet,
        );
        let shared = Arc::new(Shared {
            tasks: store.of_handle(),
            _store: store,
            stream: self.stream,
            group,
            consumer: fleet.instance,
            settings: self.settings,
            client,
            totals: ConsumerTotals::default(),
            served: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            look: Waker::new(),
            runtime,
        });
        telemetry::register(&shared);
        Ok(Consumer {
            shared,
            codec: self.codec,
            classifier: self.classifier,
        })
    }
}

impl<T, C> fmt::Debug for ConsumerBuilder<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerBuilder")
            .field("stream", &self.stream)
            .field("group", &self.group)
            .field("broker", &self.broker)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
