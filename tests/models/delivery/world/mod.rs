//! One stream and one group as the checker sees them: records, a few consumers, and what is on its way.
//!
//! [`Record`] and [`EffectRecord`] are those that run in production, and brokers put them together as `broker` does. What is
//! abstract is the rest: a consumer has one message at a time, whose effect it begins, makes, and settles in whatever way the
//! checker likes. Every request may be late or served twice, every answer may be lost, and every consumer may die at any moment, or
//! stall past its lease.
//!
//! Here are the state and its environment, and what must hold; `consumer` has the steps of consumers, `broker` those of the broker,
//! and `settles` what becomes of the messages once nothing goes wrong any more.

mod broker;
mod consumer;
mod settles;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use resilience_core::stream::{
    Held, Position, Settled,
    record::{EffectRecord, Record},
};

/// Milliseconds of a lease, and of a wait before another delivery.
const LEASE: u64 = 1;
/// How long records of effects are kept: longer than anything here takes.
const KEEP: u64 = 1_000_000;
/// Microseconds of one step of time.
pub(crate) const TICK: u64 = 1_000 * LEASE;
/// By how much the broker's clock is set back.
const STEP: u64 = 100 * TICK;
/// What is delivered more often is a dead letter.
const MAX_DELIVERIES: u32 = 2;

/// A mistake to build in, to see that the checker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    None,
    /// Every acknowledgement is accepted as the holder's, as `XACK` does.
    AckUnchecked,
    /// An acknowledgement and its outcome are two steps, and the second may not come.
    AckFirst,
    /// An outcome is recorded, whether or not its message can be acknowledged.
    RecordFirst,
    /// A message that is given back keeps its count.
    GiveBackCounts,
    /// A copy of an event runs beside the first one.
    RunWhenBusy,
    /// A retry is an acknowledgement and a publish, and the second does not come.
    RetryLoses,
    /// What a consumer holds is its own forever.
    NoTakeover,
    /// The consumer acknowledges what fails, as an effect without an outcome.
    AckOnError,
    /// What fails is tried again without end.
    RetryForever,
    /// A group that was lost begins with the next message.
    RestoreAtEnd,
    /// Records of effects are lost with their group.
    EffectsInGroup,
    /// A clock that was set back is not found out.
    ClockUnnoticed,
}

/// How often what may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) publishes: u8,
    /// Events that are published again, because the answer was lost.
    pub(crate) copies: u8,
    /// Handlers that fail.
    pub(crate) failures: u8,
    pub(crate) given_back: u8,
    pub(crate) extends: u8,
    /// Answers that are lost, or requests that are late.
    pub(crate) losses: u8,
    pub(crate) crashes: u8,
    pub(crate) redrives: u8,
    pub(crate) ticks: u8,
    /// Times that the broker's clock is set back.
    pub(crate) steps_back: u8,
    /// Times that the broker loses the group, and keeps the stream.
    pub(crate) lost_groups: u8,
    /// Times that the broker loses everything.
    pub(crate) flushes: u8,
}

/// The number of an event: the same for every copy.
pub(crate) type Event = u8;

/// What a consumer asks of the broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Read,
    Claim,
    Extend(Position),
    Begin(Position, Event),
    Settle(Position, Event, End),
}

/// How a delivery ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    /// With the effect of this fence.
    Effect(u64),
    /// The effect was recorded before.
    Ack,
    Retry,
    GiveBack,
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reply {
    Delivered(Option<(Position, Event, u32)>),
    Held(Held),
    Run(u64),
    Done,
    Busy,
    Settled(Settled),
}

/// A message that a consumer works on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Hand {
    position: Position,
    event: Event,
    deliveries: u32,
    /// Of the effect, once it has begun.
    pub(crate) fence: Option<u64>,
    pub(crate) end: Option<End>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Consumer {
    name: Arc<str>,
    pub(crate) hand: Option<Hand>,
    /// What it waits for, and the answer on its way.
    pub(crate) waiting: Option<(Request, Option<Reply>)>,
    /// A request that no consumer waits for any more, of the consumer of this name, and that the broker has not seen yet.
    pub(crate) late: Option<(Arc<str>, Request)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    pub(crate) recorded_twice: bool,
    pub(crate) acknowledged_without_outcome: bool,
    pub(crate) recorded_apart: bool,
    pub(crate) zombie_changed: bool,
    pub(crate) zombie_not_told: bool,
    pub(crate) fence_back: bool,
}

