//! The builder of a rate limit: what is wrong is said when it is built.

use std::{sync::Arc, time::Duration};

use super::{
    Quota, RateLimit,
    shared::{QueueLimits, Shared, Totals},
};
use crate::{clock::Clock, error::InvalidConfig, telemetry};

/// Settings of a [`RateLimit`].
///
/// # Default
/// 100 permits per second, as many at once, nobody waits.
#[derive(Clone, Debug)]
#[must_use]
pub struct RateLimitBuilder {
    name: Arc<str>,
    permits: u64,
    period: Duration,
    burst: Option<u64>,
    queue: Option<(usize, Duration)>,
    clock: Option<Clock>,
}

impl RateLimitBuilder {
    pub(super) const fn new(name: Arc<str>) -> Self {
        Self {
            name,
            permits: 100,
            period: Duration::from_secs(1),
            burst: None,
            queue: None,
            clock: None,
        }
    }

    /// So many permits per `period`, gained evenly. The rules are [`Quota::per`]'s.
    pub const fn permits(mut self, permits: u64, period: Duration) -> Self {
        self.permits = permits;
        self.period = period;
        self
    }

    /// How many permits can be saved up and then used at once. The default is as many as a period brings.
    pub const fn burst(mut self, burst: u64) -> Self {
        self.burst = Some(burst);
        self
    }

    /// The same as [`permits`](Self::permits) and [`burst`](Self::burst).
    pub const fn quota(self, quota: Quota) -> Self {
        self.permits(quota.permits(), quota.period())
            .burst(quota.capacity())
    }

    /// Lets up to `length` calls wait for their tokens, in order of arrival and for at most `max_wait`. A call whose
    /// turn would come later than that is rejected at once. The default is not to let calls wait.
    ///
    /// Timers are good to a millisecond: with a burst that is gained in less, waiting calls do not use all of a rate.
    pub const fn queue(mut self, length: usize, max_wait: Duration) -> Self {
        self.queue = Some((length, max_wait));
        self
    }

    /// The clock that tokens are gained by. The default is [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the limit, full.
    ///
    /// # Errors
    /// If a value is out of bounds: names it and the rule.
    pub fn build(self) -> Result<RateLimit, InvalidConfig> {
        let limit = self.settings()?.limit(None);
        telemetry::register(limit.shared());
        Ok(limit)
    }

    pub(super) fn settings(self) -> Result<Settings, InvalidConfig> {
        let quota = Quota::per(self.permits, self.period)?;
        let quota = match self.burst {
            Some(burst) => quota.burst(burst)?,
            None => quota,
        };
        if let Some((length, max_wait)) = self.queue {
            if !(1..1 << 20).contains(&length) {
                let rule = "its length must be between 1 and 1,048,575; leave `queue` out for none";
                return Err(InvalidConfig::new("queue", length, rule));
            }
            if max_wait.is_zero() {
                let rule = "its maximum wait must be above zero";
                return Err(InvalidConfig::new("queue", max_wait, rule));
            }
        }
        Ok(Settings {
            name: self.name,
            quota,
            queue_limits: self.queue.map(|(longest, max_wait)| QueueLimits {
                longest,
                max_wait: u64::try_from(max_wait.as_micros()).unwrap_or(u64::MAX),
            }),
            clock: self.clock.unwrap_or_default(),
            totals: Arc::default(),
        })
    }
}

/// The quota of each key.
pub(super) type QuotaOf<K> = Box<dyn Fn(&K) -> Quota + Send + Sync>;

/// Settings that are valid.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) quota: Quota,
    pub(super) queue_limits: Option<QueueLimits>,
    pub(super) clock: Clock,
    pub(super) totals: Arc<Totals>,
}

impl Settings {
    /// A limit that the exporter does not know of.
    pub(super) fn limit(&self, quota: Option<Quota>) -> RateLimit {
        RateLimit::from_shared(Arc::new(Shared::new(self, quota.unwrap_or(self.quota))))
    }
}
