//! The checked settings of a bulkhead.

use std::{sync::Arc, time::Duration};

use super::semaphore::MOST;
use crate::{clock::Clock, error::InvalidConfig};

/// Settings that are complete and valid.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) max_concurrent: usize,
    pub(super) queue: Option<QueueSettings>,
    pub(super) retry_after: Option<Duration>,
    pub(super) clock: Clock,
}

/// A bounded queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueSettings {
    pub(super) length: usize,
    pub(super) max_wait: Duration,
}

impl QueueSettings {
    /// Checks the arguments of `queue(length, max_wait)`, if it was called.
    pub(super) fn check(queue: Option<(usize, Duration)>) -> Result<Option<Self>, InvalidConfig> {
        let Some((length, max_wait)) = queue else {
            return Ok(None);
        };
        if !(1..=MOST).contains(&length) {
            let rule = "its length must be between 1 and 1,048,575; leave `queue` out for none";
            return Err(InvalidConfig::new("queue", length, rule));
        }
        if max_wait.is_zero() {
            let rule = "its maximum wait must be above zero";
            return Err(InvalidConfig::new("queue", max_wait, rule));
        }
        Ok(Some(Self { length, max_wait }))
    }
}

pub(super) fn check_limit(max_concurrent: usize) -> Result<(), InvalidConfig> {
    if (1..=MOST).contains(&max_concurrent) {
        return Ok(());
    }
    let rule = "must be between 1 and 1,048,575";
    Err(InvalidConfig::new("max_concurrent", max_concurrent, rule))
}
