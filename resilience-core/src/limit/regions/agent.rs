//! The background loop: keeps a process informed of its region's share, and takes the region's turns.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Shared,
    balance::wanted,
    demand::DemandRate,
    ledger::{LedgerView, PeerLedger, turn},
    share::Reading,
};
use crate::{
    clock::Moment,
    fleet::{Agent, StoreError, jittered},
};

/// A reported demand counts for this many intervals.
const DEMAND_LASTS: u64 = 5;
/// Ledgers are kept for this many terms beyond what is in them: a region that slept starts where it was.
const KEEP: u64 = 100;

pub(super) struct RegionAgent {
    shared: Arc<Shared>,
    demand: DemandRate,
    next: Instant,
}

impl RegionAgent {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        Self {
            shared,
            demand: DemandRate::new(),
            next: now,
        }
    }

    async fn tend(&mut self) {
        // The client counts and reports what fails. The share that was read last runs out by its own clock.
        let _ = tend(&self.shared, &mut self.demand).await;
        let interval = Duration::from_micros(self.shared.rules.interval);
        // Not later than the interval: the ledger's times are multiples of it.
        self.next = Instant::now() + jittered(interval).min(interval);
    }
}

impl Agent for RegionAgent {
    type Push = ();

    fn next_due(&self) -> Instant {
        self.next
    }

    async fn on_due(&mut self) {
        self.tend().await;
    }

    /// The region's store is available again.
    async fn on_wake(&mut self) {
        self.tend().await;
    }

    /// Takes back the demand of this process.
    async fn on_close(&mut self) {
        // What fails runs out soon.
        let _ = self
            .shared
            .here
            .report(&self.shared.instance, 0, Duration::from_millis(1))
            .await;
    }
}

/// Reports the demand, reads the share, and takes the turn if it is due.
async fn tend(shared: &Shared, demand: &mut DemandRate) -> Result<(), StoreError> {
    let demand = demand.millionths(shared.asked.take());
    let ttl = Duration::from_micros(DEMAND_LASTS * shared.rules.interval);
    let sent = shared.clock.now();
    let own = shared.here.report(&shared.instance, demand, ttl).await?;
    let (parts, ending) = own.ledger.share(&shared.rules, own.now);
    let at = |left| sent + Duration::from_micros(left);
    let reading = Reading {
        own: parts,
        borrowed: ending
            .into_iter()
            .map(|(parts, left)| (parts, at(left)))
            .collect(),
        until: Some(sent + shared.rules.hold_time()),
    };
    shared.known.read(reading, shared.clock.now());
    if own.ledger.is_turn(own.now) {
        take_turn(shared, &own, sent).await?;
    }
    Ok(())
}

async fn take_turn(shared: &Shared, own: &LedgerView, sent: Moment) -> Result<(), StoreError> {
    let mut peers = BTreeMap::new();
    let mut demands = BTreeMap::from([(Arc::clone(&shared.region), own.demand)]);
    for (peer, ledger) in &shared.peers {
        // A peer that does not answer keeps what it was lent, until that ends.
        if let Ok(view) = ledger.read().await {
            demands.insert(Arc::clone(peer), view.demand);
            let late = shared.clock.now().since(sent).as_micros();
            let late = u64::try_from(late).unwrap_or(u64::MAX);
            peers.insert(Arc::clone(peer), PeerLedger { view, late });
        }
    }
    let wanted = wanted(&shared.region, &shared.shares, &demands);
    let (swap, swaps) = turn(&shared.region, &shared.rules, own, &peers, &wanted);
    let ttl = Duration::from_micros(KEEP * shared.rules.term);
    if !shared.here.swap(&swap, ttl).await? {
        // Another process has taken it.
        return Ok(());
    }
    for (peer, swap) in swaps {
        if let Some(ledger) = shared.peers.get(&peer) {
            // What is not written now is written in the next turn, or ends.
            let _ = ledger.swap(&swap, ttl).await;
        }
    }
    Ok(())
}
