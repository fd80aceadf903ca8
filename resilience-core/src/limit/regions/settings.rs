//! The checked settings of regional limits.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::ledger::WHOLE;
use crate::{
    error::InvalidConfig,
    fleet::{FleetDefaults, OnOutage},
};

/// The budget is one interval.
pub(super) const fn defaults(interval: Duration) -> FleetDefaults {
    FleetDefaults {
        budget: interval,
        heartbeat: None,
        no_heartbeat: "is not used here: `interval` sets it",
        on_outage: OnOutage::Local,
        accepts: &[OnOutage::Local],
        rule: "must be `Local`: a region that cannot reach its ledger goes by its floor share",
    }
}

pub(super) fn validate(keep: f64, interval: Duration, term: Duration) -> Result<(), InvalidConfig> {
    if !(keep > 0.0 && keep <= 1.0) {
        return Err(InvalidConfig::new("keep", keep, "must be above 0, up to 1"));
    }
    let (shortest, longest) = (Duration::from_millis(10), Duration::from_secs(60));
    if !(shortest..=longest).contains(&interval) {
        let rule = "must be between 10 milliseconds and a minute";
        return Err(InvalidConfig::new("interval", interval, rule));
    }
    if term < interval * 6 || term > Duration::from_secs(86_400) {
        let rule = "must be at least six intervals, at most a day";
        return Err(InvalidConfig::new("term", term, rule));
    }
    Ok(())
}

/// Base and floor of each region. What is lost to rounding belongs to no region.
pub(super) fn shares(
    weights: &BTreeMap<Arc<str>, u32>,
    keep: f64,
) -> Result<BTreeMap<Arc<str>, (u32, u32)>, InvalidConfig> {
    let all: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
    let share = |(region, weight): (&Arc<str>, &u32)| {
        let base = u64::from(WHOLE) * u64::from(*weight) / all.max(1);
        if base == 0 {
            let rule = "its weight must be at least a 256th of all weights together";
            return Err(InvalidConfig::new("region", region, rule));
        }
        let base = u32::try_from(base).unwrap_or(WHOLE);
        let floor = (f64::from(base) * keep).ceil() as u32;
        Ok((Arc::clone(region), (base, floor.clamp(1, base))))
    };
    weights.iter().map(share).collect()
}
