//! The checked numbers of a cache.

use std::time::Duration;

use super::{
    freshness::{RefreshEarly, Windows},
    store::validate::MAX_BODY,
};
use crate::{
    error::InvalidConfig,
    fleet::{FleetDefaults, FleetOptions, FleetSettings, OnOutage},
};

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) ttl: Duration,
    pub(super) jitter: f64,
    /// Zero: what does not exist is not cached.
    pub(super) negative_ttl: Duration,
    pub(super) windows: Windows,
    pub(super) soft_timeout: Option<Duration>,
    pub(super) load_timeout: Duration,
    pub(super) lease: Duration,
    pub(super) tombstone: Option<Duration>,
    pub(super) write_timeout: Duration,
    pub(super) max_stale: Duration,
    pub(super) max_loads: usize,
    pub(super) retry_pause: Duration,
    pub(super) max_value_bytes: usize,
    /// Zero: keys are no labels.
    pub(super) hot_key_metrics: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(60),
            jitter: 0.1,
            negative_ttl: Duration::ZERO,
            windows: Windows::default(),
            soft_timeout: None,
            load_timeout: Duration::from_secs(10),
            lease: Duration::from_secs(2),
            tombstone: None,
            write_timeout: Duration::from_secs(10),
            max_stale: Duration::ZERO,
            max_loads: 64,
            retry_pause: Duration::from_secs(1),
            max_value_bytes: 1 << 20,
            hot_key_metrics: 0,
        }
    }
}

/// Stores can count to 30 years; a longer time than this is a mistake.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// Keys that are labels at a time.
const MOST_NAMED: usize = 20;

impl Settings {
    pub(super) fn check(&self) -> Result<(), InvalidConfig> {
        let (ms, windows) = (Duration::from_millis(1), &self.windows);
        let at_most = "must be at most 1 year";
        let from_1 = "must be between 1 millisecond and 1 year";
        let from_10 = "must be between 10 milliseconds and 1 year";
        let tombstone = self.tombstone.unwrap_or_default();
        for (field, time, least, rule) in [
            ("ttl", self.ttl, ms, from_1),
            (
                "stale_while_revalidate",
                windows.while_revalidate,
                Duration::ZERO,
                at_most,
            ),
            ("stale_if_error", windows.if_error, Duration::ZERO, at_most),
            ("negative_ttl", self.negative_ttl, Duration::ZERO, at_most),
            ("tombstone", tombstone, Duration::ZERO, at_most),
            ("max_stale", self.max_stale, Duration::ZERO, at_most),
            ("retry_pause", self.retry_pause, Duration::ZERO, at_most),
            ("lease", self.lease, ms * 10, from_10),
            ("write_timeout", self.write_timeout, ms * 10, from_10),
            ("load_timeout", self.load_timeout, ms, from_1),
        ] {
            InvalidConfig::check_time(field, time, least..=LONGEST, rule)?;
        }
        if let Some(soft) = self.soft_timeout
            && soft >= self.load_timeout
        {
            let rule = "the soft timeout must be shorter than the hard one";
            return Err(InvalidConfig::new("load_timeout", soft, rule));
        }
        if !(0.0..=0.9).contains(&self.jitter) {
            return Err(InvalidConfig::new(
                "jitter",
                self.jitter,
                "must be between 0 and 0.9",
            ));
        }
        if let Some(early) = windows.early.filter(|early| !early.is_sensible()) {
            let rule = match early {
                RefreshEarly::Probability(_) => "the factor must be above 0 and at most 100",
                RefreshEarly::Threshold(_) => "the threshold must be between 0 and 1, exclusive",
            };
            return Err(InvalidConfig::new("refresh_early", early, rule));
        }
        if self.hot_key_metrics > MOST_NAMED {
            let rule = "must be at most 20: each is a series of your metrics";
            return Err(InvalidConfig::new(
                "hot_key_metrics",
                self.hot_key_metrics,
                rule,
            ));
        }
        if self.max_loads == 0 {
            return Err(InvalidConfig::new("max_loads", 0, "must be at least 1"));
        }
        if !(1..=MAX_BODY / 2).contains(&self.max_value_bytes) {
            let rule = "must be between 1 byte and 32 MiB";
            return Err(InvalidConfig::new(
                "max_value_bytes",
                self.max_value_bytes,
                rule,
            ));
        }
        Ok(())
    }

    pub(super) fn resolve_fleet(
        &self,
        options: &FleetOptions,
    ) -> Result<FleetSettings, InvalidConfig> {
        options.resolve(&FleetDefaults {
            budget: Duration::from_millis(250).min(self.lease),
            heartbeat: None,
            no_heartbeat: "a cache has no heartbeat: the lease of a load is renewed by itself",
            on_outage: OnOutage::Local,
            accepts: &[OnOutage::Local],
            rule: "must be `Local`: a cache without its store goes on with what the process holds and with the loader",
        })
    }

    /// The longest time that a value with the usual time to live is kept.
    pub(super) fn longest_keep(&self) -> Duration {
        self.windows.keep(self.ttl, false).max(self.negative_ttl)
    }
}
