//! The store trait of fleet limits.

use std::{fmt, time::Duration};

use super::{
    Quota,
    token_bucket::{After, LimitOutcome},
};
pub use super::{memory::InProcessLimits, sharded::ShardedLimits};
use crate::fleet::{Probe, StoreHandle};
pub use crate::fleet::{StoreError, StoreFuture};

/// The demand of a call on one limit of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand<'a> {
    /// The limit's name: `per-second`, `bytes`. Unique within a decision.
    pub limit: &'a str,
    /// The quota; it may differ from the last time.
    pub quota: Quota,
    /// Tokens to take. Zero reads and changes nothing; a negative cost puts tokens back, up to the capacity.
    pub cost: i64,
}

/// The decision about a set of demands: all are granted, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreDecision {
    /// Granted, or to wait, or impossible; and by which of the demands, by position.
    pub outcome: LimitOutcome,
    /// The state of each limit now, in the order of the demands.
    pub limits: Vec<Standing>,
}

impl StoreDecision {
    /// A decision for a store to return.
    #[must_use]
    pub const fn new(outcome: LimitOutcome, limits: Vec<Standing>) -> Self {
        Self { outcome, limits }
    }

    /// The time until the same demands could be granted, if no tokens are taken meanwhile: zero if they are, `None` if
    /// they never can be.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self.outcome {
            LimitOutcome::Admitted { .. } => Some(Duration::ZERO),
            LimitOutcome::Wait { micros, .. } => Some(Duration::from_micros(micros)),
            LimitOutcome::Impossible { .. } => None,
        }
    }
}

/// The state of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whole tokens left.
    pub remaining: u64,
    /// Microseconds until it is full, if no tokens are taken meanwhile.
    pub full_in: u64,
}

impl From<After> for Standing {
    fn from(after: After) -> Self {
        Self {
            remaining: after.remaining,
            full_in: after.full_in,
        }
    }
}

/// Store of the buckets of a fleet.
///
/// A decision is one atomic step on the buckets of a subject, with the store's own clock, and one round trip. It is
/// [`token_bucket::decide`](super::token_bucket::decide)'s: a denial writes nothing, and a full bucket may be deleted, since an unknown bucket is full.
pub trait LimitStore: fmt::Debug + Send + Sync + 'static {
    /// Decides about all `demands` of `subject` (a tenant, an address) on the limits called `name`.
    fn decide<'a>(
        &'a self,
        name: &'a str,
        subject: &'a str,
        demands: &'a [Demand<'a>],
    ) -> StoreFuture<'a, StoreDecision>;

    /// Notes that `instance` uses the limits called `name` for `ttl` from now on; zero: no longer. Returns the number of
    /// instances that do, by the store's own clock, this one included.
    fn heartbeat<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        ttl: Duration,
    ) -> StoreFuture<'a, u64>;

    /// Whether the keys are divided over servers that fail apart from each other (the shards of a Cluster). Such a store marks
    /// the errors of one shard as [`partial`](StoreError::partial), and a step without an answer does not count against its
    /// health: the outage policy decides about that step alone. Default: no.
    fn is_sharded(&self) -> bool {
        false
    }

    /// Notes that a call was denied from a cache of the store's denials, so that the store was not asked: `demand` is that on
    /// the limit with the longest wait. For stores whose shares follow demand; the default does nothing. On the path of
    /// each such call: it must not block.
    fn note_denied(&self, name: &str, subject: &str, demand: &Demand<'_>) {
        let _ = (name, subject, demand);
    }

    /// This process' use of the store: return the one that the store keeps, and that its clones share. The default,
    /// `None`, gives every handle one of its own: then a shutdown ends one handle at a time, and live instances are
    /// counted by the records of each pattern.
    fn handle(&self) -> Option<&StoreHandle> {
        None
    }
}

crate::fleet::into_store!(LimitStore);

/// A look at a bucket that no caller uses: writes nothing. Its burst is large, so that it can be divided.
impl Probe for dyn LimitStore {
    fn probe<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let quota = Quota::per(1 << 20, Duration::from_secs(1));
            let demand = Demand {
                limit: "probe",
                quota: quota.map_err(|error| StoreError::new(error.to_string(), false))?,
                cost: 0,
            };
            self.decide(name, "", &[demand]).await.map(drop)
        })
    }

    fn is_sharded(&self) -> bool {
        LimitStore::is_sharded(self)
    }
}

/// Checks demands for every store.
///
/// # Errors
/// When there are none, or two on one limit.
pub fn validate(demands: &[Demand<'_>]) -> Result<(), StoreError> {
    if demands.is_empty() {
        return Err(StoreError::new(
            "a decision is about one limit at least",
            false,
        ));
    }
    for (index, demand) in demands.iter().enumerate() {
        if demands[..index]
            .iter()
            .any(|other| other.limit == demand.limit)
        {
            let reason = format!("limit `{}` is asked twice in one decision", demand.limit);
            return Err(StoreError::new(reason, false));
        }
    }
    Ok(())
}
