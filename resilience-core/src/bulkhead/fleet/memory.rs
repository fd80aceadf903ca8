//! The store for instances in one process: for tests and demonstrations, and the model of the Redis
//! store.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{
    record::{AcquireRequest, Admission, BulkheadRecord, BulkheadView, Heartbeat, Release, Step},
    store::{BulkheadStore, StoreFuture, Wakeup, Wakeups},
};
use crate::{clock::Clock, fleet::StoreHandle};

/// Store that keeps the records in this process. Clones share them.
///
/// ```
/// use resilience_core::{FleetBulkhead, bulkhead::fleet::InProcessBulkheads};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = InProcessBulkheads::new();
/// let one = FleetBulkhead::builder("reports").store(store.clone()).max_concurrent(1).build()?;
/// let other = FleetBulkhead::builder("reports").store(store).max_concurrent(1).build()?; // a second instance
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
    handle: StoreHandle,
}

#[derive(Debug)]
struct Entry {
    record: BulkheadRecord,
    wakeups: watch::Sender<Wakeup>,
}

impl InProcessBulkheads {
    /// Creates an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self {
            clock: Clock::auto(),
            records: Arc::default(),
            handle: StoreHandle::new(),
        }
    }

    /// Drops all records, as a flushed or failed-over server does; subscriptions stay.
    pub fn flush(&self) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records
            .values_mut()
            .for_each(|entry| entry.record = BulkheadRecord::default());
    }

    /// Makes one step on one record, and sends its wakeups.
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
            entry.wakeups.send_replace(Wakeup::Value(up.into()));
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
        heartbeat: &'a Heartbeat,
    ) -> StoreFuture<'a, (Vec<bool>, BulkheadView)> {
        ready(self.step(name, |record, now| record.renew(heartbeat, now)))
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

    fn handle(&self) -> Option<&StoreHandle> {
        Some(&self.handle)
    }
}
