//! One piece of work that several callers wait for: driven by one of them, passed on when that one leaves.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Wake, Waker},
    time::Duration,
};

use crate::{
    clock::Moment,
    deadline::Deadline,
    sync::{Mutex, MutexGuard},
};

pub(super) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Number of a waiter within its flight, in order of arrival.
pub(super) type Ticket = u64;

/// Ticket of the caller that started the flight.
pub(super) const FIRST: Ticket = 0;

/// A piece of work and its waiters. The work is polled outside of every lock, by one waiter at a time, with a waker
/// of the flight's own: a change of driver needs no poll by itself, since wakes follow the driver.
pub(super) struct Flight<K, T> {
    pub(super) key: K,
    born: Option<Moment>,
    state: Mutex<State<T>>,
    // Apart from the state: cloning a result is foreign code, and only waiters of an ended flight wait for it.
    result: Mutex<Fetched<T>>,
}

/// The result of an ended flight.
struct Fetched<T> {
    /// `None` if the work panicked.
    value: Option<T>,
    /// Waiters that have neither fetched it nor left.
    remaining: usize,
}

struct State<T> {
    work: Work<T>,
    /// The waiter that wakes go to. Its waker is set.
    driver: Option<Ticket>,
    /// Whether the work is to be polled. If there is a driver, it has been woken since.
    notified: bool,
    /// The latest of all deadlines that waiters came with; `None`: one came without.
    deadline: Option<Deadline>,
    /// In order of tickets, with the waker of each that has been polled.
    waiters: Vec<(Ticket, Option<Waker>)>,
    next: Ticket,
}

enum Work<T> {
    Parked(BoxFuture<T>),
    /// Being started or polled by one of the waiters.
    Taken,
    Ended,
}

/// What a waiter that is polled has to do.
pub(super) enum Step<T> {
    Wait,
    /// Poll the work under this deadline, then [`park`](Flight::park) it or [`end`](Flight::end) the flight.
    Drive(BoxFuture<T>, Option<Deadline>),
    /// [`fetch`](Flight::fetch) the result.
    Ended,
}

/// What is left of a flight when a waiter leaves it.
pub(super) enum Left<T> {
    /// Others wait. One may have to be woken to go on with the work.
    Others(Option<Waker>),
    /// No waiter: the work is to be dropped.
    Abandoned(Option<BoxFuture<T>>),
}

impl<K, T> Flight<K, T> {
    /// Creates a flight with one waiter, [`FIRST`], which starts the work and then parks it.
    pub(super) fn new(key: K, born: Option<Moment>, deadline: Option<Deadline>) -> Self {
        Self {
            key,
            born,
            state: Mutex::new(State {
                work: Work::Taken,
                driver: None,
                notified: true,
                deadline,
                waiters: vec![(FIRST, None)],
                next: FIRST + 1,
            }),
            result: Mutex::new(Fetched {
                value: None,
                remaining: 0,
            }),
        }
    }

    /// Whether the flight was born less than `max_age` before `now`. Without an age it is always young.
    pub(super) fn is_young(&self, now: Option<Moment>, max_age: Option<Duration>) -> bool {
        match (self.born, now, max_age) {
            (Some(born), Some(now), Some(max_age)) => now.since(born) < max_age,
            _ => true,
        }
    }

    /// Adds a waiter, unless the flight has ended or is full.
    pub(super) fn join(&self, max_waiters: usize, deadline: Option<Deadline>) -> Option<Ticket> {
        let mut state = self.lock();
        if matches!(state.work, Work::Ended) || state.waiters.len() >= max_waiters {
            return None;
        }
        state.deadline = later(state.deadline, deadline);
        let ticket = state.next;
        state.next += 1;
        state.waiters.push((ticket, None));
        Some(ticket)
    }

    /// Says what the waiter has to do, and keeps its waker for as long as that is to wait or to drive.
    pub(super) fn step(&self, ticket: Ticket, waker: &Waker) -> Step<T> {
        let mut state = self.lock();
        if matches!(state.work, Work::Ended) {
            return Step::Ended;
        }
        let replaced = state.set_waker(ticket, waker);
        let step = state.drive(ticket);
        drop(state);
        // Runs foreign code, so not under the lock.
        drop(replaced);
        step
    }

    /// Gives the work back, started or polled.
    // Taken => Parked
    pub(super) fn park(&self, work: BoxFuture<T>) {
        self.lock().work = Work::Parked(work);
    }

