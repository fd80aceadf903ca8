//! The builder of a fleet's bulkhead: what is wrong is said when it is built.

use std::{sync::Arc, time::Duration};

use super::{FleetBulkhead, agent::Agent, shared::Shared, store::BulkheadStore};
use crate::{
    bulkhead::settings::{QueueSettings, check_limit},
    clock::Clock,
    error::InvalidConfig,
    telemetry,
};

/// What becomes of calls while the store gives no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unreachable {
    /// They pass, counted and with no limit: the dependency is better off too busy than unused.
    Open,
    /// They are rejected as [`StoreUnreachable`](crate::Reason::StoreUnreachable): the limit is a promise.
    Closed,
    /// As many pass as are this instance's share: the limit divided by the instances last seen alive, rounded down.
    /// What the fleet has in flight stays within the limit, if the whole fleet has lost the store and no instance
    /// starts or comes back meanwhile; where it is more instances than places, nothing passes. The default.
    #[default]
    LocalShare,
}

/// What becomes of a call whose lease is lost while it is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhenLost {
    /// It goes on, beside whoever has taken its place. [`FleetPermit::lost`](super::FleetPermit::lost) tells. The
    /// default.
    #[default]
    GoOn,
    /// The layer drops it and answers [`LeaseLost`](crate::Reason::LeaseLost).
    Abort,
}

/// Settings of a [`FleetBulkhead`].
///
/// # Default
/// 64 calls in flight in the whole fleet, no queue, leases of 10 seconds, a local share while the store is away, calls
/// go on when their lease is lost.
#[derive(Clone, Debug)]
#[must_use]
pub struct FleetBulkheadBuilder {
    pub(super) name: Arc<str>,
    pub(super) store: Arc<dyn BulkheadStore>,
    pub(super) max_concurrent: usize,
    pub(super) lease: Duration,
    pub(super) queue: Option<(usize, Duration)>,
    pub(super) unreachable: Unreachable,
    pub(super) when_lost: WhenLost,
    pub(super) instance: Option<Arc<str>>,
    pub(super) clock: Option<Clock>,
}

/// Longer leases block places for longer than anybody waits.
const LONGEST_LEASE: Duration = Duration::from_secs(86_400);
/// Shorter ones are lost to the first hiccup of the network.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

impl FleetBulkheadBuilder {
    pub(super) fn new(name: Arc<str>, store: Arc<dyn BulkheadStore>) -> Self {
        Self {
            name,
            store,
            max_concurrent: 64,
            lease: Duration::from_secs(10),
            queue: None,
            unreachable: Unreachable::default(),
            when_lost: WhenLost::default(),
            instance: None,
            clock: None,
        }
    }

    /// How many places the whole fleet has: between 1 and 1,048,575. The default is 64.
    ///
    /// Every instance asks with the number that it knows. While they differ (a rollout), each keeps to its own.
    pub const fn max_concurrent(mut self, max_concurrent: usize) -> Self {
        self.max_concurrent = max_concurrent;
        self
    }

    /// For how long a call holds its places without a sign of life from its instance: between 100 milliseconds and a
    /// day. The default is 10 seconds.
    ///
    /// Calls may last longer: their instance renews their leases three times in this time, all in one command. It is
    /// the time after which the places of an instance that died are free again, and for which the store may be away
    /// before leases are lost.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Lets up to `length` calls of this instance wait for places, each for at most `max_wait`. The default is not to
    /// let calls wait.
    ///
    /// Calls of one instance wait in order of arrival. The first of each instance waits in the fleet's queue, in order
    /// of arrival too, so instances with many callers take turns with those that have few.
    pub const fn queue(mut self, length: usize, max_wait: Duration) -> Self {
        self.queue = Some((length, max_wait));
        self
    }

    /// What becomes of calls while the store gives no answer. The default is [`Unreachable::LocalShare`].
    pub const fn unreachable(mut self, unreachable: Unreachable) -> Self {
        self.unreachable = unreachable;
        self
    }

    /// What becomes of a call whose lease is lost. The default is [`WhenLost::GoOn`].
    pub const fn when_lost(mut self, when_lost: WhenLost) -> Self {
        self.when_lost = when_lost;
        self
    }

    /// What this instance calls itself before the random part of its name, for people who look into the store.
    pub fn instance(mut self, name: impl Into<Arc<str>>) -> Self {
        self.instance = Some(name.into());
        self
    }

    /// The clock that leases are watched with on this side. The default is [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the bulkhead, and starts the task that gives its heartbeats.
    ///
    /// # Errors
    /// If a value is out of bounds: names it and the rule.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn build(self) -> Result<FleetBulkhead, InvalidConfig> {
        check_limit(self.max_concurrent)?;
        QueueSettings::check(self.queue)?;
        if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&self.lease) {
            let rule = "must be between 100 milliseconds and a day";
            return Err(InvalidConfig::new("lease", self.lease, rule));
        }
        let shared = Arc::new(Shared::new(self));
        telemetry::register(&shared);
        Agent::start(&shared);
        Ok(FleetBulkhead { shared })
    }
}
