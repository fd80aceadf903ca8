//! The background loop of this instance: renews the leases of its calls, and gives back those of
//! calls that ended.
//!
//! Holds the bulkhead weakly, so it ends with the last handle, service and permit, after everything
//! was given back.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{
    lease::HeldLease,
    record::{Heartbeat, Holding, Release},
    release_queue::{PendingRelease, ReleaseQueue},
    settling::Settling,
    shared::Shared,
    store::BulkheadStore,
};
use crate::{
    backoff::Delays,
    clock::Clock,
    fleet::{Agent, StoreClient, Waker, certain_until, jittered, millis, retry_delays},
};

/// Maximum number of leases in one command: a script blocks all other commands.
const BATCH: usize = 256;
/// An instance is no longer live this many leases after its last renewal.
const LIVE: u32 = 2;

pub(super) struct BulkheadAgent {
    shared: Weak<Shared>,
    client: StoreClient<dyn BulkheadStore>,
    name: Arc<str>,
    instance: Arc<str>,
    clock: Clock,
    lease: Duration,
    releases: Arc<ReleaseQueue>,
    waker: Waker,
    next_renewal: Instant,
    renewal_delays: Option<Delays>,
    /// When releases that failed are repeated.
    next_release: Option<Instant>,
    release_delays: Option<Delays>,
    /// For calls that were admitted without the store.
    settling: Settling,
}

/// The lease is renewed three times.
const RENEWALS: f64 = 0.3;

impl BulkheadAgent {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            client: shared.client.clone(),
            name: Arc::clone(&shared.name),
            instance: Arc::clone(&shared.instance),
            clock: shared.clock,
            lease: shared.lease,
            releases: Arc::clone(&shared.releases),
            waker: shared.waker.clone(),
            next_renewal: Instant::now(),
            renewal_delays: None,
            next_release: None,
            release_delays: None,
            settling: Settling::default(),
        }
    }

    /// Enters calls that were admitted without the store.
    async fn settle(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            self.settling.settle(&shared, &self.client).await;
        }
    }

    /// Sends all pending releases, as many in one command as possible.
    async fn release(&mut self) {
        self.next_release = None;
        loop {
            let mut pending = self.releases.take(BATCH);
            if pending.is_empty() {
                self.release_delays = None;
                return;
            }
            let releases = of(&pending);
            let (name, releases) = (&*self.name, &*releases);
            let answer = self.client.attempt(|store| store.release(name, releases));
            if answer.await.is_err() {
                // Leases that have ended meanwhile need no release.
                let now = self.clock.now();
                pending.retain(|pending| pending.until > now);
                if self.releases.put_back(&mut pending) {
                    self.next_release = Some(retry_at(&mut self.release_delays));
                }
                return;
            }
        }
    }

    /// Sends all pending releases, and repeats those that fail until their leases have ended.
    async fn release_until_too_late(&mut self) {
        loop {
            let pending = self.releases.take(BATCH);
            let Some(until) = pending.iter().map(|pending| pending.until).max() else {
                return;
            };
            let releases = of(&pending);
            let (name, releases) = (&*self.name, &*releases);
            let until = self.clock.instant(until);
            let released = self
                .client
                .call_until(until, |store| store.release(name, releases));
            // An error: the leases have ended by themselves.
            drop(released.await);
        }
    }

    /// Renews all leases, and tells the store that this instance is live.
    async fn renew(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            // Only pending releases are left.
            self.next_renewal = Instant::now() + self.lease;
            return;
        };
        let mut held = shared.all_held();
        held.retain(|held| is_certain(&shared, held));
        let mut batches: Vec<&[Arc<HeldLease>]> = held.chunks(BATCH).collect();
        if batches.is_empty() {
            // An instance without calls is live too.
            batches.push(&[]);
        }
        let mut all_answered = true;
        for batch in batches {
            all_answered &= self.renew_batch(&shared, batch).await;
        }
        if all_answered {
            self.renewal_delays = None;
            self.next_renewal = Instant::now() + jittered(self.lease.mul_f64(RENEWALS));
            self.settling.settle(&shared, &self.client).await;
            return;
        }
        // A lease that ends before the next attempt is reported as lost in time.
        let ends = held.iter().map(|held| self.clock.instant(held.until()));
        let retry_at = retry_at(&mut self.renewal_delays);
        self.next_renewal = ends.fold(retry_at, Instant::min);
    }

    async fn renew_batch(&mut self, shared: &Shared, batch: &[Arc<HeldLease>]) -> bool {
        let heartbeat = self.heartbeat(millis(self.lease * LIVE), batch);
        let (name, heartbeat) = (&*self.name, &heartbeat);
        let sent = self.clock.now();
        let answer = self.client.attempt(|store| store.renew(name, heartbeat));
        let Ok((kept, view)) = answer.await else {
            return false;
        };
        self.client.saw_live(view.live);
        self.client
            .count_live(view.live, self.lease.mul_f64(RENEWALS));
        shared.saw(&view);
        for (held, kept) in batch.iter().zip(kept) {
            if kept {
                held.extend(certain_until(sent, self.lease));
            } else {
                shared.has_lost(held, "the store has given it up");
            }
        }
        true
    }

    /// Tells the store that this instance is no longer live. Not repeated: without it the instance
    /// is forgotten two leases later.
    async fn leave(&mut self) {
        let heartbeat = self.heartbeat(1, &[]);
        let (name, heartbeat) = (&*self.name, &heartbeat);
        let answer = self.client.attempt(|store| store.renew(name, heartbeat));
        drop(answer.await);
    }

    fn heartbeat(&self, live_ms: u64, batch: &[Arc<HeldLease>]) -> Heartbeat {
        let holding = |held: &Arc<HeldLease>| Holding {
            lease: Arc::clone(&held.lease),
            cost: held.cost,
            fence: held.fence,
        };
        Heartbeat {
            instance: Arc::clone(&self.instance),
            live_ms,
            lease_ms: millis(self.lease),
            holdings: batch.iter().map(holding).collect(),
        }
    }

    /// Whether calls of this instance hold leases.
    fn holds_leases(&self) -> bool {
        let shared = self.shared.upgrade();
        shared.is_some_and(|shared| shared.holds_leases())
    }
}

