//! The flights in progress, by key.

use std::{
    borrow::Borrow,
    collections::HashSet,
    fmt,
    future::Future,
    hash::{BuildHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use foldhash::fast::RandomState;

use super::flight::{BoxFuture, FIRST, Flight, Left, Step, Ticket, Unjoinable};
use crate::{
    clock::{Clock, Moment},
    deadline::{self, Deadline},
    sync::{Mutex, MutexGuard},
};

/// Limits of the flights of a [`Flights`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlightOptions {
    /// Age from which on a flight is not joined any more: the next caller starts another, which later ones join.
    pub(crate) max_age: Option<Duration>,
    /// Most callers that wait for one flight at a time; those beyond it go alone.
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

    /// Joins the flight of `key`, or starts one with `start`, which is called at most once, before this returns and
    /// outside of any lock.
    ///
    /// The work runs under the latest of its callers' current deadlines. A piece of work that waits for its own key waits
    /// until it is dropped.
    pub(crate) fn join<F>(&self, key: K, start: impl FnOnce() -> F) -> Joined<K, T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.begin(self.enter(key, true), start)
    }

    /// As [`join`](Self::join), but never joins a flight in progress: what is started now is what later callers join,
    /// so that they read what was written before.
    pub(crate) fn join_fresh<F>(&self, key: K, start: impl FnOnce() -> F) -> Joined<K, T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.begin(self.enter(key, false), start)
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

    /// Becomes a waiter of a flight in progress or of a new one, whose work is not started yet.
    fn enter(&self, key: K, may_join: bool) -> Joined<K, T> {
        let options = &self.shared.options;
        let timed = options.max_age.is_some() || options.min_time.is_some();
        let now = timed.then(|| options.clock.now());
        let deadline = deadline::current();
        let mut shard = self.shared.lock(&key);
        let found = shard.get(&key).filter(|_| may_join);
        if let Some(ByKey(flight)) = found
            && flight.is_young(now, options.max_age)
        {
            match flight.join(options.max_waiters, deadline) {
                Ok(ticket) => return self.joined(Arc::clone(flight), ticket, Role::Follower),
                Err(Unjoinable::Full) => {
                    drop(shard);
                    let flight = Flight::new(key, now, self.extended(deadline, now));
                    return self.joined(Arc::new(flight), FIRST, Role::Alone);
                }
                Err(Unjoinable::Ended) => {}
            }
        }
        let flight = Flight::new(key, now, self.extended(deadline, now));
        let flight = Arc::new(flight);
        let replaced = shard.replace(ByKey(Arc::clone(&flight)));
        drop(shard);
        drop(replaced);
        self.joined(flight, FIRST, Role::Leader)
    }

    fn joined(&self, flight: Arc<Flight<K, T>>, ticket: Ticket, role: Role) -> Joined<K, T> {
        Joined {
            flight: Some(flight),
            group: self.clone(),
            ticket,
            role,
            drove: false,
        }
    }

    /// The deadline of work that begins now by a caller with this one.
    fn extended(&self, deadline: Option<Deadline>, now: Option<Moment>) -> Option<Deadline> {
        let options = &self.shared.options;
        match (deadline, now, options.min_time) {
            (Some(deadline), Some(now), Some(min_time)) => {
                Some(deadline.max(Deadline::at(now + min_time, options.clock)))
            }
            _ => deadline,
        }
    }

    /// Starts the work if this waiter has to.
    fn begin<F>(&self, mut joined: Joined<K, T>, start: impl FnOnce() -> F) -> Joined<K, T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        if let (Some(flight), false) = (&joined.flight, joined.role == Role::Follower) {
            match catch_unwind(AssertUnwindSafe(start)) {
                Ok(work) => flight.park(Box::pin(work)),
                Err(panic) => {
                    joined.end(None);
                    resume_unwind(panic);
                }
            }
        }
        joined
    }
}

impl<K: Hash + Eq, T> Shared<K, T> {
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

/// Only hashing and comparing keys is foreign code under this lock; a panic there changes nothing.
fn lock<K, T>(shard: &Mutex<Shard<K, T>>) -> MutexGuard<'_, Shard<K, T>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
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

/// What a caller is to its flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Has started it.
    Leader,
    Follower,
    /// Has started it for itself: the flight of the key was full.
    Alone,
}

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
    role: Role,
    drove: bool,
}

impl<K, T> Joined<K, T>
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + 'static,
{
    /// Whether this caller started the work.
    pub(crate) fn is_leader(&self) -> bool {
        self.role != Role::Follower
    }

    /// Whether no other caller can join: the flight of the key was full.
    pub(crate) fn is_alone(&self) -> bool {
        self.role == Role::Alone
    }

    /// Whether this caller drove the work to its end: exactly one of those that waited for it, once it has ended.
    pub(crate) const fn drove(&self) -> bool {
        self.drove
    }

    /// The number of callers that wait for the work at the moment, this one included; zero once it has its result.
    pub(crate) fn waiters(&self) -> usize {
        self.flight.as_ref().map_or(0, |flight| flight.waiters())
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
        self.drove = true;
        if let Some(result) = result {
            flight.store(result);
        }
        // Before any caller has its result: its next call starts a new flight, and the map is found empty.
        self.group.shared.remove(&flight);
        let last = flight.end(self.ticket);
        Some(flight.result(last).ok_or(FlightPanicked))
    }
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
            Step::Ended(last) => {
                self.flight = None;
                Poll::Ready(flight.result(last).ok_or(FlightPanicked))
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
            .field("role", &self.role)
            .field("ended", &self.flight.is_none())
            .finish_non_exhaustive()
    }
}
