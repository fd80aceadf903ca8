//! The store trait of ledgers, and the store in this process.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::ledger::{Ledger, LedgerView, Swap};
use crate::{
    clock::Clock,
    fleet::{StoreFuture, StoreHandle},
};

/// Store of one region's ledger and of the demands of its instances. Each region has one of its own, which the others reach
/// across regions.
pub trait RegionStore: fmt::Debug + Send + Sync + 'static {
    /// Notes the demand of `instance`, in millionths of the whole, for `ttl_ms` milliseconds, and reads the ledger of
    /// `name`.
    fn report<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        demand: u64,
        ttl_ms: u64,
    ) -> StoreFuture<'a, LedgerView>;

    /// Reads the ledger of `name`.
    fn read<'a>(&'a self, name: &'a str) -> StoreFuture<'a, LedgerView>;

    /// Writes a ledger if its version is still the expected one and it is not too late. The version rises, also after a
    /// loss. Kept for at least `ttl_ms` milliseconds. Returns whether it was written.
    fn swap<'a>(&'a self, name: &'a str, swap: &'a Swap, ttl_ms: u64) -> StoreFuture<'a, bool>;

    /// This process' use of the store: return the one that the store keeps, and that its clones share. The default,
    /// `None`, gives every handle one of its own: then a shutdown ends one handle at a time, and live instances are
    /// counted by the records of each pattern.
    fn handle(&self) -> Option<&StoreHandle> {
        None
    }
}

crate::fleet::into_store!(RegionStore);

/// The ledger of one region in this process. Clones share it.
#[derive(Clone, Debug)]
pub struct InProcessRegion {
    clock: Clock,
    entries: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Debug, Default)]
struct Entry {
    version: u64,
    ledger: Ledger,
    /// By instance: demand, until.
    demands: HashMap<String, (u64, u64)>,
}

impl InProcessRegion {
    /// An empty ledger.
    #[must_use]
    pub fn new() -> Self {
        Self {
            clock: Clock::auto(),
            entries: Arc::default(),
        }
    }

    /// Loses everything, as a flushed or failed-over server does.
    pub fn flush(&self) {
        self.lock().clear();
    }

    fn now(&self) -> u64 {
        self.clock.now().as_nanos() / 1000
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self, name: &str, report: Option<(&str, u64, u64)>) -> LedgerView {
        let now = self.now();
        let mut entries = self.lock();
        let entry = entries.entry(name.to_owned()).or_default();
        entry.demands.retain(|_, (_, until)| *until > now);
        if let Some((instance, demand, ttl_ms)) = report {
            let until = now + ttl_ms * 1000;
            entry.demands.insert(instance.to_owned(), (demand, until));
        }
        let demand = entry.demands.values().map(|(demand, _)| demand).sum();
        LedgerView::new(now, entry.version, entry.ledger.clone(), demand)
    }

    fn write(&self, name: &str, swap: &Swap) -> bool {
        let now = self.now();
        let mut entries = self.lock();
        let entry = entries.entry(name.to_owned()).or_default();
        let is_due = entry.version == swap.expected && now <= swap.not_after;
        if is_due {
            entry.version = (entry.version + 1).max(now);
            entry.ledger.clone_from(&swap.ledger);
        }
        is_due
    }
}

impl Default for InProcessRegion {
    fn default() -> Self {
        Self::new()
    }
}

fn ready<T: Send + 'static>(value: T) -> StoreFuture<'static, T> {
    Box::pin(std::future::ready(Ok(value)))
}

impl RegionStore for InProcessRegion {
    fn report<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        demand: u64,
        ttl_ms: u64,
    ) -> StoreFuture<'a, LedgerView> {
        ready(self.view(name, Some((instance, demand, ttl_ms))))
    }

    fn read<'a>(&'a self, name: &'a str) -> StoreFuture<'a, LedgerView> {
        ready(self.view(name, None))
    }

    fn swap<'a>(&'a self, name: &'a str, swap: &'a Swap, _: u64) -> StoreFuture<'a, bool> {
        ready(self.write(name, swap))
    }
}