impl Agent for BulkheadAgent {
    type Push = ();

    fn next_due(&self) -> Instant {
        let release = self.next_release.unwrap_or(self.next_renewal);
        self.next_renewal.min(release)
    }

    async fn on_due(&mut self) {
        let now = Instant::now();
        if self.next_release.is_some_and(|at| at <= now) {
            self.release().await;
        }
        if self.next_renewal <= now {
            self.renew().await;
        }
    }

    /// There are releases to send, a call without a lease has ended, or the store is available again.
    async fn on_wake(&mut self) {
        let is_available = self.client.is_available();
        if is_available {
            self.settle().await;
        }
        if self.next_release.is_none() || is_available {
            self.release().await;
        }
        if self.renewal_delays.is_some() && is_available {
            self.renew().await;
        }
    }

    /// Keeps the leases of calls in progress until these have ended, gives back what is pending and
    /// leaves.
    async fn on_close(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.close();
        }
        let waker = self.waker.clone();
        while self.holds_leases() {
            tokio::select! {
                () = waker.woken() => self.on_wake().await,
                () = sleep_until(self.next_due()) => self.on_due().await,
            }
        }
        self.settling.end(&self.releases);
        self.release_until_too_late().await;
        self.leave().await;
    }
}

fn of(pending: &[PendingRelease]) -> Vec<Release> {
    let releases = pending.iter().map(|pending| pending.release.clone());
    releases.collect()
}

/// When to repeat a step that failed.
fn retry_at(delays: &mut Option<Delays>) -> Instant {
    let delays = delays.get_or_insert_with(retry_delays);
    Instant::now() + delays.next().unwrap_or_default()
}

/// Whether a lease cannot have ended yet. One that may have is lost, whatever the store says of it
/// now: other calls may have held it in between.
fn is_certain(shared: &Shared, held: &HeldLease) -> bool {
    let is_certain = held.until() > shared.clock.now();
    if !is_certain {
        shared.has_lost(held, "it could not be renewed in time");
    }
    is_certain
}
