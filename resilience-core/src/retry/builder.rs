//! The handle and its builder: validated when built.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::Serialize;

use super::{
    Backoff, ByRequest, GaveUp, RetryBudget, RetryLayer,
    machine::{Decision, Rules},
};
use crate::{
    classify::Standard,
    error::{InvalidConfig, Pattern},
    stripe::Counter,
    telemetry::{self, RETRY_BUDGET, RETRY_CALLS, RETRY_RETRIES, Reading, counters},
};

/// Retry policy, under a name. Clones share budget and counters, and so do all layers made from it.
#[derive(Clone)]
pub struct Retry {
    pub(super) shared: Arc<Shared>,
}

impl Retry {
    /// Starts to configure a retry called `name`.
    pub fn builder(name: impl Into<Arc<str>>) -> RetryBuilder {
        RetryBuilder::new(name.into())
    }

    /// A layer with the classifier [`Standard`] and the replay strategy [`ByRequest`], which the layer's methods replace.
    #[must_use]
    pub fn layer(&self) -> RetryLayer {
        RetryLayer::new(Arc::clone(&self.shared), Standard, ByRequest)
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The budget of its retries.
    #[must_use]
    pub fn budget(&self) -> &RetryBudget {
        &self.shared.budget
    }

    /// The counts since it was built, and the balance of its budget now.
    #[must_use]
    pub fn snapshot(&self) -> RetrySnapshot {
        let shared = &self.shared;
        RetrySnapshot {
            calls: shared.calls.sum(),
            retries: shared.retries.load(Relaxed),
            given_up: shared.given_up.snapshot(),
            budget: shared.budget.limited_balance(),
        }
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("name", &self.name())
            .field("rules", &self.shared.rules)
            .field("backoff", &self.shared.backoff)
            .field("budget", self.budget())
            .finish_non_exhaustive()
    }
}

/// Configures a [`Retry`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RetryBuilder {
    name: Arc<str>,
    rules: Rules,
    backoff: Backoff,
    budget: Option<RetryBudget>,
}

impl RetryBuilder {
    fn new(name: Arc<str>) -> Self {
        let rules = Rules {
            max_attempts: 3,
            max_retry_after: Duration::from_secs(30),
            retry_rejections: false,
            minimum_attempt_time: Duration::from_millis(5),
        };
        Self {
            name,
            rules,
            backoff: Backoff::decorrelated_jitter(
                Duration::from_millis(50),
                Duration::from_secs(2),
            ),
            budget: None,
        }
    }

    /// Sets the maximum number of attempts per call, the first one included. Default: 3. One means no retries.
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.rules.max_attempts = attempts;
        self
    }

    /// Sets the waits between attempts. Default: decorrelated jitter from 50 ms to 2 s.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the budget of retries. Default: a budget of its own, [`RetryBudget::default`].
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Sets the longest wait that a dependency can ask for. Default: 30 s. When it asks for more, the call gives up: it
    /// neither retries earlier than asked nor waits that long.
    pub const fn max_retry_after(mut self, wait: Duration) -> Self {
        self.rules.max_retry_after = wait;
        self
    }

    /// Retries a rejection by a layer below (an open breaker, a full bulkhead) that carries a `retry_after`, if the wait
    /// fits the deadline and [`max_retry_after`](Self::max_retry_after). Default: no. It counts as an attempt, and costs
    /// no budget while the dependency has not seen the call.
    pub const fn retry_rejections(mut self, yes: bool) -> Self {
        self.rules.retry_rejections = yes;
        self
    }

    /// Sets the minimum time for an attempt: none is started when less would be left of the deadline after the wait.
    /// Default: 5 ms. A good value is the usual response time of the dependency.
    pub const fn minimum_attempt_time(mut self, time: Duration) -> Self {
        self.rules.minimum_attempt_time = time;
        self
    }

    /// Builds the retry.
    ///
    /// # Errors
    ///
    /// `max_attempts` is zero, or the backoff has a base of zero or a maximum below its base.
    pub fn build(self) -> Result<Retry, InvalidConfig> {
        if self.rules.max_attempts == 0 {
            return Err(InvalidConfig::new("max_attempts", 0, "must be at least 1"));
        }
        self.backoff.validate()?;
        let budget = self.budget.unwrap_or_default();
        let shared = Arc::new(Shared {
            name: self.name,
            rules: self.rules,
            backoff: self.backoff,
            calls: budget.open_account(),
            budget,
            retries: AtomicU64::new(0),
            given_up: Counters::default(),
        });
        telemetry::register(&shared);
        Ok(Retry { shared })
    }
}

pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) rules: Rules,
    pub(super) backoff: Backoff,
    pub(super) budget: RetryBudget,
    /// Calls that the dependency has answered; the budget reads it as well.
    pub(super) calls: Arc<Counter>,
    retries: AtomicU64,
    given_up: Counters,
}

/// Counts of a [`Retry`] since it was built. From [`Retry::snapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RetrySnapshot {
    /// Calls that the dependency has answered, retried or not. Calls that were rejected below, or dropped before their first
    /// response, are not counted.
    pub calls: u64,
    /// Attempts after the first ones.
    pub retries: u64,
    /// Calls that ended in a failure that was not retried, by reason.
    pub given_up: GivenUp,
    /// Whole retries that the budget would pay for now; `None` if it is unlimited.
    pub budget: Option<u64>,
}

counters! {
    /// Counters of calls that gave up.
    struct Counters;
    /// Calls that ended in a failure that was not retried, by reason: a part of a [`RetrySnapshot`].
    pub struct GivenUp;
    permanent = RETRY_GIVEN_UP "permanent", "See [`GaveUp::Permanent`].";
    rejected = RETRY_GIVEN_UP "rejected", "See [`GaveUp::Rejected`].";
    attempts = RETRY_GIVEN_UP "attempts", "See [`GaveUp::Attempts`].";
    not_replayable = RETRY_GIVEN_UP "not_replayable", "See [`GaveUp::NotReplayable`].";
    retry_after_too_long = RETRY_GIVEN_UP "retry_after_too_long", "See [`GaveUp::RetryAfterTooLong`].";
    backoff_ended = RETRY_GIVEN_UP "backoff_ended", "See [`GaveUp::BackoffEnded`].";
    no_time = RETRY_GIVEN_UP "no_time", "See [`GaveUp::NoTime`].";
    budget = RETRY_GIVEN_UP "budget", "See [`GaveUp::Budget`].";
}

impl GivenUp {
    /// The number for the reason `why`.
    #[must_use]
    pub const fn of(&self, why: GaveUp) -> u64 {
        match why {
            GaveUp::Permanent => self.permanent,
            GaveUp::Rejected => self.rejected,
            GaveUp::Attempts => self.attempts,
            GaveUp::NotReplayable => self.not_replayable,
            GaveUp::RetryAfterTooLong => self.retry_after_too_long,
            GaveUp::BackoffEnded => self.backoff_ended,
            GaveUp::NoTime => self.no_time,
            GaveUp::Budget => self.budget,
        }
    }
}

impl Counters {
    const fn of(&self, why: GaveUp) -> &AtomicU64 {
        match why {
            GaveUp::Permanent => &self.permanent,
            GaveUp::Rejected => &self.rejected,
            GaveUp::Attempts => &self.attempts,
            GaveUp::NotReplayable => &self.not_replayable,
            GaveUp::RetryAfterTooLong => &self.retry_after_too_long,
            GaveUp::BackoffEnded => &self.backoff_ended,
            GaveUp::NoTime => &self.no_time,
            GaveUp::Budget => &self.budget,
        }
    }
}

impl Shared {
    /// Logs a decision, and counts a call that gave up.
    #[cold]
    pub(super) fn decided(&self, decision: Decision, attempt: u32) {
        let name = &*self.name;
        match decision {
            Decision::Return => {}
            Decision::Retry { wait } => {
                tracing::debug!(target: "resilience", pattern = "retry", name, attempt, ?wait, "retrying");
            }
            Decision::GiveUp(why) => {
                self.given_up.of(why).fetch_add(1, Relaxed);
                let reason = why.as_str();
                tracing::debug!(target: "resilience", pattern = "retry", name, attempt, reason, "giving up");
            }
        }
    }

    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }
}

impl telemetry::Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::Retry
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.given_up.read(out);
        let calls = (&RETRY_CALLS, self.calls.sum());
        let retries = (&RETRY_RETRIES, self.retries.load(Relaxed));
        // An unlimited budget has no balance.
        let balance = self.budget.limited_balance();
        let balance = balance.map(|balance| (&RETRY_BUDGET, balance));
        for (metric, value) in [calls, retries].into_iter().chain(balance) {
            out(Reading {
                metric,
                attribute: "",
                value,
            });
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_counted_under_its_own_name() {
        for why in GaveUp::ALL {
            let counters = Counters::default();
            counters.of(why).fetch_add(1, Relaxed);
            let mut counted = Vec::new();
            counters.read(&mut |reading| {
                if reading.value > 0 {
                    counted.push(reading.attribute);
                }
            });
            assert_eq!(counted, [why.as_str()]);
            let snapshot = counters.snapshot();
            let shown = GaveUp::ALL.map(|other| snapshot.of(other) == 1);
            assert_eq!(shown, GaveUp::ALL.map(|other| other == why));
        }
    }
}
