//! The headers that tell clients how their limits stand.

use std::time::Duration;

use http::HeaderMap;

use super::decision::LimitState;
use crate::{
    headers::whole_seconds,
    rate_limit::{self, Policy, ServiceLimit},
};

/// Which headers are written, and how.
#[derive(Clone)]
pub(super) struct LimitHeaders {
    pub(super) fields: bool,
    pub(super) partition: bool,
    pub(super) jitter: f64,
    pub(super) units: Vec<(String, String)>,
}

impl LimitHeaders {
    pub(super) const fn new() -> Self {
        Self {
            fields: true,
            partition: false,
            jitter: 0.2,
            units: Vec::new(),
        }
    }

    /// Writes `RateLimit-Policy` and `RateLimit` for a bucket whose partition key is `key`.
    pub(super) fn write(&self, limits: &[LimitState], key: [u8; 8], headers: &mut HeaderMap) {
        if !self.fields {
            return;
        }
        let partition = self.partition.then(|| key.to_vec());
        let (mut policies, mut left) = (Vec::new(), Vec::new());
        for limit in limits {
            let (quota, window) = in_whole_seconds(limit);
            let mut policy = Policy::new(&limit.name, quota).window(window);
            policy.unit = self.unit_of(&limit.name);
            policy.partition.clone_from(&partition);
            policies.push(policy);
            let mut service = ServiceLimit::new(&limit.name, limit.remaining);
            service.window = limit.next_in;
            service.partition.clone_from(&partition);
            left.push(service);
        }
        rate_limit::write_policies(headers, &policies);
        rate_limit::write_limits(headers, &left);
    }

    fn unit_of(&self, limit: &str) -> Option<String> {
        let named = self.units.iter().find(|(name, _)| name == limit);
        named.map(|(_, unit)| unit.clone())
    }

    /// The wait rounded up to whole seconds, plus a random part of up to the jitter.
    pub(super) fn jittered(&self, wait: Duration) -> Duration {
        let earliest = whole_seconds(wait);
        if self.jitter == 0.0 {
            return Duration::from_secs(earliest);
        }
        let stretched = wait.as_secs_f64() * (1.0 + self.jitter);
        // The conversion saturates, which is as good as any longer wait.
        let latest = (stretched.ceil() as u64).max(earliest.saturating_add(1));
        Duration::from_secs(fastrand::u64(earliest..=latest))
    }
}

/// Quota and window of a limit. A window is a whole number of seconds: for a period with a fraction
/// of a second, the quota is that of the next whole number of seconds.
fn in_whole_seconds(limit: &LimitState) -> (u64, Duration) {
    let (permits, period) = (limit.quota.permits(), limit.quota.period());
    if period.subsec_nanos() == 0 {
        return (permits, period);
    }
    let window = whole_seconds(period);
    let in_window = u128::from(permits) * u128::from(window) * 1_000_000 / period.as_micros();
    let in_window = u64::try_from(in_window).unwrap_or(u64::MAX);
    (in_window, Duration::from_secs(window))
}
