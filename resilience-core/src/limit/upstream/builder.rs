//! The builder of upstream limits.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    Core, Front, UpstreamLimits,
    agent::UpstreamAgent,
    entry::Upstream,
    settings::{DEFAULTS, validate},
};
use crate::{
    clock::Clock,
    error::{InvalidConfig, Pattern},
    fleet::{FleetOptions, IntoStore, StoreClient, Waker, runtime, spawn},
    keyed::{Keyed, Registry},
    limit::store::LimitStore,
    telemetry,
};

/// Builder of [`UpstreamLimits`].
///
/// # Default
/// Not shared; 1,024 servers; a server can keep callers away for at most five minutes.
#[must_use]
pub struct UpstreamLimitsBuilder {
    name: Arc<str>,
    upstreams: Keyed,
    longest: Duration,
    store: Option<Arc<dyn LimitStore>>,
    fleet: Option<FleetOptions>,
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
            fleet: None,
            refresh: Duration::from_secs(1),
            clock: None,
        }
    }

    /// Sets the bounds of the family of servers. Default: 1,024.
    pub const fn upstreams(mut self, bounds: Keyed) -> Self {
        self.upstreams = bounds;
        self
    }

    /// Sets the longest time that a server can keep callers away; longer ones are cut down to it. Between 1 ms and a day.
    /// Default: five minutes.
    pub const fn longest(mut self, longest: Duration) -> Self {
        self.longest = longest;
        self
    }

    /// Shares what servers advertise with all handles of this name on this store, in whatever process.
    pub fn store(mut self, store: impl IntoStore<dyn LimitStore>) -> Self {
        self.store = Some(store.into_store());
        self
    }

    /// Sets how this instance takes part in the fleet. Defaults: a budget of 250 ms,
    /// [`OnOutage::Local`](crate::fleet::OnOutage::Local), the only policy: each instance keeps to what it was told itself.
    /// There is no heartbeat.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = Some(options);
        self
    }

    /// Sets the interval at which the store is read about a server that is being called. Between 10 ms and a day. Default:
    /// a second.
    pub const fn refresh(mut self, interval: Duration) -> Self {
        self.refresh = interval;
        self
    }

    /// Sets the clock that waits are measured by. Default: [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the handle; with a store, starts its background task.
    ///
    /// # Errors
    /// When a value is out of bounds: names it and the rule. With a store, outside of a tokio runtime.
    pub fn build(self) -> Result<UpstreamLimits, InvalidConfig> {
        validate(self.longest, self.refresh)?;
        if let (Some(options), None) = (&self.fleet, &self.store) {
            let rule = "needs a store: see `store`";
            return Err(InvalidConfig::new("fleet", options, rule));
        }
        let fleet = self.fleet.unwrap_or_default().resolve(&DEFAULTS)?;
        let shared = match self.store {
            None => None,
            Some(store) => Some((store, runtime()?)),
        };
        let clock = self.clock.unwrap_or_default();
        let upstreams = Registry::new(
            self.upstreams,
            move |_| Arc::new(Upstream::new(clock)),
            |_| {},
        )?;
        let name = self.name;
        let shared = shared.map(|(store, runtime)| {
            let handle = store.handle().cloned().unwrap_or_default();
            let client = StoreClient::new(store, Pattern::RateLimit, Arc::clone(&name), &fleet);
            let waker = Waker::new();
            client.wake_on_return(waker.clone());
            (client, waker, handle, runtime)
        });
        let core = Arc::new(Core {
            name,
            clock,
            longest: self.longest,
            upstreams,
            store: shared
                .as_ref()
                .map(|(client, waker, ..)| (client.clone(), waker.clone())),
            rejected: 0.into(),
        });
        telemetry::register(&core);
        let agent = shared.map(|(client, waker, handle, runtime)| {
            let agent = UpstreamAgent::new(Arc::clone(&core), client, self.refresh);
            spawn(agent, None, waker, &handle, &runtime)
        });
        let front = Arc::new(Front { core, agent });
        Ok(UpstreamLimits { front })
    }
}

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
