//! The builder of regional limits.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    RegionalLimits, Shared,
    agent::RegionAgent,
    client::LedgerClient,
    demand::DemandCounter,
    ledger::Rules,
    settings::{defaults, shares, validate},
    share::ShareTracker,
    store::RegionStore,
};
use crate::{
    clock::Clock,
    error::InvalidConfig,
    fleet::{FleetOptions, FleetSettings, IntoStore, Waker, required, runtime, spawn},
    limit::store::LimitStore,
};

/// Builder of [`RegionalLimits`]. All regions must be built with the same regions, weights and times.
///
/// # Default
/// A tenth of the base share is never lent; one turn per second; loans last for ten.
#[derive(Debug)]
#[must_use]
pub struct RegionalLimitsBuilder {
    group: Arc<str>,
    limits: Option<Arc<dyn LimitStore>>,
    here: Option<(Arc<str>, u32, Arc<dyn RegionStore>)>,
    peers: Vec<(Arc<str>, u32, Arc<dyn RegionStore>)>,
    keep: f64,
    interval: Duration,
    term: Duration,
    fleet: FleetOptions,
    clock: Option<Clock>,
}

impl RegionalLimitsBuilder {
    pub(super) const fn new(group: Arc<str>) -> Self {
        Self {
            group,
            limits: None,
            here: None,
            peers: Vec::new(),
            keep: 0.1,
            interval: Duration::from_secs(1),
            term: Duration::from_secs(10),
            fleet: FleetOptions::new(),
            clock: None,
        }
    }

    /// Sets the store of the limits, in this region. Required.
    pub fn store(mut self, limits: impl IntoStore<dyn LimitStore>) -> Self {
        self.limits = Some(limits.into_store());
        self
    }

    /// Sets this region: its name, its weight in the division, and the store of its ledger, in the region.
    pub fn here(
        mut self,
        region: impl Into<Arc<str>>,
        weight: u32,
        ledger: impl IntoStore<dyn RegionStore>,
    ) -> Self {
        self.here = Some((region.into(), weight, ledger.into_store()));
        self
    }

    /// Adds another region, and the store of its ledger, in that region. Requests never wait for it.
    pub fn peer(
        mut self,
        region: impl Into<Arc<str>>,
        weight: u32,
        ledger: impl IntoStore<dyn RegionStore>,
    ) -> Self {
        let peer = (region.into(), weight, ledger.into_store());
        self.peers.push(peer);
        self
    }

    /// Sets the part of its base share that a region never lends: above 0, up to 1. Default: 0.1. Callers that appear
    /// where there were none have it until a loan has been taken back.
    pub const fn keep(mut self, keep: f64) -> Self {
        self.keep = keep;
        self
    }

    /// Sets the interval at which a region adjusts its share: between 10 milliseconds and a minute. Default: a second. A
    /// process uses a share for three times as long without reading it again, then the floor.
    pub const fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets the time after which a loan ends when the regions cannot reach each other: at least six intervals, at most a
    /// day. Default: 10 seconds.
    pub const fn term(mut self, term: Duration) -> Self {
        self.term = term;
        self
    }

    /// Sets how this process takes part in the region. Defaults: a budget of one interval for a step on the region's own
    /// ledger (a step on another region's always has a quarter of an interval),
    /// [`OnOutage::Local`](crate::fleet::OnOutage::Local), the only policy: the floor share, when the share that was read
    /// last has run out. There is no heartbeat.
    pub fn fleet(mut self, options: FleetOptions) -> Self {
        self.fleet = options;
        self
    }

    /// Sets the clock of this process. Default: [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the store, and starts the background task.
    ///
    /// # Errors
    /// When a value is out of bounds, the store or this region is missing, or a region is named twice: names it and the
    /// rule. Outside of a tokio runtime.
    pub fn build(self) -> Result<RegionalLimits, InvalidConfig> {
        validate(self.keep, self.interval, self.term)?;
        let fleet = self.fleet.resolve(&defaults(self.interval))?;
        let Some((region, weight, here)) = self.here else {
            let rule = "this region must be named";
            return Err(InvalidConfig::new("here", (), rule));
        };
        let mut weights = BTreeMap::from([(Arc::clone(&region), weight)]);
        for (peer, weight, _) in &self.peers {
            if weights.insert(Arc::clone(peer), *weight).is_some() {
                let rule = "a region must not be named twice";
                return Err(InvalidConfig::new("peer", peer, rule));
            }
        }
        let shares = shares(&weights, self.keep)?;
        let (base, floor) = shares[&region];
        let before = shares
            .range(..Arc::clone(&region))
            .map(|(_, (base, _))| base)
            .sum();
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let rules = Rules {
            base,
            floor,
            interval: micros(self.interval),
            term: micros(self.term),
        };
        let limits = required(self.limits)?;
        let runtime = runtime()?;
        let handle = here.handle().cloned().unwrap_or_default();
        // A turn has to end within an interval, also when no peer answers.
        let across = FleetSettings {
            budget: self.interval / 4,
            ..fleet.clone()
        };
        let peers = self.peers.into_iter().map(|(peer, _, store)| {
            let ledger = LedgerClient::new(&self.group, &peer, store, &across);
            (peer, ledger)
        });
        let shared = Arc::new(Shared {
            here: LedgerClient::new(&self.group, &region, here, &fleet),
            peers: peers.collect(),
            instance: fleet.instance,
            group: self.group,
            region,
            limits,
            shares,
            before,
            rules,
            known: ShareTracker::new(floor),
            asked: DemandCounter::new(),
            clock: self.clock.unwrap_or_default(),
        });
        let waker = Waker::new();
        shared.here.wake_on_return(waker.clone());
        let agent = RegionAgent::new(Arc::clone(&shared));
        let agent = Arc::new(spawn(agent, None, waker, &handle, &runtime));
        Ok(RegionalLimits { shared, agent })
    }
}
