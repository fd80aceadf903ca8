//! The flights in progress, by key.

use std::{
    borrow::Borrow,
    collections::HashSet,
    fmt,
    future::Future,
    hash::{BuildHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use foldhash::fast::RandomState;

use super::flight::{BoxFuture, FIRST, Flight, Left, Step, Ticket};
use crate::{
    clock::{Clock, Moment},
    deadline::{self, Deadline},
    sync::{Mutex, MutexGuard, lock},
};

/// Limits of the flights of a [`Flights`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlightOptions {
    /// Age from which on a flight is not joined any more: the next caller starts another, which later ones join.
    pub(crate) max_age: Option<Duration>,
    /// Most callers that wait for one flight at a time: the next one starts another, which later ones join.
    pub(crate) max_waiters: usize,
    /// Time that the work has at least, from its start, under whatever deadline its callers are.
    pub(crate) min_time: Option<Duration>,
    /// The clock of ages and deadlines.
    pub(crate) clock: Clock,
}

/// Work in progress, by key: callers that ask for one key at a time share one piece of work.
///
/// No task is spawned. The work is driven by one of the callers that wait for it; when that one is dropped another goes on
/// with it, and when all are dropped it is dropped. Clones share the flights.
///
/// **Cost**: two allocations per piece of work, and a lock of one of several shards at its beginning and its end.
pub(crate) struct Flights<K, T> {
    shared: Arc<Shared<K, T>>,
}

struct Shared<K, T> {
    shards: Box<[Mutex<Shard<K, T>>]>,
    hasher: RandomState,
    options: FlightOptions,
}

type Shard<K, T> = HashSet<ByKey<K, T>, RandomState>;

/// A flight, found by its key.
struct ByKey<K, T>(Arc<Flight<K, T>>);

impl<K, T> Borrow<K> for ByKey<K, T> {
    fn borrow(&self) -> &K {
        &self.0.key
    }
}

impl<K: Hash, T> Hash for ByKey<K, T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl<K: PartialEq, T> PartialEq for ByKey<K, T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl<K: Eq, T> Eq for ByKey<K, T> {}

impl<K, T> Clone for Flights<K, T> {
    fn clone(&self) -> Self {
        let shared = Arc::clone(&self.shared);
        Self { shared }
    }
}

impl<K, T> Flights<K, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
{
    pub(crate) fn new(options: FlightOptions) -> Self {
        #[cfg(not(all(loom, test)))]
        let shards = crate::stripe::count();
        #[cfg(all(loom, test))]
        let shards = 1;
        let shared = Arc::new(Shared {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
            options,
        });
        Self { shared }
    }

    /// Becomes a waiter of a flight in progress, unless it has to be `fresh`, or else the leader of a new one, which has
    /// to be [started](Joined::start).
    pub(super) fn enter(&self, key: K, fresh: bool) -> Joined<K, T> {
        let options = &self.shared.options;
        let timed = options.max_age.is_some() || options.min_time.is_some();
        let now = timed.then(|| options.clock.now());
        let deadline = deadline::current();
        let mut shard = self.shared.lock(&key);
        if let Some(ByKey(flight)) = shard.get(&key)
            && !fresh
            && flight.is_young(now, options.max_age)
            && let Some(ticket) = flight.join(options.max_waiters, deadline)
        {
            let flight = Arc::clone(flight);
            drop(shard);
            return self.joined(flight, ticket, Some(key));
        }
        let flight = Arc::new(Flight::new(key, now, options.extended(deadline, now)));
        let replaced = shard.replace(ByKey(Arc::clone(&flight)));
        drop(shard);
        // Runs foreign code, so not under the lock.
        drop(replaced);
        self.joined(flight, FIRST, None)
    }

    fn joined(&self, flight: Arc<Flight<K, T>>, ticket: Ticket, key: Option<K>) -> Joined<K, T> {
        Joined {
            flight: Some(flight),
            group: self.clone(),
            ticket,
            is_leader: ticket == FIRST,
            is_owner: ticket == FIRST,
            key,
        }
    }

    /// Lets the next caller start a new flight. One in progress goes on for those that wait for it.
    pub(crate) fn forget(&self, key: &K) {
        let forgotten = self.shared.lock(key).take(key);
        // Runs foreign code, so not under the lock.
        drop(forgotten);
    }

    /// The number of flights that can be joined.
    pub(crate) fn len(&self) -> usize {
        let shards = self.shared.shards.iter();
        shards.map(|shard| lock(shard).len()).sum()
    }

    /// The number of callers that wait for flights that can be joined.
    pub(crate) fn waiters(&self) -> usize {
        let of_shard = |shard: &Mutex<Shard<K, T>>| {
            lock(shard)
                .iter()
                .map(|flight| flight.0.waiters())
                .sum::<usize>()
        };
        self.shared.shards.iter().map(of_shard).sum()
    }
}

/// Flights for other patterns.
#[cfg_attr(not(test), allow(dead_code))]
impl<K, T> Flights<K, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
{
    /// Joins the flight of `key`, or starts one with `start`, which is called at most once, before this returns and
    /// outside of any lock.
    ///
    /// The work runs under the latest of its callers' current deadlines. A piece of work that waits for its own key waits
    /// until it is dropped.
    pub(crate) fn join<F>(&self, key: K, start: impl FnOnce() -> F) -> Joined<K, T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.enter(key, false).started_by(start)
    }

    /// As [`join`](Self::join), but never joins a flight in progress: what is started now is what later callers join,
    /// so that they read what was written before.
    pub(crate) fn join_fresh<F>(&self, key: K, start: impl FnOnce() -> F) -> Joined<K, T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.enter(key, true).started_by(start)
    }
}

