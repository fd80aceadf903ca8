//! The store of bulkheads that a fleet shares.

use std::{fmt, sync::Arc};

use super::record::{AcquireRequest, Admission, BulkheadView, Heartbeat, Release};
use crate::fleet::{Probe, Pushed, StoreHandle, Subscription};
pub use crate::fleet::{StoreError, StoreFuture};

/// Store of the records of a fleet's bulkheads.
///
/// Each method is one atomic step on the [`BulkheadRecord`](super::BulkheadRecord) of bulkhead
/// `name`, by the store's own clock, in one round trip. The [wakeups](super::Step::up) of a step are
/// sent to all subscribers. A store may hang: each step has a time budget.
pub trait BulkheadStore: fmt::Debug + Send + Sync + 'static {
    /// Takes permits: see [`BulkheadRecord::acquire`](super::BulkheadRecord::acquire).
    fn acquire<'a>(
        &'a self,
        name: &'a str,
        request: &'a AcquireRequest,
    ) -> StoreFuture<'a, Admission>;

    /// Renews leases: see [`BulkheadRecord::renew`](super::BulkheadRecord::renew). Returns which of
    /// them are held, in the order of the holdings, and the view of the record.
    fn renew<'a>(
        &'a self,
        name: &'a str,
        heartbeat: &'a Heartbeat,
    ) -> StoreFuture<'a, (Vec<bool>, BulkheadView)>;

    /// Gives leases back: see [`BulkheadRecord::release`](super::BulkheadRecord::release). Returns
    /// which of them were held, in the order of `releases`.
    fn release<'a>(&'a self, name: &'a str, releases: &'a [Release]) -> StoreFuture<'a, Vec<bool>>;

    /// Reads the record.
    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BulkheadView>;

    /// Subscribes to the wakeups of bulkhead `name`.
    fn subscribe(&self, name: &str) -> Wakeups;

    /// Returns this process' use of the store: the handle that the store keeps and that its clones
    /// share. Default: `None`, which gives every bulkhead a handle of its own, so that a shutdown
    /// ends one bulkhead at a time.
    fn handle(&self) -> Option<&StoreHandle> {
        None
    }
}

crate::fleet::into_store!(BulkheadStore);

/// Message to the calls in the fleet's queue: the leases of requests for which there is room now,
/// including those that were named before and have not asked since.
pub type Wakeup = Pushed<Arc<[Arc<str>]>>;

/// The wakeups of one bulkhead.
pub type Wakeups = Subscription<Arc<[Arc<str>]>>;

impl Probe for dyn BulkheadStore {
    fn probe<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.view(name).await.map(drop) })
    }
}
