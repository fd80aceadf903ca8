//! The messages that this consumer holds, and until when: a pure data structure.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::stream::{message::Position, steps::Held as HeldAnswer};

/// Set when another consumer may have been given a message; read by its handler.
pub(super) type LostFlag = Arc<AtomicBool>;

#[derive(Debug)]
struct Holding {
    /// When the lease ends by this process' clock, unless it is renewed.
    until: Instant,
    /// When its handler was started.
    started: Option<Instant>,
    lost: LostFlag,
}

#[derive(Debug, Default)]
pub(super) struct HeldMessages {
    messages: BTreeMap<Position, Holding>,
    /// No lease ends before.
    first_end: Option<Instant>,
    /// The highest position that was ever delivered.
    highest: Position,
}

impl HeldMessages {
    /// Adds a message, or begins the lease of one that is there again. Whether it was not there.
    pub(super) fn add(&mut self, position: Position, until: Instant) -> bool {
        self.highest = self.highest.max(position);
        self.first_end = Some(self.first_end.map_or(until, |it| it.min(until)));
        if let Some(holding) = self.messages.get_mut(&position) {
            holding.until = until;
            return false;
        }
        let holding = Holding {
            until,
            started: None,
            lost: LostFlag::default(),
        };
        self.messages.insert(position, holding);
        true
    }

    pub(super) fn contains(&self, position: Position) -> bool {
        self.messages.contains_key(&position)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Notes the start of a handler. `None`: the message is no longer held.
    pub(super) fn start(&mut self, position: Position, now: Instant) -> Option<LostFlag> {
        let holding = self.messages.get_mut(&position)?;
        holding.started = Some(now);
        Some(Arc::clone(&holding.lost))
    }

    pub(super) fn remove(&mut self, position: Position) {
        self.messages.remove(&position);
    }

    /// What a renewal asks for: everything but handlers that have run for `longest`.
    pub(super) fn to_extend(&self, now: Instant, longest: Duration) -> Vec<Position> {
        let may = |it: &Holding| it.started.is_none_or(|at| now - at < longest);
        let held = self.messages.iter().filter(|(_, it)| may(it));
        held.map(|(position, _)| *position).collect()
    }

    /// Notes the answers to a renewal that was asked for at `asked`. Those that are lost; they are held no longer.
    pub(super) fn extended(
        &mut self,
        answers: impl IntoIterator<Item = (Position, HeldAnswer)>,
        until: Instant,
    ) -> Vec<Position> {
        let mut lost = Vec::new();
        for (position, answer) in answers {
            match answer {
                HeldAnswer::Held => {
                    if let Some(holding) = self.messages.get_mut(&position) {
                        holding.until = holding.until.max(until);
                    }
                }
                HeldAnswer::Taken | HeldAnswer::Gone => {
                    if let Some(holding) = self.messages.remove(&position) {
                        holding.lost.store(true, Relaxed);
                        lost.push(position);
                    }
                }
            }
        }
        lost
    }

    /// Takes out the messages whose lease has ended by this process' clock.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Position> {
        if self.first_end.is_none_or(|first| first > now) {
            return Vec::new();
        }
        let ended = self.messages.iter().filter(|(_, it)| it.until <= now);
        let ended: Vec<_> = ended.map(|(position, _)| *position).collect();
        for position in &ended {
            if let Some(holding) = self.messages.remove(position) {
                holding.lost.store(true, Relaxed);
            }
        }
        self.first_end = self.messages.values().map(|it| it.until).min();
        ended
    }

    /// Everything is lost, with its stream.
    pub(super) fn clear(&mut self) {
        for holding in self.messages.values() {
            holding.lost.store(true, Relaxed);
        }
        *self = Self::default();
    }

    /// Every message that was delivered up to here is settled.
    pub(super) fn settled_up_to(&self) -> Position {
        let first = self.messages.keys().next();
        first.map_or(self.highest, |it| it.before().min(self.highest))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn at(number: u64) -> Position {
        Position::new(number, 0)
    }

    #[tokio::test(start_paused = true)]
    async fn leases_end_unless_they_are_renewed_and_the_handler_is_told() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut held = HeldMessages::default();
        for number in 1..=3 {
            assert!(held.add(at(number), now + second));
        }
        assert!(!held.add(at(1), now + second), "delivered to us again");
        let flag = held.start(at(2), now).expect("it is held");
        let answers = [(at(1), HeldAnswer::Held), (at(3), HeldAnswer::Taken)];
        assert_eq!(held.extended(answers, now + second * 3), [at(3)]);
        assert!(held.expire(now).is_empty() && !flag.load(Relaxed));
        assert_eq!(held.expire(now + second * 2), [at(2)]);
        assert!(flag.load(Relaxed));
        assert!(held.contains(at(1)) && !held.is_empty());
        held.clear();
        assert!(held.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_never_ends_is_not_renewed_forever() {
        let (now, longest) = (Instant::now(), Duration::from_secs(60));
        let mut held = HeldMessages::default();
        held.add(at(1), now + longest * 9);
        held.add(at(2), now + longest * 9);
        held.start(at(1), now);
        assert_eq!(held.to_extend(now, longest), [at(1), at(2)]);
        assert_eq!(held.to_extend(now + longest, longest), [at(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_settled_ends_before_the_first_message_that_is_held() {
        let until = Instant::now() + Duration::from_secs(1);
        let mut held = HeldMessages::default();
        assert_eq!(held.settled_up_to(), Position::START);
        for number in [5, 6, 7] {
            held.add(at(number), until);
        }
        held.remove(at(6));
        assert_eq!(held.settled_up_to(), at(5).before());
        held.remove(at(5));
        assert_eq!(held.settled_up_to(), at(7).before());
        held.remove(at(7));
        assert_eq!(held.settled_up_to(), at(7));
    }
}
