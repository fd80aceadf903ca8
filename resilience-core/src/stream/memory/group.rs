//! One group of one stream: a pure data structure over the machines of [`record`](crate::stream::record). Takes the time in
//! microseconds.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::log::Log;
use crate::stream::{
    message::{Position, RawMessage},
    record::{EffectRecord, Next, Record},
    steps::{
        Action, Begin, Begun, ConsumerState, DeadLetter, Delivery, Failure, GroupState, Held, Join,
        Pause, PendingMessage, Settled, Settlement,
    },
};

pub(super) struct Group {
    /// The group was given every message up to here.
    pub(super) cursor: Position,
    pub(super) skipped: u64,
    messages: BTreeMap<Position, Unsettled>,
    /// The messages by when another delivery is due, by the clock when they were last changed.
    due: BTreeSet<(u64, Position)>,
    dead: BTreeMap<Position, Dead>,
    effects: HashMap<Arc<str>, EffectRecord>,
    /// The number of effects at which those that are over are looked for.
    many_effects: usize,
    consumers: BTreeMap<Arc<str>, Consumer>,
    paused: Option<Paused>,
    /// The last step of a consumer.
    seen: u64,
}

struct Unsettled {
    record: Record,
    /// Of a dead letter that was redriven: it is independent of the stream.
    message: Option<RawMessage>,
}

struct Consumer {
    lease_ms: u64,
    seen: u64,
}

struct Dead {
    message: Option<RawMessage>,
    deliveries: u32,
    reason: Arc<str>,
    at: u64,
    failures: Vec<Failure>,
}

struct Paused {
    by: Arc<str>,
    reason: Arc<str>,
    until: Option<u64>,
}

const FEW_EFFECTS: usize = 1024;

impl Group {
    pub(super) fn new(cursor: Position, now: u64) -> Self {
        Self {
            cursor,
            skipped: 0,
            messages: BTreeMap::new(),
            due: BTreeSet::new(),
            dead: BTreeMap::new(),
            effects: HashMap::new(),
            many_effects: FEW_EFFECTS,
            consumers: BTreeMap::new(),
            paused: None,
            seen: now,
        }
    }

    pub(super) fn join(&mut self, join: &Join, now: u64) {
        let consumer = Consumer {
            lease_ms: join.lease_ms,
            seen: now,
        };
        self.consumers.insert(Arc::clone(&join.consumer), consumer);
        self.seen = now;
    }

    pub(super) fn leave(&mut self, consumer: &str) -> bool {
        if self.held(consumer) > 0 {
            return false;
        }
        self.consumers.remove(consumer);
        true
    }

    /// The consumer's name and lease, if it is known.
    fn consumer(&mut self, consumer: &str, now: u64) -> Option<(Arc<str>, u64)> {
        self.seen = now;
        let (name, _) = self.consumers.get_key_value(consumer)?;
        let name = Arc::clone(name);
        let state = self.consumers.get_mut(consumer)?;
        state.seen = now;
        Some((name, state.lease_ms))
    }

    /// Messages that the group was not given yet; `None`: the consumer has to join.
    pub(super) fn read(
        &mut self,
        (stream, log): (&Arc<str>, &Log),
        consumer: &str,
        max: usize,
        now: u64,
    ) -> Option<Vec<Delivery>> {
        let (consumer, lease_ms) = self.consumer(consumer, now)?;
        if self.paused(now).is_some() {
            return Some(Vec::new());
        }
        let mut deliveries = Vec::new();
        for (position, message) in log.from(self.cursor.next()).take(max) {
            let record = Record::deliver(&consumer, lease_ms, now);
            deliveries.push(Delivery {
                stream: Arc::clone(stream),
                position,
                deliveries: record.deliveries(),
                message: Some(message.clone()),
            });
            // It may be held or wait, after a seek.
            self.remove(position, now);
            self.insert(position, record, None, now);
            self.cursor = position;
        }
        Some(deliveries)
    }

