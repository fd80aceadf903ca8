//! The store for instances in one process: tests, demonstrations, and the model that the Redis store is held to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{
    record::{Admission, Heartbeat, Record, Return, Step, View, Wish},
    store::{Answer, BulkheadStore, Call, Calls},
};
use crate::clock::Clock;

/// Keeps the records in this process. Clones share them.
///
/// ```
/// use resilience_core::bulkhead::fleet::{FleetBulkhead, InProcess};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = InProcess::new();
/// let one = FleetBulkhead::builder("reports", store.clone()).max_concurrent(1).build()?;
/// let other = FleetBulkhead::builder("reports", store).max_concurrent(1).build()?; // a second instance
/// let permit = one.acquire(1).await?;
/// assert!(other.acquire(1).await.is_err());
/// # drop(permit);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct InProcess {
    clock: Clock,
    records: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    calls: watch::Sender<Call>,
}

impl InProcess {
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
            .for_each(|entry| entry.record = Record::default());
    }

    /// One step on one record, with its view; whom it calls up is told.
    fn step<T>(&self, name: &str, step: impl FnOnce(&mut Record, u64) -> Step<T>) -> (T, View) {
        let now = self.clock.now().as_nanos() / 1000;
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entry(&mut records, name);
        let Step { answer, up } = step(&mut entry.record, now);
        if !up.is_empty() {
            entry.calls.send_replace(Call::Up(up.into()));
        }
        (answer, entry.record.view(now))
    }
}

fn entry<'a>(records: &'a mut HashMap<String, Entry>, name: &str) -> &'a mut Entry {
    records.entry(name.to_owned()).or_insert_with(|| Entry {
        record: Record::default(),
        calls: watch::Sender::new(Call::None),
    })
}

impl Default for InProcess {
    fn default() -> Self {
        Self::new()
    }
}

fn ready<T: Send + 'static>(value: T) -> Answer<'static, T> {
    Box::pin(std::future::ready(Ok(value)))
}

impl BulkheadStore for InProcess {
    fn acquire<'a>(&'a self, name: &'a str, wish: &'a Wish) -> Answer<'a, Admission> {
        ready(self.step(name, |record, now| record.acquire(wish, now)).0)
    }

    fn renew<'a>(&'a self, name: &'a str, beat: &'a Heartbeat) -> Answer<'a, (Vec<bool>, View)> {
        ready(self.step(name, |record, now| record.renew(beat, now)))
    }

    fn release<'a>(&'a self, name: &'a str, returns: &'a [Return]) -> Answer<'a, Vec<bool>> {
        ready(
            self.step(name, |record, now| record.release(returns, now))
                .0,
        )
    }

    fn view<'a>(&'a self, name: &'a str) -> Answer<'a, View> {
        let nothing = |_: &mut Record, _| Step {
            answer: (),
            up: Vec::new(),
        };
        ready(self.step(name, nothing).1)
    }

    fn subscribe(&self, name: &str) -> Calls {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        Calls::new(entry(&mut records, name).calls.subscribe())
    }
}