impl FlightOptions {
    /// The deadline of work that begins now by a caller with this one.
    fn extended(&self, deadline: Option<Deadline>, now: Option<Moment>) -> Option<Deadline> {
        match (deadline, now, self.min_time) {
            (Some(deadline), Some(now), Some(min_time)) => {
                Some(deadline.max(Deadline::at(now + min_time, self.clock)))
            }
            _ => deadline,
        }
    }
}

impl<K: Hash + Eq, T> Shared<K, T> {
    /// Only hashing and comparing keys is foreign code under this lock; a panic there changes nothing.
    fn lock(&self, key: &K) -> MutexGuard<'_, Shard<K, T>> {
        let hash = self.hasher.hash_one(key) as usize;
        lock(&self.shards[hash & (self.shards.len() - 1)])
    }

    /// Removes this flight, and not another one that has taken its key.
    fn remove(&self, flight: &Arc<Flight<K, T>>) {
        let mut shard = self.lock(&flight.key);
        let found = shard.get(&flight.key);
        let removed = match found {
            Some(ByKey(present)) if Arc::ptr_eq(present, flight) => shard.take(&flight.key),
            _ => None,
        };
        drop(shard);
        drop(removed);
    }
}

impl<K, T> fmt::Debug for Flights<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights")
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

/// The work of a flight panicked, in another caller's hands: that one's panic goes on there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlightPanicked;

/// A caller's part in a flight: waits for the result, and drives the work when it has to. Dropping it leaves the flight.
///
/// # Panics
/// With the panic of the work, if it was driving it.
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Joined<K, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
{
    // `None` once it has ended.
    flight: Option<Arc<Flight<K, T>>>,
    group: Flights<K, T>,
    ticket: Ticket,
    is_leader: bool,
    is_owner: bool,
    // A follower's; the leader's is the flight's.
    key: Option<K>,
}

impl<K, T> Joined<K, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
{
    /// Whether this caller starts the work.
    pub(crate) const fn is_leader(&self) -> bool {
        self.is_leader
    }

