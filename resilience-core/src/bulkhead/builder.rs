//! The builder of a bulkhead.

use std::{sync::Arc, time::Duration};

use super::{
    Bulkhead,
    settings::{Settings, check_limit},
};
use crate::{admission::QueueSettings, clock::Clock, error::InvalidConfig, telemetry};

/// Builder of a [`Bulkhead`].
///
/// # Default
/// 64 concurrent calls, no queue, a retry-after estimated from recent hold times.
#[derive(Clone, Debug)]
#[must_use]
pub struct BulkheadBuilder {
    name: Arc<str>,
    max_concurrent: usize,
    queue: Option<(usize, Duration)>,
    retry_after: Option<Duration>,
    clock: Option<Clock>,
}

impl BulkheadBuilder {
    pub(super) const fn new(name: Arc<str>) -> Self {
        Self {
            name,
            max_concurrent: 64,
            queue: None,
            retry_after: None,
            clock: None,
        }
    }

    /// Sets the limit on concurrent calls: between 1 and 1,048,575. Default: 64.
    ///
    /// The dependency's own limit is a good choice (the size of the connection pool). A limit that
    /// is too high protects nothing; one that is too low rejects calls that would have succeeded.
    pub const fn max_concurrent(mut self, max_concurrent: usize) -> Self {
        self.max_concurrent = max_concurrent;
        self
    }

    /// Lets up to `length` calls wait for a permit, each for at most `max_wait`, in order of
    /// arrival. Default: calls do not wait.
    ///
    /// A queue smooths bursts. It does not help against a dependency that is too slow for the load:
    /// then each call is delayed by the whole queue. Keep `max_wait` well below the caller's
    /// timeout.
    pub const fn queue(mut self, length: usize, max_wait: Duration) -> Self {
        self.queue = Some((length, max_wait));
        self
    }

    /// Sets the `retry_after` of every rejection.
    ///
    /// Default: an estimate, namely the average hold time of a permit, times the number of turns
    /// until all calls that are in flight and queued now have ended; between 1 ms and 30 s, and
    /// 100 ms before the first call has ended. While no call passes, it is at least the time since
    /// the last one did.
    pub const fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Sets the clock that measures hold times. Default: [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the bulkhead.
    ///
    /// # Errors
    /// If a value is out of bounds: names it and the rule.
    pub fn build(self) -> Result<Bulkhead, InvalidConfig> {
        let bulkhead = Bulkhead::new(&self.resolve()?, &Arc::default());
        telemetry::register(bulkhead.shared.shared());
        Ok(bulkhead)
    }

    pub(super) fn resolve(self) -> Result<Settings, InvalidConfig> {
        check_limit(self.max_concurrent)?;
        Ok(Settings {
            queue: QueueSettings::check(self.queue)?,
            name: self.name,
            max_concurrent: self.max_concurrent,
            retry_after: self.retry_after,
            clock: self.clock.unwrap_or_default(),
        })
    }
}
