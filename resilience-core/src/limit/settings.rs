//! The checked settings of a rate limit.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Quota, atomic_bucket::BucketRules, snapshot::Totals};
use crate::{admission::QueueSettings, clock::Clock};

/// The quota of each key.
pub(super) type QuotaOf<K> = Box<dyn Fn(&K) -> Quota + Send + Sync>;

/// Settings that are valid. Limits of one quota in a family share them.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) rules: BucketRules,
    pub(super) queue: Option<QueueSettings>,
    pub(super) clock: Clock,
    pub(super) totals: Arc<Totals>,
}

/// The settings of a family whose keys have quotas of their own.
pub(super) struct ByQuota {
    own: Arc<Settings>,
    /// The last quotas that were new.
    known: Mutex<Vec<Arc<Settings>>>,
}

/// Number of quotas that a family remembers; keys of other ones have settings of their own.
const REMEMBERED: usize = 16;

impl ByQuota {
    pub(super) const fn new(own: Arc<Settings>) -> Self {
        Self {
            own,
            known: Mutex::new(Vec::new()),
        }
    }

    /// The settings with the family's own quota.
    pub(super) const fn own(&self) -> &Arc<Settings> {
        &self.own
    }

    /// The settings with `quota`.
    pub(super) fn of(&self, quota: Quota) -> Arc<Settings> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = (known.iter().chain([&self.own]))
            .find(|settings| settings.rules.quota == quota)
            .cloned();
        if let Some(settings) = found {
            return settings;
        }
        let made = Arc::new(Settings {
            rules: BucketRules::new(quota),
            ..Settings::clone(&self.own)
        });
        if known.len() == REMEMBERED {
            known.remove(0);
        }
        known.push(Arc::clone(&made));
        made
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limit::RateLimit;

    #[test]
    fn keys_of_one_quota_share_their_settings_and_all_have_the_quota_asked_for() {
        let quota = |permits| Quota::per(permits, Duration::from_secs(1)).unwrap();
        let own = RateLimit::builder("a").quota(quota(1)).settings().unwrap();
        let by_quota = ByQuota::new(Arc::new(own));
        assert!(Arc::ptr_eq(&by_quota.of(quota(1)), by_quota.own()));
        assert!(Arc::ptr_eq(&by_quota.of(quota(2)), &by_quota.of(quota(2))));
        for permits in (1..100).chain(1..100) {
            let settings = by_quota.of(quota(permits));
            assert_eq!(settings.rules.quota, quota(permits));
            assert!(Arc::ptr_eq(&settings.totals, &by_quota.own().totals));
        }
        assert_eq!(by_quota.known.lock().unwrap().len(), REMEMBERED);
    }
}
