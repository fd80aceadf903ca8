//! The background loop of a fleet rate limit: enrols this instance with the store, and gives back leases that ended.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{limiter::Limiter, settings::Mode};
use crate::fleet::{Agent, StoreError, jittered};

pub(super) struct LimitAgent {
    limiter: Arc<Limiter>,
    next_heartbeat: Instant,
    next_sweep: Instant,
    /// With a membership: when the enrolment has to be renewed, and the live members when it was made.
    renewal: Instant,
    members: Option<u64>,
    pause: Duration,
}

/// An instance is no longer counted when nothing was heard of it for this many intervals.
const INTERVALS: u32 = 3;

/// The interval where the store's own heartbeat says which instances are live: then this one only tells which limits
/// they use. When the number of live members has changed, a new one may use the limit too: then the interval is that of
/// heartbeats again, and doubles up to this.
const WITH_MEMBERSHIP: Duration = Duration::from_secs(20 * 60);

/// How long the agent tries to take this instance off the list at its end.
const LEAVE: Duration = Duration::from_secs(1);

/// Nothing is due.
const NEVER: Duration = Duration::from_secs(86_400);

impl LimitAgent {
    pub(super) fn new(limiter: Arc<Limiter>) -> Self {
        let now = Instant::now();
        let heartbeats = limiter.settings.mode != Mode::Local;
        Self {
            next_heartbeat: if heartbeats { now } else { now + NEVER },
            next_sweep: now + sweep_interval(&limiter),
            renewal: now,
            members: None,
            pause: Duration::ZERO,
            limiter,
        }
    }

    async fn heartbeat(&mut self) {
        let limiter = &*self.limiter;
        if limiter.settings.mode == Mode::Local {
            self.next_heartbeat = Instant::now() + NEVER;
            return;
        }
        let often = limiter.settings.fleet.heartbeat;
        self.next_heartbeat = Instant::now() + jittered(often);
        if !limiter.is_member {
            // A failed one is followed by the next.
            if limiter.heartbeat(often * INTERVALS).await.is_ok() {
                limiter.count_live();
            }
            return;
        }
        if limiter.is_counted() {
            limiter.count_live();
        }
        let members = limiter.members();
        if Instant::now() < self.renewal && members == self.members {
            return;
        }
        if members != self.members {
            (self.members, self.pause) = (members, Duration::ZERO);
        }
        let longest = WITH_MEMBERSHIP.max(often);
        if limiter.heartbeat(longest * INTERVALS).await.is_ok() {
            self.pause = (self.pause * 2).clamp(often, longest);
            self.renewal = Instant::now() + jittered(self.pause);
        }
    }
}

impl Agent for LimitAgent {
    type Push = ();

    fn next_due(&self) -> Instant {
        self.next_heartbeat.min(self.next_sweep)
    }

    async fn on_due(&mut self) {
        if Instant::now() >= self.next_heartbeat {
            self.heartbeat().await;
        }
        if Instant::now() >= self.next_sweep {
            // What does not arrive is lost, and comes in again at the rate of the limit.
            let _ = self.limiter.sweep(false).await;
            self.next_sweep = Instant::now() + sweep_interval(&self.limiter);
        }
        if !self.limiter.is_settling() {
            self.limiter.settle_shares(false).await;
        }
    }

    /// The store is available again: it does not know yet what was admitted meanwhile, and may have forgotten this
    /// instance.
    async fn on_wake(&mut self) {
        self.limiter.settle_shares(true).await;
        (self.renewal, self.pause) = (Instant::now(), Duration::ZERO);
        self.heartbeat().await;
    }

    async fn on_close(&mut self) {
        self.limiter.settle_shares(false).await;
        // As above.
        let _ = self.limiter.sweep(true).await;
        if self.limiter.settings.mode != Mode::Local {
            // An instance that could not leave is forgotten after its last heartbeat.
            let _ = self.limiter.leave(Instant::now() + LEAVE).await;
        }
    }
}

impl Limiter {
    async fn heartbeat(&self, ttl: Duration) -> Result<(), StoreError> {
        let asked = self.client.is_available();
        let answer = self
            .client
            .call(|store| store.heartbeat(&self.settings.name, &self.settings.fleet.instance, ttl))
            .await;
        if asked {
            self.count_answer(&answer);
        }
        answer.map(|live| self.client.saw_live(live))
    }

    async fn leave(&self, until: Instant) -> Result<(), StoreError> {
        let (name, instance) = (&self.settings.name, &self.settings.fleet.instance);
        let answer = self
            .client
            .call_until(until, |store| {
                store.heartbeat(name, instance, Duration::ZERO)
            })
            .await;
        self.count_answer(&answer);
        answer.map(drop)
    }
}

fn sweep_interval(limiter: &Limiter) -> Duration {
    match &limiter.settings.mode {
        Mode::Leased(rules) => rules.time / 2,
        _ => NEVER,
    }
}
