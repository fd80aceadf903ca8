//! Who may pass, who waits, who is next: the bulkhead without time, wakers or futures.
//!
//! [`Semaphore`] keeps three numbers in one word, so that every decision is a single atomic step:
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
//!   ([`leave`](Semaphore::leave) told them to [`hand_over`](Semaphore::hand_over)).

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

impl<W> Semaphore<W> {
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// What can happen at a gate, each as one step: the moment between giving a place back and handing it over is
    /// open to all others.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Enter,
        EnterOrQueue,
        Leave,
        HandOver,
        Cancel(usize),
        Resize(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            2 => Just(Step::Enter),
            6 => Just(Step::EnterOrQueue),
            4 => Just(Step::Leave),
            4 => Just(Step::HandOver),
            2 => (0usize..8).prop_map(Step::Cancel),
            1 => (1usize..5).prop_map(Step::Resize),
        ];
        proptest::collection::vec(step, 0..400)
    }

    /// The gate as one would first write it down.
    #[derive(Debug)]
    struct Model {
        limit: usize,
        longest_queue: usize,
        in_flight: usize,
        waiting: VecDeque<Ticket>,
        passed: u32,
    }

    impl Model {
        fn enters(&mut self) -> bool {
            let passes = self.waiting.is_empty() && self.in_flight < self.limit;
            if passes {
                self.pass();
            }
            passes
        }

        fn pass(&mut self) {
            self.in_flight += 1;
            self.passed += 1;
        }

        fn next(&mut self) -> Option<Ticket> {
            if self.in_flight >= self.limit {
                return None;
            }
            let next = self.waiting.pop_front()?;
            self.pass();
            Some(next)
        }
    }

    proptest! {
        #[test]
        fn the_gate_does_what_the_model_does(
            steps in steps(),
            limit in 1usize..4,
            longest_queue in 0usize..6,
        ) {
            // A waiter is woken by its own ticket.
            let semaphore = Semaphore::<Ticket>::new(limit, longest_queue);
            let waiting = VecDeque::new();
            let mut model = Model { limit, longest_queue, in_flight: 0, waiting, passed: 0 };
            for step in steps {
                take(step, &semaphore, &mut model)?;
                let load = semaphore.load();
                prop_assert_eq!(
                    (load.in_flight, load.waiting, load.limit, load.passed),
                    (model.in_flight, model.waiting.len(), model.limit, model.passed)
                );
            }
            empty(&semaphore, &mut model)?;
        }
    }

    fn take(
        step: Step,
        semaphore: &Semaphore<Ticket>,
        model: &mut Model,
    ) -> Result<(), TestCaseError> {
        match step {
            Step::Enter => {
                let before = model.passed;
                let expected = model.enters().then_some(before);
                prop_assert_eq!(semaphore.enter(), expected);
            }
            Step::EnterOrQueue => match semaphore.enter_or_queue() {
                Entry::Passed => prop_assert!(model.enters()),
                Entry::Full => {
                    prop_assert!(!model.enters());
                    prop_assert_eq!(model.waiting.len(), model.longest_queue);
                }
                Entry::Queued(ticket) => {
                    prop_assert!(!model.enters());
                    prop_assert!(model.waiting.len() < model.longest_queue);
                    model.waiting.push_back(ticket);
                    prop_assert!(semaphore.still_waits(ticket, |wake| *wake = Some(ticket)));
                }
            },
            Step::Leave if model.in_flight > 0 => {
                model.in_flight -= 1;
                prop_assert_eq!(semaphore.leave(), !model.waiting.is_empty());
            }
            Step::Leave => {}
            Step::HandOver => {
                let next = model.next();
                prop_assert_eq!(
                    semaphore.hand_over(),
                    next.map(Some),
                    "the oldest, and them alone"
                );
                if let Some(ticket) = next {
                    prop_assert!(!semaphore.still_waits(ticket, |_| ()));
                    prop_assert!(
                        !semaphore.cancel(ticket),
                        "has a place, which is theirs to give back"
                    );
                }
            }
            Step::Cancel(nth) => {
                if let Some(ticket) = model.waiting.remove(nth) {
                    prop_assert!(semaphore.cancel(ticket));
                    prop_assert!(!semaphore.cancel(ticket), "and not twice");
                }
            }
            Step::Resize(limit) => {
                semaphore.resize(limit);
                model.limit = limit;
            }
        }
        Ok(())
    }

    /// All who wait get their turn, in order, and all places are back in the end.
    fn empty(semaphore: &Semaphore<Ticket>, model: &mut Model) -> Result<(), TestCaseError> {
        while model.in_flight > 0 || !model.waiting.is_empty() {
            while let Some(next) = model.next() {
                prop_assert_eq!(semaphore.hand_over(), Some(Some(next)));
            }
            prop_assert_eq!(semaphore.hand_over(), None);
            model.in_flight -= 1;
            let _ = semaphore.leave();
        }
        let load = semaphore.load();
        prop_assert_eq!((load.in_flight, load.waiting), (0, 0));
        Ok(())
    }

    #[test]
    fn the_count_of_passed_calls_runs_over_into_nothing() {
        let semaphore = Semaphore::<()>::new(1, 0);
        semaphore.hot.word.store(u64::MAX << (2 * BITS), Relaxed);
        assert_eq!(semaphore.enter(), Some((1 << 24) - 1));
        assert!(!semaphore.leave());
        assert_eq!(semaphore.load().passed, 0);
        assert_eq!(semaphore.load().in_flight, 0);
        let semaphore = Semaphore::<()>::new(1, 1);
        semaphore
            .hot
            .word
            .store(u64::MAX << (2 * BITS) | 1, Relaxed);
        assert!(matches!(semaphore.enter_or_queue(), Entry::Queued(_)));
        assert!(semaphore.leave());
        assert_eq!(semaphore.hand_over(), Some(None));
        assert_eq!(semaphore.load().in_flight, 1);
        assert_eq!(semaphore.load().waiting, 0);
        assert_eq!(semaphore.load().passed, 0);
    }
}