    /// Messages that are due for another delivery; `None`: the consumer has to join.
    pub(super) fn claim(
        &mut self,
        (stream, log): (&Arc<str>, &Log),
        consumer: &str,
        max: usize,
        now: u64,
    ) -> Option<Vec<Delivery>> {
        let (consumer, lease_ms) = self.consumer(consumer, now)?;
        if self.paused(now).is_some() {
            return Some(Vec::new());
        }
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        let due: Vec<_> = due.map(|(_, position)| *position).take(max).collect();
        let mut deliveries = Vec::new();
        for position in due {
            let Some(claimed) = self.change(position, now, |it| {
                it.record.claim(&consumer, lease_ms, now).then(|| Delivery {
                    stream: Arc::clone(stream),
                    position,
                    deliveries: it.record.deliveries(),
                    message: it.message.as_ref().or_else(|| log.get(position)).cloned(),
                })
            }) else {
                continue;
            };
            deliveries.extend(claimed);
        }
        Some(deliveries)
    }

    /// When the next message is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    pub(super) fn extend(&mut self, consumer: &str, position: Position, now: u64) -> Held {
        let Some((_, lease_ms)) = self.consumer(consumer, now) else {
            return self.held_by(consumer, position);
        };
        let extended = self.change(position, now, |it| {
            it.record.extend(consumer, lease_ms, now)
        });
        extended.unwrap_or(Held::Gone)
    }

    pub(super) fn begin(&mut self, consumer: &str, begin: &Begin, now: u64) -> Begun {
        match self.extend(consumer, begin.position, now) {
            Held::Held => {}
            lost => return Begun::Lost(lost),
        }
        if self.effects.len() >= self.many_effects {
            self.effects.retain(|_, it| !it.is_over(now));
            self.many_effects = (self.effects.len() * 2).max(FEW_EFFECTS);
        }
        let messages = &self.messages;
        let effect = self.effects.entry(Arc::clone(&begin.key)).or_default();
        let is_held = |at| {
            let other: Option<&Unsettled> = messages.get(&at);
            other.is_some_and(|it| it.record.holder().is_some())
        };
        effect.begin(begin, is_held, now)
    }

    pub(super) fn settle(
        &mut self,
        log: &Log,
        consumer: &str,
        settlement: &Settlement,
        now: u64,
    ) -> Settled {
        let Settlement { position, action } = settlement;
        self.seen = now;
        if let Action::Ack(Some(effect)) = action
            && self.held_by(consumer, *position) == Held::Held
        {
            let record = self.effects.entry(Arc::clone(&effect.key)).or_default();
            if !record.complete(*position, effect, now) {
                return Settled::Taken;
            }
        }
        let settled = self.change(*position, now, |it| it.record.settle(consumer, action, now));
        match settled {
            None => Settled::Gone,
            Some(Err(refused)) => refused,
            Some(Ok(Next::Waits)) => Settled::Done,
            Some(Ok(Next::Settled(_))) => {
                self.remove(*position, now);
                Settled::Done
            }
            Some(Ok(Next::Dead { reason })) => {
                self.bury(log, *position, reason, now);
                Settled::Done
            }
        }
    }

    fn bury(&mut self, log: &Log, position: Position, reason: Arc<str>, now: u64) {
        let Some(unsettled) = self.remove(position, now) else {
            return;
        };
        let dead = Dead {
            message: unsettled.message.or_else(|| log.get(position).cloned()),
            deliveries: unsettled.record.deliveries(),
            reason,
            at: now,
            failures: unsettled.record.failures(now),
        };
        self.dead.insert(position, dead);
    }

    pub(super) fn redrive(&mut self, position: Position, now: u64) -> bool {
        let Some(dead) = self.dead.remove(&position) else {
            return false;
        };
        self.remove(position, now);
        self.insert(position, Record::redrive(now), dead.message, now);
        true
    }

    pub(super) fn drop_dead(&mut self, position: Position) -> bool {
        self.dead.remove(&position).is_some()
    }

    pub(super) fn pause(&mut self, pause: Option<&Pause>, now: u64) {
        self.paused = pause.map(|it| Paused {
            by: Arc::clone(&it.by),
            reason: Arc::clone(&it.reason),
            until: it
                .for_ms
                .map(|ms| now.saturating_add(ms.saturating_mul(1000))),
        });
    }

    pub(super) fn paused(&self, now: u64) -> Option<Pause> {
        let paused = self.paused.as_ref()?;
        if paused.until.is_some_and(|until| until <= now) {
            return None;
        }
        Some(Pause {
            by: Arc::clone(&paused.by),
            reason: Arc::clone(&paused.reason),
            for_ms: paused.until.map(|until| (until - now).div_ceil(1000)),
        })
    }

    /// A position up to which everything is settled.
    pub(super) fn bookmark(&self) -> Position {
        let first = self.messages.keys().next();
        first.map_or(self.cursor, |it| it.before().min(self.cursor))
    }

    /// Whether a trim waits for what the group has not settled.
    pub(super) fn is_waited_for(&self, dead_after_ms: u64, now: u64) -> bool {
        now.saturating_sub(self.seen) < dead_after_ms.saturating_mul(1000)
    }

    pub(super) fn state(&self, name: &Arc<str>, log: &Log, now: u64) -> GroupState {
        let held = self.messages.values();
        let held = held.filter(|it| it.record.holder().is_some()).count();
        let undelivered = log.from(self.cursor.next()).next().map(|(at, _)| at);
        let unsettled = self.messages.keys().next().copied();
        let oldest = unsettled.into_iter().chain(undelivered).min();
        GroupState {
            group: Arc::clone(name),
            cursor: self.cursor,
            lag: log.from(self.cursor.next()).count() as u64,
            held: held as u64,
            waiting: (self.messages.len() - held) as u64,
            dead: self.dead.len() as u64,
            skipped: self.skipped,
            oldest_ms: oldest.map(|it| (now / 1000).saturating_sub(it.ms)),
            paused: self.paused(now),
            consumers: self.consumers(now),
        }
    }

    fn consumers(&self, now: u64) -> Vec<ConsumerState> {
        let state = |(name, it): (&Arc<str>, &Consumer)| ConsumerState {
            consumer: Arc::clone(name),
            held: self.held(name),
            lease_ms: it.lease_ms,
            idle_ms: now.saturating_sub(it.seen) / 1000,
        };
        self.consumers.iter().map(state).collect()
    }

    pub(super) fn pending(&self, from: Position, max: usize, now: u64) -> Vec<PendingMessage> {
        let state = |(position, it): (&Position, &Unsettled)| PendingMessage {
            position: *position,
            consumer: it.record.holder().cloned(),
            deliveries: it.record.deliveries(),
            left_ms: it.record.due(now).saturating_sub(now).div_ceil(1000),
        };
        self.messages.range(from..).take(max).map(state).collect()
    }

    pub(super) fn dead_letters(&self, from: Position, max: usize, now: u64) -> Vec<DeadLetter> {
        let letter = |(position, it): (&Position, &Dead)| {
            let age_ms = now.saturating_sub(it.at) / 1000;
            let aged = |failure: &Failure| Failure {
                ago_ms: failure.ago_ms + age_ms,
                ..failure.clone()
            };
            DeadLetter {
                position: *position,
                message: it.message.clone(),
                deliveries: it.deliveries,
                reason: Arc::clone(&it.reason),
                age_ms,
                failures: it.failures.iter().map(aged).collect(),
            }
        };
        self.dead.range(from..).take(max).map(letter).collect()
    }

    fn held(&self, consumer: &str) -> u64 {
        let holders = self.messages.values().filter_map(|it| it.record.holder());
        holders.filter(|it| ***it == *consumer).count() as u64
    }

    fn held_by(&self, consumer: &str, position: Position) -> Held {
        let message = self.messages.get(&position);
        message.map_or(Held::Gone, |it| it.record.held_by(consumer))
    }

    /// Changes a message, and when it is due.
    fn change<T>(
        &mut self,
        position: Position,
        now: u64,
        change: impl FnOnce(&mut Unsettled) -> T,
    ) -> Option<T> {
        let message = self.messages.get_mut(&position)?;
        // The clock of a process does not step back: it is due when it was due.
        self.due.remove(&(message.record.due(now), position));
        let changed = change(message);
        self.due.insert((message.record.due(now), position));
        Some(changed)
    }

    fn insert(
        &mut self,
        position: Position,
        record: Record,
        message: Option<RawMessage>,
        now: u64,
    ) {
        self.due.insert((record.due(now), position));
        self.messages
            .insert(position, Unsettled { record, message });
    }

    fn remove(&mut self, position: Position, now: u64) -> Option<Unsettled> {
        let removed = self.messages.remove(&position)?;
        self.due.remove(&(removed.record.due(now), position));
        Some(removed)
    }
}
