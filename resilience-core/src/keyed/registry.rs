//! The members of a family by key: bounded, idle members dropped, lookups without a lock.

use std::{
    borrow::Borrow,
    fmt,
    hash::Hash,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::Duration,
};

use super::{
    Keyed,
    map::{Map, map},
};
use crate::{clock::Moment, error::InvalidConfig};

/// A member that knows whether it may be dropped.
#[expect(unnameable_types, reason = "sealed")]
pub trait Evict: Send + Sync + 'static {
    /// Whether dropping this member now loses nothing but statistics.
    fn evictable(&self) -> bool;
}

/// The members of a family by key. A hit takes no lock and allocates nothing.
pub(crate) struct Registry<K, H> {
    limits: Keyed,
    members: Map<K, Entry<H>>,
    overflow: OnceLock<H>,
    make: Make<K, H>,
    evicted: Box<dyn Fn(&H) + Send + Sync>,
    /// When the next sweep for idle members is due.
    next_sweep: AtomicU64,
    /// Held while a new key enters, so that the cap is exact.
    entering: Mutex<()>,
}

type Make<K, H> = Box<dyn Fn(Option<&K>) -> H + Send + Sync>;

struct Entry<H> {
    handle: H,
    /// The last sweep that found it used, in nanoseconds of a [`Moment`], even; and [`USED`].
    seen: AtomicU64,
}

/// Used since the last sweep.
const USED: u64 = 1;

impl<K, H> Registry<K, H>
where
    K: Hash + Eq + Send + Sync + 'static,
    H: Evict,
{
    /// `make` builds the member of a key, or the overflow member (`None`); `evicted` is called
    /// with members that are dropped, so that the family can keep their totals.
    pub(crate) fn new(
        limits: Keyed,
        make: impl Fn(Option<&K>) -> H + Send + Sync + 'static,
        evicted: impl Fn(&H) + Send + Sync + 'static,
    ) -> Result<Self, InvalidConfig> {
        limits.validate()?;
        Ok(Self {
            limits,
            members: map(),
            overflow: OnceLock::new(),
            make: Box::new(make),
            evicted: Box::new(evicted),
            next_sweep: AtomicU64::new(0),
            entering: Mutex::new(()),
        })
    }

    /// Runs `f` on the member of `key`, which is made if there is none. `now` is read on a miss
    /// only.
    #[inline]
    pub(crate) fn with<Q, R>(
        &self,
        key: &Q,
        now: impl FnOnce() -> Moment,
        f: impl FnOnce(&H) -> R,
    ) -> R
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let members = self.members.pin();
        if let Some(entry) = members.get(key) {
            entry.touch();
            return f(&entry.handle);
        }
        drop(members);
        self.miss(key.to_owned(), now(), f)
    }

    #[cold]
    fn miss<R>(&self, key: K, now: Moment, f: impl FnOnce(&H) -> R) -> R {
        let entering = self.entering.lock().unwrap_or_else(PoisonError::into_inner);
        self.sweep(now);
        let members = self.members.pin();
        let full = members.len() >= self.limits.max_keys && !members.contains_key(&key);
        let handle = if full && !self.make_room() {
            self.overflow.get_or_init(|| (self.make)(None))
        } else {
            let made = (self.make)(Some(&key));
            &members
                .get_or_insert_with(key, || Entry::new(made, now))
                .handle
        };
        drop(entering);
        f(handle)
    }

    /// Drops the members that have been idle for long enough, if a sweep is due.
    pub(crate) fn sweep(&self, now: Moment) {
        let due = self.next_sweep.load(Relaxed);
        if now.as_nanos() < due {
            return;
        }
        let next = (now + self.limits.idle / 2).as_nanos();
        if self
            .next_sweep
            .compare_exchange(due, next, AcqRel, Relaxed)
            .is_err()
        {
            return;
        }
        self.members.pin().retain(|_, entry| {
            let stays = entry.seen_by_sweep(now) < self.limits.idle || !entry.handle.evictable();
            if !stays {
                (self.evicted)(&entry.handle);
            }
            stays
        });
    }

    /// Drops an eighth of the family, those unused for longest first. Returns `false` if no member could be dropped.
    /// Called under `entering`.
    fn make_room(&self) -> bool {
        let members = self.members.pin();
        let mut idle: Vec<_> = members
            .iter()
            .filter(|(_, entry)| entry.handle.evictable())
            .map(|(key, entry)| (entry.age(), key))
            .collect();
        let share = (self.limits.max_keys / 8).max(1).min(idle.len());
        if share == 0 {
            return false;
        }
        idle.select_nth_unstable_by_key(share - 1, |(age, _)| *age);
        for (_, key) in &idle[..share] {
            if let Some(entry) = members.remove(*key) {
                (self.evicted)(&entry.handle);
            }
        }
        true
    }

    /// Runs `f` on every member, the overflow member (key `None`) included.
    pub(crate) fn for_each(&self, mut f: impl FnMut(Option<&K>, &H)) {
        for (key, entry) in &self.members.pin() {
            f(Some(key), &entry.handle);
        }
        if let Some(overflow) = self.overflow.get() {
            f(None, overflow);
        }
    }

    /// The number of members, without the overflow member.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }
}

impl<K, H> fmt::Debug for Registry<K, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<H> Entry<H> {
    fn new(handle: H, now: Moment) -> Self {
        Self {
            handle,
            seen: AtomicU64::new(now.as_nanos() | USED),
        }
    }

