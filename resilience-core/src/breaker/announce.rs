//! Transitions become events, traces and wake-ups.

use std::sync::{
    Arc, TryLockError,
    atomic::{Ordering::SeqCst, fence},
};

use super::{events::Event, shared::Shared, snapshot::State, state::Transition};
use crate::error::Pattern;

impl Shared {
    /// Announces the transitions that were not announced yet, oldest first. If another thread is announcing (or this one,
    /// called from a subscriber), it is left to that thread, which looks again before it ends.
    pub(super) fn announce(&self) {
        while self.machine.has_news() {
            // Between reading `news` and taking the lock, here and there: one of the two threads sees the other.
            fence(SeqCst);
            let telling = match self.announcing.try_lock() {
                Ok(telling) => telling,
                // A subscriber that panicked must not silence the breaker.
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            while let Some(transition) = self.machine.next_transition() {
                self.tell(transition);
            }
            drop(telling);
            fence(SeqCst);
        }
    }

    fn tell(&self, transition: Transition) {
        self.gate.notify_waiters();
        self.trace(&transition);
        self.propagate_cool_down(transition.asked);
        self.hub.send(|| Event {
            name: Arc::clone(&self.name),
            generation: transition.generation,
            from: transition.from,
            to: transition.to,
            cause: transition.cause,
            counts: transition.counts,
            active_override: transition.active_override,
        });
    }

    fn trace(&self, transition: &Transition) {
        let Transition {
            generation,
            from,
            to,
            cause,
            counts,
            active_override,
            open_for,
            asked: _,
        } = transition;
        let active_override = active_override.as_ref();
        macro_rules! event {
            ($level:ident) => {
                tracing::$level!(
                    target: "resilience",
                    pattern = Pattern::CircuitBreaker.as_str(),
                    name = &*self.name,
                    family = self.family.as_ref().map(|family| &*family.name),
                    generation,
                    from = from.as_str(),
                    to = to.as_str(),
                    reason = cause.as_str(),
                    calls = counts.calls,
                    failures = counts.failures,
                    slow = counts.slow,
                    open_for = open_for.map(tracing::field::debug),
                    active_override = active_override.map(|active_override| active_override.kind),
                    order_reason = active_override.map(|active_override| &*active_override.reason),
                    order_by = active_override.and_then(|active_override| active_override.by.as_deref()),
                    "state changed"
                )
            };
        }
        match to {
            State::Open | State::ForcedOpen => event!(warn),
            _ => event!(info),
        }
    }
}
