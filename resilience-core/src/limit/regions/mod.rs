//! One limit over several regions, with no call across regions when a request is decided.
//!
//! Each region has a store of its own, and decides by it alone. The limit is divided between the regions: each has a fixed
//! share of the burst, and a share of the rate that follows demand. A background task of each region lends what its callers
//! do not use to regions whose callers want more, and takes it back when it is wanted at home.
//!
//! Demand is what the busiest subject of a region asks for, granted or not: calls that a
//! [`FleetRateLimit`](super::fleet::FleetRateLimit) denies from its cache count too. A region keeps as much of its base
//! share as its demand needs, with a quarter to spare, however large the demand of others is; the rest is divided in
//! proportion to the demands.
//!
//! ```
//! use std::time::Duration;
//! use resilience_core::{FleetRateLimit, Quota, limit::store::InProcessLimits};
//! use resilience_core::{RegionalLimits, limit::regions::InProcessRegion};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In production: `eu.limits()`, `eu.regions()` and `us.regions()` of two Redis servers.
//! let (eu, us) = (InProcessRegion::new(), InProcessRegion::new());
//! let store = RegionalLimits::builder("api")
//!     .store(InProcessLimits::new())
//!     .here("eu", 1, eu)
//!     .peer("us", 1, us)
//!     .build()?;
//! let limit = FleetRateLimit::builder("api")
//!     .store(store)
//!     .limit("per-second", Quota::per(1_000, Duration::from_secs(1))?)
//!     .build()?;
//! limit.check("tenant-7", [("per-second", 1)]).await?;
//! # Ok(()) }
//! ```
//!
//! # Guarantee
//! In any time `t`, all regions together admit at most the burst plus `t` times the rate: of every subject, also
//! while shares move, while regions cannot reach each other, disagree, or lose their ledgers. This requires clocks that run
//! at the same rate, not clocks that agree; a region whose store is set back admits at most its share, but may lend longer
//! than it meant to.
//!
//! - A loan is noted by the lender first, and entered at the borrower when no process of the lender can still use it; it
//!   is taken back in the reverse order. So a share changes hands in six to twelve
//!   [intervals](RegionalLimitsBuilder::interval), and two or three more until a demand shows, as long as messages take at
//!   most a tenth of an interval. Slower messages and loaded machines miss turns: with up to four tenths, it takes up to 30.
//! - A region that cannot be reached keeps what it was lent until the [term](RegionalLimitsBuilder::term) ends; then the
//!   lender has it back.
//! - A region whose ledger was lost keeps to its floor for one term, since what the lost ledger had lent may still be in
//!   use. So does a new region.
//! - After its share has grown, a bucket is first refilled at the smallest share since this process saw it written: a bucket
//!   is refilled for the time since its last write at the rate of the moment, and part of that time belonged to another
//!   region.
//!
//! # When a ledger is unavailable
//! A process that cannot reach the ledger of its own region goes by its floor share when the share that it read last has run
//! out (three intervals), which is what [`OnOutage::Local`](crate::fleet::OnOutage::Local) means here; there is no other
//! policy. No request waits for a ledger.
//!
//! # Cost
//! A lookup on the path of a request. In the background, one command per interval for each process, and for each region
//! and peer two commands per interval across.
//!
//! # Limitations
//! A subject cannot use more of the burst than its region's base share at once, wherever the demand is: a call that costs
//! more is impossible there. Limits whose burst is so small that a region gets no token of it cannot be divided, and are
//! an error of the store. Shares are of the whole, not of a subject: they follow the subject whose demand is largest in
//! each region. Demand is counted in 1,024 groups of subjects, chosen by hash; subjects of one group count as one.
//!
//! # References
//! C. Gray, D. Cheriton, "Leases", SOSP 1989 (loans that end by the clocks of both sides).

mod agent;
mod balance;
mod builder;
mod client;
mod codec;
mod demand;
mod ledger;
mod settings;
mod share;
mod store;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde::Serialize;

