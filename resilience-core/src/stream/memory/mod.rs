//! The broker for one process: for tests, for work within one instance, and the reference for other brokers.

mod broker;
mod group;
mod log;
mod trim;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use self::{group::Group, log::Log};
use super::{
    broker::{StoreError, validate},
    message::Position,
    steps::{Batch, Claim, Claimed, Join, Joined, JoinedGroup, Publish, Published, Read},
};
use crate::{
    clock::Clock,
    sync::{Mutex, lock},
};

/// Streams in this process. Clones share them.
///
/// They end with the process, and are not bounded but by their [`Retention`](super::Retention). Streams that get no
/// messages and no consumers are kept: [`keep_ms`](super::Retention::keep_ms) is ignored.
///
/// ```
/// use resilience_core::stream::{InProcessStreams, Outgoing, Publish, RawMessage, StreamBroker};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let streams = InProcessStreams::new();
/// let mut message = RawMessage::default();
/// message.envelope.id = "order-7".into();
/// let messages = vec![Outgoing { message, delay_ms: 0 }];
/// streams.publish("orders", &Publish { messages, sequence: None }).await?;
/// assert_eq!(streams.state("orders").await?.map(|it| it.length), Some(1));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct InProcessStreams(Arc<Shared>);

struct Shared {
    clock: Clock,
    streams: Mutex<HashMap<Arc<str>, Stream>>,
    /// There may be messages to read.
    arrived: Notify,
}

struct Stream {
    log: Log,
    groups: BTreeMap<Arc<str>, Group>,
}

impl Stream {
    fn new() -> Self {
        Self {
            log: Log::new(),
            groups: BTreeMap::new(),
        }
    }
}

impl InProcessStreams {
    /// No streams.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            clock: Clock::auto(),
            streams: Mutex::default(),
            arrived: Notify::new(),
        }))
    }

    /// Removes everything, as a flushed server does.
    pub fn flush(&self) {
        lock(&self.0.streams).clear();
        self.0.arrived.notify_waiters();
    }

    /// A step on a stream; the default of `T` if there is none.
    fn step<T: Default>(
        &self,
        stream: &str,
        checked: Result<(), StoreError>,
        step: impl FnOnce(&Arc<str>, &mut Stream, u64) -> T,
    ) -> Result<T, StoreError> {
        validate::name("name of the stream", stream)?;
        checked?;
        let now = self.0.now();
        let mut streams = lock(&self.0.streams);
        let Some((name, _)) = streams.get_key_value(stream) else {
            return Ok(T::default());
        };
        let name = Arc::clone(name);
        let it = streams.get_mut(stream).expect("found above");
        Ok(step(&name, it, now))
    }

    /// A step on a group; the default of `T` if there is none.
    fn on_group<T: Default>(
        &self,
        stream: &str,
        group: &str,
        checked: Result<(), StoreError>,
        step: impl FnOnce(&mut Group, &mut Log, u64) -> T,
    ) -> Result<T, StoreError> {
        let checked = checked.and_then(|()| validate::name("name of the group", group));
        self.step(stream, checked, |_, it, now| {
            let group = it.groups.get_mut(group);
            group.map_or_else(T::default, |group| step(group, &mut it.log, now))
        })
    }

    fn publish_now(&self, stream: &str, publish: &Publish) -> Result<Vec<Published>, StoreError> {
        validate::name("name of the stream", stream)?;
        validate::publish(publish)?;
        let now = self.0.now();
        let mut streams = lock(&self.0.streams);
        let it = streams.entry(stream.into()).or_insert_with(Stream::new);
        let published = it.log.publish(publish, now);
        drop(streams);
        self.0.arrived.notify_waiters();
        Ok(published)
    }

    fn join_now(&self, stream: &str, group: &str, join: &Join) -> Result<Joined, StoreError> {
        validate::name("name of the stream", stream)?;
        validate::name("name of the group", group)?;
        validate::join(join)?;
        let now = self.0.now();
        let mut streams = lock(&self.0.streams);
        let it = streams.entry(stream.into()).or_insert_with(Stream::new);
        let incarnation = it.log.incarnation;
        let how = if it.groups.contains_key(group) {
            JoinedGroup::Existing
        } else {
            // A group is lost together with its bookmark: there are none.
            match join.resume {
                None => JoinedGroup::Created,
                Some(known) if known.incarnation == incarnation => {
                    JoinedGroup::Restored(known.after)
                }
                Some(_) => JoinedGroup::Recreated,
            }
        };
        let cursor = match how {
            JoinedGroup::Restored(after) => after,
            JoinedGroup::Recreated => Position::START,
            _ => it.log.cursor(join.start, now),
        };
        let group = it.groups.entry(group.into());
        let group = group.or_insert_with(|| Group::new(cursor, now));
        group.join(join, now);
        Ok(Joined {
            incarnation,
            group: how,
        })
    }

    /// What can be read now.
    fn read_now(&self, group: &str, read: &Read<'_>) -> Batch {
        let now = self.0.now();
        let mut streams = lock(&self.0.streams);
        let mut batch = Batch::default();
        for stream in read.streams {
            let left = read.max - batch.deliveries.len();
            let name: Arc<str> = Arc::from(*stream);
            let deliveries = streams.get_mut(*stream).and_then(|it| {
                let group = it.groups.get_mut(group)?;
                group.read((&name, &it.log), read.consumer, left, now)
            });
            match deliveries {
                Some(deliveries) => batch.deliveries.extend(deliveries),
                None => batch.missing.push(name),
            }
        }
        batch
    }

    async fn read_soon(&self, group: &str, read: Read<'_>) -> Result<Batch, StoreError> {
        validate::name("name of the group", group)?;
        validate::read(&read)?;
        let until = Instant::now() + Duration::from_millis(read.block_ms);
        loop {
            // Registered before the look: what arrives in between is not missed.
            let mut arrived = std::pin::pin!(self.0.arrived.notified());
            arrived.as_mut().enable();
            let batch = self.read_now(group, &read);
            let found = !batch.deliveries.is_empty() || !batch.missing.is_empty();
            if found || read.block_ms == 0 || timeout_at(until, arrived).await.is_err() {
                return Ok(batch);
            }
        }
    }

    fn claim_now(
        &self,
        stream: &str,
        group: &str,
        claim: &Claim<'_>,
    ) -> Result<Claimed, StoreError> {
        let name = validate::name("name of the group", group);
        let checked = name.and_then(|()| validate::claim(claim));
        let mut moved = false;
        let claimed = self.step(stream, checked, |name, it, now| {
            let group = it.groups.get_mut(group)?;
            moved = it.log.move_due(now);
            let deliveries = group.claim((name, &it.log), claim.consumer, claim.max, now)?;
            let next = it.log.next_due().into_iter().chain(group.next_due()).min();
            Some(Claimed {
                deliveries,
                next_ms: next.map(|due| due.saturating_sub(now).div_ceil(1000)),
                paused: group.paused(now),
                incarnation: it.log.incarnation,
                skipped: group.skipped,
            })
        })?;
        if moved {
            self.0.arrived.notify_waiters();
        }
        Ok(claimed.unwrap_or_default())
    }
}

impl Shared {
    /// Microseconds.
    fn now(&self) -> u64 {
        self.clock.now().as_nanos() / 1000
    }
}

impl Default for InProcessStreams {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for InProcessStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcessStreams")
            .field("streams", &lock(&self.0.streams).len())
            .finish_non_exhaustive()
    }
}
