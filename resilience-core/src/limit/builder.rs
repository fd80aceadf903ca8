//! The builder of a rate limit.

use std::{sync::Arc, time::Duration};

use super::{Quota, RateLimit, atomic_bucket::BucketRules, settings::Settings};
use crate::{admission::QueueSettings, clock::Clock, error::InvalidConfig, telemetry};

/// Builder of a [`RateLimit`].
///
/// # Default
/// 100 permits per second, a burst of 100, no queue.
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

    /// Sets the rate: `permits` per `period`, gained evenly. The rules are [`Quota::per`]'s.
    pub const fn permits(mut self, permits: u64, period: Duration) -> Self {
        self.permits = permits;
        self.period = period;
        self
    }

    /// Sets the number of permits that can be saved up and then used at once. Default: the permits of one period.
    pub const fn burst(mut self, burst: u64) -> Self {
        self.burst = Some(burst);
        self
    }

    /// Sets [`permits`](Self::permits) and [`burst`](Self::burst) from `quota`.
    pub const fn quota(self, quota: Quota) -> Self {
        self.permits(quota.permits(), quota.period())
            .burst(quota.capacity())
    }

    /// Lets up to `length` calls wait for their tokens, in order of arrival and for at most `max_wait`. A call whose
    /// turn would come later than that is rejected at once. Default: calls do not wait.
    ///
    /// Timers have a resolution of a millisecond: with a burst that is gained in less, waiting calls do not use all of
    /// a rate.
    pub const fn queue(mut self, length: usize, max_wait: Duration) -> Self {
        self.queue = Some((length, max_wait));
        self
    }

    /// Sets the clock that tokens are gained by. Default: [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the limit, with a full bucket.
    ///
    /// # Errors
    /// When a value is out of bounds: names it and the rule.
    pub fn build(self) -> Result<RateLimit, InvalidConfig> {
        let limit = RateLimit::new(Arc::new(self.settings()?));
        telemetry::register(limit.shared());
        Ok(limit)
    }

    pub(super) fn settings(self) -> Result<Settings, InvalidConfig> {
        let quota = Quota::per(self.permits, self.period)?;
        let quota = match self.burst {
            Some(burst) => quota.burst(burst)?,
            None => quota,
        };
        let queue = QueueSettings::check(self.queue)?;
        Ok(Settings {
            name: self.name,
            rules: BucketRules::new(quota),
            queue,
            clock: self.clock.unwrap_or_default(),
            totals: Arc::default(),
        })
    }
}
