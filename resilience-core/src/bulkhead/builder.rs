//! The builder of a bulkhead: what is wrong is said when it is built.

use std::{sync::Arc, time::Duration};

use super::{
    Bulkhead,
    hold_time::HoldTimes,
    semaphore::{MOST, Semaphore},
    shared::{Shared, Totals},
};
use crate::{clock::Clock, error::InvalidConfig, stripe::Striped, telemetry};

/// Settings of a [`Bulkhead`].
///
/// # Default
/// 64 calls in flight, no queue, a retry-after estimated from recent hold times.
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

    /// How many calls may be in flight at once: between 1 and 1,048,575. The default is 64.
    ///
    /// The dependency's own limit is a good choice (the size of the connection pool). Too high a limit protects
    /// nobody; one that is too low rejects calls that would have succeeded.
    pub const fn max_concurrent(mut self, max_concurrent: usize) -> Self {
        self.max_concurrent = max_concurrent;
        self
    }

    /// Lets up to `length` calls wait for a place, each for at most `max_wait`, in order of arrival. The default is
    /// not to let calls wait.
    ///
    /// A queue smooths bursts. It does not help against a dependency that is too slow for the load: then every call
    /// is as late as the queue is long. Keep `max_wait` well below the caller's timeout.
    pub const fn queue(mut self, length: usize, max_wait: Duration) -> Self {
        self.queue = Some((length, max_wait));
        self
    }

    /// The `retry_after` of every rejection. The default is an estimate: the average time that a call holds its
    /// place, times the number of turns until all who are in flight and queued now are through; at least 1 ms, at
    /// most 30 s, and 100 ms while no call has come back yet. When nothing comes back, it is at least the time for
    /// which nothing has.
    pub const fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The clock that hold times are measured with. The default is [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the bulkhead.
    ///
    /// # Errors
    /// If a value is out of bounds: names it and the rule.
    pub fn build(self) -> Result<Bulkhead, InvalidConfig> {
        self.validate()?;
        let bulkhead = self.unregistered(&Arc::default());
        telemetry::register(bulkhead.shared.shared());
        Ok(bulkhead)
    }

    /// A bulkhead of valid settings that the exporter does not know of.
    pub(super) fn unregistered(&self, totals: &Arc<Totals>) -> Bulkhead {
        let (length, max_wait) = self.queue.unwrap_or_default();
        Bulkhead {
            shared: Striped::new(Shared {
                name: Arc::clone(&self.name),
                semaphore: Semaphore::new(self.max_concurrent, length),
                max_wait,
                retry_after: self.retry_after,
                clock: self.clock.unwrap_or_default(),
                hold_times: HoldTimes::default(),
                totals: Arc::clone(totals),
            }),
        }
    }

    /// The name, and these settings with the clock that they resolve to.
    pub(super) fn resolved(self) -> Result<(Arc<str>, Clock, Self), InvalidConfig> {
        self.validate()?;
        let clock = self.clock.unwrap_or_default();
        Ok((Arc::clone(&self.name), clock, self.clock(clock)))
    }

    fn validate(&self) -> Result<(), InvalidConfig> {
        validate_limit(self.max_concurrent)?;
        validate_queue(self.queue)
    }
}

pub(super) fn validate_limit(max_concurrent: usize) -> Result<(), InvalidConfig> {
    if (1..=MOST).contains(&max_concurrent) {
        return Ok(());
    }
    let rule = "must be between 1 and 1,048,575";
    Err(InvalidConfig::new("max_concurrent", max_concurrent, rule))
}

pub(super) fn validate_queue(queue: Option<(usize, Duration)>) -> Result<(), InvalidConfig> {
    let Some((length, max_wait)) = queue else {
        return Ok(());
    };
    if !(1..=MOST).contains(&length) {
        let rule = "its length must be between 1 and 1,048,575; leave `queue` out for none";
        return Err(InvalidConfig::new("queue", length, rule));
    }
    if max_wait.is_zero() {
        let rule = "its maximum wait must be above zero";
        return Err(InvalidConfig::new("queue", max_wait, rule));
    }
    Ok(())
}
