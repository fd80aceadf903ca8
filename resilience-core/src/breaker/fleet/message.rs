//! What the calls of an instance report to its agent.

use std::sync::Arc;

use super::record::BreakerView;
use crate::clock::Moment;

/// A probe of the fleet that this instance was granted.
pub(super) struct ProbeLease {
    pub(super) id: Arc<str>,
    pub(super) epoch: u64,
    /// When the holder counts it as failed.
    pub(super) by: Moment,
    /// When the fleet forgets it.
    pub(super) ends: Moment,
}

/// What calls report to the agent. Bounded by the number of probes.
pub(super) enum AgentMessage {
    /// A probe was granted.
    Granted(ProbeLease),
    /// The call of a probe ended; `None`: it says nothing about the dependency.
    Settled {
        lease: Arc<str>,
        success: Option<bool>,
    },
    /// A request for a probe was given up, and the fleet may have granted it; until when it is leased then.
    GivenUp { lease: Arc<str>, ends: Moment },
    /// The answer to a request for a probe.
    Seen(Box<BreakerView>),
    /// The dependency asked for a pause until then.
    CoolDown(Moment),
}