/// What an observer of every step knows of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Seen {
    /// The consumer that it was delivered to, and that has not settled it.
    holder: Option<Arc<str>>,
    deliveries: u32,
    failures: usize,
    acknowledged: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// What the broker's clock shows.
    pub(crate) now: u64,
    log: BTreeMap<Position, Event>,
    /// The group was given every message up to here.
    cursor: Position,
    /// Everything up to here is settled, as of the last claim. Kept apart from the group.
    bookmark: Position,
    /// When a claim was last served, or the group created.
    claimed: u64,
    records: BTreeMap<Position, Record>,
    dead: BTreeSet<Position>,
    effects: BTreeMap<Event, EffectRecord>,
    pub(crate) consumers: Vec<Consumer>,
    pub(crate) budget: Budget,
    /// An event whose handler always fails.
    pub(crate) poison: Option<Event>,
    pub(crate) broken: Broken,
    seen: BTreeMap<Position, Seen>,
    /// Effects that were made, by event, whether or not they were recorded.
    made: BTreeMap<Event, u8>,
    /// The outcome that was recorded first.
    outcomes: BTreeMap<Event, Bytes>,
    fences: BTreeMap<Event, u64>,
    /// Messages so far.
    stored: u64,
    names: u8,
}

impl World {
    pub(crate) fn new(size: usize, budget: Budget) -> Self {
        let mut world = Self {
            now: 4 * STEP,
            log: BTreeMap::new(),
            cursor: Position::START,
            bookmark: Position::START,
            claimed: 4 * STEP,
            records: BTreeMap::new(),
            dead: BTreeSet::new(),
            effects: BTreeMap::new(),
            consumers: Vec::new(),
            budget,
            poison: None,
            broken: Broken::default(),
            seen: BTreeMap::new(),
            made: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            fences: BTreeMap::new(),
            stored: 0,
            names: 0,
        };
        for _ in 0..size {
            world.start();
        }
        world
    }

    /// A consumer begins, under a name of its own.
    fn start(&mut self) -> usize {
        let name = self.new_name();
        self.consumers.push(Consumer {
            name,
            hand: None,
            waiting: None,
            late: None,
        });
        self.consumers.len() - 1
    }

    fn new_name(&mut self) -> Arc<str> {
        self.names += 1;
        format!("c{}", self.names).into()
    }

    // --- the environment

    pub(crate) fn publish(&mut self) {
        let event = self.log.values().max().map_or(0, |last| last + 1);
        self.store(event);
    }

    /// The answer to the last publish is lost, and its producer has no numbers: it is published again.
    pub(crate) fn publish_again(&mut self) -> Option<()> {
        let event = *self.log.last_key_value()?.1;
        self.store(event);
        Some(())
    }

    fn store(&mut self, event: Event) {
        self.stored += 1;
        self.log.insert(Position::new(0, self.stored), event);
    }

    /// The broker's clock is set back, by far more than anything lasts.
    pub(crate) fn set_back(&mut self) {
        self.now -= STEP;
    }

    /// The group is lost, and the next consumer that finds out joins again.
    pub(crate) fn lose_group(&mut self, mistake: Mistake) {
        self.records.clear();
        (self.cursor, self.claimed) = (self.bookmark, self.now);
        for seen in self.seen.values_mut() {
            *seen = Seen {
                acknowledged: seen.acknowledged,
                ..Seen::default()
            };
        }
        match mistake {
            Mistake::RestoreAtEnd => {
                let last = self.log.last_key_value();
                self.cursor = last.map_or(Position::START, |(last, _)| *last);
            }
            Mistake::EffectsInGroup => {
                self.effects.clear();
                self.fences.clear();
            }
            _ => {}
        }
    }

    /// All is lost, and what was done stays done.
    pub(crate) fn flush(&mut self) {
        self.log.clear();
        self.records.clear();
        self.dead.clear();
        self.effects.clear();
        (self.cursor, self.bookmark) = (Position::START, Position::START);
        self.seen.clear();
        self.outcomes.clear();
        self.fences.clear();
        self.now += 1;
        self.claimed = self.now;
    }

    // --- what may happen

    /// Whether there is a message that the group was not given.
    pub(crate) fn has_new(&self) -> bool {
        self.log.range(self.cursor.next()..).next().is_some()
    }

    /// Whether a message waits for another delivery, and is due.
    pub(crate) fn has_due(&self) -> bool {
        let mut records = self.records.values();
        records.any(|record| record.due(self.now) <= self.now)
    }

    // --- what must hold

    /// A message is to be delivered, held, waiting, dead, or was acknowledged.
    pub(crate) fn keeps_every_message(&self) -> bool {
        self.log.keys().all(|position| {
            *position > self.cursor
                || self.records.contains_key(position)
                || self.dead.contains(position)
                || self.seen.get(position).is_some_and(|it| it.acknowledged)
        })
    }

    pub(crate) fn counts_right(&self) -> bool {
        self.records.iter().all(|(position, record)| {
            self.seen.get(position).is_some_and(|seen| {
                record.deliveries() == seen.deliveries
                    && record.failures(self.now).len() == seen.failures
                    && record.holder() == seen.holder.as_ref()
            })
        })
    }

    /// A lease from now, every message can be delivered again, however the clock was set.
    pub(crate) fn is_due_after_a_lease(&self) -> bool {
        let mut records = self.records.values();
        records.all(|record| record.due(self.now) <= self.now + TICK)
    }

    /// Effects that were made of one event, of the event that has most.
    pub(crate) fn most_effects(&self) -> u8 {
        self.made.values().copied().max().unwrap_or(0)
    }
}
