//! One limit per key.

use std::{borrow::Borrow, hash::Hash, sync::Arc};

use super::{
    Quota, RateLimit, RateLimitBuilder,
    layer::{ByKey, RateLimitLayer},
    settings::{ByQuota, QuotaOf, Settings},
    shared::read_waiting,
    snapshot::{KeyedRateLimitSnapshot, RateLimitSnapshot, Totals},
};
use crate::{
    error::{InvalidConfig, Pattern, Rejected},
    keyed::{Evict, Family, InFamily, Keyed, Member, Members},
    telemetry::Reading,
};

/// A rate limit per key (tenant, address, token), all reporting under one name. Clones share the
/// family.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Keyed, Quota, RateLimit};
///
/// let paying = Quota::per(1000, Duration::from_secs(1))?;
/// let trying = Quota::per(10, Duration::from_secs(1))?;
/// let tenants = RateLimit::builder("tenants")
///     .keyed_with(Keyed::new().max_keys(10_000), move |tenant: &String| {
///         if tenant.starts_with("paying-") { paying } else { trying }
///     })?;
/// tenants.check("paying-7", 500)?;
/// assert!(tenants.check("someone", 500).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A full bucket needs no memory: members are dropped when they are full and idle for long enough,
/// or when there are too many, those unused for longest first. While none of them is full, new keys
/// share one bucket. The bounds are in [`Keyed`].
pub type KeyedRateLimit<K> = Family<K, RateLimit>;

impl RateLimitBuilder {
    /// Builds a family of limits, one per key, each with this quota.
    ///
    /// # Errors
    /// When a value is out of bounds: names it and the rule.
    pub fn keyed<K>(self, limits: Keyed) -> Result<KeyedRateLimit<K>, InvalidConfig>
    where
        K: Hash + Eq + Send + Sync + 'static,
    {
        family(self.settings()?, limits, None)
    }

    /// Builds a family of limits, one per key, each with the quota that `quota_of` gives its key
    /// when it is first seen, or comes back after it was idle. Keys beyond the family's bounds
    /// share one limit of the quota set here.
    ///
    /// # Errors
    /// When a value is out of bounds: names it and the rule.
    pub fn keyed_with<K>(
        self,
        limits: Keyed,
        quota_of: impl Fn(&K) -> Quota + Send + Sync + 'static,
    ) -> Result<KeyedRateLimit<K>, InvalidConfig>
    where
        K: Hash + Eq + Send + Sync + 'static,
    {
        family(self.settings()?, limits, Some(Box::new(quota_of)))
    }
}

fn family<K>(
    settings: Settings,
    limits: Keyed,
    quota_of: Option<QuotaOf<K>>,
) -> Result<KeyedRateLimit<K>, InvalidConfig>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    let (name, clock) = (Arc::clone(&settings.name), settings.clock);
    // The totals are the family's: nothing has to be kept of a member that leaves.
    let totals = Arc::clone(&settings.totals);
    let settings = ByQuota::new(Arc::new(settings));
    let make = move |key: Option<&K>| {
        let quota = key.zip(quota_of.as_ref()).map(|(key, of)| of(key));
        let own = || Arc::clone(settings.own());
        RateLimit::new(quota.map_or_else(own, |quota| settings.of(quota)))
    };
    Family::start(name, clock, limits, totals, make)
}

impl<K> KeyedRateLimit<K>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    /// A layer that charges each request to the limit of `key(&request)`: one token, unless
    /// `.cost(..)` says otherwise.
    pub fn layer<F>(&self, key: F) -> RateLimitLayer<ByKey<K, F>> {
        RateLimitLayer::new(ByKey::new(self.clone(), key))
    }

    /// Takes `cost` tokens of `key`, if they are there and no call is waiting for them.
    ///
    /// # Errors
    /// As [`RateLimit::try_acquire`].
    #[inline]
    pub fn check<Q>(&self, key: &Q, cost: u64) -> Result<(), Rejected>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.with(key, |limit| limit.try_acquire(cost))
    }

    /// The family's totals, and the number of calls that wait.
    #[must_use]
    pub fn snapshot(&self) -> KeyedRateLimitSnapshot {
        self.members(sum)
    }
}

fn sum(members: &Members<'_, RateLimit>) -> KeyedRateLimitSnapshot {
    let mut sum = members.common.snapshot();
    members.for_each(|limit| sum.waiting += limit.shared.bucket.waiting());
    sum
}

impl Evict for RateLimit {
    /// A full bucket needs no memory.
    fn evictable(&self) -> bool {
        let snapshot = self.snapshot();
        snapshot.waiting == 0 && snapshot.full_in.is_zero()
    }
}

impl Member for RateLimit {
    type Snapshot = RateLimitSnapshot;

    fn snapshot(&self) -> RateLimitSnapshot {
        self.snapshot()
    }
}

impl InFamily for RateLimit {
    const PATTERN: Pattern = Pattern::RateLimit;

    type Common = Arc<Totals>;

    #[expect(private_interfaces, reason = "sealed")]
    fn read(members: &Members<'_, Self>, out: &mut dyn FnMut(Reading)) {
        members.common.read(out);
        read_waiting(sum(members).waiting, out);
    }

    #[expect(private_interfaces, reason = "sealed")]
    fn read_last(members: &Members<'_, Self>, out: &mut dyn FnMut(Reading)) {
        members.common.read(out);
    }
}
