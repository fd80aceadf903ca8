//! The store for instances in one process: tests, demonstrations, and the model that the Redis store is held to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{
    record::{BreakerRecord, BreakerView, Change, FleetOverride, LeaseAnswer, Report},
    store::BreakerStore,
};
use crate::{
    clock::Clock,
    fleet::{Pushed, StoreFuture, Subscription},
};

/// Store that keeps the records in this process. Clones share them.
///
/// ```
/// use resilience_core::{CircuitBreaker, breaker::fleet::InProcessBreakers};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = InProcessBreakers::new();
/// let one = CircuitBreaker::builder("payments").store(store.clone()).build()?;
/// let other = CircuitBreaker::builder("payments").store(store).build()?; // a second instance
/// # let _ = (one, other);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct InProcessBreakers {
    clock: Clock,
    records: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    record: BreakerRecord,
    pushes: watch::Sender<Pushed<Arc<BreakerView>>>,
}

impl InProcessBreakers {
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
            .for_each(|entry| entry.record = BreakerRecord::default());
    }

    /// One step on one record; a new epoch is pushed.
    fn step<T: Send + 'static>(
        &self,
        name: &str,
        step: impl FnOnce(&mut BreakerRecord, u64) -> T,
    ) -> (T, BreakerView) {
        let now = self.clock.now().as_nanos() / 1_000_000;
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entry(&mut records, name);
        let before = entry.record.view(now).epoch;
        let done = step(&mut entry.record, now);
        let view = entry.record.view(now);
        if view.epoch != before {
            entry
                .pushes
                .send_replace(Pushed::Value(Arc::new(view.clone())));
        }
        (done, view)
    }
}

fn entry<'a>(records: &'a mut HashMap<String, Entry>, name: &str) -> &'a mut Entry {
    records.entry(name.to_owned()).or_insert_with(|| Entry {
        record: BreakerRecord::default(),
        pushes: watch::Sender::new(Pushed::None),
    })
}

impl Default for InProcessBreakers {
    fn default() -> Self {
        Self::new()
    }
}

fn ready<T: Send + 'static>(value: T) -> StoreFuture<'static, T> {
    Box::pin(std::future::ready(Ok(value)))
}

impl BreakerStore for InProcessBreakers {
    fn report<'a>(&'a self, name: &'a str, report: &'a Report) -> StoreFuture<'a, BreakerView> {
        ready(self.step(name, |record, now| record.report(report, now)).1)
    }

    fn change<'a>(
        &'a self,
        name: &'a str,
        change: &'a Change,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        ready(self.step(name, |record, now| record.change(change, now)))
    }

    fn restore<'a>(
        &'a self,
        name: &'a str,
        known: &'a BreakerView,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        ready(self.step(name, |record, now| record.restore(known, now)))
    }

    fn lease<'a>(
        &'a self,
        name: &'a str,
        lease: &'a Arc<str>,
        budget: u32,
        lease_ms: u64,
    ) -> StoreFuture<'a, (LeaseAnswer, BreakerView)> {
        ready(self.step(name, |record, now| {
            record.lease(lease, budget, lease_ms, now)
        }))
    }

    fn settle<'a>(
        &'a self,
        name: &'a str,
        lease: &'a str,
        epoch: u64,
        success: Option<bool>,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        ready(self.step(name, |record, now| {
            record.settle(lease, epoch, success, now)
        }))
    }

    fn set_override<'a>(
        &'a self,
        name: &'a str,
        active_override: Option<FleetOverride>,
        by: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        ready(
            self.step(name, |record, now| {
                record.set_override(active_override, by, now)
            })
            .1,
        )
    }

    fn reset<'a>(
        &'a self,
        name: &'a str,
        by: &'a str,
        cause: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        ready(
            self.step(name, |record, now| record.reset(by, cause, now))
                .1,
        )
    }

    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerView> {
        ready(self.step(name, |_, _| ()).1)
    }

    fn subscribe(&self, name: &str) -> Subscription<Arc<BreakerView>> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pushes = entry(&mut records, name).pushes.subscribe();
        // Tells the agent that the subscription stands.
        pushes.mark_changed();
        Subscription::new(pushes)
    }
}
