//! One limit over several regions, with no call across regions when a request is decided.
//!
//! Each region has a store of its own, near by, and decides by it alone. What the limit allows is divided between the
//! regions: of the burst each has a fixed share, of the rate one that follows demand. A background task of each region
//! lends what its callers do not use to regions whose callers want more, and takes it back when it is wanted at home.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::limit::{Quota, fleet::FleetRateLimit, store::InProcessLimits};
//! use resilience_core::limit::regions::{InProcessRegion, RegionalLimits};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In production: `eu.limits()`, `eu.regions()` and `us.regions()` of two Redis servers.
//! let (eu, us) = (InProcessRegion::new(), InProcessRegion::new());
//! let store = RegionalLimits::builder("api", InProcessLimits::new())
//!     .here("eu", 1, eu)
//!     .peer("us", 1, us)
//!     .build()?;
//! let limit = FleetRateLimit::builder("api", store)
//!     .limit("per-second", Quota::per(1_000, Duration::from_secs(1))?)
//!     .build()?;
//! limit.check("tenant-7", [("per-second", 1)]).await?;
//! # Ok(()) }
//! ```
//!
//! # What is certain
//! In any time `t`, all regions together admit no more than the burst and `t` times the rate: of every subject, also
//! while shares move, while regions cannot reach each other, disagree, or lose their ledgers. That takes clocks that run
//! at the same rate, not clocks that agree; a region whose store is set back admits what its share is, but may
//! lend longer than it meant to.
//!
//! - A loan is noted by the lender first, and entered at the borrower when no process of the lender can still use it; it
//!   is taken back in the reverse order. So a share changes hands within some eight [intervals](RegionalLimitsBuilder::interval).
//! - A region that cannot be reached keeps what it was lent until the [term](RegionalLimitsBuilder::term) ends, and the
//!   lender has it back then. Each has its base share then, and a process that cannot reach its own region's ledger its floor.
//! - A region whose ledger was lost keeps to its floor for one term: what the last ledger had lent may still be out. So
//!   does a region that is new.
//! - After its share has grown, a bucket is paid at the least share since this process saw it written, for once:
//!   what it gains is paid at the rate of the moment it is looked at, and in the time before another region had that.
//!
//! # What it costs
//! Nothing on the path of a request but a lookup. In the background, one command an interval for each process, and for
//! each region and peer two commands an interval across.
//!
//! # What it is not
//! A subject cannot use more of the burst than its region's base share at once, wherever the demand is: a call that costs
//! more is impossible there. Limits whose burst is so small that a region gets no token of it cannot be divided, and are
//! an error of the store. Shares are of the whole, not of a subject: they follow the demand of all subjects together.

mod agent;
mod balance;
mod builder;
mod codec;
mod ledger;
mod share;
mod store;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub use self::{
    builder::RegionalLimitsBuilder,
    codec::NoLedger,
    ledger::{Ledger, LedgerView, Swap, WHOLE},
    store::{InProcessRegion, RegionStore},
};

use self::{ledger::Rules, share::ShareTracker};
use super::{
    Quota,
    store::{Demand, LimitStore, StoreDecision, StoreError, StoreFuture, validate},
};
use crate::{
    clock::{Clock, Moment},
    error::Pattern,
};

/// The limits of one region, with its share of them. A [`LimitStore`], so that whatever takes one works over regions.
#[derive(Clone)]
pub struct RegionalLimits {
    shared: Arc<Shared>,
}

struct Shared {
    group: Arc<str>,
    region: Arc<str>,
    instance: Arc<str>,
    limits: Arc<dyn LimitStore>,
    here: Arc<dyn RegionStore>,
    peers: BTreeMap<Arc<str>, Arc<dyn RegionStore>>,
    /// Base and floor of each region.
    shares: BTreeMap<Arc<str>, (u32, u32)>,
    /// The base shares of the regions before this one, in the order of their names.
    before: u32,
    rules: Rules,
    known: ShareTracker,
    /// Microseconds of the whole rate that were asked for since the last report.
    asked: AtomicU64,
    clock: Clock,
    degraded: AtomicBool,
}

impl RegionalLimits {
    /// Starts the share of a region in what `limits` keeps. Regions share what has the same `group`.
    pub fn builder(group: impl Into<Arc<str>>, limits: impl LimitStore) -> RegionalLimitsBuilder {
        RegionalLimitsBuilder::new(group.into(), Arc::new(limits))
    }

