//! Per-thread stripes for counters and reference counts, so that cores do not contend for cache lines.
//!
//! One atomic that all cores write is the most expensive step of a hot path: a shared reference count alone halves the
//! throughput of two cores. Threads are numbered compactly (a number is reused when its thread ends), and what every
//! call writes exists once per stripe.

use std::{
    cell::Cell,
    collections::BTreeSet,
    ops::Deref,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use crossbeam_utils::CachePadded;

/// The number of stripes: a power of two, twice the cores, at most 32.
pub(crate) fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (2 * cores).next_power_of_two().min(32)
    })
}

/// The number of this thread; take it modulo a power of two for its stripe.
#[inline]
pub(crate) fn thread() -> usize {
    NUMBER
        .try_with(|number| match number.get() {
            UNSET => first_use(number),
            number => number,
        })
        // The thread is ending: any stripe works.
        .unwrap_or(0)
}

const UNSET: usize = usize::MAX;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(UNSET) };
    /// Gives the number back when the thread ends.
    static LEASE: Lease = Lease(take_number());
}

struct Lease(usize);

impl Drop for Lease {
    fn drop(&mut self) {
        FREE.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.0);
    }
}

static FREE: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
static NEXT: AtomicUsize = AtomicUsize::new(0);

fn take_number() -> usize {
    let freed = FREE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .pop_first();
    freed.unwrap_or_else(|| NEXT.fetch_add(1, Relaxed))
}

#[cold]
fn first_use(number: &Cell<usize>) -> usize {
    let mine = LEASE.try_with(|lease| lease.0).unwrap_or(0);
    number.set(mine);
    mine
}

/// An `Arc<T>` whose reference count is split over the stripes: [`local`](Self::local) counts on this thread's own
/// cache line. Cloning the `Striped` itself counts on a shared one; layers do that, calls take a [`Local`].
pub(crate) struct Striped<T>(Arc<Stripes<T>>);

struct Stripes<T> {
    shared: Arc<T>,
    locals: Box<[Local<T>]>,
}

impl<T> Striped<T> {
    pub(crate) fn new(value: T) -> Self {
        Self::with_stripes(value, count())
    }

    /// As [`new`](Self::new), with fewer stripes, for values of which there are many. `stripes`: a power of two.
    pub(crate) fn with_stripes(value: T, stripes: usize) -> Self {
        debug_assert!(stripes.is_power_of_two());
        let shared = Arc::new(value);
        let locals = (0..stripes)
            .map(|_| Local(Arc::new(CachePadded::new(Arc::clone(&shared)))))
            .collect();
        Self(Arc::new(Stripes { shared, locals }))
    }

    /// A counted reference for the length of one call.
    #[inline]
    pub(crate) fn local(&self) -> Local<T> {
        let locals = &self.0.locals;
        locals[thread() & (locals.len() - 1)].clone()
    }

    /// The plain shared reference, for use off the hot path.
    pub(crate) fn shared(&self) -> &Arc<T> {
        &self.0.shared
    }
}

impl<T> Clone for Striped<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Striped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.shared
    }
}

/// A reference counted on one thread's stripe. From [`Striped::local`].
pub(crate) struct Local<T>(Arc<CachePadded<Arc<T>>>);

impl<T> Clone for Local<T> {
    #[inline]
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Local<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// A counter with one cache line per stripe.
pub(crate) struct Counter(Box<[CachePadded<AtomicU64>]>);

impl Counter {
    pub(crate) fn new() -> Self {
        Self((0..count()).map(|_| CachePadded::default()).collect())
    }

    /// Adds one, on this thread's own line.
    #[inline]
    pub(crate) fn increment(&self) {
        self.0[thread() & (self.0.len() - 1)].fetch_add(1, Relaxed);
    }

    /// The sum over all stripes; never less than an earlier sum that this thread knows.
    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.load(Relaxed)).sum()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_number_and_live_threads_share_none() {
        let (tx, rx) = std::sync::mpsc::channel();
        let barrier = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let (tx, barrier) = (tx.clone(), &barrier);
                scope.spawn(move || {
                    let mine = thread();
                    barrier.wait();
                    assert_eq!(thread(), mine);
                    tx.send(mine).unwrap();
                });
            }
        });
        drop(tx);
        let all: Vec<_> = rx.iter().collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 8, "{all:?}");
    }

    #[test]
    fn the_value_is_dropped_with_the_last_reference_of_either_kind() {
        let alive = Arc::new(());
        let striped = Striped::new(Arc::clone(&alive));
        let local = striped.local();
        drop(striped);
        assert_eq!(Arc::strong_count(&alive), 2);
        drop(local);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
