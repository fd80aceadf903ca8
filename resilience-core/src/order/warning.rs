//! Orders that defeat themselves.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{Description, IDEMPOTENCY_KEYS, Part, Setting, description::setting};
use crate::error::Pattern;

/// Two layers in an order in which one of them cannot do its part. `Display` says what happens and what to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OrderWarning {
    /// What is wrong.
    pub rule: Rule,
    /// The outer one of the two layers.
    pub above: Part,
    /// The inner one.
    pub below: Part,
}

impl Description {
    /// The layers whose order defeats one of them. Empty for the documented [order](crate#the-order-of-layers).
    #[must_use]
    pub fn warnings(&self) -> Vec<OrderWarning> {
        find(self.parts())
    }
}

/// Makes [`Rule`] out of one line per rule: its name for programs, and what a warning says.
macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $text:literal;)*) => {
        /// What is wrong with an order of layers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[doc = $doc])+ $variant,)*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// A stable lower-case name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What happens, and what to do.
            const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

rules! {
    /// A retry is below a circuit breaker, which then records one result per call instead of one per attempt, and does not
    /// stop the attempts of a call when it opens.
    RetryBelowBreaker = "retry_below_breaker",
        "the breaker records calls, not attempts, and does not stop attempts when it opens; put the retry above";
    /// A retry is below another one: their attempts multiply.
    RetryBelowRetry = "retry_below_retry",
        "their attempts multiply; keep one of the two";
    /// A deadline is below a retry, and none is above it: it bounds each attempt, and nothing bounds the call with its
    /// waits. Not for a layer that is declared to be [for one attempt](crate::deadline::TimeoutLayer::per_attempt).
    DeadlineBelowRetry = "deadline_below_retry",
        "it bounds each attempt and not the call; put a deadline above the retry, or declare this one `per_attempt()`";
    /// A deadline is not shorter than one above it, which always ends the call first. Deadlines that depend on the request
    /// are not compared.
    DeadlineWithoutEffect = "deadline_without_effect",
        "the outer one always ends the call first; make the inner one shorter, or leave it out";
    /// Idempotency keys are added below a retry: each attempt has a key of its own, so that a server cannot tell a repeated
    /// request from a new one.
    KeyBelowRetry = "key_below_retry",
        "each attempt gets a key of its own, and a server takes it for a new request; put the keys above the retry";
    /// A fallback is below a retry or a circuit breaker, which sees its responses in place of failures.
    FallbackHidesFailures = "fallback_hides_failures",
        "the layer above sees its responses and not the failures; put the fallback above";
    /// A bulkhead or rate limit with a queue is below a circuit breaker, which counts the time in the local queue as time
    /// of the dependency.
    QueueBelowBreaker = "queue_below_breaker",
        "the breaker counts the wait in the queue as time of the dependency; put the breaker below";
    /// Two layers of one circuit breaker, bulkhead or rate limit: each call counts twice.
    Repeated = "repeated",
        "each call counts twice; leave one of the two out";
}

impl Rule {
    /// The rule that `below` breaks under the layer `above`; `bounded`: a deadline is further up.
    fn broken_by(above: &Part, below: &Part, bounded: bool) -> Option<Self> {
        use Pattern::{Bulkhead, CircuitBreaker, Deadline, Fallback, RateLimit, Retry};
        let patterns = (above.pattern(), below.pattern());
        match patterns {
            (CircuitBreaker, Retry) if retries(below) => Some(Self::RetryBelowBreaker),
            (Retry, Retry) if retries(above) && retries(below) => Some(Self::RetryBelowRetry),
            (Retry, Deadline)
                if retries(above) && !bounded && !has(below, setting::PER_ATTEMPT) =>
            {
                Some(Self::DeadlineBelowRetry)
            }
            (Retry, IDEMPOTENCY_KEYS) if retries(above) => Some(Self::KeyBelowRetry),
            (Deadline, Deadline) if !ends_before(below, above) => Some(Self::DeadlineWithoutEffect),
            (Retry | CircuitBreaker, Fallback) => Some(Self::FallbackHidesFailures),
            (CircuitBreaker, Bulkhead | RateLimit) if has(below, setting::QUEUE) => {
                Some(Self::QueueBelowBreaker)
            }
            (CircuitBreaker, CircuitBreaker) | (Bulkhead, Bulkhead) | (RateLimit, RateLimit)
                if above.name() == below.name() =>
            {
                Some(Self::Repeated)
            }
            _ => None,
        }
    }
}

/// The warnings about `parts`, in the order of the inner layers. Of several layers that break one rule under the same
/// layer, the outermost is named.
pub(super) fn find(parts: &[Part]) -> Vec<OrderWarning> {
    let mut found = Vec::new();
    let mut told = Vec::new();
    for (at, below) in parts.iter().enumerate() {
        for outer in around(parts, at) {
            let above = &parts[outer];
            let bounded = around(parts, outer).any(|at| parts[at].pattern() == Pattern::Deadline);
            let Some(rule) = Rule::broken_by(above, below, bounded) else {
                continue;
            };
            if !told.contains(&(rule, outer)) {
                told.push((rule, outer));
                let (above, below) = (above.clone(), below.clone());
                found.push(OrderWarning { rule, above, below });
            }
        }
    }
    found
}

/// The layers around the one at `at`, innermost first. Branches beside it are left out.
fn around(parts: &[Part], at: usize) -> impl Iterator<Item = usize> {
    let mut depth = parts[at].depth();
    (0..at).rev().filter(move |&outer| {
        let is_around = parts[outer].depth() < depth;
        depth = depth.min(parts[outer].depth());
        is_around
    })
}

fn has(part: &Part, name: &str) -> bool {
    part.setting(name).is_some()
}

fn retries(part: &Part) -> bool {
    part.setting(setting::MAX_ATTEMPTS) != Some(&Setting::Count(1))
}

/// Whether the deadline `below` can end a call before `above` does, as far as that is known.
fn ends_before(below: &Part, above: &Part) -> bool {
    let fixed = |part: &Part| match part.setting(setting::AFTER) {
        Some(Setting::Time(after)) if !has(part, setting::PER_REQUEST) => Some(*after),
        _ => None,
    };
    (fixed(below).zip(fixed(above))).is_none_or(|(below, above)| below < above)
}

impl OrderWarning {
    pub(super) fn emit(&self) {
        tracing::warn!(
            name: "resilience.order",
            target: "resilience",
            rule = self.rule.as_str(),
            above = %self.above,
            below = %self.below,
            "{self}"
        );
    }
}

impl fmt::Display for OrderWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = |part: &Part| Part::new(part.pattern(), part.name());
        let (below, above) = (title(&self.below), title(&self.above));
        write!(f, "{below} is below {above}: {}", self.rule.text())
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