    /// Writes only when it changes something: members are read by all cores.
    #[inline]
    fn touch(&self) {
        if self.seen.load(Relaxed) & USED == 0 {
            self.seen.fetch_or(USED, Relaxed);
        }
    }

    /// Whether it was used since the last sweep, and that sweep. Forgets the use.
    fn age(&self) -> (bool, u64) {
        let seen = self.seen.fetch_and(!USED, Relaxed);
        (seen & USED != 0, seen & !USED)
    }

    /// The time since a sweep last found this member used. Counts as a sweep itself.
    fn seen_by_sweep(&self, now: Moment) -> Duration {
        let (used, mut seen) = self.age();
        if used {
            seen = now.as_nanos() & !USED;
            // A use at this moment may be forgotten: it is as old as this sweep.
            self.seen.store(seen, Relaxed);
        }
        now.since(Moment::from_nanos(seen))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        collections::HashSet,
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicUsize},
        },
    };

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Thing {
        busy: AtomicBool,
        uses: AtomicUsize,
    }

    impl Evict for Arc<Thing> {
        fn evictable(&self) -> bool {
            !self.busy.load(Relaxed)
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn registry(max: usize, idle: u64) -> (Registry<u32, Arc<Thing>>, Arc<AtomicUsize>) {
        let gone = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&gone);
        let limits = Keyed::new().max_keys(max).idle(Duration::from_secs(idle));
        let made = Registry::new(
            limits,
            |_| Arc::new(Thing::default()),
            move |thing: &Arc<Thing>| {
                count.fetch_add(thing.uses.load(Relaxed), Relaxed);
            },
        );
        (made.unwrap(), gone)
    }

    fn hit(registry: &Registry<u32, Arc<Thing>>, key: u32, now: Moment) -> Arc<Thing> {
        registry.with(
            &key,
            || now,
            |thing| {
                thing.uses.fetch_add(1, Relaxed);
                Arc::clone(thing)
            },
        )
    }

    #[test]
    fn a_key_keeps_its_member() {
        let (registry, _) = registry(8, 60);
        assert!(Arc::ptr_eq(
            &hit(&registry, 1, at(1)),
            &hit(&registry, 1, at(2))
        ));
        assert!(!Arc::ptr_eq(
            &hit(&registry, 1, at(3)),
            &hit(&registry, 2, at(3))
        ));
    }

    #[test]
    fn an_idle_member_goes_and_a_used_or_busy_one_stays() {
        let (registry, _) = registry(8, 60);
        let used = hit(&registry, 1, at(0));
        let busy = hit(&registry, 2, at(0));
        busy.busy.store(true, Relaxed);
        let idle = hit(&registry, 3, at(0));
        for second in (0..200).step_by(10) {
            hit(&registry, 1, at(second));
            registry.sweep(at(second));
        }
        assert!(Arc::ptr_eq(&used, &hit(&registry, 1, at(200))));
        assert!(Arc::ptr_eq(&busy, &hit(&registry, 2, at(200))));
        assert!(
            !Arc::ptr_eq(&idle, &hit(&registry, 3, at(200))),
            "forgotten and made again"
        );
    }

    #[test]
    fn a_full_family_makes_room_by_dropping_those_unused_for_longest() {
        let (registry, gone) = registry(16, 3600);
        let first: Vec<_> = (0..16)
            .map(|key| hit(&registry, key, at(u64::from(key))))
            .collect();
        hit(&registry, 99, at(100));
        assert_eq!(registry.len(), 15, "two of sixteen went, one came");
        assert_eq!(gone.load(Relaxed), 2, "their totals were handed over");
        assert!(Arc::ptr_eq(&first[15], &hit(&registry, 15, at(101))));
    }

    #[test]
    fn when_all_are_busy_new_keys_share_the_overflow_member() {
        let (registry, _) = registry(2, 3600);
        for key in 0..2 {
            hit(&registry, key, at(0)).busy.store(true, Relaxed);
        }
        let (a, b) = (hit(&registry, 10, at(1)), hit(&registry, 11, at(1)));
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!(registry.len(), 2);
        let mut members = HashSet::new();
        registry.for_each(|key, _| assert!(members.insert(key.copied())));
        assert_eq!(members, HashSet::from([Some(0), Some(1), None]));
    }

    #[test]
    fn threads_that_ask_for_one_new_key_get_one_member() {
        for _ in 0..50 {
            let (registry, _) = registry(8, 60);
            let barrier = std::sync::Barrier::new(4);
            let handles: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| {
                            barrier.wait();
                            hit(&registry, 7, at(1))
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .collect()
            });
            assert!(
                handles
                    .iter()
                    .all(|handle| Arc::ptr_eq(handle, &handles[0]))
            );
        }
    }

    proptest! {
        #[test]
        fn never_more_members_than_the_cap_and_no_use_is_lost(
            keys in proptest::collection::vec((0u32..40, 0u64..30), 1..300),
            max in 1usize..20,
        ) {
            let (registry, gone) = registry(max, 60);
            let mut now = 0;
            for (key, wait) in &keys {
                now += wait;
                hit(&registry, *key, at(now));
                prop_assert!(registry.len() <= max);
            }
            let mut live = 0;
            registry.for_each(|_, thing| live += thing.uses.load(Relaxed));
            prop_assert_eq!(live + gone.load(Relaxed), keys.len());
        }
    }
}
