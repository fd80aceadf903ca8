//! The handle and its builder: validated when built.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    Backoff, ByRequest, GaveUp, RetryBudget, RetryLayer,
    machine::{Decision, Rules},
};
use crate::{
    classify::Standard,
    error::{InvalidConfig, Pattern},
    stripe::Counter,
    telemetry::{
        self, RETRY_BUDGET, RETRY_CALLS, RETRY_GIVEN_UP, RETRY_RETRIES, Reading, register,
    },
};

/// A way of retrying, under a name. Clones share budget and counters, and so do all layers made from it.
#[derive(Clone)]
pub struct Retry {
    pub(super) shared: Arc<Shared>,
}

impl Retry {
    /// A retry to be configured.
    pub fn builder(name: impl Into<Arc<str>>) -> RetryBuilder {
        RetryBuilder::new(name.into())
    }

    /// A layer that judges by [`Standard`] and replays what says that it may be ([`ByRequest`]), until told
    /// otherwise.
    #[must_use]
    pub fn layer(&self) -> RetryLayer {
        RetryLayer::new(Arc::clone(&self.shared), Standard, ByRequest)
    }

    /// The name it was built with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What its retries are paid from.
    #[must_use]
    pub fn budget(&self) -> &RetryBudget {
        &self.shared.budget
    }

    /// How many calls have reached the dependency and were answered, retried or not. Calls that were rejected
    /// beneath, or dropped before their first answer, are not among them.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.shared.calls.sum()
    }

    /// How many attempts were made after first ones.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.shared.retries.load(Relaxed)
    }

    /// How many calls ended in a failure that was not retried, for the reason `why`.
    #[must_use]
    pub fn given_up(&self, why: GaveUp) -> u64 {
        self.shared.given_up[why as usize].load(Relaxed)
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

    /// How often a call is tried, the first time included. Default: 3. One never retries.
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.rules.max_attempts = attempts;
        self
    }

    /// How long to wait between attempts. Default: decorrelated jitter from 50 ms to 2 s.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// What retries are paid from. Default: a budget of its own, [`RetryBudget::default`].
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// The longest wait that a dependency can ask for. Default: 30 s. When it asks for more, the call gives up:
    /// coming back earlier than asked would be hammering, and waiting that long is no caller's wish.
    pub const fn max_retry_after(mut self, wait: Duration) -> Self {
        self.rules.max_retry_after = wait;
        self
    }

    /// Whether a rejection by a layer beneath (an open breaker, a full bulkhead) that says when to come back is
    /// waited out, if that fits the deadline and [`max_retry_after`](Self::max_retry_after). Default: no. It counts
    /// as an attempt, and costs no budget as long as the dependency has not seen the call.
    pub const fn retry_rejections(mut self, yes: bool) -> Self {
        self.rules.retry_rejections = yes;
        self
    }

    /// What an attempt takes at the least: none is started when less than that would be left of the deadline after
    /// the wait. Default: 5 ms. Set it to what a good answer of your dependency takes.
    pub const fn minimum_attempt_time(mut self, time: Duration) -> Self {
        self.rules.minimum_attempt_time = time;
        self
    }

    /// The retry.
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
            given_up: Default::default(),
        });
        register(&shared);
        Ok(Retry { shared })
    }
}

pub(super) struct Shared {
    name: Arc<str>,
    pub(super) rules: Rules,
    pub(super) backoff: Backoff,
    pub(super) budget: RetryBudget,
    /// Calls that the dependency has answered; the budget reads it as well.
    pub(super) calls: Arc<Counter>,
    retries: AtomicU64,
    given_up: [AtomicU64; GaveUp::ALL.len()],
}

impl Shared {
    /// Tells the log about a decision, and counts a call that is given up.
    #[cold]
    pub(super) fn decided(&self, decision: Decision, attempt: u32) {
        let name = &*self.name;
        match decision {
            Decision::Return => {}
            Decision::Retry { wait } => {
                tracing::debug!(target: "resilience", pattern = "retry", name, attempt, ?wait, "retrying");
            }
            Decision::GiveUp(why) => {
                self.given_up[why as usize].fetch_add(1, Relaxed);
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
        let plain = [
            (&RETRY_CALLS, self.calls.sum()),
            (&RETRY_RETRIES, self.retries.load(Relaxed)),
        ];
        // An unlimited budget has no balance to show.
        let balance = self
            .budget
            .limited_balance()
            .map(|balance| (&RETRY_BUDGET, balance));
        for (metric, value) in plain.into_iter().chain(balance) {
            out(Reading {
                metric,
                attribute: "",
                value,
            });
        }
        for why in GaveUp::ALL {
            out(Reading {
                metric: &RETRY_GIVEN_UP,
                attribute: why.as_str(),
                value: self.given_up[why as usize].load(Relaxed),
            });
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}
