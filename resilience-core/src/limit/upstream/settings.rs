//! The checked settings of upstream limits.

use std::time::Duration;

use crate::{
    error::InvalidConfig,
    fleet::{FleetDefaults, OnOutage},
};

pub(super) const DEFAULTS: FleetDefaults = FleetDefaults {
    budget: Duration::from_millis(250),
    heartbeat: None,
    no_heartbeat: "is not used here: `refresh` sets the interval",
    on_outage: OnOutage::Local,
    accepts: &[OnOutage::Local],
    rule: "must be `Local`: each instance keeps to what it was told itself",
};

const LONGEST: Duration = Duration::from_secs(86_400);

pub(super) fn validate(longest: Duration, refresh: Duration) -> Result<(), InvalidConfig> {
    if !(Duration::from_millis(1)..=LONGEST).contains(&longest) {
        let rule = "must be between 1 millisecond and 1 day";
        return Err(InvalidConfig::new("longest", longest, rule));
    }
    if !(Duration::from_millis(10)..=LONGEST).contains(&refresh) {
        let rule = "must be between 10 milliseconds and 1 day";
        return Err(InvalidConfig::new("refresh", refresh, rule));
    }
    Ok(())
}
