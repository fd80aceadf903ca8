//! The part of every builder that is about the fleet.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{OnOutage, instance::instance_id};
use crate::error::InvalidConfig;

/// How a handle takes part in its fleet; what is not set keeps the pattern's own default.
///
/// Given to the `.fleet(..)` method of a builder that has a store. Without a store it is an error when the handle is built.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{FleetOptions, OnOutage};
///
/// let options = FleetOptions::new()
///     .instance("pod-7")
///     .budget(Duration::from_millis(50))
///     .on_outage(OnOutage::FailClosed);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct FleetOptions {
    instance: Option<Arc<str>>,
    budget: Option<Duration>,
    heartbeat: Option<Duration>,
    on_outage: Option<OnOutage>,
    expected_instances: Option<u64>,
}

impl FleetOptions {
    /// Nothing set: every value is the pattern's default.
    pub const fn new() -> Self {
        Self {
            instance: None,
            budget: None,
            heartbeat: None,
            on_outage: None,
            expected_instances: None,
        }
    }

    /// Name of this instance, as operators see it, e.g. its host or pod; 1 to 128 bytes. A random part is added, so that
    /// a restarted process is a new instance. The shared breaker counts instances of one name as one vote, so each
    /// instance needs a name of its own. Default: random.
    pub fn instance(mut self, name: impl Into<Arc<str>>) -> Self {
        self.instance = Some(name.into());
        self
    }

    /// Maximum time that the store may take for one step; at least 1 ms. A step without an answer by then counts as
    /// failed.
    pub const fn budget(mut self, budget: Duration) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Interval of this instance's heartbeat; at least 10 ms. An instance is no longer counted as live when nothing
    /// was heard of it for three intervals.
    pub const fn heartbeat(mut self, interval: Duration) -> Self {
        self.heartbeat = Some(interval);
        self
    }

    /// What happens to calls while the store is unavailable.
    pub const fn on_outage(mut self, policy: OnOutage) -> Self {
        self.on_outage = Some(policy);
        self
    }

    /// Number of instances that the fleet may have; at least 1. For the patterns that divide a limit between the instances
    /// while the store is unavailable ([`OnOutage::Local`] of rate limits and bulkheads); others ignore it.
    ///
    /// Each instance then takes one part of as many as are expected, or as were live at last, whichever are more. Without
    /// it, an instance that the store has not answered for at least an interval of its heartbeat does not know its share,
    /// and rejects calls. Set it to the most instances that run at a time, those of a rollout included. Default: not set.
    pub const fn expected_instances(mut self, instances: u64) -> Self {
        self.expected_instances = Some(instances);
        self
    }

    /// The checked settings: what is not set is `defaults`'.
    pub(crate) fn resolve(&self, defaults: &FleetDefaults) -> Result<FleetSettings, InvalidConfig> {
        if let Some(name) = self.instance.as_ref()
            && !(1..=128).contains(&name.len())
        {
            return Err(InvalidConfig::new(
                "instance",
                name,
                "must have 1 to 128 bytes",
            ));
        }
        let budget = self.budget.unwrap_or(defaults.budget);
        let bounds = Duration::from_millis(1)..=LONGEST;
        InvalidConfig::check_time("budget", budget, bounds, BUDGET_RULE)?;
        let heartbeat = match (self.heartbeat, defaults.heartbeat) {
            (Some(given), None) => {
                return Err(InvalidConfig::new(
                    "heartbeat",
                    given,
                    defaults.no_heartbeat,
                ));
            }
            (given, default) => given.or(default).unwrap_or(LONGEST),
        };
        let bounds = Duration::from_millis(10)..=LONGEST;
        InvalidConfig::check_time("heartbeat", heartbeat, bounds, HEARTBEAT_RULE)?;
        if self.expected_instances == Some(0) {
            let rule = "must be at least 1";
            return Err(InvalidConfig::new("expected_instances", 0, rule));
        }
        let on_outage = self.on_outage.unwrap_or(defaults.on_outage);
        if !defaults.accepts.contains(&on_outage) {
            return Err(InvalidConfig::new("on_outage", on_outage, defaults.rule));
        }
        Ok(FleetSettings {
            name: self.instance.clone(),
            instance: instance_id(self.instance.as_deref()),
            budget,
            heartbeat,
            on_outage,
            expected_instances: self.expected_instances,
        })
    }
}

