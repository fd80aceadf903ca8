//! The heartbeat of an attempt: renews its lease while the work is in progress.

use std::{convert::Infallible, future::pending, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    attempt::{Attempt, HeldClaim},
    record::WriteOutcome,
    settings::ms,
};
use crate::error::Pattern;

pub(super) struct Heartbeat {
    attempt: Attempt,
    /// When the lease is to be renewed next.
    next: Instant,
    /// When the lease ends by this process' clock, unless it is renewed: counted from before the request, so never later than
    /// in the store.
    until: Instant,
    /// When renewals end.
    max_lease_time: Instant,
}

impl Heartbeat {
    /// `asked` is just before the claim that was granted.
    pub(super) fn new(attempt: &Attempt, asked: Instant) -> Self {
        let settings = &attempt.shared().settings;
        Self {
            attempt: attempt.clone(),
            next: asked + settings.lease / 3,
            until: asked + settings.lease,
            max_lease_time: asked + settings.max_lease_time,
        }
    }

    /// Renews the lease. Completes at the maximum lease time, if the work is to be cancelled then.
    pub(super) async fn until_cancelled(&mut self) {
        if self.attempt.shared().settings.cancel_at_max_lease_time {
            tokio::select! {
                () = sleep_until(self.max_lease_time) => {
                    self.lose("the work has reached the maximum lease time");
                }
                never = self.forever() => match never {},
            }
        } else {
            match self.forever().await {}
        }
    }

    /// Renews the lease until `task` ends.
    pub(super) async fn during<T>(&mut self, task: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            ended = task => ended,
            never = self.forever() => match never {},
        }
    }

    /// Renews the lease and never completes. Can be dropped and started again.
    async fn forever(&mut self) -> Infallible {
        let attempt = self.attempt.clone();
        let Some(held) = attempt.held() else {
            return pending().await;
        };
        while !attempt.is_lost() {
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
                self.renew(&attempt, held).await;
            }
        }
        pending().await
    }

    /// Renews the lease, repeating the step until it is too late to matter: when the lease ends, or may not be renewed.
    async fn renew(&mut self, attempt: &Attempt, held: &HeldClaim) {
        let (shared, key) = (attempt.shared(), attempt.key());
        let lease = shared.settings.lease;
        // Set before the answer: this future may be dropped and started again.
        self.next = Instant::now() + retry_after(lease);
        let mut asked = Instant::now();
        let extended = held
            .store
            .call_until(self.until.min(self.max_lease_time), |store| {
                asked = Instant::now();
                store.extend(&shared.name, key, &held.holder, ms(lease))
            });
        match timeout_at(self.until, extended).await {
            Ok(Ok(WriteOutcome::Lost(_))) => self.lose("another attempt holds the key"),
            Ok(Ok(kept)) => {
                shared.totals.renewed.fetch_add(1, Relaxed);
                self.next = asked + lease / 3;
                self.until = asked + lease;
                if kept == WriteOutcome::Restored {
                    attempt.save_checkpoint_again(held).await;
                }
            }
            Ok(Err(_)) => self.next = Instant::now() + retry_after(lease),
            // The lease has ended.
            Err(_) => {}
        }
    }

    fn lose(&self, why: &'static str) {
        if self.attempt.lose() {
            let shared = self.attempt.shared();
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

/// The pause after a renewal that failed for the rest of its time.
fn retry_after(lease: Duration) -> Duration {
    (lease / 12).clamp(Duration::from_millis(1), Duration::from_secs(1))
}