    /// Whether a result that cannot be cloned is for this caller, once it has one: for the leader, or if that has left, for
    /// the one that drove the work to its end.
    pub(crate) const fn is_owner(&self) -> bool {
        self.is_owner
    }

    /// The key that a follower came with.
    pub(super) fn take_key(&mut self) -> Option<K> {
        self.key.take()
    }

    /// Starts the work of a new flight: to be called once by its leader. A panic of `start` goes on, and ends the flight.
    pub(super) fn start<F>(&mut self, start: impl FnOnce() -> F)
    where
        F: Future<Output = T> + Send + 'static,
    {
        let started = catch_unwind(AssertUnwindSafe(|| Box::pin(start())));
        match (started, &self.flight) {
            (Ok(work), Some(flight)) => flight.park(work),
            (Ok(_), None) => {}
            (Err(panic), _) => {
                self.end(None);
                resume_unwind(panic);
            }
        }
    }

    /// Polls the work, for all. `None`: go on waiting.
    fn drive(
        &mut self,
        flight: &Arc<Flight<K, T>>,
        mut work: BoxFuture<T>,
        deadline: Option<Deadline>,
    ) -> Option<Result<T, FlightPanicked>> {
        let waker = Waker::from(Arc::clone(flight));
        let polled = catch_unwind(AssertUnwindSafe(move || {
            let _scope = deadline::enter(deadline);
            match work.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(result) => {
                    // Under the deadline too.
                    drop(work);
                    Ok(result)
                }
                Poll::Pending => Err(work),
            }
        }));
        match polled {
            Ok(Err(work)) => {
                flight.park(work);
                None
            }
            Ok(Ok(result)) => self.end(Some(result)),
            Err(panic) => {
                self.end(None);
                resume_unwind(panic)
            }
        }
    }

    /// Ends the flight with a result, or without one after a panic, and fetches this caller's part.
    fn end(&mut self, result: Option<T>) -> Option<Result<T, FlightPanicked>> {
        let flight = self.flight.take()?;
        // Before any caller has its result: its next call starts a new flight, and the map is found empty.
        self.group.shared.remove(&flight);
        self.is_owner |= !flight.end(self.ticket, result);
        Some(flight.fetch().ok_or(FlightPanicked))
    }
}

#[cfg_attr(not(test), allow(dead_code))]
impl<K, T> Joined<K, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
{
    /// The number of callers that wait for the work at the moment, this one included; zero once it has its result.
    pub(crate) fn waiters(&self) -> usize {
        self.flight.as_ref().map_or(0, |flight| flight.waiters())
    }

    fn started_by<F>(mut self, start: impl FnOnce() -> F) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        if self.is_leader {
            self.start(start);
        }
        self
    }
}

// No field is pinned.
impl<K, T> Unpin for Joined<K, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
{
}

impl<K, T> Future for Joined<K, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
{
    type Output = Result<T, FlightPanicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let flight = self.flight.clone().expect("polled after it was done");
        match flight.step(self.ticket, cx.waker()) {
            Step::Wait => Poll::Pending,
            Step::Drive(work, deadline) => match self.drive(&flight, work, deadline) {
                Some(result) => Poll::Ready(result),
                None => Poll::Pending,
            },
            Step::Ended => {
                self.flight = None;
                Poll::Ready(flight.fetch().ok_or(FlightPanicked))
            }
        }
    }
}

impl<K, T> Drop for Joined<K, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
{
    fn drop(&mut self) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        match flight.leave(self.ticket) {
            Left::Others(None) => {}
            Left::Others(Some(successor)) => successor.wake(),
            Left::Abandoned(work) => {
                self.group.shared.remove(&flight);
                drop(work);
            }
        }
    }
}

impl<K, T> fmt::Debug for Joined<K, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined")
            .field("is_leader", &self.is_leader)
            .field("ended", &self.flight.is_none())
            .finish_non_exhaustive()
    }
}
