//! What a group knows of one message: a pure state machine. Takes the time in microseconds of the broker's clock.
//!
//! A message that a group was not given yet has no record, and neither has one that is settled.
//!
//! ```text
//! NONE -deliver-> HELD(consumer, lease) -ack-> NONE                  the message is settled
//!                   |-retry, give back-> WAITING(due) -claim-> HELD  once it is due
//!                   |-the lease ends     no change; the next claim takes over, and until then the holder may settle it
//!                   |-dead-> DEAD -redrive-> WAITING(due now)
//! ```
//!
//! # Deliveries
//! Each delivery counts by one. A delivery that is given back was none: its number is given again. A retry keeps it, and adds to
//! the failures, of which the last [`MAX_FAILURES`] are kept. So does a lease that ends, when the message is claimed.
//!
//! # A clock that steps
//! A clock set back makes a lease or a wait last no longer than it was to last, from when a broker finds out
//! ([`set_back`](Record::set_back)). A clock set forward cannot be told from time that has passed: leases end early, and the holder
//! finds out when it settles.

mod effect;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{collections::VecDeque, sync::Arc};

pub use self::effect::EffectRecord;
use super::{
    broker::validate::MAX_FAILURES,
    steps::{Action, Effect, Failure, Held, Settled},
};
use crate::fleet::at_most;

/// A message that a group was given and has not settled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    state: State,
    deliveries: u32,
    failures: VecDeque<PastFailure>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Held {
        consumer: Arc<str>,
        until: u64,
        lease_ms: u64,
    },
    Waiting {
        due: u64,
        wait_ms: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PastFailure {
    delivery: u32,
    consumer: Arc<str>,
    at: u64,
    reason: Option<Arc<str>>,
}

/// What is left to do when a consumer has settled a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// The record ends, and the effect is recorded.
    Settled(Option<Effect>),
    /// The record goes on: the message is due later.
    Waits,
    /// The record becomes a dead letter.
    Dead {
        /// Why.
        reason: Arc<str>,
    },
}

impl Record {
    /// The first delivery.
    // None => Held
    #[must_use]
    pub fn deliver(consumer: &Arc<str>, lease_ms: u64, now: u64) -> Self {
        let mut record = Self::redrive(now);
        record.hold(consumer, lease_ms, now);
        record
    }

    /// A dead letter that is to be delivered again.
    // Dead => Waiting
    #[must_use]
    pub const fn redrive(now: u64) -> Self {
        Self {
            state: State::Waiting {
                due: now,
                wait_ms: 0,
            },
            deliveries: 0,
            failures: VecDeque::new(),
        }
    }

    /// Another delivery, if one is due. Whether it was.
    // Waiting (due) => Held
    // Held (the lease has ended) => Held
    pub fn claim(&mut self, consumer: &Arc<str>, lease_ms: u64, now: u64) -> bool {
        if self.due(now) > now {
            return false;
        }
        if let State::Held { consumer, .. } = &self.state {
            let holder = Arc::clone(consumer);
            self.fail(holder, None, now);
        }
        self.hold(consumer, lease_ms, now);
        true
    }

    /// When another delivery is due: when the lease ends, or the wait.
    #[must_use]
    pub fn due(&self, now: u64) -> u64 {
        match self.state {
            State::Held {
                until, lease_ms, ..
            } => at_most(until, now, micros(lease_ms)),
            State::Waiting { due, wait_ms } => at_most(due, now, micros(wait_ms)),
        }
    }

    /// Counts a lease or a wait from `now` if it would last longer than it was to last: the clock was found set back. Without this,
    /// [`due`](Self::due) stays as far away until the clock is where it was.
    pub fn set_back(&mut self, now: u64) {
        let nearer = self.due(now);
        match &mut self.state {
            State::Held { until: due, .. } | State::Waiting { due, .. } => *due = nearer,
        }
    }

    /// Begins the holder's lease again.
    pub fn extend(&mut self, consumer: &str, lease_ms: u64, now: u64) -> Held {
        let held = self.held_by(consumer);
        if held == Held::Held {
            self.live(lease_ms, now);
        }
        held
    }

    /// Whether `consumer` holds the message, whether or not its lease has ended.
    #[must_use]
    pub fn held_by(&self, consumer: &str) -> Held {
        match &self.state {
            State::Held { consumer: it, .. } if **it == *consumer => Held::Held,
            State::Held { .. } => Held::Taken,
            State::Waiting { .. } => Held::Gone,
        }
    }

    /// The consumer that holds it.
    #[must_use]
    pub fn holder(&self) -> Option<&Arc<str>> {
        match &self.state {
            State::Held { consumer, .. } => Some(consumer),
            State::Waiting { .. } => None,
        }
    }

    /// Ends the delivery to `consumer`.
    ///
    /// # Errors
    /// If `consumer` does not hold the message; then nothing changes.
    // Held => None, Waiting or Dead
    pub fn settle(&mut self, consumer: &str, action: &Action, now: u64) -> Result<Next, Settled> {
        match self.held_by(consumer) {
            Held::Held => {}
            Held::Taken => return Err(Settled::Taken),
            Held::Gone => return Err(Settled::Gone),
        }
        Ok(match action {
            Action::Ack(effect) => Next::Settled(effect.clone()),
            Action::Retry { after_ms, reason } => {
                self.fail(consumer.into(), Some(reason), now);
                self.wait(*after_ms, now)
            }
            Action::GiveBack { after_ms } => {
                self.deliveries = self.deliveries.saturating_sub(1);
                self.wait(*after_ms, now)
            }
            Action::Dead { reason } => {
                self.fail(consumer.into(), Some(reason), now);
                Next::Dead {
                    reason: Arc::clone(reason),
                }
            }
        })
    }

    /// Counted deliveries.
    #[must_use]
    pub const fn deliveries(&self) -> u32 {
        self.deliveries
    }

    /// The last failures, oldest first.
    #[must_use]
    pub fn failures(&self, now: u64) -> Vec<Failure> {
        let failure = |it: &PastFailure| Failure {
            delivery: it.delivery,
            consumer: Arc::clone(&it.consumer),
            ago_ms: now.saturating_sub(it.at) / 1000,
            reason: it.reason.clone(),
        };
        self.failures.iter().map(failure).collect()
    }

    fn hold(&mut self, consumer: &Arc<str>, lease_ms: u64, now: u64) {
        self.deliveries = self.deliveries.saturating_add(1);
        self.state = State::Held {
            consumer: Arc::clone(consumer),
            until: 0,
            lease_ms: 0,
        };
        self.live(lease_ms, now);
    }

    fn live(&mut self, lease: u64, now: u64) {
        if let State::Held {
            until, lease_ms, ..
        } = &mut self.state
        {
            *until = now.saturating_add(micros(lease));
            *lease_ms = lease;
        }
    }

    fn wait(&mut self, wait_ms: u64, now: u64) -> Next {
        self.state = State::Waiting {
            due: now.saturating_add(micros(wait_ms)),
            wait_ms,
        };
        Next::Waits
    }

    fn fail(&mut self, consumer: Arc<str>, reason: Option<&Arc<str>>, now: u64) {
        if self.failures.len() == MAX_FAILURES {
            self.failures.pop_front();
        }
        self.failures.push_back(PastFailure {
            delivery: self.deliveries,
            consumer,
            at: now,
            reason: reason.cloned(),
        });
    }
}

const fn micros(ms: u64) -> u64 {
    ms.saturating_mul(1000)
}
