//! The checked settings of a bounded queue.

use std::time::Duration;

use crate::error::InvalidConfig;

/// The largest queue.
const MOST: usize = (1 << 20) - 1;

/// A bounded queue: the number of calls that wait, and the time that each may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueSettings {
    pub(crate) length: usize,
    pub(crate) max_wait: Duration,
}

impl QueueSettings {
    /// Checks the arguments of `queue(length, max_wait)`, if it was called.
    pub(crate) fn check(queue: Option<(usize, Duration)>) -> Result<Option<Self>, InvalidConfig> {
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
