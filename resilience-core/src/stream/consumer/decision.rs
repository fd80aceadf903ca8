//! What becomes of a message, by how its handler ended: pure.

use std::{sync::Arc, time::Duration};

use crate::{
    backoff::Backoff,
    error::Rejected,
    fleet::millis,
    stream::{broker::validate::MAX_REASON, steps::Action},
    verdict::Verdict,
};

/// How a handler ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// With a result that was classified.
    Verdict {
        verdict: Verdict,
        /// The error, or what it was without one.
        reason: String,
    },
    /// A layer did not let the message through.
    Rejected(Rejected),
    /// The message cannot be read.
    Unreadable(String),
    /// It panicked.
    Panicked,
    /// It ran out of time.
    TimedOut(Duration),
    /// The process shuts down.
    Cancelled,
}

/// What becomes of the message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is done.
    Ack,
    /// Another end, as the broker is told.
    Settle(Action),
    /// It is given back untried, and no other one is started for a while.
    Pause(Duration),
}

/// The rules of a consumer.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) max_deliveries: u32,
    pub(super) retry: Backoff,
}

/// Pauses after a rejection, whatever it asked for.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Rules {
    pub(super) fn decide(&self, ending: Ending, deliveries: u32) -> Decision {
        match ending {
            Ending::Verdict { verdict, reason } => match verdict {
                Verdict::Success => Decision::Ack,
                Verdict::Transient { retry_after } => {
                    self.retry(deliveries, retry_after.unwrap_or_default(), &reason)
                }
                // Permanent: it will fail again. Ignored: the message itself is at fault.
                _ => dead(&reason),
            },
            Ending::Rejected(rejected) => {
                let wait = rejected.retry_after().unwrap_or(SHORTEST_PAUSE);
                Decision::Pause(wait.clamp(SHORTEST_PAUSE, LONGEST_PAUSE))
            }
            Ending::Unreadable(why) => dead(&format!("unreadable: {why}")),
            Ending::Panicked => self.retry(deliveries, Duration::ZERO, "the handler panicked"),
            Ending::TimedOut(after) => {
                let reason = format!("not handled within {after:?}");
                self.retry(deliveries, Duration::ZERO, &reason)
            }
            Ending::Cancelled => Decision::Settle(Action::Retry {
                after_ms: 0,
                reason: "cancelled by a shutdown".into(),
            }),
        }
    }

    /// Whether a message was delivered so often that it is not tried again.
    pub(super) fn is_spent(&self, deliveries: u32) -> bool {
        deliveries > self.max_deliveries
    }

    pub(super) fn spent(&self) -> Action {
        let reason = format!(
            "not settled in {} deliveries: its consumers died, or lost their leases",
            self.max_deliveries
        );
        Action::Dead {
            reason: reason.into(),
        }
    }

    fn retry(&self, deliveries: u32, at_least: Duration, reason: &str) -> Decision {
        let last = deliveries >= self.max_deliveries;
        let nth = usize::try_from(deliveries.saturating_sub(1)).unwrap_or(usize::MAX);
        let wait = self.retry.delays().nth(nth);
        match wait.filter(|_| !last) {
            Some(wait) => Decision::Settle(Action::Retry {
                after_ms: millis(wait.max(at_least)),
                reason: cut(reason),
            }),
            None => dead(reason),
        }
    }
}

fn dead(reason: &str) -> Decision {
    Decision::Settle(Action::Dead {
        reason: cut(reason),
    })
}

/// At most [`MAX_REASON`] bytes.
fn cut(reason: &str) -> Arc<str> {
    let mut end = MAX_REASON.min(reason.len());
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].into()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::error::{Pattern, Reason};

    fn rules() -> Rules {
        let (base, max) = (Duration::from_millis(100), Duration::from_millis(300));
        Rules {
            max_deliveries: 4,
            retry: Backoff::exponential(base, max),
        }
    }

    fn failed(verdict: Verdict) -> Ending {
        let reason = "no".into();
        Ending::Verdict { verdict, reason }
    }

    fn retry(after_ms: u64) -> Decision {
        let reason = "no".into();
        Decision::Settle(Action::Retry { after_ms, reason })
    }

    #[test]
    fn a_transient_failure_backs_off_and_ends_as_a_dead_letter() {
        let rules = rules();
        let decide = |deliveries| rules.decide(failed(Verdict::transient()), deliveries);
        assert_eq!(decide(1), retry(100));
        assert_eq!(decide(2), retry(200));
        assert_eq!(decide(3), retry(300));
        assert_eq!(decide(4), dead("no"));
        assert_eq!(decide(9), dead("no"));
        let asked = Verdict::retry_after(Duration::from_secs(5));
        assert_eq!(rules.decide(failed(asked), 1), retry(5_000));
    }

    #[test]
    fn a_backoff_that_ends_ends_the_retries() {
        let rules = Rules {
            max_deliveries: 10,
            retry: Backoff::custom(|| [Duration::from_millis(7)]),
        };
        let decide = |deliveries| rules.decide(failed(Verdict::transient()), deliveries);
        assert_eq!((decide(1), decide(2)), (retry(7), dead("no")));
    }

    #[test]
    fn what_fails_for_good_is_not_tried_again() {
        for verdict in [Verdict::Permanent, Verdict::Ignored] {
            assert_eq!(rules().decide(failed(verdict), 1), dead("no"));
        }
        let unreadable = rules().decide(Ending::Unreadable("not JSON".into()), 1);
        assert_eq!(unreadable, dead("unreadable: not JSON"));
    }

    #[test]
    fn a_rejection_burns_no_delivery_whatever_their_number() {
        let open = Rejected::new(Pattern::CircuitBreaker, Reason::Open, "db");
        let asked = open.clone().with_retry_after(Duration::from_secs(2));
        let long = open.clone().with_retry_after(Duration::from_secs(3_600));
        for deliveries in [1, 4, 99] {
            for (rejected, pause) in [
                (open.clone(), SHORTEST_PAUSE),
                (asked.clone(), Duration::from_secs(2)),
                (long.clone(), LONGEST_PAUSE),
            ] {
                let decided = rules().decide(Ending::Rejected(rejected), deliveries);
                assert_eq!(decided, Decision::Pause(pause));
            }
        }
    }

    #[test]
    fn a_panic_and_a_timeout_are_failed_deliveries() {
        for ending in [Ending::Panicked, Ending::TimedOut(Duration::from_secs(1))] {
            let decided = rules().decide(ending, 1);
            assert!(
                matches!(
                    decided,
                    Decision::Settle(Action::Retry { after_ms: 100, .. })
                ),
                "{decided:?}"
            );
        }
        let decided = rules().decide(Ending::Panicked, 4);
        assert_eq!(decided, dead("the handler panicked"));
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let reason = cut(&"\u{fc}".repeat(MAX_REASON));
        assert_eq!(reason.len(), MAX_REASON);
        let reason = cut(&("x".to_owned() + &"\u{fc}".repeat(MAX_REASON)));
        assert_eq!(reason.len(), MAX_REASON - 1);
    }
}
