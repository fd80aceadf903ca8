//! The decision after an attempt: pure. Clock, budget and random numbers are behind [`Resources`] and are used only when
//! the decision depends on them; the budget last, because using it spends.

use std::time::Duration;

use crate::verdict::Verdict;

/// Configured limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) max_attempts: u32,
    pub(super) max_retry_after: Duration,
    pub(super) retry_rejections: bool,
    pub(super) minimum_attempt_time: Duration,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The dependency was called, with this verdict.
    Judged(Verdict),
    /// A layer below rejected the attempt: the dependency has not seen it.
    Rejected { retry_after: Option<Duration> },
}

/// Resources of a decision.
pub(super) trait Resources {
    /// Takes the next delay of the backoff, or `None` when it has no more.
    fn next_delay(&mut self) -> Option<Duration>;
    /// The time left of the deadline, if there is one.
    fn time_left(&mut self) -> Option<Duration>;
    /// Takes one retry out of the budget; `false` if there is none.
    fn pay(&mut self) -> bool;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Not a failure.
    Return,
    /// A failure that is not retried.
    GiveUp(GaveUp),
    /// Wait, then retry. It has been paid for.
    Retry { wait: Duration },
}

/// Reason why a failed attempt was the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GaveUp {
    /// The dependency failed permanently: the same call would fail again.
    Permanent,
    /// A layer below rejected the attempt, and rejections are not retried, or this one carries no `retry_after`.
    Rejected,
    /// The maximum number of attempts was made.
    Attempts,
    /// The request must not or cannot be sent again.
    NotReplayable,
    /// The dependency asked for a longer wait than the maximum.
    RetryAfterTooLong,
    /// The backoff has no more delays.
    BackoffEnded,
    /// Another attempt does not fit in the time left of the deadline.
    NoTime,
    /// The budget has no retry left.
    Budget,
}

impl GaveUp {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Permanent,
        Self::Rejected,
        Self::Attempts,
        Self::NotReplayable,
        Self::RetryAfterTooLong,
        Self::BackoffEnded,
        Self::NoTime,
        Self::Budget,
    ];

    /// A stable lower-case name, as events and metrics use it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Rejected => "rejected",
            Self::Attempts => "attempts",
            Self::NotReplayable => "not_replayable",
            Self::RetryAfterTooLong => "retry_after_too_long",
            Self::BackoffEnded => "backoff_ended",
            Self::NoTime => "no_time",
            Self::Budget => "budget",
        }
    }
}

impl Rules {
    /// Decides on attempt number `attempt` (from 1), which ended as `outcome`; `replayable`: a copy of the
    /// request exists.
    pub(super) fn decide(
        &self,
        attempt: u32,
        outcome: Outcome,
        replayable: bool,
        resources: &mut impl Resources,
    ) -> Decision {
        let asked = match outcome {
            Outcome::Judged(Verdict::Success | Verdict::Ignored) => return Decision::Return,
            Outcome::Judged(Verdict::Permanent) => return Decision::GiveUp(GaveUp::Permanent),
            Outcome::Judged(Verdict::Transient { retry_after }) => retry_after,
            Outcome::Rejected { retry_after } if self.retry_rejections && retry_after.is_some() => {
                retry_after
            }
            Outcome::Rejected { .. } => return Decision::GiveUp(GaveUp::Rejected),
        };
        match self.plan(attempt, asked, replayable, resources) {
            Ok(wait) => Decision::Retry { wait },
            Err(why) => Decision::GiveUp(why),
        }
    }

