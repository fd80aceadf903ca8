//! The checked settings of a fleet rate limit.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{
    lease_size::LeaseRules,
    plan::{Plan, Source},
};
use crate::{
    admission::QueueSettings,
    clock::Clock,
    fleet::{FleetDefaults, FleetSettings, OnOutage},
};

/// Where calls are decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// In the store, every call: one round trip each, and exact. The default.
    #[default]
    Exact,
    /// In this instance, out of tokens that it takes from the store in advance, without a round trip.
    ///
    /// Only tokens that were taken from the bucket before are spent, so a fleet never admits more than the burst and
    /// what was gained, counted from when the bucket was full. Counted from any moment, the tokens that are leased at
    /// that moment come on top, while the bucket gains on: at most what the fleet uses in a quarter of a lease time.
    /// It may admit less: the leases of an instance that dies are lost, and tokens that an instance holds and does not
    /// use are not available to the others, for a lease time at most; together no more than the live instances times
    /// the largest lease. A rejection may carry a wait that is up to 10 ms longer than in exact mode, and may come
    /// while the bucket holds as little as comes in during that time.
    Leased(LeaseRules),
    /// In this instance alone, by the whole limit, without a store.
    Local,
}

/// Settings that are valid.
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) plan: Plan,
    pub(super) plans: Option<Source>,
    pub(super) mode: Mode,
    /// Calls may come from outside of it.
    pub(super) runtime: Handle,
    pub(super) fleet: FleetSettings,
    pub(super) denials: (usize, Duration),
    /// Of each subject.
    pub(super) queue: Option<QueueSettings>,
    /// In millionths of the capacity.
    pub(super) left_when_near: u64,
    pub(super) shadow: bool,
    pub(super) clock: Clock,
}

pub(super) const DEFAULTS: FleetDefaults = FleetDefaults {
    budget: Duration::from_millis(100),
    heartbeat: Some(Duration::from_secs(2)),
    no_heartbeat: "",
    on_outage: OnOutage::Local,
    accepts: &[OnOutage::FailOpen, OnOutage::FailClosed, OnOutage::Local],
    rule: "must be `FailOpen`, `FailClosed` or `Local`",
};
