//! The checked numbers of a handle.

use std::{fmt, time::Duration};

use super::{
    effect::Effect,
    store::{MAX_CHECKPOINT, MAX_OUTCOME, validate::MAX_MS},
    unrecorded::OnUnrecorded,
};
use crate::{
    error::InvalidConfig,
    fleet::{FleetDefaults, FleetOptions, FleetSettings, OnOutage, millis},
    sealing::{OVERHEAD, Sealing},
};

/// Settings of a handle, apart from those of its fleet.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) lease: Duration,
    pub(super) max_lease_time: Duration,
    pub(super) cancel_at_max_lease_time: bool,
    pub(super) ttl: Duration,
    pub(super) retention: Duration,
    pub(super) wait: Option<(usize, Duration)>,
    pub(super) effect: Effect,
    pub(super) on_unrecorded: OnUnrecorded,
    pub(super) max_outcome: usize,
    pub(super) max_checkpoint: usize,
    pub(super) sealing: Sealing,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            max_lease_time: Duration::from_secs(600),
            cancel_at_max_lease_time: true,
            ttl: Duration::from_secs(86_400),
            retention: Duration::from_secs(86_400),
            wait: Some((1024, Duration::from_secs(10))),
            effect: Effect::default(),
            on_unrecorded: OnUnrecorded::default(),
            max_outcome: 1 << 20,
            max_checkpoint: 64 << 10,
            sealing: Sealing::new(),
        }
    }
}

const MIN_LEASE: Duration = Duration::from_millis(10);
const MAX_TIME: Duration = Duration::from_millis(MAX_MS);
const BUDGET: Duration = Duration::from_secs(1);

/// Whole milliseconds, at least one: stores take no zero.
pub(super) fn ms(time: Duration) -> u64 {
    millis(time).max(1)
}

impl Settings {
    pub(super) fn check(&self) -> Result<(), InvalidConfig> {
        let no = |field, value: &dyn fmt::Debug, rule| Err(InvalidConfig::new(field, value, rule));
        if self.lease < MIN_LEASE {
            return no("lease", &self.lease, "must be at least 10 ms");
        }
        if self.max_lease_time < self.lease {
            return no(
                "max_lease_time",
                &self.max_lease_time,
                "must not be below the lease",
            );
        }
        if self.retention < self.max_lease_time.saturating_add(self.lease) {
            let rule = "must be at least `max_lease_time` and a lease";
            return no("retention", &self.retention, rule);
        }
        for (field, time) in [("retention", self.retention), ("ttl", self.ttl)] {
            if time > MAX_TIME {
                return no(field, &time, "must not be above 30 years");
            }
        }
        if self.ttl < Duration::from_millis(1) {
            return no("ttl", &self.ttl, "must be at least 1 ms");
        }
        if let Some((callers, max_wait)) = self.wait {
            if !(1..1 << 20).contains(&callers) {
                let rule =
                    "its callers must be between 1 and 1,048,575; `without_wait` is for none";
                return no("wait", &callers, rule);
            }
            if max_wait.is_zero() {
                return no("wait", &max_wait, "its maximum wait must be above zero");
            }
        }
        if self.on_unrecorded == OnUnrecorded::Hold(Duration::ZERO) {
            let rule = "must hold for more than zero; `Answer` is for none";
            return no("on_unrecorded", &self.on_unrecorded, rule);
        }
        if self.max_outcome > MAX_OUTCOME - OVERHEAD {
            return no(
                "max_outcome",
                &self.max_outcome,
                "must leave 1 KiB below 16 MiB",
            );
        }
        if self.max_checkpoint > MAX_CHECKPOINT - OVERHEAD {
            return no(
                "max_checkpoint",
                &self.max_checkpoint,
                "must leave 1 KiB below 1 MiB",
            );
        }
        Ok(())
    }

    /// The checked settings of the fleet.
    pub(super) fn resolve_fleet(
        &self,
        options: &FleetOptions,
    ) -> Result<FleetSettings, InvalidConfig> {
        let fleet = options.resolve(&FleetDefaults {
            budget: BUDGET.min(self.lease),
            heartbeat: None,
            no_heartbeat: "an attempt is live for as long as its lease is renewed: set `lease`",
            on_outage: OnOutage::FailClosed,
            accepts: &[OnOutage::FailClosed, OnOutage::FailOpen, OnOutage::Local],
            rule: "must be `FailClosed`, `FailOpen` or `Local`",
        })?;
        if fleet.budget > self.lease {
            let rule = "must not be above the lease";
            return Err(InvalidConfig::new("budget", fleet.budget, rule));
        }
        if self.effect == Effect::Fenced && fleet.on_outage == OnOutage::FailOpen {
            let rule = "must not be `FailOpen` for fenced work, which would run without a fence";
            return Err(InvalidConfig::new("on_outage", fleet.on_outage, rule));
        }
        Ok(fleet)
    }
}
