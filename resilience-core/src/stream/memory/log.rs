//! The messages of one stream: a pure data structure. Takes the time in microseconds.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use crate::stream::{
    broker::validate::BEYOND,
    message::{Position, RawMessage},
    steps::{Publish, Published, Start},
};

pub(super) struct Log {
    pub(super) incarnation: u64,
    messages: BTreeMap<Position, RawMessage>,
    /// The highest position that was given.
    last: Position,
    /// By due time and a number.
    delayed: BTreeMap<(u64, u64), RawMessage>,
    numbers: u64,
    producers: HashMap<Arc<str>, Producer>,
}

struct Producer {
    last: u64,
    expires: u64,
}

impl Log {
    pub(super) fn new() -> Self {
        Self {
            incarnation: fastrand::u64(1..BEYOND),
            messages: BTreeMap::new(),
            last: Position::START,
            delayed: BTreeMap::new(),
            numbers: 0,
            producers: HashMap::new(),
        }
    }

    pub(super) fn publish(&mut self, publish: &Publish, now: u64) -> Vec<Published> {
        let mut known = 0;
        if let Some(sequence) = &publish.sequence {
            self.producers.retain(|_, it| now < it.expires);
            let keep = sequence.keep_ms.saturating_mul(1000);
            let (expires, last) = (
                now.saturating_add(keep),
                sequence.first + publish.messages.len() as u64 - 1,
            );
            let producer = self.producers.entry(Arc::clone(&sequence.producer));
            known = match &producer {
                Entry::Occupied(producer) => producer.get().last,
                Entry::Vacant(_) => 0,
            };
            let last = last.max(known);
            producer.insert_entry(Producer { last, expires });
            known = (known + 1).saturating_sub(sequence.first);
        }
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let each = publish.messages.iter().enumerate();
        each.map(|(number, outgoing)| {
            if number < known {
                return Published::Duplicate;
            }
            let message = outgoing.message.clone();
            if outgoing.delay_ms == 0 {
                return Published::Stored(self.store(message, now));
            }
            self.numbers += 1;
            let due = now.saturating_add(outgoing.delay_ms.saturating_mul(1000));
            self.delayed.insert((due, self.numbers), message);
            Published::Delayed
        })
        .collect()
    }

    fn store(&mut self, message: RawMessage, now: u64) -> Position {
        let position = Position::new(now / 1000, 0).max(self.last.next());
        self.messages.insert(position, message);
        self.last = position;
        position
    }

    /// Moves what is due into the stream. Whether anything was.
    pub(super) fn move_due(&mut self, now: u64) -> bool {
        let before = self.delayed.len();
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= now
        {
            let message = first.remove();
            self.store(message, now);
        }
        self.delayed.len() < before
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.delayed.keys().next().map(|(due, _)| *due)
    }

    pub(super) fn delayed(&self) -> u64 {
        self.delayed.len() as u64
    }

    pub(super) fn get(&self, position: Position) -> Option<&RawMessage> {
        self.messages.get(&position)
    }

    pub(super) fn from(&self, position: Position) -> impl Iterator<Item = (Position, &RawMessage)> {
        self.messages.range(position..).map(|(at, it)| (*at, it))
    }

    pub(super) fn first(&self) -> Option<Position> {
        self.messages.keys().next().copied()
    }

    pub(super) fn last(&self) -> Option<Position> {
        self.messages.keys().next_back().copied()
    }

    pub(super) fn len(&self) -> u64 {
        self.messages.len() as u64
    }

    /// The cursor of a group that begins there.
    pub(super) fn cursor(&self, start: Start, now: u64) -> Position {
        match start {
            Start::Oldest => Position::START,
            Start::Next => self.last,
            Start::After(position) => position,
            Start::Ago(ms) => {
                let since = (now / 1000).saturating_sub(ms);
                Position::new(since, 0).before()
            }
        }
    }

    /// Removes the messages before `end`; their number.
    pub(super) fn remove_before(&mut self, end: Position) -> u64 {
        let left = self.messages.split_off(&end);
        let removed = std::mem::replace(&mut self.messages, left);
        removed.len() as u64
    }

    /// The position of the oldest of the last `length` messages.
    pub(super) fn start_of_last(&self, length: u64) -> Position {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        match length.checked_sub(1) {
            None => self.last.next(),
            Some(before) => {
                let oldest = self.messages.keys().rev().nth(before);
                oldest.copied().unwrap_or(Position::START)
            }
        }
    }
}
