//! The broker for one process: for tests, for work within one instance, and the reference for other brokers.

mod group;
mod log;

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
    broker::{StoreError, StoreFuture, StreamBroker, validate},
    message::{Position, RawMessage},
    steps::{
        Batch, Begin, Begun, Claim, Claimed, DeadLetter, Held, Join, Joined, JoinedGroup, Pause,
        PendingMessage, Publish, Published, Read, Retention, Settled, Settlement, Start,
        StreamState, Trimmed,
    },
};
use crate::{
    clock::Clock,
    sync::{Mutex, lock},
};

/// Streams in this process. Clones share them.
///
/// They end with the process, and are not bounded but by their [`Retention`]. Streams that get no messages and no consumers are
/// kept: [`keep_ms`](Retention::keep_ms) is ignored.
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

/// The end of what a retention removes.
fn end_of(retention: &Retention, it: &Stream, now: u64) -> Position {
    let mut end = Position::START;
    if let Some(age) = retention.max_age_ms {
        end = end.max(Position::new((now / 1000).saturating_sub(age), 0));
    }
    if let Some(length) = retention.max_length {
        end = end.max(it.log.start_of_last(length));
    }
    if let Some(dead_after) = retention.settled {
        let groups = it.groups.values();
        let waited_for = groups.filter(|it| it.is_waited_for(dead_after, now));
        let settled = waited_for.map(Group::bookmark).min();
        end = end.max(settled.map_or(Position::START, Position::next));
    }
    end
}

fn trim(retention: &Retention, it: &mut Stream, now: u64) -> Trimmed {
    let end = end_of(retention, it, now);
    let mut undelivered = 0;
    for group in it.groups.values_mut() {
        let left = it.log.from(group.cursor.next());
        let skipped = left.take_while(|(at, _)| *at < end).count() as u64;
        group.skipped += skipped;
        group.cursor = group.cursor.max(end.before());
        undelivered = undelivered.max(skipped);
    }
    Trimmed {
        removed: it.log.remove_before(end),
        undelivered,
        length: it.log.len(),
    }
}

fn ready<'a, T: Send + 'a>(answer: Result<T, StoreError>) -> StoreFuture<'a, T> {
    Box::pin(std::future::ready(answer))
}

