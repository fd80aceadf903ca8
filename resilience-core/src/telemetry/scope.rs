//! The pattern and the name of a handle, as its rejections and events carry them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::error::{Pattern, Reason, Rejected};

/// The pattern and the name of a handle.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pattern: Pattern,
    name: Arc<str>,
}

impl Scope {
    pub(crate) fn new(pattern: Pattern, name: &Arc<str>) -> Self {
        let name = Arc::clone(name);
        Self { pattern, name }
    }

    /// Emits the event `resilience.rejected` and makes the error of it.
    #[cold]
    pub(crate) fn reject(&self, reason: Reason, retry_after: Option<Duration>) -> Rejected {
        tracing::debug!(
            name: "resilience.rejected",
            target: "resilience",
            pattern = self.pattern.as_str(),
            name = &*self.name,
            reason = reason.as_str(),
            retry_after = retry_after.map(tracing::field::debug),
            "rejected"
        );
        let rejected = Rejected::new(self.pattern, reason, Arc::clone(&self.name));
        match retry_after {
            Some(wait) => rejected.with_retry_after(wait),
            None => rejected,
        }
    }

    /// Counts the rejection as well.
    #[cold]
    pub(crate) fn count_and_reject(
        &self,
        counter: &AtomicU64,
        reason: Reason,
        retry_after: Option<Duration>,
    ) -> Rejected {
        counter.fetch_add(1, Relaxed);
        self.reject(reason, retry_after)
    }
}
