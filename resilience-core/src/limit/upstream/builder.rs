//! The builder: what is wrong is said when it is built.

use std::{fmt, sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{
    Core, Front, UpstreamLimits,
    agent::{self, Bell},
    entry::Upstream,
};
use crate::{
    clock::Clock,
    error::InvalidConfig,
    keyed::{Keyed, Registry},
    limit::store::LimitStore,
    telemetry,
};

/// Settings of a [`UpstreamLimits`].
///
/// # Default
/// Not shared; 1,024 peers; a peer can keep callers away for five minutes at most.
#[must_use]
pub struct UpstreamLimitsBuilder {
    name: Arc<str>,
    upstreams: Keyed,
    longest: Duration,
    store: Option<Arc<dyn LimitStore>>,
    refresh: Duration,
    clock: Option<Clock>,
}

impl UpstreamLimitsBuilder {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            upstreams: Keyed::new(),
            longest: Duration::from_secs(300),
            store: None,
            refresh: Duration::from_secs(1),
            clock: None,
        }
    }

    /// How many peers are kept in mind.
    pub const fn upstreams(mut self, bounds: Keyed) -> Self {
        self.upstreams = bounds;
        self
    }

    /// The longest that a peer can keep callers away. What it says beyond that is cut down to it: a stranger's word
    /// is not to stop a service for a day. Default: five minutes.
    pub const fn longest(mut self, longest: Duration) -> Self {
        self.longest = longest;
        self
    }

    /// Shares what peers say with all handles of this name on this store, in whatever process.
    pub fn store(mut self, store: impl LimitStore) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// How often the store is asked about a peer that is being called. Default: a second.
    pub const fn refresh(mut self, interval: Duration) -> Self {
        self.refresh = interval;
        self
    }

    /// The clock that waits are measured by. The default is [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the handle; with a store, starts the task that talks to it.
    ///
    /// # Errors
    /// If a value is out of bounds: names it and the rule. With a store, outside of a tokio runtime.
    pub fn build(self) -> Result<UpstreamLimits, InvalidConfig> {
        if !(Duration::from_millis(1)..=LONGEST).contains(&self.longest) {
            let rule = "must be between a millisecond and a day";
            return Err(InvalidConfig::new("longest", self.longest, rule));
        }
        if self.refresh < Duration::from_millis(10) {
            let rule = "must be 10 ms at least";
            return Err(InvalidConfig::new("refresh", self.refresh, rule));
        }
        if let Some(store) = &self.store
            && Handle::try_current().is_err()
        {
            let rule = "needs a tokio runtime where it is built";
            return Err(InvalidConfig::new("store", store, rule));
        }
        let clock = self.clock.unwrap_or_default();
        let upstreams = Registry::new(
            self.upstreams,
            move |_| Arc::new(Upstream::new(clock)),
            |_| {},
        )?;
        let core = Arc::new(Core {
            name: self.name,
            clock,
            longest: self.longest,
            upstreams,
            bell: self.store.is_some().then(Bell::default),
            rejected: 0.into(),
        });
        telemetry::register(&core);
        if let Some(store) = self.store {
            tokio::spawn(agent::run(Arc::clone(&core), store, self.refresh));
        }
        let front = Arc::new(Front(core));
        Ok(UpstreamLimits { front })
    }
}

const LONGEST: Duration = Duration::from_secs(86_400);

impl fmt::Debug for UpstreamLimitsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamLimitsBuilder")
            .field("name", &self.name)
            .field("upstreams", &self.upstreams)
            .field("longest", &self.longest)
            .field("store", &self.store)
            .field("refresh", &self.refresh)
            .finish_non_exhaustive()
    }
}
