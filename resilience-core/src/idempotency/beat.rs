//! Signs of life: the lease is renewed while the work goes on.

use std::{future::pending, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    attempt::Attempt,
    lead::{Hold, Lead},
    record::Kept,
    shared::ms,
};
use crate::error::Pattern;

pub(super) struct Beat<'a> {
    lead: &'a Lead,
    attempt: Attempt,
    /// The next sign of life.
    next: Instant,
    /// When the lease has ended, if no other sign of life is heard: counted from before it was asked for, so that it
    /// is never later than the store has it.
    until: Instant,
    /// When signs of life end.
    ceiling: Instant,
}

impl<'a> Beat<'a> {
    pub(super) fn new(lead: &'a Lead, attempt: &Attempt) -> Self {
        let settings = &lead.shared.settings;
        Self {
            lead,
            attempt: attempt.clone(),
            next: lead.asked + settings.lease / 3,
            until: lead.asked + settings.lease,
            ceiling: lead.asked + settings.ceiling,
        }
    }

    /// Ends at the ceiling, if work is to be cancelled there.
    pub(super) async fn until_cancelled(&mut self) {
        if self.lead.shared.settings.cancel_at_ceiling {
            tokio::select! {
                () = sleep_until(self.ceiling) => self.lose("the work has come to its ceiling"),
                () = self.forever() => {}
            }
        } else {
            self.forever().await;
        }
    }

    /// Never ends. May be dropped and begun anew.
    pub(super) async fn forever(&mut self) {
        let Some(hold) = &self.lead.hold else {
            return pending().await;
        };
        while !self.attempt.is_lost() {
            let next = if self.next < self.ceiling {
                self.next
            } else {
                self.until
            };
            sleep_until(next.min(self.until)).await;
            let now = Instant::now();
            if now >= self.until {
                self.lose("the lease has ended");
            } else if now >= self.next && now < self.ceiling {
                self.renew(hold, now).await;
            }
        }
        pending().await
    }

    async fn renew(&mut self, hold: &Hold, asked: Instant) {
        let (shared, lease) = (&self.lead.shared, self.lead.shared.settings.lease);
        // Before the answer: whoever drops this loses no time.
        self.next = asked + (lease / 12).clamp(Duration::from_millis(1), Duration::from_secs(1));
        let extended = hold
            .store
            .extend(&shared.name, &self.lead.key, &hold.holder, ms(lease));
        match shared.within_budget(&hold.store, extended).await {
            Ok(Kept::Lost(_)) => self.lose("somebody else holds the key"),
            Ok(kept) => {
                shared.totals.renewed.fetch_add(1, Relaxed);
                self.next = asked + lease / 3;
                self.until = asked + lease;
                if kept == Kept::Restored {
                    self.attempt.leave_checkpoint_again(hold).await;
                }
            }
            // Tried again before long.
            Err(_) => {}
        }
    }

    fn lose(&self, why: &'static str) {
        if self.attempt.lose() {
            let shared = &self.lead.shared;
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
