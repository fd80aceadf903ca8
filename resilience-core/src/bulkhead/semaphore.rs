//! A semaphore with a queue: the bulkhead without time, wakers or futures.
//!
//! [`Semaphore`] packs three numbers into one word, so that every decision is a single atomic step:
//!
//! ```text
//!  63            40 39        20 19         0
//! [ passed, mod 2^24 |  waiting   |  in flight ]
//! ```
//!
//! A call passes when `waiting` and `in flight`, read as one number, are below the limit: that is,
//! when no call waits and there is room. So no call overtakes the queue; acquiring is one
//! compare-and-swap, releasing one subtraction. The queue itself is behind a lock that only calls in
//! a full bulkhead take. Every change of `waiting` is made under that lock. Invariants whenever it
//! is free:
//!
//! - `waiting` is the length of the queue;
//! - if a call waits, then all permits are held, or a call that released one is about to take the
//!   lock ([`leave`](Semaphore::leave) told it to [`hand_over`](Semaphore::hand_over)).

use std::{collections::VecDeque, sync::PoisonError};

use crossbeam_utils::CachePadded;

use crate::sync::{
    Mutex, MutexGuard,
    atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

/// Maximum number of calls in flight, and of calls that wait.
pub(super) const MOST: usize = (1 << BITS) - 1;

const BITS: u32 = 20;
const WAITER: u64 = 1 << BITS;
/// One more call in flight, one more has passed.
const PASS: u64 = (1 << (2 * BITS)) | 1;
/// `waiting` and `in flight` as one number: below the limit exactly if no call waits and there is
/// room.
const TAKEN: u64 = (1 << (2 * BITS)) - 1;

/// A number of permits and a queue for them. `W` wakes a call that waits.
pub(super) struct Semaphore<W> {
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

/// A position in the queue. Tickets ascend and are never reused.
pub(super) type Ticket = u64;

/// Outcome for a call that may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Passed,
    Queued(Ticket),
    Full,
}

/// The numbers of a semaphore at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) in_flight: usize,
    pub(super) waiting: usize,
    pub(super) limit: usize,
    /// Calls that have passed so far, modulo 2^24.
    pub(super) passed: u32,
}

impl<W> Semaphore<W> {
    /// The number of calls that may wait.
    pub(super) const fn longest_queue(&self) -> usize {
        self.longest_queue
    }

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

    /// Takes a permit if one is free and no call waits. Returns how many calls passed before, modulo
    /// 2^24.
    #[inline]
    pub(super) fn enter(&self) -> Option<u32> {
        let limit = self.hot.limit.load(Relaxed);
        let mut word = self.hot.word.load(Relaxed);
        while word & TAKEN < limit {
            // Free => In flight
            let passed = word.wrapping_add(PASS);
            match (self.hot.word).compare_exchange_weak(word, passed, Acquire, Relaxed) {
                Ok(_) => return Some(passed_before(word)),
                Err(now) => word = now,
            }
        }
        None
    }

    /// Takes a permit, or else a ticket.
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
            // Free => In flight | Waiting. A permit released in between makes this fail.
            let next = word.wrapping_add(if passes { PASS } else { WAITER });
            match (self.hot.word).compare_exchange_weak(word, next, Acquire, Relaxed) {
                Ok(_) if passes => return Entry::Passed,
                Ok(_) => return Entry::Queued(queue.join()),
                Err(now) => word = now,
            }
        }
    }

    /// Releases a permit. If this is true, a call may wait for it: [`hand_over`](Self::hand_over)
    /// until it returns `None`.
    #[inline]
    #[must_use]
    pub(super) fn leave(&self) -> bool {
        // In flight => Free
        waiting(self.hot.word.fetch_sub(1, Release)) != 0
    }

    /// Grants a free permit to the call that has waited longest. `None` if no permit is free or no
    /// call waits; otherwise what wakes the call, if it was noted yet.
    #[cold]
    pub(super) fn hand_over(&self) -> Option<Option<W>> {
        let mut queue = self.lock();
        // No call passes while one waits, and hand-overs elsewhere wait for the lock: room cannot
        // shrink.
        let word = self.hot.word.load(Acquire);
        if in_flight(word) >= self.hot.limit.load(Relaxed) {
            return None;
        }
        let (_, wake) = queue.waiting.pop_front()?;
        // Waiting => In flight
        (self.hot.word).fetch_add(PASS.wrapping_sub(WAITER), Acquire);
        Some(wake)
    }

    /// Whether the holder of `ticket` still waits; if so, `note` may change what wakes it. If not, it
    /// has a permit.
    pub(super) fn still_waits(&self, ticket: Ticket, note: impl FnOnce(&mut Option<W>)) -> bool {
        let mut queue = self.lock();
        let position = queue.find(ticket);
        if let Some(position) = position {
            note(&mut queue.waiting[position].1);
        }
        position.is_some()
    }

    /// Removes the holder of `ticket` from the queue. False if it has a permit already, which it must
    /// release.
    #[must_use]
    pub(super) fn cancel(&self, ticket: Ticket) -> bool {
        let mut queue = self.lock();
        let Some(position) = queue.find(ticket) else {
            return false;
        };
        // Waiting => Free
        let waiter = queue.waiting.remove(position);
        self.hot.word.fetch_sub(WAITER, Relaxed);
        drop(queue);
        // Runs foreign code, so not under the lock.
        drop(waiter);
        true
    }

    /// Changes the limit. Calls in flight keep their permits; those above a lower limit are not
    /// granted again. After a raise, [`hand_over`](Self::hand_over) until it returns `None`.
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

    /// No foreign code runs under this lock but the clone of a waker; if that panics, the queue is
    /// unchanged.
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

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
