//! Stores around the in-process one, which disturb it.

use super::*;
use crate::fleet::StoreHandle;

/// A store that has every step done by another, in its own way.
pub(super) trait Around: std::fmt::Debug + Send + Sync + 'static {
    fn inner(&self) -> &InProcessBreakers;

    /// Has `step` done, now, later or not at all.
    fn send<'a, T, F>(
        &'a self,
        step: impl FnOnce(InProcessBreakers) -> F + Send + 'static,
    ) -> StoreFuture<'a, T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static;

    fn subscription(&self, name: &str) -> Subscription<Arc<BreakerView>> {
        self.inner().subscribe(name)
    }

    fn store_handle(&self) -> Option<&StoreHandle> {
        None
    }

    /// A call with this number of reports.
    fn note_reports(&self, _reports: usize) {}
}

impl<S: Around> BreakerStore for S {
    fn report<'a>(&'a self, name: &'a str, report: &'a Report) -> StoreFuture<'a, BreakerView> {
        self.note_reports(1);
        let (name, report) = (name.to_owned(), report.clone());
        self.send(move |store| async move { store.report(&name, &report).await })
    }
    fn report_all<'a>(
        &'a self,
        reports: &'a [(Arc<str>, Report)],
    ) -> StoreFuture<'a, Vec<Result<BreakerView, StoreError>>> {
        self.note_reports(reports.len());
        let reports = reports.to_vec();
        self.send(move |store| async move { store.report_all(&reports).await })
    }
    fn change<'a>(
        &'a self,
        name: &'a str,
        change: &'a Change,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        let (name, change) = (name.to_owned(), change.clone());
        self.send(move |store| async move { store.change(&name, &change).await })
    }
    fn restore<'a>(
        &'a self,
        name: &'a str,
        known: &'a BreakerView,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        let (name, known) = (name.to_owned(), known.clone());
        self.send(move |store| async move { store.restore(&name, &known).await })
    }
    fn lease<'a>(
        &'a self,
        name: &'a str,
        lease: &'a Arc<str>,
        budget: u32,
        lease_ms: u64,
    ) -> StoreFuture<'a, (LeaseAnswer, BreakerView)> {
        let (name, lease) = (name.to_owned(), Arc::clone(lease));
        self.send(move |store| async move { store.lease(&name, &lease, budget, lease_ms).await })
    }
    fn settle<'a>(
        &'a self,
        name: &'a str,
        lease: &'a str,
        epoch: u64,
        success: Option<bool>,
    ) -> StoreFuture<'a, (bool, BreakerView)> {
        let (name, lease) = (name.to_owned(), lease.to_owned());
        self.send(move |store| async move { store.settle(&name, &lease, epoch, success).await })
    }
    fn set_override<'a>(
        &'a self,
        name: &'a str,
        active_override: Option<FleetOverride>,
        by: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        let (name, by) = (name.to_owned(), by.to_owned());
        self.send(move |store| async move { store.set_override(&name, active_override, &by).await })
    }
    fn reset<'a>(
        &'a self,
        name: &'a str,
        by: &'a str,
        cause: &'a str,
    ) -> StoreFuture<'a, BreakerView> {
        let (name, by, cause) = (name.to_owned(), by.to_owned(), cause.to_owned());
        self.send(move |store| async move { store.reset(&name, &by, &cause).await })
    }
    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerView> {
        let name = name.to_owned();
        self.send(move |store| async move { store.view(&name).await })
    }
    fn subscribe(&self, name: &str) -> Subscription<Arc<BreakerView>> {
        self.subscription(name)
    }
    fn handle(&self) -> Option<&StoreHandle> {
        self.store_handle()
    }
}
