//! One limit per key.

use std::{borrow::Borrow, fmt, hash::Hash, sync::Arc};

use super::{
    Each, RateLimit, Snapshot,
    config::{QuotaOf, Settings},
    layer::{ByKey, RateLimitLayer},
    shared::read_waiting,
};
use crate::{
    error::{InvalidConfig, Pattern, Rejected},
    keyed::{Keyed, Registry},
    telemetry::{self, Reading, Source},
};

/// A rate limit per key (tenant, address, token), all reporting under one name. Clones share the family.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{keyed::Keyed, limit::{Quota, RateLimit}};
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
/// A bucket that is full is as good as none: members are dropped when they are full and idle for long enough, or when
/// there are too many and these were unused for longest. While none of them is full, new keys share one bucket. The
/// bounds are in [`Keyed`].
pub struct KeyedRateLimit<K> {
    family: Arc<Family<K>>,
}

struct Family<K> {
    settings: Settings,
    members: Registry<K, RateLimit>,
    /// [`telemetry::retire`], for a `Drop` without the bounds of its trait.
    retire: fn(&Self),
}

impl<K> KeyedRateLimit<K>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    pub(super) fn new(
        settings: Settings,
        limits: Keyed,
        quota_of: Option<QuotaOf<K>>,
    ) -> Result<Self, InvalidConfig> {
        let of_member = settings.clone();
        let make = move |key: Option<&K>| {
            let quota = key.zip(quota_of.as_ref()).map(|(key, of)| of(key));
            of_member.limit(quota)
        };
        // Totals are the family's, so nothing has to be saved of a member that goes.
        let members = Registry::new(limits, make, |_| {})?;
        let family = Arc::new(Family {
            settings,
            members,
            retire: telemetry::retire,
        });
        telemetry::register(&family);
        Ok(Self { family })
    }

    /// A layer that charges each request to the limit of `key(&request)`: one token, unless
    /// [`RateLimitLayer::cost`] says otherwise.
    pub fn layer<F>(&self, key: F) -> RateLimitLayer<ByKey<K, F>> {
        RateLimitLayer::new(ByKey::new(self.clone(), key, Each(1)))
    }

    /// Takes `cost` tokens of `key`, if they are there and nobody waits for them.
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

    /// The limit of `key`, made if there is none. Holding on to it does not keep it in the family.
    pub fn get<Q>(&self, key: &Q) -> RateLimit
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.with(key, RateLimit::clone)
    }

    /// The family's totals, and how many calls wait. What is said of tokens is zero.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.family.snapshot()
    }

    /// How many keys have a limit at this moment.
    #[must_use]
    pub fn len(&self) -> usize {
        self.family.members.len()
    }

    /// Whether no key has a limit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    pub(super) fn with<Q, R>(&self, key: &Q, f: impl FnOnce(&RateLimit) -> R) -> R
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let family = &self.family;
        family.members.with(key, || family.settings.clock.now(), f)
    }
}

impl<K> Family<K>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    fn snapshot(&self) -> Snapshot {
        let mut sum = self.settings.totals.snapshot();
        self.members
            .for_each(|_, limit| sum.waiting += limit.shared.meter.waiting());
        sum
    }
}

impl<K> Clone for KeyedRateLimit<K> {
    fn clone(&self) -> Self {
        Self {
            family: Arc::clone(&self.family),
        }
    }
}

impl<K> fmt::Debug for KeyedRateLimit<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedRateLimit")
            .field("name", &self.family.settings.name)
            .finish_non_exhaustive()
    }
}

impl<K> Source for Family<K>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    fn pattern(&self) -> Pattern {
        Pattern::RateLimit
    }

    fn name(&self) -> &str {
        &self.settings.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.members.sweep(self.settings.clock.now());
        self.settings.totals.read(out);
        read_waiting(self.snapshot().waiting, out);
    }

    fn read_last(&self, out: &mut dyn FnMut(Reading)) {
        self.settings.totals.read(out);
    }
}

impl<K> Drop for Family<K> {
    fn drop(&mut self) {
        (self.retire)(self);
    }
}
