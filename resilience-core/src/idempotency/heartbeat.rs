//! Signs of life: the lease is renewed while the work goes on.

use std::{future::pending, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    attempt::Attempt,
    record::WriteOutcome,
    shared::ms,
    worker::{HeldClaim, Worker},
};
use crate::error::Pattern;

pub(super) struct Heartbeat<'a> {
    worker: &'a Worker,
    attempt: Attempt,
    /// The next sign of life.
    next: Instant,
    /// When the lease has ended, if no other sign of life is heard: counted from before it was asked for, so that it
    /// is never later than the store has it.
    until: Instant,
    /// When signs of life end.
    max_lease_time: Instant,
}

impl<'a> Heartbeat<'a> {
    pub(super) fn new(worker: &'a Worker, attempt: &Attempt) -> Self {
        let settings = &worker.shared.settings;
        Self {
            worker,
            attempt: attempt.clone(),
            next: worker.asked + settings.lease / 3,
            until: worker.asked + settings.lease,
            max_lease_time: worker.asked + settings.max_lease_time,
        }
    }

    /// Ends at the ceiling, if work is to be cancelled there.
    pub(super) async fn until_cancelled(&mut self) {
        if self.worker.shared.settings.cancel_at_max_lease_time {
            tokio::select! {
                () = sleep_until(self.max_lease_time) => self.lose("the work has come to its ceiling"),
                () = self.forever() => {}
            }
        } else {
            self.forever().await;
        }
    }

    /// Never ends. May be dropped and begun anew.
    pub(super) async fn forever(&mut self) {
        let Some(held) = &self.worker.held else {
            return pending().await;
        };
        while !self.attempt.is_lost() {
            let next = if self.next < self.max_lease_time {
                self.next
            } else {
                self.until
            };
            sleep_until(next.min(self.until)).await;
            let now = Instant::now();
            if now >= self.until {
                self.lose("the lease has ended");
            } else if now >= self.next && now < self.max_lease_time {
                self.renew(held, now).await;
            }
        }
        pending().await
    }

    async fn renew(&mut self, held: &HeldClaim, asked: Instant) {
        let (shared, lease) = (&self.worker.shared, self.worker.shared.settings.lease);
        // Before the answer: whoever drops this loses no time.
        self.next = asked + (lease / 12).clamp(Duration::from_millis(1), Duration::from_secs(1));
        let extended = held
            .store
            .extend(&shared.name, &self.worker.key, &held.holder, ms(lease));
        match shared.within_budget(&held.store, extended).await {
            Ok(WriteOutcome::Lost(_)) => self.lose("somebody else holds the key"),
            Ok(kept) => {
                shared.totals.renewed.fetch_add(1, Relaxed);
                self.next = asked + lease / 3;
                self.until = asked + lease;
                if kept == WriteOutcome::Restored {
                    self.attempt.leave_checkpoint_again(held).await;
                }
            }
            // Tried again before long.
            Err(_) => {}
        }
    }

    fn lose(&self, why: &'static str) {
        if self.attempt.lose() {
            let shared = &self.worker.shared;
            shared.totals.leases_lost.fetch_add(1, Relaxed);
            tracing::warn!(
                target: "resilience",
                pattern = Pattern::Idempotency.as_str(),
                name = &*shared.name,
                fence = self.attempt.fence(),
                why,
                "lease lost"
            );
        }
    }
}
