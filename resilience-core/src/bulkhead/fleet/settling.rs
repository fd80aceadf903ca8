//! Calls that were admitted without the store, entered in it when it is back.

use std::sync::Arc;

use super::{
    lease::HeldLease,
    record::{AcquireRequest, Admission, Release},
    release_queue::{PendingRelease, ReleaseQueue},
    shared::Shared,
    store::BulkheadStore,
};
use crate::fleet::{StoreClient, certain_until, millis};

/// Leases of an instance for its calls that were admitted without the store. Not one per call: they are given back as
/// calls end, so at most one of these parts is held for longer than it is needed.
#[derive(Default)]
pub(super) struct Settling {
    leases: Vec<Arc<HeldLease>>,
}

/// Maximum number of leases, each for as many calls as it takes.
const PARTS: u64 = 32;

impl Settling {
    /// Gives back what is no longer needed, then acquires what is missing. If the fleet holds too much already, the rest
    /// is tried again at the next renewal.
    pub(super) async fn settle(
        &mut self,
        shared: &Shared,
        client: &StoreClient<dyn BulkheadStore>,
    ) {
        let now = shared.clock.now();
        self.leases.retain(|lease| !lease.is_lost(now));
        let owed = shared.held_without_lease();
        let mut entered: u64 = self.leases.iter().map(|lease| lease.cost).sum();
        while let Some(lease) = self.leases.pop_if(|lease| entered - lease.cost >= owed) {
            entered -= lease.cost;
            give_back(shared, &lease);
        }
        let part = owed.saturating_sub(entered).div_ceil(PARTS).max(1);
        while entered < owed {
            let cost = part.min(owed - entered);
            let Some(lease) = acquire(shared, client, cost).await else {
                return;
            };
            entered += cost;
            self.leases.push(lease);
        }
    }

    /// Gives everything back: no call of this instance is in progress any more.
    pub(super) fn end(&mut self, releases: &ReleaseQueue) {
        for lease in self.leases.drain(..) {
            releases.push(PendingRelease {
                until: lease.until(),
                release: Release {
                    lease: Arc::clone(&lease.lease),
                    fence: Some(lease.fence),
                },
            });
        }
    }
}

async fn acquire(
    shared: &Shared,
    client: &StoreClient<dyn BulkheadStore>,
    cost: u64,
) -> Option<Arc<HeldLease>> {
    let request = AcquireRequest {
        lease: shared.new_lease(),
        cost,
        limit: shared.limit(),
        lease_ms: millis(shared.lease),
        ticket_ms: 0,
        releases: Vec::new(),
    };
    let (sent, name) = (shared.clock.now(), &*shared.name);
    let answer = client.call(|store| store.acquire(name, &request)).await;
    match answer {
        Ok(Admission::Granted { fence }) => {
            let until = certain_until(sent, shared.lease);
            let lease = HeldLease::new(shared.next_number(), request.lease, cost, fence, until);
            let lease = Arc::new(lease);
            shared.hold(&lease);
            Some(lease)
        }
        Ok(_) => None,
        Err(error) => {
            if error.ambiguous {
                shared.give_back(request.lease, None);
            }
            None
        }
    }
}

fn give_back(shared: &Shared, lease: &HeldLease) {
    shared.let_go(lease);
    shared.give_back(Arc::clone(&lease.lease), Some(lease.fence));
}
