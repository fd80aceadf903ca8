//! The task that keeps a process informed of its region's share, and takes the region's turns.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{
    Shared,
    balance::wanted,
    ledger::{LedgerView, PeerLedger, turn},
    share::Reading,
};
use crate::{clock::Moment, fleet::StoreError};

/// A demand that was told counts for so many intervals.
const DEMAND_LASTS: u64 = 5;
/// Ledgers outlive what is in them by so many terms: a region that slept begins where it was.
const KEEP: u64 = 100;

pub(super) fn start(shared: &Arc<Shared>) {
    tokio::spawn(run(Arc::downgrade(shared)));
}

async fn run(shared: Weak<Shared>) {
    let mut demand = DemandRate {
        since: Instant::now(),
        smooth: 0.0,
    };
    loop {
        let Some(strong) = shared.upgrade() else {
            return;
        };
        let interval = Duration::from_micros(strong.rules.interval);
        match tend(&strong, &mut demand).await {
            Ok(()) => strong.answered(),
            Err(failure) => strong.unanswered(&failure),
        }
        drop(strong);
        sleep(interval.mul_f64(0.9 + fastrand::f64() * 0.1)).await;
    }
}

/// What this process would use of the whole, smoothed over some intervals.
struct DemandRate {
    since: Instant,
    smooth: f64,
}

impl DemandRate {
    fn millionths(&mut self, asked: u64) -> u64 {
        let now = Instant::now();
        let passed = now.duration_since(self.since).as_micros().max(1);
        self.since = now;
        self.smooth += (asked as f64 * 1e6 / passed as f64 - self.smooth) / 2.0;
        // Below a millionth it is none.
        self.smooth.min(1e12) as u64
    }
}

/// Tells the demand, reads the share, and takes the turn if it is due.
async fn tend(shared: &Shared, demand: &mut DemandRate) -> Result<(), StoreError> {
    let demand = demand.millionths(shared.asked.swap(0, Relaxed));
    let ttl = DEMAND_LASTS * shared.rules.interval / 1000;
    let sent = shared.clock.now();
    let own = shared
        .here
        .report(&shared.group, &shared.instance, demand, ttl)
        .await?;
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
    let patience = Duration::from_micros(shared.rules.interval / 4);
    let mut peers = BTreeMap::new();
    let mut demands = BTreeMap::from([(Arc::clone(&shared.region), own.demand)]);
    for (peer, store) in &shared.peers {
        // A peer that does not answer keeps what it was lent, until that ends.
        if let Ok(Ok(view)) = timeout(patience, store.read(&shared.group)).await {
            demands.insert(Arc::clone(peer), view.demand);
            let late = shared.clock.now().since(sent).as_micros();
            let late = u64::try_from(late).unwrap_or(u64::MAX);
            peers.insert(Arc::clone(peer), PeerLedger { view, late });
        }
    }
    let wanted = wanted(&shared.region, &shared.shares, &demands);
    let (swap, swaps) = turn(&shared.region, &shared.rules, own, &peers, &wanted);
    let ttl = KEEP * shared.rules.term / 1000;
    if !shared.here.swap(&shared.group, &swap, ttl).await? {
        // Another process has taken it.
        return Ok(());
    }
    for (peer, swap) in swaps {
        if let Some(store) = shared.peers.get(&peer) {
            // What is not written now is next time, or ends.
            let _ = timeout(patience, store.swap(&shared.group, &swap, ttl)).await;
        }
    }
    Ok(())
}
