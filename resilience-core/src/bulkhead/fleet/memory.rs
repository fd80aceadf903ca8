//! The store for instances in one process: tests, demonstrations, and the model that the Redis store is held to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{
    record::{AcquireRequest, Admission, BulkheadRecord, BulkheadView, Heartbeat, Release, Step},
    store::{BulkheadStore, StoreFuture, Wakeup, Wakeups},
};
use crate::clock::Clock;

/// Keeps the records in this process. Clones share them.
///
/// ```
/// use resilience_core::bulkhead::fleet::{FleetBulkhead, InProcessBulkheads};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = InProcessBulkheads::new();
/// let one = FleetBulkhead::builder("reports", store.clone()).max_concurrent(1).build()?;
/// let other = FleetBulkhead::builder("reports", store).max_concurrent(1).build()?; // a second instance
/// let permit = one.acquire(1).await?;
/// assert!(other.acquire(1).await.is_err());
/// # drop(permit);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct InProcessBulkheads {
    clock: Clock,
    records: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    record: BulkheadRecord,
    wakeups: watch::Sender<Wakeup>,
}

impl InProcessBulkheads {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self {
            clock: Clock::auto(),
            records: Arc::default(),
        }
    }

    /// Forgets everything, as a flushed or failed-over server does; subscriptions stay.
    pub fn flush(&self) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records
            .values_mut()
            .for_each(|entry| entry.record = BulkheadRecord::default());
    }

    /// One step on one record, with its view; whom it calls up is told.
    fn step<T>(
        &self,
        name: &str,
        step: impl FnOnce(&mut BulkheadRecord, u64) -> Step<T>,
    ) -> (T, BulkheadView) {
        let now = self.clock.now().as_nanos() / 1000;
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entry(&mut records, name);
        let Step { answer, up } = step(&mut entry.record, now);
        if !up.is_empty() {
            entry.wakeups.send_replace(Wakeup::Leases(up.into()));
        }
        (answer, entry.record.view(now))
    }
}

fn entry<'a>(records: &'a mut HashMap<String, Entry>, name: &str) -> &'a mut Entry {
    records.entry(name.to_owned()).or_insert_with(|| Entry {
        record: BulkheadRecord::default(),
        wakeups: watch::Sender::new(Wakeup::None),
    })
}

impl Default for InProcessBulkheads {
    fn default() -> Self {
        Self::new()
    }
}

fn ready<T: Send + 'static>(value: T) -> StoreFuture<'static, T> {
    Box::pin(std::future::ready(Ok(value)))
}

impl BulkheadStore for InProcessBulkheads {
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        request: &'a AcquireRequest,
    ) -> StoreFuture<'a, Admission> {
        ready(
            self.step(name, |record, now| record.acquire(request, now))
                .0,
        )
    }

    fn renew<'a>(
        &'a self,
        name: &'a str,
        beat: &'a Heartbeat,
    ) -> StoreFuture<'a, (Vec<bool>, BulkheadView)> {
        ready(self.step(name, |record, now| record.renew(beat, now)))
    }

    fn release<'a>(&'a self, name: &'a str, releases: &'a [Release]) -> StoreFuture<'a, Vec<bool>> {
        ready(
            self.step(name, |record, now| record.release(releases, now))
                .0,
        )
    }

    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BulkheadView> {
        let nothing = |_: &mut BulkheadRecord, _| Step {
            answer: (),
            up: Vec::new(),
        };
        ready(self.step(name, nothing).1)
    }

    fn subscribe(&self, name: &str) -> Wakeups {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        Wakeups::new(entry(&mut records, name).wakeups.subscribe())
    }
}
