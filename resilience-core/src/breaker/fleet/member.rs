//! This instance's side of the fleet, as the breaker's handles and calls see it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
};

use super::{
    policy::Policy,
    record::{BreakerView, LeaseAnswer},
    rules::FleetRules,
    store::{BreakerStore, in_time},
};
use crate::clock::{Clock, Moment};

/// The part of a shared breaker that calls touch: never on a call that a closed breaker lets through.
pub(in crate::breaker) struct Membership {
    pub(super) store: Arc<dyn BreakerStore>,
    pub(super) policy: Policy,
    pub(super) rules: FleetRules,
    /// The name of the record.
    pub(super) name: Arc<str>,
    pub(super) instance: Arc<str>,
    pub(super) clock: Clock,
    /// Rings when a report should not wait for the calm interval.
    pub(super) wake: Notify,
    pub(super) woken: AtomicBool,
    pub(super) sender: mpsc::UnboundedSender<AgentMessage>,
    /// The store could not be reached the last time.
    pub(super) degraded: AtomicBool,
    /// When this instance may ask for a probe again.
    ask_again: AtomicU64,
    /// Requests for a probe under way, from this instance.
    asking: AtomicU32,
    /// Calls may be made from outside of it.
    runtime: Handle,
}

/// What calls tell the agent. Bounded by the number of probes.
pub(super) enum AgentMessage {
    /// A probe was granted, to be settled by then.
    Granted {
        lease: Arc<str>,
        epoch: u64,
        by: Moment,
    },
    /// A probe came back; `None`: it says nothing.
    Settled {
        lease: Arc<str>,
        epoch: u64,
        success: Option<bool>,
    },
    /// The answer to a request for a probe.
    Seen(Box<BreakerView>),
    /// The store gave no answer.
    Failed(String),
    /// The dependency asked to be left alone until then.
    CoolDown(Moment),
}

/// After a "no" or no answer, this instance leaves the store alone for so long.
const ASK_AGAIN: Duration = Duration::from_millis(50);

impl Membership {
    pub(in crate::breaker) fn new(
        store: Arc<dyn BreakerStore>,
        policy: Policy,
        rules: FleetRules,
        name: Arc<str>,
        clock: Clock,
    ) -> (Arc<Self>, AgentReceiver) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let member = Self {
            instance: rules.instance_id(),
            store,
            policy,
            rules,
            name,
            clock,
            wake: Notify::new(),
            woken: AtomicBool::new(false),
            sender,
            degraded: AtomicBool::new(false),
            ask_again: AtomicU64::new(0),
            asking: AtomicU32::new(0),
            runtime: Handle::current(),
        };
        (Arc::new(member), AgentReceiver(receiver))
    }

    /// Something failed here: the fleet should hear of it soon.
    #[cold]
    pub(in crate::breaker) fn wake(&self) {
        if !self.woken.swap(true, AcqRel) {
            self.wake.notify_one();
        }
    }

    /// The breaker is gone: its agent should see that now, not at its next report.
    pub(in crate::breaker) fn leave(&self) {
        self.wake.notify_one();
    }

    /// The dependency asked to be left alone until then: the whole fleet should.
    #[cold]
    pub(in crate::breaker) fn cool_down(&self, until: Moment) {
        self.send(AgentMessage::CoolDown(until));
    }

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

    /// Asks the fleet for a probe. `None`: there is none for this call.
    pub(in crate::breaker) async fn ask(
        self: Arc<Self>,
    ) -> Result<Option<Lease>, StoreUnavailable> {
        let _asking = OpenRequest::start(&self);
        let lease: Arc<str> = format!("{}-{:016x}", self.instance, fastrand::u64(..)).into();
        let time = self.rules.probe_lease;
        let started = self.clock.now();
        let question = self
            .store
            .lease(&self.name, &lease, self.policy.probes, millis(time));
        let answer = match in_time(question).await {
            Ok((answer, view)) => {
                self.send(AgentMessage::Seen(Box::new(view)));
                answer
            }
            Err(failure) => {
                self.rest();
                self.send(AgentMessage::Failed(failure.to_string()));
                return Err(StoreUnavailable);
            }
        };
        let LeaseAnswer::Granted { epoch } = answer else {
            self.rest();
            return Ok(None);
        };
        // Before the fleet forgets it, the holder says that it failed.
        let by = started + time.mul_f64(0.8);
        self.send(AgentMessage::Granted {
            lease: Arc::clone(&lease),
            epoch,
            by,
        });
        Ok(Some(Lease {
            member: Arc::clone(&self),
            lease,
            epoch,
            settled: false,
        }))
    }

    pub(super) fn voter(&self) -> Arc<str> {
        let name = self.rules.instance.as_ref();
        Arc::clone(name.unwrap_or(&self.instance))
    }

    pub(in crate::breaker) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(in crate::breaker) fn is_degraded(&self) -> bool {
        self.degraded.load(Relaxed)
    }

    fn rest(&self) {
        let again = self.clock.now() + ASK_AGAIN.mul_f64(0.5 + fastrand::f64());
        self.ask_again.store(again.as_nanos(), Release);
    }

    /// Nobody reads it only when the breaker itself is gone.
    fn send(&self, message: AgentMessage) {
        let _ = self.sender.send(message);
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("name", &self.name)
            .field("instance", &self.instance)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// The store gave no answer.
pub(in crate::breaker) struct StoreUnavailable;

/// What the agent reads the letters from.
pub(in crate::breaker) struct AgentReceiver(pub(super) mpsc::UnboundedReceiver<AgentMessage>);

/// Counts a request while it is under way, however it ends.
struct OpenRequest<'a>(&'a Membership);

impl<'a> OpenRequest<'a> {
    fn start(member: &'a Membership) -> Self {
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
    member: Arc<Membership>,
    lease: Arc<str>,
    epoch: u64,
    settled: bool,
}

impl Lease {
    pub(in crate::breaker) fn time(&self) -> Duration {
        self.member.rules.probe_lease
    }

    pub(in crate::breaker) fn settle(&mut self, success: Option<bool>) {
        if !self.settled {
            self.settled = true;
            let (lease, epoch) = (Arc::clone(&self.lease), self.epoch);
            self.member.send(AgentMessage::Settled {
                lease,
                epoch,
                success,
            });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.settle(None);
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
