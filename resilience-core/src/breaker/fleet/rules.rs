//! How an instance takes part in its fleet.

use std::{sync::Arc, time::Duration};

use crate::error::InvalidConfig;

/// How a shared breaker weighs what instances say, and how often they say it.
///
/// Everything else (rates, minimum of calls, probes, ramp-up, open intervals) is the breaker's own configuration,
/// read for the fleet as a whole. All instances of a breaker should have the same.
///
/// Commands per second on the store, whatever the number of calls: instances × breakers ÷ `calm` while all is well,
/// ÷ `alert` at most while something fails.
#[derive(Clone, Debug)]
#[must_use]
pub struct FleetRules {
    pub(super) min_instances: u32,
    pub(super) quorum: f64,
    pub(super) calm: Duration,
    pub(super) alert: Duration,
    pub(super) probe_lease: Duration,
    pub(super) instance: Option<Arc<str>>,
}

impl FleetRules {
    /// The defaults: at least 2 instances and a tenth of those live must be failing; a report every 2 seconds, every
    /// 100 milliseconds while something fails; probes leased for 10 seconds.
    pub const fn new() -> Self {
        Self {
            min_instances: 2,
            quorum: 0.1,
            calm: Duration::from_secs(2),
            alert: Duration::from_millis(100),
            probe_lease: Duration::from_secs(10),
            instance: None,
        }
    }

    /// How many instances must find the dependency failing before the fleet opens. With 1, a single instance with a
    /// broken network opens everybody's breaker. Default: 2.
    pub const fn min_instances(mut self, instances: u32) -> Self {
        self.min_instances = instances;
        self
    }

    /// Which share of the live instances must find the dependency failing. Default: 0.1.
    pub const fn quorum(mut self, share: f64) -> Self {
        self.quorum = share;
        self
    }

    /// How often an instance reports while all is well. An instance that was not heard of for three times as long is
    /// no longer live. Default: 2 seconds.
    pub const fn calm(mut self, interval: Duration) -> Self {
        self.calm = interval;
        self
    }

    /// How often an instance reports at most while something fails. Default: 100 milliseconds.
    pub const fn alert(mut self, interval: Duration) -> Self {
        self.alert = interval;
        self
    }

    /// How long a probe may be out: the holder counts it as failed shortly before, and the fleet forgets a holder
    /// that died. Should be longer than a good answer takes. Default: 10 seconds.
    pub const fn probe_lease(mut self, time: Duration) -> Self {
        self.probe_lease = time;
        self
    }

    /// What this instance is called, for people who look at the fleet and for the quorum: one that crashes and comes
    /// back under its name has one vote. Each instance must have a name of its own (that of its host or pod, say), or
    /// they have one vote together. Default: a random name at each start, so an instance that comes back within three
    /// `calm` intervals can count twice.
    pub fn instance(mut self, name: impl Into<Arc<str>>) -> Self {
        self.instance = Some(name.into());
        self
    }

    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        if self.min_instances == 0 {
            return Err(InvalidConfig::new("min_instances", 0, "must be at least 1"));
        }
        if !(0.0..=1.0).contains(&self.quorum) {
            return Err(InvalidConfig::new(
                "quorum",
                self.quorum,
                "must be between 0 and 1",
            ));
        }
        for (field, value) in [
            ("calm", self.calm),
            ("alert", self.alert),
            ("probe_lease", self.probe_lease),
        ] {
            if value < Duration::from_millis(10) {
                return Err(InvalidConfig::new(
                    field,
                    value,
                    "must be at least 10 milliseconds",
                ));
            }
        }
        if self.alert > self.calm {
            let rule = "must not be longer than the calm interval";
            return Err(InvalidConfig::new("alert", self.alert, rule));
        }
        Ok(())
    }

    /// A name that no other process start has.
    pub(crate) fn instance_id(&self) -> Arc<str> {
        let random = fastrand::u64(..);
        match &self.instance {
            Some(name) => format!("{name}-{random:016x}").into(),
            None => format!("{random:016x}").into(),
        }
    }
}

impl Default for FleetRules {
    fn default() -> Self {
        Self::new()
    }
}
