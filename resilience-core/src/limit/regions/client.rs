//! The ledger of one region, as this process reaches it.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    ledger::{LedgerView, Swap},
    store::RegionStore,
};
use crate::{
    error::Pattern,
    fleet::{FleetSettings, Probe, StoreClient, StoreError, StoreFuture, Waker, millis},
};

/// The ledgers of one group in the store of one region.
struct Group {
    group: Arc<str>,
    store: Arc<dyn RegionStore>,
}

impl Probe for Group {
    /// The client's name names the region too.
    fn probe<'a>(&'a self, _: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.store.read(&self.group).await.map(drop) })
    }
}

pub(super) struct LedgerClient(StoreClient<Group>);

impl LedgerClient {
    pub(super) fn new(
        group: &Arc<str>,
        region: &str,
        store: Arc<dyn RegionStore>,
        settings: &FleetSettings,
    ) -> Self {
        let name = format!("{group}/{region}").into();
        let group = Arc::clone(group);
        let ledgers = Arc::new(Group { group, store });
        Self(StoreClient::new(
            ledgers,
            Pattern::RateLimit,
            name,
            settings,
        ))
    }

    pub(super) async fn report(
        &self,
        instance: &str,
        demand: u64,
        ttl: Duration,
    ) -> Result<LedgerView, StoreError> {
        self.0
            .call(|of| of.store.report(&of.group, instance, demand, millis(ttl)))
            .await
    }

    pub(super) async fn read(&self) -> Result<LedgerView, StoreError> {
        self.0.call(|of| of.store.read(&of.group)).await
    }

    /// Attempted once, whether or not the store is available: a swap that comes late changes nothing.
    pub(super) async fn swap(&self, swap: &Swap, ttl: Duration) -> Result<bool, StoreError> {
        self.0
            .attempt(|of| of.store.swap(&of.group, swap, millis(ttl)))
            .await
    }

    pub(super) fn is_available(&self) -> bool {
        self.0.is_available()
    }

    pub(super) fn wake_on_return(&self, agent: Waker) {
        self.0.wake_on_return(agent);
    }
}

impl fmt::Debug for LedgerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LedgerClient").finish_non_exhaustive()
    }
}
