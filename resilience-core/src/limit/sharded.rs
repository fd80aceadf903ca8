//! One hot subject over several buckets, so that no single shard decides about all its calls.

use std::{sync::Arc, time::Duration};

use super::{
    store::{Demand, LimitStore, StoreDecision, StoreError, StoreFuture, validate},
    token_bucket::LimitOutcome,
};
use crate::{
    error::InvalidConfig,
    fleet::{IntoStore, StoreHandle},
};

const MOST_PARTS: u32 = 1024;

/// Divides every limit over several sub-buckets, each a subject of its own to the store below: in a Redis Cluster
/// they are in different slots, and so on different shards.
///
/// For subjects so hot that the one server with their bucket is the bottleneck: a Redis decides about some hundred thousand
/// calls per second. A decision asks one sub-bucket, chosen at random, and a second one if the first denies.
///
/// What is admitted in all is **never more** than the quota: the sub-buckets have equal shares of its rate, and of its
/// burst to the token. The price:
///
/// - A denial costs two round trips, and may come although others of the sub-buckets still have tokens: when the
///   subject is close to its limit it gets a little less than its quota. The busier it is, the less.
/// - A call can cost no more than a sub-bucket can hold, which is about the burst divided by the parts; above that it
///   is denied as impossible. So keep the burst well above `parts` times the usual cost. A quota whose burst is below
///   `parts` is divided in as many parts as it has tokens of burst.
/// - [`remaining`](super::store::Standing::remaining) is an estimate: what the sub-bucket has left, times the parts. A
///   denial's wait is the shorter of those of the two that were asked.
/// - Tokens that are put back (a negative cost) go to any one of the sub-buckets; what it has no room for is lost.
/// - Changing `parts`, or the burst of a plan from or to less than `parts`, starts new sub-buckets, which are full.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{FleetRateLimit, Quota, limit::store::{InProcessLimits, ShardedLimits}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = ShardedLimits::new(InProcessLimits::new(), 8)?; // or `redis.limits()`
/// let limit = FleetRateLimit::builder("firehose")
///     .store(store)
///     .limit("per-second", Quota::per(200_000, Duration::from_secs(1))?)
///     .build()?;
/// limit.check("everybody", [("per-second", 1)]).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ShardedLimits {
    store: Arc<dyn LimitStore>,
    parts: u32,
}

impl ShardedLimits {
    /// Divides limits over `parts` sub-buckets in `store`; a few times the number of shards is a good choice. The same limits
    /// should not be used over `store` directly, which does not know of the sub-buckets.
    ///
    /// # Errors
    /// When `parts` is zero or above 1024.
    pub fn new(store: impl IntoStore<dyn LimitStore>, parts: u32) -> Result<Self, InvalidConfig> {
        if parts == 0 || parts > MOST_PARTS {
            return Err(InvalidConfig::new("parts", parts, "must be 1 to 1024"));
        }
        let store = store.into_store();
        Ok(Self { store, parts })
    }

