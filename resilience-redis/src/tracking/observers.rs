//! The observers of the stores of cached values, and their reports.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use resilience_core::cache::store::Observer;

use super::coverage::Coverage;
use crate::keys;

/// The observers of one [`Redis`](crate::Redis).
#[derive(Default)]
pub(super) struct Observers {
    /// Read with every push.
    list: ArcSwap<Vec<Observing>>,
    coverage: Mutex<Coverage>,
}

#[derive(Clone)]
struct Observing {
    number: u64,
    observer: Weak<dyn Observer>,
}

impl Observers {
    /// Adds an observer, under a `number` of its own.
    pub(super) fn join(&self, number: u64, observer: Weak<dyn Observer>) {
        let coverage = self.lock();
        let observing = Observing { number, observer };
        let mut list = Vec::clone(&self.list.load());
        list.push(observing.clone());
        self.list.store(Arc::new(list));
        if coverage.is_whole()
            && let Some(observer) = observing.observer.upgrade()
        {
            observer.restored();
        }
    }

    /// Removes an observer. Whether it was the last one.
    pub(super) fn leave(&self, number: u64) -> bool {
        let _coverage = self.lock();
        let mut list = Vec::clone(&self.list.load());
        list.retain(|observing| observing.number != number);
        let is_empty = list.is_empty();
        self.list.store(Arc::new(list));
        is_empty
    }

    /// Changes which connections report changes. Observers hear when these are no longer, or again, all of them, in
    /// order, since the lock is held.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut Coverage) -> T) -> T {
        let mut coverage = self.lock();
        let was_whole = coverage.is_whole();
        let result = change(&mut coverage);
        match (was_whole, coverage.is_whole()) {
            (true, false) => self.tell(|observer| observer.lost()),
            (false, true) => self.tell(|observer| observer.restored()),
            _ => {}
        }
        result
    }

    pub(super) fn changed(&self, key: &[u8]) {
        let id = keys::hash(key);
        self.tell(|observer| observer.changed(id));
    }

    pub(super) fn cleared(&self) {
        self.tell(|observer| observer.cleared());
    }

    fn tell(&self, tell: impl Fn(&dyn Observer)) {
        for observing in &**self.list.load() {
            if let Some(observer) = observing.observer.upgrade() {
                tell(&*observer);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Coverage> {
        self.coverage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
