//! The checked settings of a bulkhead.

use std::{sync::Arc, time::Duration};

use super::semaphore::MOST;
use crate::{admission::QueueSettings, clock::Clock, error::InvalidConfig};

/// Settings that are complete and valid.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: Arc<str>,
    pub(super) max_concurrent: usize,
    pub(super) queue: Option<QueueSettings>,
    pub(super) retry_after: Option<Duration>,
    pub(super) clock: Clock,
}

pub(super) fn check_limit(max_concurrent: usize) -> Result<(), InvalidConfig> {
    if (1..=MOST).contains(&max_concurrent) {
        return Ok(());
    }
    let rule = "must be between 1 and 1,048,575";
    Err(InvalidConfig::new("max_concurrent", max_concurrent, rule))
}