    /// The share of the rate that this process goes by at this moment, in parts of [`WHOLE`].
    #[must_use]
    pub fn share(&self) -> u32 {
        self.shared.known.share(self.shared.clock.now())
    }

    /// The share of this region while nothing is lent, in parts of [`WHOLE`].
    #[must_use]
    pub fn base(&self) -> u32 {
        self.shared.rules.base
    }

    /// Whether the region's ledger could not be reached the last time.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.shared.degraded.load(Relaxed)
    }
}

impl fmt::Debug for RegionalLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegionalLimits")
            .field("group", &self.shared.group)
            .field("region", &self.shared.region)
            .field("share", &self.share())
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

impl Shared {
    async fn decide(
        &self,
        name: &str,
        subject: &str,
        demands: &[Demand<'_>],
        now: Moment,
    ) -> Result<StoreDecision, StoreError> {
        validate(demands)?;
        self.count(demands);
        let mut used = Vec::with_capacity(demands.len());
        let mut divided = Vec::with_capacity(demands.len());
        for demand in demands {
            let of = self.known.for_bucket(&(name, subject, demand.limit), now);
            let quota = self.divide(&demand.quota, of.parts)?;
            used.push(of);
            divided.push(Demand { quota, ..*demand });
        }
        let decision = self.limits.decide(name, subject, &divided).await?;
        if decision.outcome.is_admitted() {
            // A look writes nothing, nor does a refusal.
            let written = used
                .iter()
                .zip(demands)
                .filter(|(_, demand)| demand.cost != 0);
            self.known.written(written.map(|(used, _)| *used));
        }
        Ok(decision)
    }

    /// This region's part of a quota: so much of the rate, and of the burst its base share, dealt out in the order of the
    /// regions' names so that all of it is in somebody's hands, and nothing twice.
    fn divide(&self, quota: &Quota, parts: u32) -> Result<Quota, StoreError> {
        let up_to = |parts: u32| {
            let tokens = u128::from(quota.capacity()) * u128::from(parts) / u128::from(WHOLE);
            u64::try_from(tokens).unwrap_or(u64::MAX)
        };
        let burst = up_to(self.before + self.rules.base) - up_to(self.before);
        if burst == 0 {
            let reason = format!(
                "a burst of {} cannot be divided: none is left for {}",
                quota.capacity(),
                self.region
            );
            return Err(StoreError::new(reason, false));
        }
        quota
            .portion(parts.into(), WHOLE.into(), burst)
            .map_err(|error| StoreError::new(error.to_string(), false))
    }

    /// How much of the whole rate these demands would use.
    fn count(&self, demands: &[Demand<'_>]) {
        let micros = |demand: &Demand<'_>| {
            let cost = demand.cost.max(0).unsigned_abs();
            cost.saturating_mul(demand.quota.unit()) / demand.quota.rate()
        };
        let most = demands.iter().map(micros).max().unwrap_or(0);
        // Nobody asks for more than a day at once, and is heard.
        self.asked.fetch_add(most.min(86_400_000_000), Relaxed);
    }

    fn answered(&self) {
        if self.degraded.swap(false, Relaxed) {
            tracing::info!(
                target: "resilience",
                pattern = Pattern::RateLimit.as_str(),
                name = &*self.group,
                region = &*self.region,
                "the ledger of the region is back"
            );
        }
    }

    fn unanswered(&self, failure: &StoreError) {
        if !self.degraded.swap(true, Relaxed) {
            tracing::warn!(
                target: "resilience",
                pattern = Pattern::RateLimit.as_str(),
                name = &*self.group,
                region = &*self.region,
                reason = %failure,
                "no ledger of the region: going by the floor share when the last one has run out"
            );
        }
    }
}

impl LimitStore for RegionalLimits {
    fn decide<'a>(
        &'a self,
        name: &'a str,
        subject: &'a str,
        demands: &'a [Demand<'a>],
    ) -> StoreFuture<'a, StoreDecision> {
        let now = self.shared.clock.now();
        Box::pin(self.shared.decide(name, subject, demands, now))
    }

    fn heartbeat<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        ttl: Duration,
    ) -> StoreFuture<'a, u64> {
        self.shared.limits.heartbeat(name, instance, ttl)
    }
}
