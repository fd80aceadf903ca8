//! The checked settings of a rate limit.

use std::{sync::Arc, time::Duration};

use super::{Quota, snapshot::Totals};
use crate::{clock::Clock, error::InvalidConfig};

/// The quota of each key.
pub(super) type QuotaOf<K> = Box<dyn Fn(&K) -> Quota + Send + Sync>;

/// Settings that are valid.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) quota: Quota,
    pub(super) queue_limits: Option<QueueLimits>,
    pub(super) clock: Clock,
    pub(super) totals: Arc<Totals>,
}

/// The bounds of a queue: the number of calls, and the time that one may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLimits {
    pub(super) longest: usize,
    pub(super) max_wait: Duration,
}

/// Checks the length and the maximum wait of a queue.
pub(super) fn validate_queue(queue: Option<(usize, Duration)>) -> Result<(), InvalidConfig> {
    let Some((length, max_wait)) = queue else {
        return Ok(());
    };
    if !(1..1 << 20).contains(&length) {
        let rule = "its length must be between 1 and 1,048,575; leave `queue` out for none";
        return Err(InvalidConfig::new("queue", length, rule));
    }
    if max_wait.is_zero() {
        let rule = "its maximum wait must be above zero";
        return Err(InvalidConfig::new("queue", max_wait, rule));
    }
    Ok(())
}
