//! Where a producer reads the wall clock: to stamp events for people, and to turn a date into a delay. Neither is compared with
//! the clock of another process.
#![allow(clippy::disallowed_types)]

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Producer, PublishError};
use crate::{fleet::millis, stream::steps::Published};

/// Milliseconds of Unix time.
pub(super) fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    millis(now.unwrap_or_default())
}

impl<T: Send + Sync + 'static> Producer<T> {
    /// Publishes one event at a time of this process' clock; at once, if that is past. See [`after`](Self::after).
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn at(
        &self,
        time: SystemTime,
        key: &str,
        event: &T,
    ) -> Result<Published, PublishError> {
        let delay = time.duration_since(SystemTime::now()).unwrap_or_default();
        self.after(delay, key, event).await
    }
}