    /// Asks one sub-bucket.
    async fn ask(
        &self,
        name: &str,
        subject: &str,
        demands: &[Demand<'_>],
        part: u64,
        of: u64,
    ) -> Result<StoreDecision, StoreError> {
        // An index has no `~`: what is in front of the last one is the subject, whatever it contains.
        let subject = format!("{subject}~{part}");
        let shares: Result<Vec<Demand<'_>>, StoreError> = demands
            .iter()
            .map(|demand| {
                let quota = demand.quota.share(part, of);
                let quota = quota.map_err(|error| StoreError::new(error.to_string(), false))?;
                Ok(Demand { quota, ..*demand })
            })
            .collect();
        let mut decision = self.store.decide(name, &subject, &shares?).await?;
        for (standing, demand) in decision.limits.iter_mut().zip(demands) {
            let all = standing.remaining.saturating_mul(of);
            standing.remaining = all.min(demand.quota.capacity());
        }
        Ok(decision)
    }

    async fn choose(
        &self,
        name: &str,
        subject: &str,
        demands: &[Demand<'_>],
    ) -> Result<StoreDecision, StoreError> {
        validate(demands)?;
        let smallest = demands.iter().map(|demand| demand.quota.capacity()).min();
        let of = u64::from(self.parts).min(smallest.unwrap_or(1));
        let first = fastrand::u64(..of);
        let decision = self.ask(name, subject, demands, first, of).await?;
        if decision.outcome.is_admitted() || of == 1 {
            return Ok(decision);
        }
        // Any but the first.
        let second = (first + fastrand::u64(1..of)) % of;
        let other = self.ask(name, subject, demands, second, of).await?;
        Ok(sooner(decision, other))
    }
}

/// That which admits, or else will first.
fn sooner(one: StoreDecision, other: StoreDecision) -> StoreDecision {
    match (one.outcome, other.outcome) {
        (_, LimitOutcome::Admitted { .. }) | (LimitOutcome::Impossible { .. }, _) => other,
        (
            LimitOutcome::Wait {
                micros: one_wait, ..
            },
            LimitOutcome::Wait { micros, .. },
        ) if micros < one_wait => other,
        _ => one,
    }
}

impl LimitStore for ShardedLimits {
    fn decide<'a>(
        &'a self,
        name: &'a str,
        subject: &'a str,
        demands: &'a [Demand<'a>],
    ) -> StoreFuture<'a, StoreDecision> {
        Box::pin(self.choose(name, subject, demands))
    }

    fn heartbeat<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        ttl: Duration,
    ) -> StoreFuture<'a, u64> {
        self.store.heartbeat(name, instance, ttl)
    }

    fn is_sharded(&self) -> bool {
        self.store.is_sharded()
    }

    fn note_denied(&self, name: &str, subject: &str, demand: &Demand<'_>) {
        self.store.note_denied(name, subject, demand);
    }

    fn handle(&self) -> Option<&StoreHandle> {
        self.store.handle()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{
        super::{Quota, store::InProcessLimits},
        *,
    };

    fn quota(permits: u64, burst: u64) -> Quota {
        Quota::per(permits, Duration::from_secs(1))
            .and_then(|quota| quota.burst(burst))
            .unwrap()
    }

    #[test]
    fn the_shares_of_a_quota_are_all_of_it_and_no_more() {
        for (permits, burst, of) in [
            (100, 100, 8),
            (7, 23, 5),
            (1_000_003, 17, 17),
            (3, 1_000, 1),
        ] {
            let whole = quota(permits, burst);
            let shares: Vec<Quota> = (0..of).map(|part| whole.share(part, of).unwrap()).collect();
            assert_eq!(shares.iter().map(Quota::capacity).sum::<u64>(), burst);
            for share in shares {
                // Each gains `rate / unit` a microsecond; all of them what the whole one does.
                let (one, all) = (
                    u128::from(share.rate()) * u128::from(of) * u128::from(whole.unit()),
                    u128::from(whole.rate()) * u128::from(share.unit()),
                );
                assert_eq!(one, all);
            }
        }
    }

    #[test]
    fn what_cannot_work_is_refused_when_it_is_built() {
        for parts in [0, 1025] {
            let error = ShardedLimits::new(InProcessLimits::new(), parts).unwrap_err();
            assert_eq!(error.field(), "parts");
        }
    }

    /// Two minutes of a greedy subject.
    #[tokio::test(start_paused = true)]
    async fn never_more_than_the_quota_and_little_less() {
        let split = ShardedLimits::new(InProcessLimits::new(), 8).unwrap();
        let (limit, quota) = ("l", quota(50, 80));
        let mut admitted = 0;
        for step in 0..120_000_u64 {
            let demands = [Demand {
                limit,
                quota,
                cost: 1,
            }];
            let decision = split.decide("n", "s", &demands).await.unwrap();
            admitted += u64::from(decision.outcome.is_admitted());
            let allowed = 80 + step * 50 / 1_000;
            assert!(admitted <= allowed, "{admitted} after {step} ms");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(admitted > 80 + 6_000 * 95 / 100, "{admitted}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_sub_bucket_is_asked_before_a_refusal() {
        let split = ShardedLimits::new(InProcessLimits::new(), 2).unwrap();
        let (limit, quota) = ("l", quota(1, 10));
        let ask = async |cost| {
            let demands = [Demand { limit, quota, cost }];
            split.decide("n", "s", &demands).await.unwrap()
        };
        for _ in 0..10 {
            assert!(ask(1).await.outcome.is_admitted());
        }
        assert!(!ask(1).await.outcome.is_admitted());
        assert_eq!(
            ask(6).await.retry_after(),
            None,
            "no sub-bucket holds as much"
        );
        assert!(ask(-1).await.outcome.is_admitted());
        assert!(ask(1).await.outcome.is_admitted());
    }
}
