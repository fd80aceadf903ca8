//! The handle: a name, a duration and counters.

use std::{fmt, sync::Arc, time::Duration};

use super::{SameForAll, TimeoutLayer};
use crate::{
    clock::Clock,
    error::{InvalidConfig, Pattern, Reason, Rejected},
    stripe::Striped,
    telemetry::{self, Reading, Scope, counters},
};

/// Time limit for calls, under a name. Clones share the counters, and so do all layers made from it.
///
/// The [module](super) says what exactly is cut off and when.
#[derive(Clone)]
pub struct Timeout {
    shared: Striped<Shared>,
}

impl Timeout {
    /// A timeout called `name`: calls through its layers may take `after`.
    ///
    /// # Errors
    ///
    /// `after` is zero.
    pub fn new(name: impl Into<Arc<str>>, after: Duration) -> Result<Self, InvalidConfig> {
        Self::with_clock(name, after, Clock::auto())
    }

    /// As [`new`](Self::new), on a given clock. A call under a current deadline is measured on the clock of that
    /// deadline instead.
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
            counters: Counters::default(),
        });
        telemetry::register(shared.shared());
        Ok(Self { shared })
    }

    /// A layer that bounds each call by this timeout and by the current deadline, whichever is earlier.
    #[must_use]
    pub fn layer(&self) -> TimeoutLayer {
        TimeoutLayer::new(self.shared.clone(), SameForAll)
    }

    /// The name that it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The time limit of each call.
    #[must_use]
    pub fn after(&self) -> Duration {
        self.shared.after
    }

    /// The counts since it was built.
    #[must_use]
    pub fn snapshot(&self) -> TimeoutSnapshot {
        self.shared.counters.snapshot()
    }
}

impl fmt::Debug for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeout")
            .field("name", &self.name())
            .field("after", &self.after())
            .field("snapshot", &self.snapshot())
            .finish()
    }
}

pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) after: Duration,
    pub(super) clock: Clock,
    counters: Counters,
}

counters! {
    /// Counters of a [`Timeout`].
    struct Counters;
    /// Counts of a [`Timeout`] since it was built. From [`Timeout::snapshot`].
    pub struct TimeoutSnapshot;
    timed_out = DEADLINE_TIMEOUTS, "Calls cut off at their deadline.";
    rejected = DEADLINE_REJECTIONS, "Calls not made because no time was left.";
}

impl Shared {
    #[cold]
    pub(super) fn reject(&self, reason: Reason) -> Rejected {
        let counter = match reason {
            Reason::TimedOut => &self.counters.timed_out,
            _ => &self.counters.rejected,
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
        self.counters.read(out);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}