pub use self::{
    builder::RegionalLimitsBuilder,
    codec::NoLedger,
    ledger::{Ledger, LedgerView, Swap, WHOLE},
    store::{InProcessRegion, RegionStore},
};

use self::{client::LedgerClient, demand::DemandCounter, ledger::Rules, share::ShareTracker};
use super::{
    Quota,
    store::{Demand, LimitStore, StoreDecision, StoreError, StoreFuture, validate},
};
use crate::{
    clock::{Clock, Moment},
    fleet::{AgentHandle, StillRunning, StoreHandle},
};

/// The limits of one region, with its share of them. A [`LimitStore`], so that everything that takes one works over
/// regions. Clones share everything; dropping the last one ends the background task.
#[derive(Clone)]
pub struct RegionalLimits {
    shared: Arc<Shared>,
    agent: Arc<AgentHandle>,
}

/// State of [`RegionalLimits`] at one moment, as one process knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RegionalLimitsSnapshot {
    /// This region.
    pub region: Arc<str>,
    /// The share of the rate that this process uses, in parts of [`WHOLE`].
    pub share: u32,
    /// The share of this region while nothing is lent, in parts of [`WHOLE`].
    pub base: u32,
    /// Whether the ledger of the region is unavailable.
    pub degraded: bool,
}

struct Shared {
    group: Arc<str>,
    region: Arc<str>,
    instance: Arc<str>,
    limits: Arc<dyn LimitStore>,
    here: LedgerClient,
    peers: BTreeMap<Arc<str>, LedgerClient>,
    /// Base and floor of each region.
    shares: BTreeMap<Arc<str>, (u32, u32)>,
    /// The base shares of the regions before this one, in the order of their names.
    before: u32,
    rules: Rules,
    known: ShareTracker,
    asked: DemandCounter,
    clock: Clock,
}

impl RegionalLimits {
    /// Starts the builder of a region's share of the limits called `name`. Regions of one name share them.
    pub fn builder(name: impl Into<Arc<str>>) -> RegionalLimitsBuilder {
        RegionalLimitsBuilder::new(name.into())
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.group
    }

    /// The state of this region now, as this process knows it.
    #[must_use]
    pub fn snapshot(&self) -> RegionalLimitsSnapshot {
        let shared = &self.shared;
        RegionalLimitsSnapshot {
            region: Arc::clone(&shared.region),
            share: shared.known.share(shared.clock.now()),
            base: shared.rules.base,
            degraded: !shared.here.is_available(),
        }
    }

    /// Reads the ledger of this region. One round trip.
    ///
    /// # Errors
    /// When its store gives no answer within the time budget; at once while it is unavailable.
    pub async fn fleet_view(&self) -> Result<LedgerView, StoreError> {
        self.shared.here.read().await
    }

    /// Ends the background task: takes the demand of this process back, and waits for that, for at most `within`. Decisions
    /// go by the floor share when the share that was read last has run out.
    ///
    /// # Errors
    /// [`StillRunning`] when it was not done by then. It goes on in the background.
    pub async fn shutdown(&self, within: Duration) -> Result<(), StillRunning> {
        self.agent.shutdown(within).await
    }
}

impl fmt::Debug for RegionalLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegionalLimits")
            .field("name", &self.shared.group)
            .field("snapshot", &self.snapshot())
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
        self.asked.count(name, subject, demands);
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

    /// This region's part of a quota: `parts` of the rate, and its base share of the burst. The burst is dealt out in the
    /// order of the regions' names, so that each token belongs to exactly one region.
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

    fn note_denied(&self, name: &str, subject: &str, demand: &Demand<'_>) {
        self.shared
            .asked
            .count(name, subject, std::slice::from_ref(demand));
    }

    fn handle(&self) -> Option<&StoreHandle> {
        self.shared.limits.handle()
    }
}