/// The runtime that the task of a handle with a store runs on: the current one.
pub(crate) fn runtime() -> Result<Handle, InvalidConfig> {
    Handle::try_current().map_err(|_| InvalidConfig::no_runtime("store"))
}

/// The store of a handle that cannot do without one.
pub(crate) fn required<S: ?Sized>(store: Option<Arc<S>>) -> Result<Arc<S>, InvalidConfig> {
    let rule = "`.store(..)` is required: it keeps what the fleet shares";
    store.ok_or_else(|| InvalidConfig::new("store", format_args!("not set"), rule))
}

/// An upper bound for durations, so that sums of them do not overflow.
const LONGEST: Duration = Duration::from_secs(86_400);
const BUDGET_RULE: &str = "must be between 1 millisecond and 1 day";
const HEARTBEAT_RULE: &str = "must be between 10 milliseconds and 1 day";

/// What a pattern does with options that are not set, and which it accepts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FleetDefaults {
    pub(crate) budget: Duration,
    /// `None`: the pattern has no heartbeat of its own, and setting one is an error with the rule `no_heartbeat`.
    pub(crate) heartbeat: Option<Duration>,
    pub(crate) no_heartbeat: &'static str,
    pub(crate) on_outage: OnOutage,
    pub(crate) accepts: &'static [OnOutage],
    /// Said when another policy is set.
    pub(crate) rule: &'static str,
}

/// Options that are complete and valid.
#[derive(Clone, Debug)]
pub(crate) struct FleetSettings {
    /// The configured name, if any.
    pub(crate) name: Option<Arc<str>>,
    /// The name with its random part.
    pub(crate) instance: Arc<str>,
    pub(crate) budget: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) on_outage: OnOutage,
    pub(crate) expected_instances: Option<u64>,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const DEFAULTS: FleetDefaults = FleetDefaults {
        budget: Duration::from_millis(100),
        heartbeat: Some(Duration::from_secs(2)),
        no_heartbeat: "",
        on_outage: OnOutage::Local,
        accepts: &[OnOutage::Local, OnOutage::FailOpen],
        rule: "must be `Local` or `FailOpen`",
    };

    #[test]
    fn what_is_not_set_is_the_pattern_s_default() {
        let settings = FleetOptions::new().resolve(&DEFAULTS).unwrap();
        assert_eq!(settings.budget, Duration::from_millis(100));
        assert_eq!(settings.heartbeat, Duration::from_secs(2));
        assert_eq!(settings.on_outage, OnOutage::Local);
    }

    #[test]
    fn senseless_values_are_refused_and_named() {
        let no_heartbeat = FleetDefaults {
            heartbeat: None,
            no_heartbeat: "follows the lease",
            ..DEFAULTS
        };
        for (options, defaults, field) in [
            (
                FleetOptions::new().budget(Duration::ZERO),
                DEFAULTS,
                "budget",
            ),
            (
                FleetOptions::new().budget(Duration::MAX),
                DEFAULTS,
                "budget",
            ),
            (
                FleetOptions::new().heartbeat(Duration::from_millis(9)),
                DEFAULTS,
                "heartbeat",
            ),
            (
                FleetOptions::new().heartbeat(Duration::MAX),
                DEFAULTS,
                "heartbeat",
            ),
            (
                FleetOptions::new().heartbeat(Duration::from_secs(1)),
                no_heartbeat,
                "heartbeat",
            ),
            (
                FleetOptions::new().on_outage(OnOutage::FailClosed),
                DEFAULTS,
                "on_outage",
            ),
            (FleetOptions::new().instance(""), DEFAULTS, "instance"),
            (
                FleetOptions::new().expected_instances(0),
                DEFAULTS,
                "expected_instances",
            ),
        ] {
            let refused = options.resolve(&defaults).unwrap_err();
            assert_eq!(refused.field(), field, "{options:?}");
        }
    }
}