impl StreamBroker for InProcessStreams {
    fn publish<'a>(
        &'a self,
        stream: &'a str,
        publish: &'a Publish,
    ) -> StoreFuture<'a, Vec<Published>> {
        ready(self.publish_now(stream, publish))
    }

    fn join<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        join: &'a Join,
    ) -> StoreFuture<'a, Joined> {
        ready(self.join_now(stream, group, join))
    }

    fn leave<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
    ) -> StoreFuture<'a, bool> {
        let left = self.on_group(stream, group, Ok(()), |group, _, _| {
            Some(group.leave(consumer))
        });
        ready(left.map(|left| left.unwrap_or(true)))
    }

    fn read<'a>(&'a self, group: &'a str, read: Read<'a>) -> StoreFuture<'a, Batch> {
        Box::pin(self.read_soon(group, read))
    }

    fn claim<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        claim: Claim<'a>,
    ) -> StoreFuture<'a, Claimed> {
        ready(self.claim_now(stream, group, &claim))
    }

    fn extend<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<Held>> {
        let checked = validate::positions(positions.iter().copied());
        let held = self.on_group(stream, group, checked, |group, _, now| {
            let extend = |at: &Position| group.extend(consumer, *at, now);
            Some(positions.iter().map(extend).collect())
        });
        ready(held.map(|held| held.unwrap_or_else(|| vec![Held::Gone; positions.len()])))
    }

    fn begin<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        begins: &'a [Begin],
    ) -> StoreFuture<'a, Vec<Begun>> {
        let checked = validate::begins(begins);
        let begun = self.on_group(stream, group, checked, |group, _, now| {
            let begin = |it: &Begin| group.begin(consumer, it, now);
            Some(begins.iter().map(begin).collect())
        });
        let gone = || vec![Begun::Lost(Held::Gone); begins.len()];
        ready(begun.map(|begun| begun.unwrap_or_else(gone)))
    }

    fn settle<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        consumer: &'a str,
        settlements: &'a [Settlement],
    ) -> StoreFuture<'a, Vec<Settled>> {
        let checked = validate::settlements(settlements);
        let settled = self.on_group(stream, group, checked, |group, log, now| {
            let settle = |it: &Settlement| group.settle(log, consumer, it, now);
            Some(settlements.iter().map(settle).collect())
        });
        let gone = || vec![Settled::Gone; settlements.len()];
        ready(settled.map(|settled| settled.unwrap_or_else(gone)))
    }

    fn seek<'a>(&'a self, stream: &'a str, group: &'a str, to: Start) -> StoreFuture<'a, bool> {
        let checked = validate::name("name of the group", group);
        let sought = self.step(stream, checked, |_, it, now| {
            let cursor = it.log.cursor(to, now);
            let group = it.groups.entry(group.into());
            let group = group.or_insert_with(|| Group::new(cursor, now));
            group.cursor = cursor;
            true
        });
        self.0.arrived.notify_waiters();
        ready(sought)
    }

    fn trim<'a>(&'a self, stream: &'a str, retention: &'a Retention) -> StoreFuture<'a, Trimmed> {
        let checked = validate::retention(retention);
        ready(self.step(stream, checked, |_, it, now| trim(retention, it, now)))
    }

    fn pause<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        pause: Option<&'a Pause>,
    ) -> StoreFuture<'a, bool> {
        let paused = self.on_group(stream, group, Ok(()), |group, _, now| {
            group.pause(pause, now);
            true
        });
        self.0.arrived.notify_waiters();
        ready(paused)
    }

    fn state<'a>(&'a self, stream: &'a str) -> StoreFuture<'a, Option<StreamState>> {
        ready(self.step(stream, Ok(()), |_, it, now| {
            let groups = it.groups.iter();
            Some(StreamState {
                length: it.log.len(),
                delayed: it.log.delayed(),
                first: it.log.first(),
                last: it.log.last(),
                incarnation: it.log.incarnation,
                groups: groups
                    .map(|(name, group)| group.state(name, &it.log, now))
                    .collect(),
            })
        }))
    }

    fn peek<'a>(
        &'a self,
        stream: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<(Position, RawMessage)>> {
        ready(self.step(stream, Ok(()), |_, it, _| {
            let messages = it.log.from(from).take(max.min(validate::MAX_BATCH));
            messages.map(|(at, it)| (at, it.clone())).collect()
        }))
    }

    fn pending<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<PendingMessage>> {
        let max = max.min(validate::MAX_BATCH);
        ready(self.on_group(stream, group, Ok(()), |it, _, now| {
            it.pending(from, max, now)
        }))
    }

    fn dead_letters<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        from: Position,
        max: usize,
    ) -> StoreFuture<'a, Vec<DeadLetter>> {
        let max = max.min(validate::MAX_BATCH);
        ready(self.on_group(stream, group, Ok(()), |it, _, now| {
            it.dead_letters(from, max, now)
        }))
    }

    fn redrive<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>> {
        let checked = validate::positions(positions.iter().copied());
        let redriven = self.on_group(stream, group, checked, |group, _, now| {
            let redrive = |at: &Position| group.redrive(*at, now);
            Some(positions.iter().map(redrive).collect())
        });
        ready(redriven.map(|it| it.unwrap_or_else(|| vec![false; positions.len()])))
    }

    fn drop_dead<'a>(
        &'a self,
        stream: &'a str,
        group: &'a str,
        positions: &'a [Position],
    ) -> StoreFuture<'a, Vec<bool>> {
        let checked = validate::positions(positions.iter().copied());
        let dropped = self.on_group(stream, group, checked, |group, _, _| {
            let drop_dead = |at: &Position| group.drop_dead(*at);
            Some(positions.iter().map(drop_dead).collect())
        });
        ready(dropped.map(|it| it.unwrap_or_else(|| vec![false; positions.len()])))
    }

    fn remove_group<'a>(&'a self, stream: &'a str, group: &'a str) -> StoreFuture<'a, bool> {
        let removed = self.step(stream, Ok(()), |_, it, _| it.groups.remove(group).is_some());
        self.0.arrived.notify_waiters();
        ready(removed)
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
