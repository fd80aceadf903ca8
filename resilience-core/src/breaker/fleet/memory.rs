//! The store for instances in one process: tests, demonstrations, and the model that the Redis store is held to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{
    log::{BreakerLog, BreakerLogEntry, LogAction, OPEN_TIME_IS_OVER},
    members::BreakerMembers,
    record::{BreakerRecord, BreakerView, Change, FleetOverride, FleetState, LeaseAnswer, Report},
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
    log: BreakerLog,
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
        for entry in records.values_mut() {
            entry.record = BreakerRecord::default();
            entry.log = BreakerLog::default();
        }
    }

    /// One step on one record that changes neither state nor override.
    fn step<T>(
        &self,
        name: &str,
        step: impl FnOnce(&mut BreakerRecord, u64) -> T,
    ) -> (T, BreakerView) {
        self.with(name, |entry, now| {
            let done = step(&mut entry.record, now);
            (done, entry.record.view(now))
        })
    }

    /// One step on one record; a new epoch is pushed and logged.
    fn change_by<T>(
        &self,
        name: &str,
        logged: Logged<'_>,
        step: impl FnOnce(&mut BreakerRecord, u64) -> T,
    ) -> (T, BreakerView) {
        self.with(name, |entry, now| {
            let before = entry.record.view(now);
            let done = step(&mut entry.record, now);
            let view = entry.record.view(now);
            if view.epoch != before.epoch {
                entry.log.push(now, logged.entry(&before, &view));
                let pushed = Pushed::Value(Arc::new(view.clone()));
                entry.pushes.send_replace(pushed);
            }
            (done, view)
        })
    }

    fn with<T>(&self, name: &str, read: impl FnOnce(&mut Entry, u64) -> T) -> T {
        let now = self.clock.now().as_nanos() / 1_000_000;
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        read(entry(&mut records, name), now)
    }
}

/// What the log says of a step, if it changes something.
struct Logged<'a> {
    action: LogAction,
    by: &'a str,
    why: &'a str,
    /// Of an override. That of a state is in the view.
    lasting_ms: Option<u64>,
}

impl Logged<'_> {
    fn entry(self, before: &BreakerView, after: &BreakerView) -> BreakerLogEntry {
        let ends = matches!(after.state, FleetState::Open | FleetState::RampUp(_));
        let of_state = match self.action {
            LogAction::Changed => (after.remaining_ms > 0).then_some(after.remaining_ms),
            LogAction::Restored => ends.then_some(after.remaining_ms),
            _ => None,
        };
        BreakerLogEntry {
            by: self.by.to_owned(),
            why: self.why.to_owned(),
            lasting_ms: self.lasting_ms.or(of_state),
            ..BreakerLogEntry::new(after.epoch, self.action, before.state, after.state)
        }
    }
}

const fn logged<'a>(action: LogAction, by: &'a str, why: &'a str) -> Logged<'a> {
    Logged {
        action,
        by,
        why,
        lasting_ms: None,
    }
}

fn entry<'a>(records: &'a mut HashMap<String, Entry>, name: &str) -> &'a mut Entry {
    records.entry(name.to_owned()).or_insert_with(|| Entry {
        record: BreakerRecord::default(),
        log: BreakerLog::default(),
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
        let logged = logged(LogAction::Changed, &change.by, &change.cause);
        ready(self.change_by(name, logged, |record, now| record.change(change, now)))
    }

    fn restore<'a>(
        &'a self,
        name: &'a str,
        known: &'a BreakerView,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        let logged = logged(LogAction::Restored, &known.by, &known.cause);
        ready(self.change_by(name, logged, |record, now| record.restore(known, now)))
    }

    fn lease<'a>(
        &'a self,
        name: &'a str,
        lease: &'a Arc<str>,
        budget: u32,
        lease_ms: u64,
    ) -> StoreFuture<'a, (LeaseAnswer, BreakerView)> {
        let logged = logged(LogAction::Changed, lease, OPEN_TIME_IS_OVER);
        ready(self.change_by(name, logged, |record, now| {
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
        let logged = match &active_override {
            None => logged(LogAction::Cleared, by, ""),
            Some(set) => Logged {
                lasting_ms: set.expires_ms,
                ..logged(LogAction::Overridden(set.kind), by, &set.reason)
            },
        };
        let set = active_override.clone();
        let step = |record: &mut BreakerRecord, now| record.set_override(set, by, now);
        ready(self.change_by(name, logged, step).1)
    }

    fn reset<'a>(
        &'a self,
        name: &'a str,
        by: &'a str,
        cause: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        let logged = logged(LogAction::Reset, by, cause);
        let step = |record: &mut BreakerRecord, now| record.reset(by, cause, now);
        ready(self.change_by(name, logged, step).1)
    }

    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerView> {
        ready(self.step(name, |_, _| ()).1)
    }

    fn members<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerMembers> {
        ready(self.with(name, |entry, now| entry.record.members(now)))
    }

    fn log<'a>(&'a self, name: &'a str, count: usize) -> StoreFuture<'a, Vec<BreakerLogEntry>> {
        ready(self.with(name, |entry, now| entry.log.newest(count, now)))
    }

    fn subscribe(&self, name: &str) -> Subscription<Arc<BreakerView>> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pushes = entry(&mut records, name).pushes.subscribe();
        // Tells the agent that the subscription stands.
        pushes.mark_changed();
        Subscription::new(pushes)
    }
}
