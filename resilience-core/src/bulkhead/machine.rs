//! Who may pass, who waits, who is next: the bulkhead without time, wakers or futures.
//!
//! [`Gate`] keeps three numbers in one word, so that every decision is a single atomic step:
//!
//! ```text
//!  63            40 39        20 19         0
//! [ passed, mod 2^24 |  waiting   |  in flight ]
//! ```
//!
//! A call passes when `waiting` and `in flight`, read as one number, are below the limit: that is, when nobody waits
//! and there is room. So nobody overtakes the queue, and the way in is one compare-and-swap, the way out one
//! subtraction. The queue itself is behind a lock that only calls in a full bulkhead ever take. Every change of
//! `waiting` is made under that lock; this is what holds whenever it is free:
//!
//! - `waiting` is the length of the queue;
//! - if anybody waits, then all places are taken, or somebody who gave one back is on the way to the lock
//!   ([`leave`](Gate::leave) told them to [`hand_over`](Gate::hand_over)).

use std::{collections::VecDeque, sync::PoisonError};

use crossbeam_utils::CachePadded;

use crate::sync::{
    Mutex, MutexGuard,
    atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

/// The most calls that can be in flight, and the most that can wait.
pub(super) const MOST: usize = (1 << BITS) - 1;

const BITS: u32 = 20;
const WAITER: u64 = 1 << BITS;
/// One more in flight, one more has passed.
const PASS: u64 = (1 << (2 * BITS)) | 1;
/// `waiting` and `in flight` as one number: below the limit exactly if nobody waits and there is room.
const TAKEN: u64 = (1 << (2 * BITS)) - 1;

/// A number of places and a queue for them. `W` is what it takes to wake who waits.
pub(super) struct Gate<W> {
    hot: CachePadded<Hot>,
    longest_queue: usize,
    queue: Mutex<Queue<W>>,
}

struct Hot {
    word: AtomicU64,
    limit: AtomicU64,
}

struct Queue<W> {
    next: Ticket,
    /// In the order of their tickets.
    waiting: VecDeque<(Ticket, Option<W>)>,
}

/// A place in the queue. Tickets are given out in ascending order and never again.
pub(super) type Ticket = u64;

/// What becomes of a call that would rather wait than be turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Passed,
    Queued(Ticket),
    Full,
}

/// The numbers of a gate at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) in_flight: usize,
    pub(super) waiting: usize,
    pub(super) limit: usize,
    /// How many have ever passed, modulo 2^24.
    pub(super) passed: u32,
}

impl<W> Gate<W> {
    /// `limit` is between 1 and [`MOST`], `longest_queue` between 0 and [`MOST`].
    pub(super) fn new(limit: usize, longest_queue: usize) -> Self {
        debug_assert!((1..=MOST).contains(&limit) && longest_queue <= MOST);
        Self {
            hot: CachePadded::new(Hot {
                word: AtomicU64::new(0),
                limit: AtomicU64::new(limit as u64),
            }),
            longest_queue,
            queue: Mutex::new(Queue {
                next: 0,
                waiting: VecDeque::new(),
            }),
        }
    }

    /// Takes a place if there is one that nobody waits for; tells how many passed before, modulo 2^24.
    #[inline]
    pub(super) fn enter(&self) -> Option<u32> {
        let limit = self.hot.limit.load(Relaxed);
        let mut word = self.hot.word.load(Relaxed);
        while word & TAKEN < limit {
            let passed = word.wrapping_add(PASS);
            match (self.hot.word).compare_exchange_weak(word, passed, Acquire, Relaxed) {
                Ok(_) => return Some(passed_before(word)),
                Err(now) => word = now,
            }
        }
        None
    }

