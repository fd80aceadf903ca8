//! The checked numbers of a consumer.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use super::decision::Rules;
use crate::{
    backoff::Backoff,
    error::InvalidConfig,
    fleet::{FleetDefaults, OnOutage},
    stream::{message::Envelope, steps::Start},
};

/// What a consumer does when its group was lost together with what it knew of unsettled messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnLoss {
    /// Goes on: where the group was, if the stream is still there, otherwise with the oldest message of the new stream. Messages may be
    /// handled again.
    #[default]
    Resume,
    /// Ends with [`ConsumeError::Lost`](super::ConsumeError::Lost).
    Stop,
}

/// Finds what the order of a message is kept for.
pub(super) type LaneOf = dyn Fn(&Envelope) -> Option<Arc<str>> + Send + Sync;

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) concurrency: usize,
    pub(super) prefetch: Option<usize>,
    pub(super) lanes: Option<Arc<LaneOf>>,
    pub(super) lease: Duration,
    pub(super) longest_lease: Duration,
    pub(super) deadline: Option<Duration>,
    pub(super) rules: Rules,
    pub(super) effect_once: Option<Duration>,
    pub(super) start: Start,
    pub(super) on_loss: OnLoss,
    pub(super) schemas: RangeInclusive<u32>,
    pub(super) poll: Duration,
    pub(super) keep: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let (base, max) = (Duration::from_millis(500), Duration::from_secs(300));
        Self {
            concurrency: 16,
            prefetch: None,
            lanes: None,
            lease: Duration::from_secs(30),
            longest_lease: Duration::from_secs(3_600),
            deadline: None,
            rules: Rules {
                max_deliveries: 5,
                retry: Backoff::decorrelated_jitter(base, max),
            },
            effect_once: None,
            start: Start::Oldest,
            on_loss: OnLoss::Resume,
            schemas: 0..=u32::MAX,
            poll: Duration::from_secs(1),
            keep: Duration::from_secs(7 * 86_400),
        }
    }
}

pub(super) const FLEET: FleetDefaults = FleetDefaults {
    budget: Duration::from_secs(1),
    heartbeat: None,
    no_heartbeat: "the heartbeat of a consumer follows its `lease`",
    on_outage: OnOutage::FailClosed,
    accepts: &[OnOutage::FailClosed],
    rule: "must be `FailClosed`: without its broker, a consumer has no messages",
};

const DAY: Duration = Duration::from_secs(86_400);
const YEARS: Duration = Duration::from_secs(86_400 * 365 * 10);

impl Settings {
    pub(super) fn prefetch(&self) -> usize {
        self.prefetch.unwrap_or(self.concurrency * 2)
    }

    pub(super) fn check(&self) -> Result<(), InvalidConfig> {
        let many = |field, is: usize, rule| {
            if (1..=10_000).contains(&is) {
                return Ok(());
            }
            Err(InvalidConfig::new(field, is, rule))
        };
        many(
            "concurrency",
            self.concurrency,
            "must be between 1 and 10,000",
        )?;
        let rule = "must be between `concurrency` and 20,000";
        if !(self.concurrency..=20_000).contains(&self.prefetch()) {
            return Err(InvalidConfig::new("prefetch", self.prefetch(), rule));
        }
        let time = InvalidConfig::check_time;
        let ms = Duration::from_millis;
        let rule = "must be between 100 milliseconds and 1 day";
        time("lease", self.lease, ms(100)..=DAY, rule)?;
        let rule = "must be between the `lease` and 10 years";
        time(
            "longest_lease",
            self.longest_lease,
            self.lease..=YEARS,
            rule,
        )?;
        let rule = "must be between 1 millisecond and the `longest_lease`";
        let deadline = self.deadline.unwrap_or(self.longest_lease);
        time("deadline", deadline, ms(1)..=self.longest_lease, rule)?;
        let rule = "must be between 10 milliseconds and 1 minute";
        time("poll", self.poll, ms(10)..=ms(60_000), rule)?;
        let rule = "must be between 1 minute and 10 years";
        time("keep", self.keep, ms(60_000)..=YEARS, rule)?;
        let effects = self.effect_once.unwrap_or(DAY);
        time(
            "keep_effects",
            effects,
            self.longest_lease..=YEARS,
            "must be between the `longest_lease` and 10 years",
        )?;
        if self.rules.max_deliveries == 0 {
            return Err(InvalidConfig::new(
                "max_deliveries",
                0,
                "must be at least 1",
            ));
        }
        if self.schemas.is_empty() {
            return Err(InvalidConfig::new(
                "schemas",
                &self.schemas,
                "must not be empty",
            ));
        }
        self.rules.retry.validate()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("concurrency", &self.concurrency)
            .field("lease", &self.lease)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}
