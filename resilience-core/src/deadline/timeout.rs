//! The handle: a name, a duration, and what it has counted.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{SameForAll, TimeoutLayer};
use crate::{
    clock::Clock,
    error::{InvalidConfig, Pattern, Reason, Rejected},
    stripe::Striped,
    telemetry::{self, DEADLINE_REJECTIONS, DEADLINE_TIMEOUTS, Reading, Scope},
};

/// How long calls may take, under a name. Clones share the counters, and so do all layers made from it.
///
/// See the [module](super) for what exactly is cut off and when.
#[derive(Clone)]
pub struct Timeout {
    shared: Striped<Shared>,
}

impl Timeout {
    /// Calls through the layers of this handle may take `after`.
    ///
    /// # Errors
    ///
    /// `after` is zero.
    pub fn new(name: impl Into<Arc<str>>, after: Duration) -> Result<Self, InvalidConfig> {
        Self::with_clock(name, after, Clock::auto())
    }

    /// The same, on a clock of the caller's choice. A call that comes in under a deadline is measured on that
    /// deadline's clock instead.
    ///
    /// # Errors
    ///
    /// `after` is zero.
    pub fn with_clock(
        name: impl Into<Arc<str>>,
        after: Duration,
        clock: Clock,
    ) -> Result<Self, InvalidConfig> {
        if after.is_zero() {
            return Err(InvalidConfig::new("after", after, "must be above zero"));
        }
        let shared = Striped::new(Shared {
            name: name.into(),
            after,
            clock,
            timed_out: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
        });
        telemetry::register(shared.shared());
        Ok(Self { shared })
    }

    /// A layer that bounds each call by this timeout and by the deadline it comes in under, whichever is earlier.
    #[must_use]
    pub fn layer(&self) -> TimeoutLayer {
        TimeoutLayer::new(self.shared.clone(), SameForAll)
    }

    /// The name it was made with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How long calls may take.
    #[must_use]
    pub fn after(&self) -> Duration {
        self.shared.after
    }

    /// How many calls were cut off at their deadline.
    #[must_use]
    pub fn timed_out(&self) -> u64 {
        self.shared.timed_out.load(Relaxed)
    }

    /// How many calls were not made because no time was left for them.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.shared.rejected.load(Relaxed)
    }
}

impl fmt::Debug for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeout")
            .field("name", &self.name())
            .field("after", &self.after())
            .field("timed_out", &self.timed_out())
            .field("rejected", &self.rejected())
            .finish()
    }
}

pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) after: Duration,
    pub(super) clock: Clock,
    timed_out: AtomicU64,
    rejected: AtomicU64,
}

impl Shared {
    #[cold]
    pub(super) fn reject(&self, reason: Reason) -> Rejected {
        let counter = match reason {
            Reason::TimedOut => &self.timed_out,
            _ => &self.rejected,
        };
        let scope = Scope::new(Pattern::Deadline, &self.name);
        scope.count_and_reject(counter, reason, None)
    }
}

impl telemetry::Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::Deadline
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        for (metric, counter) in [
            (&DEADLINE_TIMEOUTS, &self.timed_out),
            (&DEADLINE_REJECTIONS, &self.rejected),
        ] {
            out(Reading {
                metric,
                attribute: "",
                value: counter.load(Relaxed),
            });
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}