    /// Takes a place, or else a ticket.
    #[cold]
    pub(super) fn enter_or_queue(&self) -> Entry {
        if self.longest_queue == 0 {
            return self.enter().map_or(Entry::Full, |_| Entry::Passed);
        }
        let mut queue = self.lock();
        let limit = self.hot.limit.load(Relaxed);
        let mut word = self.hot.word.load(Relaxed);
        loop {
            let passes = word & TAKEN < limit;
            if !passes && queue.waiting.len() >= self.longest_queue {
                return Entry::Full;
            }
            // Joining the queue is a step on the same word: a place given back in between makes it fail.
            let next = word.wrapping_add(if passes { PASS } else { WAITER });
            match (self.hot.word).compare_exchange_weak(word, next, Acquire, Relaxed) {
                Ok(_) if passes => return Entry::Passed,
                Ok(_) => return Entry::Queued(queue.join()),
                Err(now) => word = now,
            }
        }
    }

    /// Gives a place back. If this is true, somebody may be waiting for it: [`hand_over`](Self::hand_over) until
    /// nobody is left to wake.
    #[inline]
    #[must_use]
    pub(super) fn leave(&self) -> bool {
        waiting(self.hot.word.fetch_sub(1, Release)) != 0
    }

    /// Gives a free place to whoever has waited longest. `None` if no place is free or nobody waits; otherwise what
    /// wakes them, if they have said so yet.
    #[cold]
    pub(super) fn hand_over(&self) -> Option<Option<W>> {
        let mut queue = self.lock();
        // Nobody passes while somebody waits, and others who hand over wait for the lock: room cannot shrink.
        let word = self.hot.word.load(Acquire);
        if in_flight(word) >= self.hot.limit.load(Relaxed) {
            return None;
        }
        let (_, wake) = queue.waiting.pop_front()?;
        (self.hot.word).fetch_add(PASS.wrapping_sub(WAITER), Acquire);
        Some(wake)
    }

    /// Whether the holder of `ticket` still waits; if so, `note` may change what wakes them. If not, they have a
    /// place.
    pub(super) fn still_waits(&self, ticket: Ticket, note: impl FnOnce(&mut Option<W>)) -> bool {
        let mut queue = self.lock();
        let position = queue.find(ticket);
        if let Some(position) = position {
            note(&mut queue.waiting[position].1);
        }
        position.is_some()
    }

    /// Takes the holder of `ticket` out of the queue. False if they have got a place already, which is theirs to
    /// give back.
    #[must_use]
    pub(super) fn cancel(&self, ticket: Ticket) -> bool {
        let mut queue = self.lock();
        let Some(position) = queue.find(ticket) else {
            return false;
        };
        let waiter = queue.waiting.remove(position);
        self.hot.word.fetch_sub(WAITER, Relaxed);
        drop(queue);
        // Runs foreign code: not under the lock.
        drop(waiter);
        true
    }

    /// Changes the number of places. Nobody loses theirs: with fewer places, those in excess are not given out again.
    /// With more, [`hand_over`](Self::hand_over) until nobody is left to wake.
    pub(super) fn resize(&self, limit: usize) {
        debug_assert!((1..=MOST).contains(&limit));
        let _queue = self.lock();
        self.hot.limit.store(limit as u64, Relaxed);
    }

    pub(super) fn load(&self) -> Load {
        let word = self.hot.word.load(Relaxed);
        Load {
            in_flight: in_flight(word) as usize,
            waiting: waiting(word) as usize,
            limit: self.hot.limit.load(Relaxed) as usize,
            passed: passed_before(word),
        }
    }

    /// Nothing of a waiter's runs under this lock but the clone of a waker; should that panic, the queue is as it was.
    fn lock(&self) -> MutexGuard<'_, Queue<W>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W> Queue<W> {
    fn join(&mut self) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        self.waiting.push_back((ticket, None));
        ticket
    }

    fn find(&self, ticket: Ticket) -> Option<usize> {
        (self.waiting)
            .binary_search_by_key(&ticket, |(ticket, _)| *ticket)
            .ok()
    }
}

const fn in_flight(word: u64) -> u64 {
    word & (WAITER - 1)
}

const fn waiting(word: u64) -> u64 {
    (word & TAKEN) >> BITS
}

const fn passed_before(word: u64) -> u32 {
    (word >> (2 * BITS)) as u32
}
