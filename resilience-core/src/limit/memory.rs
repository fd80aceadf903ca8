//! The store of limits in this process.

use std::{
    collections::HashMap,
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use foldhash::fast::RandomState;

use super::{
    store::{Demand, LimitStore, Standing, StoreDecision, StoreFuture, validate},
    token_bucket::{self, After, Bucket, Claim},
};
use crate::clock::Clock;

/// A [`LimitStore`] in this process. Clones share its buckets.
///
/// Subjects whose buckets are full are dropped when there are [many](Self::with_max_subjects); when all are in use,
/// those that would be full soonest go first.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Quota, limit::store::{Demand, InProcessLimits, LimitStore}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = InProcessLimits::new();
/// let demands = [
///     Demand { limit: "per-second", quota: Quota::per(10, Duration::from_secs(1))?, cost: 1 },
///     Demand { limit: "bytes-per-day", quota: Quota::per(1_000_000, Duration::from_secs(86_400))?, cost: 2_048 },
/// ];
/// let decision = store.decide("api", "tenant-7", &demands).await?;
/// assert!(decision.outcome.is_admitted());
/// assert_eq!(decision.limits[1].remaining, 997_952);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct InProcessLimits {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    hasher: RandomState,
    most: usize,
    shards: [Mutex<Buckets>; SHARDS],
    /// By limiter and instance: until when, in microseconds.
    live: Mutex<HashMap<String, HashMap<String, u64>>>,
}

const SHARDS: usize = 16;

/// By limiter and subject: the subject's few limits, by name, that are not full.
type Buckets = HashMap<String, Vec<(String, Kept)>, RandomState>;

#[derive(Clone, Copy, Debug)]
struct Kept {
    bucket: Bucket,
    /// When it is full.
    until: u64,
}

impl InProcessLimits {
    /// An empty store for up to a million subjects.
    #[must_use]
    pub fn new() -> Self {
        Self::with_max_subjects(1 << 20)
    }

    /// An empty store for up to `most` subjects, spread evenly over 16 parts; at least one a part.
    #[must_use]
    pub fn with_max_subjects(most: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                clock: Clock::auto(),
                hasher: RandomState::default(),
                most: (most / SHARDS).max(1),
                shards: Default::default(),
                live: Mutex::default(),
            }),
        }
    }

    /// The number of subjects with a bucket that was not full when it was last read.
    #[must_use]
    pub fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.shared.lock(shard).len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Loses everything, as a flushed or failed-over server does.
    pub fn flush(&self) {
        (0..SHARDS).for_each(|shard| self.shared.lock(shard).clear());
        self.shared.instances().clear();
    }

    fn note(&self, name: &str, instance: &str, ttl: Duration) -> u64 {
        let now = self.shared.clock.now().as_nanos() / 1000;
        let ttl = u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX);
        let mut live = self.shared.instances();
        let instances = live.entry(name.to_owned()).or_default();
        instances.insert(instance.to_owned(), now.saturating_add(ttl));
        instances.retain(|_, until| *until > now);
        let count = instances.len() as u64;
        live.retain(|_, instances| !instances.is_empty());
        count
    }

    fn step(&self, name: &str, subject: &str, demands: &[Demand<'_>]) -> StoreDecision {
        // The length keeps a name and a subject from being taken for another name and another subject.
        let key = format!("{}:{name}{subject}", name.len());
        let shard = self.shared.hasher.hash_one(&key) as usize % SHARDS;
        let now = self.shared.clock.now().as_nanos() / 1000;
        let mut buckets = self.shared.lock(shard);
        let limits = buckets.get(&key).map_or(&[][..], Vec::as_slice);
        let claims: Vec<Claim<'_>> = demands
            .iter()
            .map(|demand| Claim {
                bucket: kept(limits, demand.limit, now),
                quota: &demand.quota,
                cost: demand.cost,
            })
            .collect();
        let mut afters = Vec::with_capacity(demands.len());
        let outcome = token_bucket::decide(&claims, now, |after| afters.push(after));
        if afters.iter().any(|after| after.changed) {
            if !buckets.contains_key(&key) {
                self.shared.make_room(&mut buckets, now);
            }
            keep(&mut buckets, &key, demands, &afters, now);
        }
        StoreDecision::new(outcome, afters.into_iter().map(Standing::from).collect())
    }
}

