//! How an instance takes part in its fleet.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::store::BreakerStore;
use crate::{
    error::InvalidConfig,
    fleet::{FleetDefaults, FleetSettings, OnOutage},
};

/// What a breaker does with [`FleetOptions`](crate::fleet::FleetOptions) that are not set, and which it accepts.
pub(in crate::breaker) const DEFAULTS: FleetDefaults = FleetDefaults {
    budget: Duration::from_millis(250),
    heartbeat: Some(Duration::from_secs(2)),
    no_heartbeat: "",
    on_outage: OnOutage::Local,
    accepts: &[OnOutage::Local],
    rule: "must be `Local`: without a store the breaker still decides, by the window of this instance",
};

/// Store and settings of a fleet breaker, checked.
#[derive(Clone, Debug)]
pub(in crate::breaker) struct FleetConfig {
    pub(in crate::breaker) store: Arc<dyn BreakerStore>,
    pub(in crate::breaker) rules: FleetRules,
    pub(in crate::breaker) settings: FleetSettings,
    /// The runtime of the builder: breakers of a family are made on any thread.
    pub(in crate::breaker) runtime: Handle,
}

/// How a fleet weighs the reports of its instances, and how fast it acts. Given to
/// [`CircuitBreakerBuilder::fleet_rules`](crate::breaker::CircuitBreakerBuilder::fleet_rules).
///
/// Everything else (rates, minimum of calls, probes, ramp-up, open intervals) is the breaker's own configuration,
/// applied to the fleet as a whole. All instances of a breaker should have the same.
#[derive(Clone, Debug)]
#[must_use]
pub struct FleetRules {
    pub(super) min_instances: u32,
    pub(super) quorum: f64,
    pub(super) alert: Duration,
    pub(super) probe_lease: Duration,
}

impl FleetRules {
    /// The defaults: at least 2 instances and a tenth of the live ones must find the dependency failing; a report every
    /// 100 milliseconds while something fails; probes leased for 10 seconds.
    pub const fn new() -> Self {
        Self {
            min_instances: 2,
            quorum: 0.1,
            alert: Duration::from_millis(100),
            probe_lease: Duration::from_secs(10),
        }
    }

    /// Number of instances that must find the dependency failing before the fleet opens, at least 1. With 1, a single
    /// instance with a broken network opens the breakers of all. Default: 2.
    pub const fn min_instances(mut self, instances: u32) -> Self {
        self.min_instances = instances;
        self
    }

    /// Share of the live instances that must find the dependency failing, from 0 to 1. Default: 0.1.
    pub const fn quorum(mut self, share: f64) -> Self {
        self.quorum = share;
        self
    }

    /// Shortest interval of an instance's reports, used while something fails; at least 10 milliseconds, and no longer
    /// than the [heartbeat](crate::fleet::FleetOptions::heartbeat). Default: 100 milliseconds.
    pub const fn alert(mut self, interval: Duration) -> Self {
        self.alert = interval;
        self
    }

    /// Maximum time of a probe, at least 10 milliseconds: the holder counts it as failed after four fifths, and at the
    /// end the fleet forgets a holder that died. Should be longer than a good answer takes. Default: 10 seconds.
    pub const fn probe_lease(mut self, time: Duration) -> Self {
        self.probe_lease = time;
        self
    }

    pub(in crate::breaker) fn check(&self, heartbeat: Duration) -> Result<(), InvalidConfig> {
        if self.min_instances == 0 {
            return Err(InvalidConfig::new("min_instances", 0, "must be at least 1"));
        }
        if !(0.0..=1.0).contains(&self.quorum) {
            let rule = "must be between 0 and 1";
            return Err(InvalidConfig::new("quorum", self.quorum, rule));
        }
        for (field, value) in [("alert", self.alert), ("probe_lease", self.probe_lease)] {
            if value < Duration::from_millis(10) {
                let rule = "must be at least 10 milliseconds";
                return Err(InvalidConfig::new(field, value, rule));
            }
        }
        if self.alert > heartbeat {
            let rule = "must not be longer than the heartbeat";
            return Err(InvalidConfig::new("alert", self.alert, rule));
        }
        Ok(())
    }
}

impl Default for FleetRules {
    fn default() -> Self {
        Self::new()
    }
}
