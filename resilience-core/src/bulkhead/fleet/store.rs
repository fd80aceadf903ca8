//! What a store of shared bulkheads offers.

use std::{fmt, sync::Arc};

use tokio::sync::watch;

use super::record::{Admission, Heartbeat, Return, View, Wish};
pub use crate::breaker::fleet::{Answer, StoreFailure};

/// Where a fleet keeps the records of its bulkheads.
///
/// Each method is one atomic step on the [`Record`](super::Record) of bulkhead `name`, with the store's own clock, in
/// one round trip. Whom a step calls up is told to all subscribers.
pub trait BulkheadStore: fmt::Debug + Send + Sync + 'static {
    /// See [`Record::acquire`](super::Record::acquire).
    fn acquire<'a>(&'a self, name: &'a str, wish: &'a Wish) -> Answer<'a, Admission>;

    /// See [`Record::renew`](super::Record::renew). Which leases are held, in the order of the holdings, and how
    /// things stand.
    fn renew<'a>(&'a self, name: &'a str, beat: &'a Heartbeat) -> Answer<'a, (Vec<bool>, View)>;

    /// See [`Record::release`](super::Record::release). Which leases were held, in the order of the returns.
    fn release<'a>(&'a self, name: &'a str, returns: &'a [Return]) -> Answer<'a, Vec<bool>>;

    /// The record as it is, without telling it anything.
    fn view<'a>(&'a self, name: &'a str) -> Answer<'a, View>;

    /// Calls to those who wait for places of bulkhead `name`, from now on.
    fn subscribe(&self, name: &str) -> Calls;
}

/// Somebody is called up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Call {
    /// Nobody yet.
    None,
    /// These wishes: there is room for each of them. Includes those that were called before and have not asked since.
    Up(Arc<[Arc<str>]>),
    /// The channel was interrupted: calls may have been lost, ask.
    Missed,
}

/// Calls to one subscriber; the newest replaces one that was not read yet, so nothing piles up.
#[derive(Clone, Debug)]
pub struct Calls(watch::Receiver<Call>);

impl Calls {
    /// What a store with a sender of its own hands out.
    #[must_use]
    pub const fn new(receiver: watch::Receiver<Call>) -> Self {
        Self(receiver)
    }

    /// Waits until `lease` is called up, or may have been; for ever, once the store is gone.
    pub async fn for_lease(&mut self, lease: &str) {
        let is_meant = |call: &Call| match call {
            Call::None => false,
            Call::Up(leases) => leases.iter().any(|called| &**called == lease),
            Call::Missed => true,
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
