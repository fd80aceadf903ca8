//! The builder of a fleet's bulkhead.

use std::{sync::Arc, time::Duration};

use super::{
    FleetBulkhead,
    settings::{Settings, WhenLost, check_fleet, check_lease},
    store::BulkheadStore,
};
use crate::{
    admission::QueueSettings,
    bulkhead::settings::check_limit,
    clock::Clock,
    error::InvalidConfig,
    fleet::{FleetOptions, IntoStore, required, runtime},
};

/// Builder of a [`FleetBulkhead`].
///
/// # Default
/// 64 concurrent calls in the whole fleet, no queue, leases of 10 seconds, calls go on when their
/// lease is lost; of the fleet's options: a budget of 250 ms (half of the lease, if that is
/// shorter), [`OnOutage::Local`](crate::fleet::OnOutage::Local).
#[derive(Clone, Debug)]
#[must_use]
pub struct FleetBulkheadBuilder {
    name: Arc<str>,
    store: Option<Arc<dyn BulkheadStore>>,
    max_concurrent: usize,
    lease: Duration,
    queue: Option<(usize, Duration)>,
    when_lost: WhenLost,
    fleet: FleetOptions,
    clock: Option<Clock>,
}

impl FleetBulkheadBuilder {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            store: None,
            max_concurrent: 64,
            lease: Duration::from_secs(10),
            queue: None,
            when_lost: WhenLost::default(),
            fleet: FleetOptions::new(),
            clock: None,
        }
    }

    /// Sets the store of the leases. Instances share the bulkheads of one name in one store. Required.
    pub fn store(mut self, store: impl IntoStore<dyn BulkheadStore>) -> Self {
        self.store = Some(store.into_store());
        self
    }

    /// Sets the limit on concurrent calls of the whole fleet: between 1 and 1,048,575. Default: 64.
    ///
    /// Each request carries the limit of its instance. While instances differ (a rollout), each
    /// keeps to its own.
    pub const fn max_concurrent(mut self, max_concurrent: usize) -> Self {
        self.max_concurrent = max_concurrent;
        self
    }

    /// Sets how long a call holds its permits without a renewal by its instance: between 100
    /// milliseconds and 1 day. Default: 10 seconds.
    ///
    /// Calls may last longer: their instance renews their leases three times in this time, all in
    /// one command. The permits of an instance that died are free again after this time, and an
    /// outage of the store of this length loses the leases.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Lets up to `length` calls of this instance wait for permits, each for at most `max_wait`.
    /// Default: calls do not wait.
    ///
    /// Calls of one instance wait in order of arrival. The first of each instance waits in the
    /// fleet's queue, in order of arrival too, so instances with many callers take turns with those
    /// that have few.
    pub const fn queue(mut self, length: usize, max_wait: Duration) -> Self {
        self.queue = Some((length, max_wait));
        self
    }

    /// Sets what happens to a call whose lease is lost. Default: [`WhenLost::GoOn`].
    pub const fn when_lost(mut self, when_lost: WhenLost) -> Self {
        self.when_lost = when_lost;
        self
    }

    /// Sets the instance name, the time budget of a store step and the outage policy. See
    /// [store outages](super#store-outages).
    ///
    /// The budget must be at most half of the lease. A heartbeat cannot be set: it follows the
    /// lease.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = options;
        self
    }

    /// Sets the clock that measures leases on this side. Default: [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the bulkhead, and starts the task that renews its leases.
    ///
    /// # Errors
    /// If a value is out of bounds, there is no store, or outside of a tokio runtime: names it and the rule.
    pub fn build(self) -> Result<FleetBulkhead, InvalidConfig> {
        let settings = self.resolve()?;
        let runtime = runtime()?;
        Ok(FleetBulkhead::start(settings, &runtime))
    }

    fn resolve(self) -> Result<Settings, InvalidConfig> {
        check_limit(self.max_concurrent)?;
        check_lease(self.lease)?;
        Ok(Settings {
            queue: QueueSettings::check(self.queue)?,
            fleet: check_fleet(&self.fleet, self.lease)?,
            name: self.name,
            store: required(self.store)?,
            max_concurrent: self.max_concurrent as u64,
            lease: self.lease,
            when_lost: self.when_lost,
            clock: self.clock.unwrap_or_default(),
        })
    }
}
