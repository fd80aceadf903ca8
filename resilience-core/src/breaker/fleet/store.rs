//! What a store of fleet breakers offers.

use std::{
    fmt,
    future::{poll_fn, ready},
    sync::Arc,
    task::Poll,
};

use super::{
    log::BreakerLogEntry,
    members::BreakerMembers,
    record::{BreakerView, Change, FleetOverride, LeaseAnswer, Report},
};
use crate::fleet::{Probe, StoreError, StoreFuture, StoreHandle, Subscription};

/// Where a fleet keeps the records of its breakers.
///
/// Each method is one atomic step on the [`BreakerRecord`](super::BreakerRecord) of breaker `name`, with the store's own
/// clock, and returns the view after it. Changes of state and overrides are pushed to all subscribers.
pub trait BreakerStore: fmt::Debug + Send + Sync + 'static {
    /// Merges a report. See [`BreakerRecord::report`](super::BreakerRecord::report).
    fn report<'a>(&'a self, name: &'a str, report: &'a Report) -> StoreFuture<'a, BreakerView>;

    /// Merges the reports of several breakers, at most 32, each as [`report`](Self::report) does: one result per report,
    /// in the same order. The default sends them one by one, concurrently.
    ///
    /// # Errors
    ///
    /// An error of the whole counts for each report.
    fn report_all<'a>(
        &'a self,
        reports: &'a [(Arc<str>, Report)],
    ) -> StoreFuture<'a, Vec<Result<BreakerView, StoreError>>> {
        let reports = reports
            .iter()
            .map(|(name, report)| self.report(name, report));
        Box::pin(all(reports.collect()))
    }

    /// Changes the state. See [`BreakerRecord::change`](super::BreakerRecord::change). Returns whether this proposal won,
    /// and the state that holds now.
    fn change<'a>(
        &'a self,
        name: &'a str,
        change: &'a Change,
    ) -> StoreFuture<'a, (bool, BreakerView)>;

    /// Restores a lost record. See [`BreakerRecord::restore`](super::BreakerRecord::restore). Returns whether the record
    /// knew less.
    fn restore<'a>(
        &'a self,
        name: &'a str,
        known: &'a BreakerView,
    ) -> StoreFuture<'a, (bool, BreakerView)>;

    /// Leases a probe. See [`BreakerRecord::lease`](super::BreakerRecord::lease).
    fn lease<'a>(
        &'a self,
        name: &'a str,
        lease: &'a Arc<str>,
        budget: u32,
        lease_ms: u64,
    ) -> StoreFuture<'a, (LeaseAnswer, BreakerView)>;

    /// Settles a probe. See [`BreakerRecord::settle`](super::BreakerRecord::settle). Returns whether the lease was still
    /// held. Repeated while the lease lasts, if no answer comes.
    fn settle<'a>(
        &'a self,
        name: &'a str,
        lease: &'a str,
        epoch: u64,
        success: Option<bool>,
    ) -> StoreFuture<'a, (bool, BreakerView)>;

    /// Sets or clears an override. See [`BreakerRecord::set_override`](super::BreakerRecord::set_override).
    fn set_override<'a>(
        &'a self,
        name: &'a str,
        active_override: Option<FleetOverride>,
        by: &'a str,
    ) -> StoreFuture<'a, BreakerView>;

    /// Closes the breaker of the whole fleet. See [`BreakerRecord::reset`](super::BreakerRecord::reset).
    fn reset<'a>(
        &'a self,
        name: &'a str,
        by: &'a str,
        cause: &'a str,
    ) -> StoreFuture<'a, BreakerView>;

    /// Reads the record without changing it.
    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerView>;

    /// Reads which instances share the breaker. See [`BreakerRecord::members`](super::BreakerRecord::members). For operators:
    /// no instance asks for it by itself.
    ///
    /// # Errors
    ///
    /// The default is for stores that keep no names, and always fails.
    fn members<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerMembers> {
        let _ = name;
        Box::pin(ready(Err(unsupported("the names of instances"))))
    }

    /// Reads the last changes of the breaker, at most `count`, the newest first. A store keeps the last
    /// [`LOG_ENTRIES`](super::LOG_ENTRIES): of each [change](Self::change), [restoration](Self::restore), open state that
    /// [ended](Self::lease) with a probe, [override](Self::set_override) and [reset](Self::reset), with the author and reason
    /// that were given. For operators: no instance asks for it by itself.
    ///
    /// # Errors
    ///
    /// The default is for stores that keep no log, and always fails.
    fn log<'a>(&'a self, name: &'a str, count: usize) -> StoreFuture<'a, Vec<BreakerLogEntry>> {
        let _ = (name, count);
        Box::pin(ready(Err(unsupported("a log of changes"))))
    }

    /// Checks whether the store takes reports, while it is unavailable. The default reads the record; a store that can be
    /// read while it refuses writes should write something without effect.
    fn probe<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.view(name).await.map(drop) })
    }

    /// Subscribes to the views that are pushed for breaker `name` from now on.
    fn subscribe(&self, name: &str) -> Subscription<Arc<BreakerView>>;

    /// This process' use of the store: return the one that the store keeps, and that its clones share. The default,
    /// `None`, gives every breaker one of its own: then a shutdown ends one breaker at a time, reports are not batched,
    /// idle breakers report as well, and live instances are counted by the records. Breaker stores that return the same
    /// handle must keep the same records: the reports of all breakers on one handle are sent through one of them.
    fn handle(&self) -> Option<&StoreHandle> {
        None
    }
}

crate::fleet::into_store!(BreakerStore);

/// The store does not keep what was asked for, and may be well all the same.
fn unsupported(what: &str) -> StoreError {
    StoreError::new(format!("this store does not keep {what}"), false).partial()
}

impl Probe for dyn BreakerStore {
    fn probe<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        BreakerStore::probe(self, name)
    }
}

/// Waits for all of `steps`, which make progress concurrently.
async fn all<T: Unpin>(
    mut steps: Vec<StoreFuture<'_, T>>,
) -> Result<Vec<Result<T, StoreError>>, StoreError> {
    let mut results: Vec<_> = steps.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut all = Poll::Ready(());
        for (step, result) in steps.iter_mut().zip(&mut results) {
            if result.is_none() {
                match step.as_mut().poll(cx) {
                    Poll::Ready(done) => *result = Some(done),
                    Poll::Pending => all = Poll::Pending,
                }
            }
        }
        all
    })
    .await;
    Ok(results.into_iter().flatten().collect())
}
