//! The task that speaks for this instance: renews what its calls hold, and gives back what they held.
//!
//! One task per bulkhead and instance. It holds the bulkhead weakly, and ends when the last handle, service and permit
//! are gone and what they held is given back.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{
    acquire::{certain_until, millis},
    permit::Held,
    record::{Heartbeat, Holding, Release},
    shared::{ReleaseQueue, Shared},
    store::BulkheadStore,
};
use crate::clock::Clock;

/// So many leases go into one command: a script keeps everybody else waiting.
const BATCH: usize = 256;
/// An instance counts as live for so many leases after its last heartbeat.
const LIVE: u32 = 2;

pub(super) struct Agent {
    shared: Weak<Shared>,
    store: Arc<dyn BulkheadStore>,
    name: Arc<str>,
    clock: Clock,
    lease: Duration,
    release_queue: Arc<ReleaseQueue>,
    next_beat: Instant,
    /// When what is owed is tried again, if it failed.
    next_try: Option<Instant>,
}

impl Agent {
    /// Starts the task. Within a tokio runtime.
    pub(super) fn start(shared: &Arc<Shared>) {
        let agent = Self {
            shared: Arc::downgrade(shared),
            store: Arc::clone(&shared.store),
            name: Arc::clone(&shared.name),
            clock: shared.clock,
            lease: shared.lease,
            release_queue: Arc::clone(&shared.release_queue),
            next_beat: Instant::now(),
            next_try: None,
        };
        tokio::spawn(agent.run());
    }

    async fn run(mut self) {
        while self.shared.strong_count() > 0 || !self.release_queue.is_empty() {
            let release_queue = Arc::clone(&self.release_queue);
            let next_try = self.next_try;
            let due = async {
                match next_try {
                    Some(at) => sleep_until(at).await,
                    None => release_queue.ring.notified().await,
                }
            };
            tokio::select! {
                () = due => self.give_back().await,
                () = sleep_until(self.next_beat) => self.beat().await,
            }
        }
    }

    /// Whatever has come back meanwhile, in one command.
    async fn give_back(&mut self) {
        self.next_try = None;
        loop {
            let mut owed = self.release_queue.take(BATCH);
            if owed.is_empty() {
                return;
            }
            let releases: Vec<Release> = owed.iter().map(|late| late.what.clone()).collect();
            let answer = self.store.release(&self.name, &releases).await;
            let shared = self.shared.upgrade();
            match (answer, shared) {
                (Ok(_), Some(shared)) => shared.answered(),
                (Ok(_), None) => {}
                (Err(failure), shared) => {
                    if let Some(shared) = shared {
                        shared.unanswered(&failure);
                    }
                    // What has run out meanwhile is given back by time.
                    let now = self.clock.now();
                    owed.retain(|late| late.until > now);
                    self.release_queue.put_back(&mut owed);
                    self.next_try = Some(Instant::now() + self.retry_pause());
                    return;
                }
            }
        }
    }

    async fn beat(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            // What is left is to give back what is owed.
            self.next_beat = Instant::now() + Duration::from_secs(3600);
            return;
        };
        let mut held = shared.all_held();
        held.retain(|held| still_certain(&shared, held));
        let mut batches: Vec<&[Arc<Held>]> = held.chunks(BATCH).collect();
        if batches.is_empty() {
            // An instance is alive without calls too.
            batches.push(&[]);
        }
        let mut all_answered = true;
        for batch in batches {
            all_answered &= self.renew(&shared, batch).await;
        }
        let interval = if all_answered {
            (self.lease / 3).mul_f64(0.9 + fastrand::f64() * 0.1)
        } else {
            self.retry_pause()
        };
        self.next_beat = Instant::now() + interval;
        if !all_answered {
            let ends = held.iter().map(|held| self.clock.instant(held.until()));
            self.next_beat = ends.fold(self.next_beat, Instant::min);
        }
    }

    async fn renew(&self, shared: &Shared, batch: &[Arc<Held>]) -> bool {
        let beat = Heartbeat {
            instance: Arc::clone(&shared.instance),
            live_ms: millis(self.lease * LIVE),
            lease_ms: millis(self.lease),
            holdings: batch.iter().map(|held| holding(held)).collect(),
        };
        let sent = self.clock.now();
        match self.store.renew(&self.name, &beat).await {
            Ok((kept, view)) => {
                shared.answered();
                shared.saw(&view);
                for (held, kept) in batch.iter().zip(kept) {
                    if kept {
                        held.prolong(certain_until(sent, self.lease));
                    } else {
                        shared.has_lost(held, "the store has given it up");
                    }
                }
                true
            }
            Err(failure) => {
                shared.unanswered(&failure);
                false
            }
        }
    }

    /// Sooner than a heartbeat, not so soon that a fleet keeps a store from coming back.
    fn retry_pause(&self) -> Duration {
        (self.lease / 10)
            .clamp(Duration::from_millis(20), Duration::from_secs(1))
            .mul_f64(0.5 + fastrand::f64() * 0.5)
    }
}

/// A lease that may have run out is lost, whatever the store says of it now: others may have held it in between.
fn still_certain(shared: &Shared, held: &Held) -> bool {
    let certain = held.until() > shared.clock.now();
    if !certain {
        shared.has_lost(held, "it could not be renewed in time");
    }
    certain
}

fn holding(held: &Held) -> Holding {
    Holding {
        lease: Arc::clone(&held.lease),
        cost: held.cost,
        fence: held.fence,
    }
}
