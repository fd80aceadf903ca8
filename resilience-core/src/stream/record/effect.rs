//! The record of one effect: a pure state machine. Takes the time in microseconds of the broker's clock.
//!
//! ```text
//! NONE -begin-> RUNNING(message, fence) -complete-> DONE(outcome)   until its ttl
//!                 |-begin, the message is no longer held-> RUNNING  a higher fence, a further attempt
//! ```
//!
//! It has no lease of its own: it runs for as long as a consumer holds the message that it was begun for.
//!
//! Fences rise as those of [idempotency keys](crate::idempotency) do: one above the last one, or the broker's clock in
//! microseconds, whichever is higher.

use bytes::Bytes;

use super::micros;
use crate::stream::{
    broker::validate::BEYOND,
    message::Position,
    steps::{Begin, Begun, Effect},
};

/// The record of an effect. The default is that of one that was never begun.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EffectRecord {
    /// The message that it was begun for.
    position: Position,
    /// Zero: there is no record.
    fence: u64,
    attempt: u32,
    outcome: Option<Bytes>,
    expires: u64,
}

impl EffectRecord {
    /// Begins the effect for a message that the caller holds. `is_held`: whether a consumer holds another message.
    // None, Running (no longer held) => Running
    pub fn begin(
        &mut self,
        begin: &Begin,
        is_held: impl FnOnce(Position) -> bool,
        now: u64,
    ) -> Begun {
        self.forget(now);
        if let Some(outcome) = &self.outcome {
            return Begun::Done {
                outcome: outcome.clone(),
            };
        }
        if self.fence != 0 && self.position != begin.position && is_held(self.position) {
            return Begun::Busy;
        }
        self.position = begin.position;
        self.fence = (self.fence + 1).max(now).min(BEYOND - 1);
        self.attempt = self.attempt.saturating_add(1);
        self.expires = now.saturating_add(micros(begin.keep_ms));
        Begun::Run {
            fence: self.fence,
            attempt: self.attempt,
        }
    }

    /// Records the outcome. Refused if the record has a higher fence, or is done by another one.
    // Running, None => Done
    pub fn complete(&mut self, position: Position, effect: &Effect, now: u64) -> bool {
        if !self.may_complete(effect, now) {
            return false;
        }
        if self.outcome.is_none() {
            *self = Self {
                position,
                fence: effect.fence,
                attempt: self.attempt.max(1),
                outcome: Some(effect.outcome.clone()),
                expires: now.saturating_add(micros(effect.ttl_ms)),
            };
        }
        true
    }

    /// Whether [`complete`](Self::complete) would record the outcome.
    #[must_use]
    pub fn may_complete(&self, effect: &Effect, now: u64) -> bool {
        if self.is_over(now) {
            return true;
        }
        self.fence == effect.fence || (self.fence < effect.fence && self.outcome.is_none())
    }

    /// Whether there is no record, or none any more.
    #[must_use]
    pub const fn is_over(&self, now: u64) -> bool {
        self.fence == 0 || now >= self.expires
    }

    fn forget(&mut self, now: u64) {
        if self.is_over(now) {
            *self = Self::default();
        }
    }
}