    fn plan(
        &self,
        attempt: u32,
        asked: Option<Duration>,
        replayable: bool,
        resources: &mut impl Resources,
    ) -> Result<Duration, GaveUp> {
        if attempt >= self.max_attempts {
            return Err(GaveUp::Attempts);
        }
        if !replayable {
            return Err(GaveUp::NotReplayable);
        }
        let asked = asked.unwrap_or_default();
        if asked > self.max_retry_after {
            return Err(GaveUp::RetryAfterTooLong);
        }
        let delay = resources.next_delay().ok_or(GaveUp::BackoffEnded)?;
        let wait = delay.max(asked);
        let needed = wait.checked_add(self.minimum_attempt_time);
        if resources
            .time_left()
            .is_some_and(|left| needed.is_none_or(|needed| needed > left))
        {
            return Err(GaveUp::NoTime);
        }
        if !resources.pay() {
            return Err(GaveUp::Budget);
        }
        Ok(wait)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    struct Given {
        delay: Option<Duration>,
        left: Option<Duration>,
        budget: bool,
        paid: u32,
    }

    impl Resources for Given {
        fn next_delay(&mut self) -> Option<Duration> {
            self.delay
        }
        fn time_left(&mut self) -> Option<Duration> {
            self.left
        }
        fn pay(&mut self) -> bool {
            self.paid += u32::from(self.budget);
            self.budget
        }
    }

    fn duration() -> impl Strategy<Value = Duration> {
        prop_oneof![
            Just(Duration::ZERO),
            (0..100u64).prop_map(Duration::from_millis),
            Just(Duration::MAX)
        ]
    }

    fn rules() -> impl Strategy<Value = Rules> {
        (1..5u32, duration(), any::<bool>(), duration()).prop_map(
            |(attempts, cap, rejections, least)| Rules {
                max_attempts: attempts,
                max_retry_after: cap,
                retry_rejections: rejections,
                minimum_attempt_time: least,
            },
        )
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        let after = || proptest::option::of(duration());
        prop_oneof![
            Just(Outcome::Judged(Verdict::Success)),
            Just(Outcome::Judged(Verdict::Ignored)),
            Just(Outcome::Judged(Verdict::Permanent)),
            after().prop_map(|retry_after| Outcome::Judged(Verdict::Transient { retry_after })),
            after().prop_map(|retry_after| Outcome::Rejected { retry_after }),
        ]
    }

    fn given() -> impl Strategy<Value = Given> {
        let maybe = || proptest::option::of(duration());
        (maybe(), maybe(), any::<bool>()).prop_map(|(delay, left, budget)| Given {
            delay,
            left,
            budget,
            paid: 0,
        })
    }

    /// Every condition on its own, in no order: what must hold for a retry to happen.
    fn may_retry(
        rules: &Rules,
        attempt: u32,
        outcome: Outcome,
        replayable: bool,
        given: &Given,
    ) -> bool {
        let worth_it = match outcome {
            Outcome::Judged(verdict) => matches!(verdict, Verdict::Transient { .. }),
            Outcome::Rejected { retry_after } => rules.retry_rejections && retry_after.is_some(),
        };
        let asked = match outcome {
            Outcome::Judged(Verdict::Transient { retry_after })
            | Outcome::Rejected { retry_after } => retry_after.unwrap_or_default(),
            Outcome::Judged(_) => Duration::ZERO,
        };
        let fits = |delay: Duration, left: Duration| {
            delay.max(asked).as_nanos() + rules.minimum_attempt_time.as_nanos() <= left.as_nanos()
        };
        worth_it
            && replayable
            && attempt < rules.max_attempts
            && asked <= rules.max_retry_after
            && given.budget
            && given
                .delay
                .is_some_and(|delay| given.left.is_none_or(|left| fits(delay, left)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn a_retry_happens_when_all_conditions_hold_and_is_paid_for_once(
            rules in rules(), attempt in 1..6u32, outcome in outcome(), replayable: bool, given in given(),
        ) {
            let mut resources = given.clone();
            let decision = rules.decide(attempt, outcome, replayable, &mut resources);
            let retried = matches!(decision, Decision::Retry { .. });
            prop_assert_eq!(retried, may_retry(&rules, attempt, outcome, replayable, &given), "{:?}", decision);
            prop_assert_eq!(resources.paid, u32::from(retried));
        }

        #[test]
        fn a_wait_is_never_shorter_than_backoff_or_retry_after_and_never_reaches_past_the_deadline(
            rules in rules(), outcome in outcome(), mut given in given(),
        ) {
            if let Decision::Retry { wait } = rules.decide(1, outcome, true, &mut given) {
                prop_assert!(wait >= given.delay.unwrap());
                if let Outcome::Judged(Verdict::Transient { retry_after: Some(asked) }) = outcome {
                    prop_assert!(wait >= asked && asked <= rules.max_retry_after);
                }
                prop_assert!(given.left.is_none_or(|left| wait <= left));
            }
        }

        #[test]
        fn what_is_no_failure_is_returned_without_a_word(
            rules in rules(), attempt in 1..6u32, replayable: bool, mut given in given(),
        ) {
            for verdict in [Verdict::Success, Verdict::Ignored] {
                let decision = rules.decide(attempt, Outcome::Judged(verdict), replayable, &mut given);
                prop_assert_eq!(decision, Decision::Return);
            }
        }
    }

    const RULES: Rules = Rules {
        max_attempts: 3,
        max_retry_after: Duration::from_secs(30),
        retry_rejections: true,
        minimum_attempt_time: Duration::from_millis(5),
    };

    const GIVEN: Given = Given {
        delay: Some(Duration::from_millis(50)),
        left: Some(Duration::from_secs(60)),
        budget: true,
        paid: 0,
    };

    #[test]
    fn every_reason_to_give_up_is_named() {
        let transient = Outcome::Judged(Verdict::transient());
        let asks = |secs| Outcome::Judged(Verdict::retry_after(Duration::from_secs(secs)));
        let none = Outcome::Rejected { retry_after: None };
        let slow = Given {
            delay: None,
            ..GIVEN
        };
        let late = Given {
            left: Some(Duration::from_millis(54)),
            ..GIVEN
        };
        let poor = Given {
            budget: false,
            ..GIVEN
        };
        let table = [
            (
                1,
                Outcome::Judged(Verdict::Permanent),
                true,
                GIVEN,
                GaveUp::Permanent,
            ),
            (1, none, true, GIVEN, GaveUp::Rejected),
            (3, transient, true, GIVEN, GaveUp::Attempts),
            (1, transient, false, GIVEN, GaveUp::NotReplayable),
            (1, asks(31), true, GIVEN, GaveUp::RetryAfterTooLong),
            (1, transient, true, slow, GaveUp::BackoffEnded),
            (1, transient, true, late, GaveUp::NoTime),
            (1, transient, true, poor, GaveUp::Budget),
        ];
        assert_eq!(table.clone().map(|row| row.4), GaveUp::ALL);
        for (attempt, outcome, replayable, mut given, expected) in table {
            let decision = RULES.decide(attempt, outcome, replayable, &mut given);
            assert_eq!(decision, Decision::GiveUp(expected));
        }
    }

    #[test]
    fn an_attempt_that_just_fits_is_made() {
        let mut given = Given {
            left: Some(Duration::from_millis(55)),
            ..GIVEN
        };
        let decision = RULES.decide(1, Outcome::Judged(Verdict::transient()), true, &mut given);
        assert_eq!(
            decision,
            Decision::Retry {
                wait: Duration::from_millis(50)
            }
        );
    }
}