fn kept(limits: &[(String, Kept)], limit: &str, now: u64) -> Option<Bucket> {
    let (_, kept) = limits.iter().find(|(name, _)| name == limit)?;
    (kept.until > now).then_some(kept.bucket)
}

fn keep(buckets: &mut Buckets, key: &str, demands: &[Demand<'_>], afters: &[After], now: u64) {
    let limits = buckets.entry(key.to_owned()).or_default();
    limits.retain(|(_, kept)| kept.until > now);
    for (demand, after) in demands.iter().zip(afters) {
        if !after.changed {
            continue;
        }
        limits.retain(|(name, _)| name != demand.limit);
        if let Some(bucket) = after.bucket {
            let until = now.saturating_add(after.full_in);
            limits.push((demand.limit.to_owned(), Kept { bucket, until }));
        }
    }
    if limits.is_empty() {
        buckets.remove(key);
    }
}

impl Shared {
    fn lock(&self, shard: usize) -> MutexGuard<'_, Buckets> {
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn instances(&self) -> MutexGuard<'_, HashMap<String, HashMap<String, u64>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops subjects whose buckets are full; if there are none, the eighth that would be full soonest.
    fn make_room(&self, buckets: &mut Buckets, now: u64) {
        if buckets.len() < self.most {
            return;
        }
        let full_at =
            |limits: &Vec<(String, Kept)>| limits.iter().map(|(_, kept)| kept.until).max();
        buckets.retain(|_, limits| full_at(limits) > Some(now));
        if buckets.len() < self.most {
            return;
        }
        let mut soonest: Vec<_> = buckets.values().map(full_at).collect();
        let share = (self.most / 8).max(1);
        let (_, last, _) = soonest.select_nth_unstable(share - 1);
        let last = *last;
        let mut left = share;
        buckets.retain(|_, limits| {
            let goes = left > 0 && full_at(limits) <= last;
            left -= usize::from(goes);
            !goes
        });
    }
}

impl Default for InProcessLimits {
    fn default() -> Self {
        Self::new()
    }
}

impl LimitStore for InProcessLimits {
    fn decide<'a>(
        &'a self,
        name: &'a str,
        subject: &'a str,
        demands: &'a [Demand<'a>],
    ) -> StoreFuture<'a, StoreDecision> {
        let decided = validate(demands).map(|()| self.step(name, subject, demands));
        Box::pin(std::future::ready(decided))
    }

    fn heartbeat<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        ttl: Duration,
    ) -> StoreFuture<'a, u64> {
        let live = self.note(name, instance, ttl);
        Box::pin(std::future::ready(Ok(live)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::limit::Quota;

    /// One bucket for each key that ever was is how a memory fills up.
    #[tokio::test(start_paused = true)]
    async fn the_store_is_bounded_and_forgets_the_full_before_the_used() {
        let store = InProcessLimits::with_max_subjects(64);
        let quota = Quota::per(10, Duration::from_secs(10)).unwrap();
        let take = async |subject: &str, cost| {
            let limit = "l";
            let demands = [Demand { limit, quota, cost }];
            store.decide("n", subject, &demands).await.unwrap().outcome
        };
        for subject in 0..1_000 {
            take(&format!("once {subject}"), 1).await;
        }
        assert!(store.len() <= 64, "{}", store.len());
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(take("drained", 10).await.is_admitted());
        for subject in 0..1_000 {
            take(&format!("again {subject}"), 1).await;
        }
        assert!(store.len() <= 64, "{}", store.len());
        assert!(!take("drained", 9).await.is_admitted(), "forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_only_looked_at_or_is_full_again_takes_no_room() {
        let store = InProcessLimits::new();
        let quota = Quota::per(10, Duration::from_secs(10)).unwrap();
        for cost in [0, 11, -5, 3, -5] {
            let limit = "l";
            let demands = [Demand { limit, quota, cost }];
            store.decide("n", "s", &demands).await.unwrap();
            assert_eq!(store.len(), usize::from(cost == 3));
        }
    }
}
