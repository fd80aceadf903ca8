//! What a store of shared bulkheads offers.

use std::{fmt, sync::Arc};

use tokio::sync::watch;

use super::record::{AcquireRequest, Admission, BulkheadView, Heartbeat, Release};
use crate::fleet::StoreHandle;
pub use crate::fleet::{StoreError, StoreFuture};

/// Where a fleet keeps the records of its bulkheads.
///
/// Each method is one atomic step on the [`BulkheadRecord`](super::BulkheadRecord) of bulkhead `name`, with the store's own clock, in
/// one round trip. Whom a step calls up is told to all subscribers.
pub trait BulkheadStore: fmt::Debug + Send + Sync + 'static {
    /// See [`BulkheadRecord::acquire`](super::BulkheadRecord::acquire).
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        request: &'a AcquireRequest,
    ) -> StoreFuture<'a, Admission>;

    /// See [`BulkheadRecord::renew`](super::BulkheadRecord::renew). Which leases are held, in the order of the holdings, and how
    /// things stand.
    fn renew<'a>(
        &'a self,
        name: &'a str,
        beat: &'a Heartbeat,
    ) -> StoreFuture<'a, (Vec<bool>, BulkheadView)>;

    /// See [`BulkheadRecord::release`](super::BulkheadRecord::release). Which leases were held, in the order of the returns.
    fn release<'a>(&'a self, name: &'a str, releases: &'a [Release]) -> StoreFuture<'a, Vec<bool>>;

    /// The record as it is, without telling it anything.
    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BulkheadView>;

    /// Calls to those who wait for places of bulkhead `name`, from now on.
    fn subscribe(&self, name: &str) -> Wakeups;

    /// This process' use of the store: return the one that the store keeps, and that its clones share. The default,
    /// `None`, gives every handle one of its own: then a shutdown ends one handle at a time, and live instances are
    /// counted by the records of each pattern.
    fn handle(&self) -> Option<&StoreHandle> {
        None
    }
}

/// Somebody is called up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wakeup {
    /// Nobody yet.
    None,
    /// These wishes: there is room for each of them. Includes those that were called before and have not asked since.
    Leases(Arc<[Arc<str>]>),
    /// The channel was interrupted: calls may have been lost, ask.
    Missed,
}

/// Calls to one subscriber; the newest replaces one that was not read yet, so nothing piles up.
#[derive(Clone, Debug)]
pub struct Wakeups(watch::Receiver<Wakeup>);

impl Wakeups {
    /// What a store with a sender of its own hands out.
    #[must_use]
    pub const fn new(receiver: watch::Receiver<Wakeup>) -> Self {
        Self(receiver)
    }

    /// Waits until `lease` is called up, or may have been; for ever, once the store is gone.
    pub async fn for_lease(&mut self, lease: &str) {
        let is_meant = |call: &Wakeup| match call {
            Wakeup::None => false,
            Wakeup::Leases(leases) => leases.iter().any(|called| &**called == lease),
            Wakeup::Missed => true,
        };
        loop {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if is_meant(&self.0.borrow_and_update()) {
                return;
            }
        }
    }

    /// Forgets what was called so far.
    pub fn catch_up(&mut self) {
        self.0.mark_unchanged();
    }
}
