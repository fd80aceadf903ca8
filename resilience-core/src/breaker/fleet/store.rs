//! What a store of shared breakers offers.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

use crate::fleet::StoreHandle;
pub use crate::fleet::{StoreError, StoreFuture};

use super::record::{BreakerView, Change, FleetOverride, LeaseAnswer, Report};

/// Maximum time for one step of the store. A store that keeps its own, shorter budget never meets it;
/// one that never answers would otherwise stop the agent at its report, deaf to pushes.
pub(super) const STEP_BUDGET: Duration = Duration::from_millis(250);

/// Waits for `answer` for at most [`STEP_BUDGET`]. What the store has done by then is unknown.
pub(super) async fn in_time<T>(answer: StoreFuture<'_, T>) -> Result<T, StoreError> {
    timeout(STEP_BUDGET, answer).await.unwrap_or_else(|_| {
        let reason = format!("no answer within {STEP_BUDGET:?}");
        Err(StoreError::new(reason, true))
    })
}

/// Where a fleet keeps its breakers' records.
///
/// Each method is one atomic step on the [`BreakerRecord`](super::BreakerRecord) of breaker `name`, with the store's own clock,
/// and answers with the view after it. Changes of state and orders are pushed to all subscribers.
pub trait BreakerStore: fmt::Debug + Send + Sync + 'static {
    /// See [`BreakerRecord::report`](super::BreakerRecord::report).
    fn report<'a>(&'a self, name: &'a str, report: &'a Report) -> StoreFuture<'a, BreakerView>;

    /// See [`BreakerRecord::change`](super::BreakerRecord::change). Whether this proposal won, and what holds now.
    fn change<'a>(
        &'a self,
        name: &'a str,
        change: &'a Change,
    ) -> StoreFuture<'a, (bool, BreakerView)>;

    /// See [`BreakerRecord::restore`](super::BreakerRecord::restore). Whether the record knew less.
    fn restore<'a>(
        &'a self,
        name: &'a str,
        known: &'a BreakerView,
    ) -> StoreFuture<'a, (bool, BreakerView)>;

    /// See [`BreakerRecord::lease`](super::BreakerRecord::lease).
    fn lease<'a>(
        &'a self,
        name: &'a str,
        lease: &'a Arc<str>,
        budget: u32,
        lease_ms: u64,
    ) -> StoreFuture<'a, (LeaseAnswer, BreakerView)>;

    /// See [`BreakerRecord::settle`](super::BreakerRecord::settle). Whether the lease was still held.
    fn settle<'a>(
        &'a self,
        name: &'a str,
        lease: &'a str,
        epoch: u64,
        success: Option<bool>,
    ) -> StoreFuture<'a, (bool, BreakerView)>;

    /// See [`BreakerRecord::set_override`](super::BreakerRecord::set_override).
    fn set_override<'a>(
        &'a self,
        name: &'a str,
        active_override: Option<FleetOverride>,
        by: &'a str,
    ) -> StoreFuture<'a, BreakerView>;

    /// See [`BreakerRecord::reset`](super::BreakerRecord::reset).
    fn reset<'a>(
        &'a self,
        name: &'a str,
        by: &'a str,
        cause: &'a str,
    ) -> StoreFuture<'a, BreakerView>;

    /// The record as it is, without telling it anything.
    fn view<'a>(&'a self, name: &'a str) -> StoreFuture<'a, BreakerView>;

    /// Pushes about breaker `name` from now on.
    fn subscribe(&self, name: &str) -> Subscription;

    /// This process' use of the store: return the one that the store keeps, and that its clones share. The default,
    /// `None`, gives every handle one of its own: then a shutdown ends one handle at a time, and live instances are
    /// counted by the records of each pattern.
    fn handle(&self) -> Option<&StoreHandle> {
        None
    }
}

/// Something was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Push {
    /// Nothing yet.
    None,
    /// The fleet stands here now.
    View(Arc<BreakerView>),
    /// The channel was interrupted: pushes may have been lost, ask.
    Missed,
}

/// Pushes to one subscriber; the newest replaces one that was not read yet, so nothing piles up.
#[derive(Clone, Debug)]
pub struct Subscription(watch::Receiver<Push>);

impl Subscription {
    /// What a store with a sender of its own hands out.
    #[must_use]
    pub const fn new(receiver: watch::Receiver<Push>) -> Self {
        Self(receiver)
    }

    /// Waits for the next push; for ever, once the store is gone.
    pub async fn next(&mut self) -> Push {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().clone()
    }
}