/// Every interleaving of the few threads below, by loom: `RUSTFLAGS="--cfg loom" cargo test --lib loom_`.
#[cfg(all(test, loom))]
mod loom_gate {
    use loom::{sync::Arc, thread};

    use super::*;
    use crate::sync::atomic::AtomicUsize;

    fn leave(semaphore: &Semaphore<()>) {
        if semaphore.leave() {
            while semaphore.hand_over().is_some() {}
        }
    }

    /// Holds a place for as long as it takes to see that nobody else does.
    fn work(semaphore: &Semaphore<()>, inside: &AtomicUsize) {
        assert_eq!(inside.fetch_add(1, Relaxed), 0, "two calls in one place");
        inside.fetch_sub(1, Relaxed);
        leave(semaphore);
    }

    fn assert_empty(semaphore: &Semaphore<()>) {
        let load = semaphore.load();
        assert_eq!((load.in_flight, load.waiting), (0, 0));
    }

    #[test]
    fn loom_one_place_is_never_taken_twice() {
        loom::model(|| {
            let semaphore = Arc::new(Semaphore::new(1, 0));
            let inside = Arc::new(AtomicUsize::new(0));
            let (other_gate, other_inside) = (Arc::clone(&semaphore), Arc::clone(&inside));
            let other = thread::spawn(move || {
                if other_gate.enter().is_some() {
                    work(&other_gate, &other_inside);
                }
            });
            if semaphore.enter().is_some() {
                work(&semaphore, &inside);
            }
            other.join().unwrap();
            assert_empty(&semaphore);
        });
    }

    #[test]
    fn loom_a_place_given_back_while_somebody_joins_the_queue_is_not_lost() {
        loom::model(|| {
            let semaphore = Arc::new(Semaphore::new(1, 2));
            semaphore.enter().unwrap();
            let joins: Vec<_> = (0..2)
                .map(|_| {
                    let semaphore = Arc::clone(&semaphore);
                    thread::spawn(move || match semaphore.enter_or_queue() {
                        Entry::Passed => {
                            leave(&semaphore);
                            None
                        }
                        Entry::Queued(ticket) => Some(ticket),
                        Entry::Full => unreachable!("there is room for both"),
                    })
                })
                .collect();
            leave(&semaphore);
            let mut tickets: Vec<_> = joins
                .into_iter()
                .filter_map(|join| join.join().unwrap())
                .collect();
            tickets.sort_unstable();
            for ticket in tickets {
                assert!(
                    !semaphore.still_waits(ticket, |_| ()),
                    "its turn, and nobody tells it"
                );
                leave(&semaphore);
            }
            assert_empty(&semaphore);
        });
    }

    #[test]
    fn loom_a_waiter_that_gives_up_as_its_place_comes_passes_it_on() {
        loom::model(|| {
            let semaphore = Arc::new(Semaphore::new(1, 2));
            semaphore.enter().unwrap();
            let Entry::Queued(first) = semaphore.enter_or_queue() else {
                unreachable!()
            };
            let Entry::Queued(second) = semaphore.enter_or_queue() else {
                unreachable!()
            };
            let quitter = Arc::clone(&semaphore);
            let quits = thread::spawn(move || {
                if !quitter.cancel(first) {
                    leave(&quitter);
                }
            });
            leave(&semaphore);
            quits.join().unwrap();
            assert!(!semaphore.still_waits(second, |_| ()));
            leave(&semaphore);
            assert_empty(&semaphore);
        });
    }

    #[test]
    fn loom_places_added_while_one_is_given_back_all_reach_those_who_wait() {
        loom::model(|| {
            let semaphore = Arc::new(Semaphore::new(1, 2));
            semaphore.enter().unwrap();
            let Entry::Queued(first) = semaphore.enter_or_queue() else {
                unreachable!()
            };
            let Entry::Queued(second) = semaphore.enter_or_queue() else {
                unreachable!()
            };
            let owner = Arc::clone(&semaphore);
            let resizes = thread::spawn(move || {
                owner.resize(2);
                while owner.hand_over().is_some() {}
            });
            leave(&semaphore);
            resizes.join().unwrap();
            assert!(
                !semaphore.still_waits(first, |_| ()) && !semaphore.still_waits(second, |_| ())
            );
            leave(&semaphore);
            leave(&semaphore);
            assert_empty(&semaphore);
        });
    }
}
