//! The builder of a region's share: what is wrong is said when it is built.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use super::{
    RegionalLimits, Shared, agent,
    ledger::{Rules, WHOLE},
    share::ShareTracker,
    store::RegionStore,
};
use crate::{clock::Clock, error::InvalidConfig, limit::store::LimitStore};

/// Settings of [`RegionalLimits`]. All regions must be built with the same regions, weights and times.
///
/// # Default
/// A tenth of the base share is never lent; a turn a second; loans last for ten.
#[derive(Debug)]
#[must_use]
pub struct RegionalLimitsBuilder {
    group: Arc<str>,
    limits: Arc<dyn LimitStore>,
    here: Option<(Arc<str>, u32, Arc<dyn RegionStore>)>,
    peers: Vec<(Arc<str>, u32, Arc<dyn RegionStore>)>,
    keep: f64,
    interval: Duration,
    term: Duration,
    clock: Option<Clock>,
}

impl RegionalLimitsBuilder {
    pub(super) fn new(group: Arc<str>, limits: Arc<dyn LimitStore>) -> Self {
        Self {
            group,
            limits,
            here: None,
            peers: Vec::new(),
            keep: 0.1,
            interval: Duration::from_secs(1),
            term: Duration::from_secs(10),
            clock: None,
        }
    }

    /// This region: its name, its weight in the division, and the store of its ledger, near by.
    pub fn here(
        mut self,
        region: impl Into<Arc<str>>,
        weight: u32,
        ledger: impl RegionStore,
    ) -> Self {
        self.here = Some((region.into(), weight, Arc::new(ledger)));
        self
    }

    /// Another region, and the store of its ledger, across. Requests never wait for it.
    pub fn peer(
        mut self,
        region: impl Into<Arc<str>>,
        weight: u32,
        ledger: impl RegionStore,
    ) -> Self {
        self.peers.push((region.into(), weight, Arc::new(ledger)));
        self
    }

    /// How much of its base share a region never lends: above 0, up to 1. The default is 0.1. Callers that appear where
    /// there were none go by it until a loan has been taken back.
    pub const fn keep(mut self, keep: f64) -> Self {
        self.keep = keep;
        self
    }

    /// How often a region looks after its share: between 10 milliseconds and a minute. The default is a second. A process
    /// goes by a share for three times as long without hearing of it again, then by the floor.
    pub const fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// For how long a loan goes on when the regions cannot reach each other: at least six intervals, at most a day. The
    /// default is 10 seconds.
    pub const fn term(mut self, term: Duration) -> Self {
        self.term = term;
        self
    }

    /// The clock of this process. The default is [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the store, and starts the task that looks after the share.
    ///
    /// # Errors
    /// If a value is out of bounds, a region is missing or named twice: names it and the rule.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn build(self) -> Result<RegionalLimits, InvalidConfig> {
        self.check()?;
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
        let shared = Arc::new(Shared {
            instance: format!("{:016x}", fastrand::u64(..)).into(),
            group: self.group,
            region,
            limits: self.limits,
            here,
            peers: self
                .peers
                .into_iter()
                .map(|(peer, _, store)| (peer, store))
                .collect(),
            shares,
            before,
            rules,
            known: ShareTracker::new(floor),
            asked: AtomicU64::new(0),
            clock: self.clock.unwrap_or_default(),
            degraded: AtomicBool::new(false),
        });
        agent::start(&shared);
        Ok(RegionalLimits { shared })
    }

    fn check(&self) -> Result<(), InvalidConfig> {
        if !(self.keep > 0.0 && self.keep <= 1.0) {
            return Err(InvalidConfig::new(
                "keep",
                self.keep,
                "must be above 0, up to 1",
            ));
        }
        let (shortest, longest) = (Duration::from_millis(10), Duration::from_secs(60));
        if !(shortest..=longest).contains(&self.interval) {
            let rule = "must be between 10 milliseconds and a minute";
            return Err(InvalidConfig::new("interval", self.interval, rule));
        }
        if self.term < self.interval * 6 || self.term > Duration::from_secs(86_400) {
            let rule = "must be at least six intervals, at most a day";
            return Err(InvalidConfig::new("term", self.term, rule));
        }
        Ok(())
    }
}

/// Base and floor of each region. What is lost to rounding nobody has.
fn shares(
    weights: &BTreeMap<Arc<str>, u32>,
    keep: f64,
) -> Result<BTreeMap<Arc<str>, (u32, u32)>, InvalidConfig> {
    let all: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
    let share = |(region, weight): (&Arc<str>, &u32)| {
        let base = u64::from(WHOLE) * u64::from(*weight) / all.max(1);
        if base == 0 {
            let rule = "its weight must be at least a 256th of all weights together";
            return Err(InvalidConfig::new("region", region, rule));
        }
        let base = u32::try_from(base).unwrap_or(WHOLE);
        let floor = (f64::from(base) * keep).ceil() as u32;
        Ok((Arc::clone(region), (base, floor.clamp(1, base))))
    };
    weights.iter().map(share).collect()
}
