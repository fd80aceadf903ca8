//! How this instance gets one of the fleet's probes.

use std::{
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Relaxed, Release},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    member::FleetMember,
    message::{AgentMessage, ProbeLease},
    record::{BreakerView, LeaseAnswer},
};
use crate::{
    clock::Moment,
    fleet::{millis, retry_delays},
};

/// Pause of this instance after a request for a probe that was denied or failed.
const ASK_AGAIN: Duration = Duration::from_millis(50);

impl FleetMember {
    /// Whether this instance may ask the fleet for a probe now; if not, when it may.
    pub(in crate::breaker) fn may_ask(&self, now: Moment) -> Result<(), Moment> {
        let again = Moment::from_nanos(self.ask_again.load(Acquire));
        if now < again {
            return Err(again);
        }
        if self.asking.load(Relaxed) >= self.policy.probes {
            return Err(now + ASK_AGAIN);
        }
        Ok(())
    }

    /// Asks the fleet for a probe. `None`: there is none for this call, or no answer. The error: the fleet has not
    /// answered for so long that this instance may send probes of its own.
    pub(in crate::breaker) async fn ask(
        self: Arc<Self>,
    ) -> Result<Option<Lease>, StoreUnavailable> {
        if self.is_closing() {
            // Without its agent, a probe could not be settled.
            return Err(StoreUnavailable);
        }
        let _asking = OpenRequest::start(&self);
        let id: Arc<str> = format!("{}-{:016x}", self.instance, fastrand::u64(..)).into();
        let time = self.rules.probe_lease;
        let started = self.clock.now();
        let (answer, view) = match self.lease(&id).await {
            Ok(answer) => answer,
            Err(may_be_granted) => {
                self.pause();
                if may_be_granted {
                    let ends = started + time;
                    self.send(AgentMessage::GivenUp { lease: id, ends });
                }
                return if self.is_alone() {
                    Err(StoreUnavailable)
                } else {
                    Ok(None)
                };
            }
        };
        self.send(AgentMessage::Seen(Box::new(view)));
        let LeaseAnswer::Granted { epoch } = answer else {
            self.pause();
            return Ok(None);
        };
        self.send(AgentMessage::Granted(ProbeLease {
            id: Arc::clone(&id),
            epoch,
            // Before the fleet forgets the probe, its holder reports that it failed.
            by: started + time.mul_f64(0.8),
            ends: started + time,
        }));
        Ok(Some(Lease {
            member: Arc::clone(&self),
            lease: id,
            settled: false,
        }))
    }

    /// Requests one lease, repeatedly under the same id while the budget lasts: however often it is granted, it is one
    /// probe. The error: whether it may be granted.
    async fn lease(&self, id: &Arc<str>) -> Result<(LeaseAnswer, BreakerView), bool> {
        let (probes, lease_ms) = (self.policy.probes, millis(self.rules.probe_lease));
        let until = Instant::now() + self.client.budget();
        let mut may_be_granted = false;
        for wait in retry_delays() {
            let answer = self
                .client
                .call(|store| store.lease(&self.name, id, probes, lease_ms));
            match answer.await {
                Ok(answer) => return Ok(answer),
                Err(error) => may_be_granted |= error.ambiguous,
            }
            if !self.client.is_available() || Instant::now() + wait >= until {
                break;
            }
            sleep(wait).await;
        }
        Err(may_be_granted)
    }

    /// Whether the store has been unavailable for so long that the state of the fleet is not known.
    fn is_alone(&self) -> bool {
        let bound = (self.heartbeat * 2).min(self.rules.probe_lease);
        self.client.unavailable_for() >= bound
    }

    fn pause(&self) {
        let again = self.clock.now() + ASK_AGAIN.mul_f64(0.5 + fastrand::f64());
        self.ask_again.store(again.as_nanos(), Release);
    }
}

/// The store has been unavailable for two heartbeats, or for a probe lease; or this instance has left the fleet.
pub(in crate::breaker) struct StoreUnavailable;

/// Counts a request while it is in progress, however it ends.
struct OpenRequest<'a>(&'a FleetMember);

impl<'a> OpenRequest<'a> {
    fn start(member: &'a FleetMember) -> Self {
        member.asking.fetch_add(1, Relaxed);
        Self(member)
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Relaxed);
    }
}

/// One of the fleet's probes. Given back when it is dropped unsettled.
pub(in crate::breaker) struct Lease {
    member: Arc<FleetMember>,
    lease: Arc<str>,
    settled: bool,
}

impl Lease {
    pub(in crate::breaker) fn time(&self) -> Duration {
        self.member.rules.probe_lease
    }

    pub(in crate::breaker) fn settle(&mut self, success: Option<bool>) {
        if !self.settled {
            self.settled = true;
            let lease = Arc::clone(&self.lease);
            self.member.send(AgentMessage::Settled { lease, success });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.settle(None);
    }
}