    /// Ends the flight by a waiter that has taken the work, and wakes all others. Without a result, the work panicked.
    /// Returns whether the one that started the flight still waits for it.
    // Taken => Ended
    pub(super) fn end(&self, ticket: Ticket, result: Option<T>) -> bool {
        let mut state = self.lock();
        state.work = Work::Ended;
        state.driver = None;
        let waiters = mem::take(&mut state.waiters);
        // Before any of them sees that it has ended.
        *self.lock_result() = Fetched {
            value: result,
            remaining: waiters.len(),
        };
        drop(state);
        let leader_waits = waiters.first().is_some_and(|(first, _)| *first == FIRST);
        for (waiter, waker) in waiters {
            if let (Some(waker), true) = (waker, waiter != ticket) {
                waker.wake();
            }
        }
        leader_waits
    }

    /// Removes a waiter that has not been answered.
    pub(super) fn leave(&self, ticket: Ticket) -> Left<T> {
        let mut state = self.lock();
        if matches!(state.work, Work::Ended) {
            drop(state);
            let mut result = self.lock_result();
            let left_over = result.take_if_last();
            drop(result);
            drop(left_over);
            return Left::Others(None);
        }
        let removed = state.remove(ticket);
        let left = if state.waiters.is_empty() {
            // Parked => Ended: a waiter that has taken the work is one of the waiters.
            match mem::replace(&mut state.work, Work::Ended) {
                Work::Parked(work) => Left::Abandoned(Some(work)),
                Work::Taken | Work::Ended => Left::Abandoned(None),
            }
        } else {
            Left::Others(state.succeed(ticket))
        };
        drop(state);
        drop(removed);
        left
    }

    /// Fetches a waiter's copy of the result of a flight that has ended; `None` if the work panicked. The last waiter
    /// takes it.
    pub(super) fn fetch(&self) -> Option<T>
    where
        T: Clone,
    {
        let mut result = self.lock_result();
        match result.take_if_last() {
            None => result.value.clone(),
            taken => taken,
        }
    }

    /// The number of callers that wait now.
    pub(super) fn waiters(&self) -> usize {
        self.lock().waiters.len()
    }

    /// No foreign code runs under this lock but the clone of a waker; if that panics, the waiter has none.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_result(&self) -> MutexGuard<'_, Fetched<T>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn position(&self, ticket: Ticket) -> Option<usize> {
        (self.waiters)
            .binary_search_by_key(&ticket, |(ticket, _)| *ticket)
            .ok()
    }

    /// Returns the waker that was replaced.
    fn set_waker(&mut self, ticket: Ticket, waker: &Waker) -> Option<Waker> {
        let position = self.position(ticket)?;
        let place = &mut self.waiters[position].1;
        match place {
            Some(known) if known.will_wake(waker) => None,
            _ => place.replace(waker.clone()),
        }
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Waker> {
        let position = self.position(ticket)?;
        self.waiters.remove(position).1
    }

    /// Hands the work to the waiter if there is no other driver, or if the other one was woken and has not come yet: a
    /// caller that holds its future without polling it holds up others no longer than until one of them is polled.
    fn drive(&mut self, ticket: Ticket) -> Step<T> {
        let is_driver = self.driver.is_none_or(|driver| driver == ticket);
        match mem::replace(&mut self.work, Work::Taken) {
            Work::Parked(work) if is_driver || self.notified => {
                self.driver = Some(ticket);
                self.notified = false;
                Step::Drive(work, self.deadline)
            }
            other => {
                self.work = other;
                Step::Wait
            }
        }
    }

    /// Makes another waiter the driver if this one, which has left, was it. Returns the waker of the new one if the work
    /// is to be polled; otherwise the work's next wake goes there.
    fn succeed(&mut self, left: Ticket) -> Option<Waker> {
        if self.driver.is_some_and(|driver| driver != left) {
            return None;
        }
        self.driver = None;
        let mut polled = self.waiters.iter();
        let (ticket, waker) =
            polled.find_map(|(ticket, waker)| Some((*ticket, waker.as_ref()?)))?;
        self.driver = Some(ticket);
        self.notified.then(|| waker.clone())
    }
}

impl<T> Fetched<T> {
    /// Counts a waiter that fetches the result or leaves, and returns the result itself to the last one.
    fn take_if_last(&mut self) -> Option<T> {
        self.remaining -= 1;
        if self.remaining == 0 {
            self.value.take()
        } else {
            None
        }
    }
}

/// The waker that the work is polled with: wakes the driver, once until it comes.
impl<K: Send + Sync + 'static, T: Send + 'static> Wake for Flight<K, T> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.lock();
        if mem::replace(&mut state.notified, true) {
            return;
        }
        let driver = state.driver.and_then(|driver| state.position(driver));
        let waker = driver.and_then(|position| state.waiters[position].1.clone());
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The later of two deadlines; none at all is later than any.
fn later(one: Option<Deadline>, other: Option<Deadline>) -> Option<Deadline> {
    let (one, other) = (one?, other?);
    Some(one.max(other))
}
