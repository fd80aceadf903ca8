//! The message that a handler is given.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;

use super::held::LostFlag;
use crate::{
    retry::Replayable,
    stream::message::{Envelope, Position},
    sync::{Mutex, lock},
};

/// A message with its event, as a handler is given it: the request of the service that a [`Consumer`](super::Consumer) drives.
///
/// A retry layer in the service may repeat it if the event is `Clone`.
#[derive(Clone)]
pub struct Message<T> {
    event: T,
    about: Arc<About>,
}

pub(super) struct About {
    pub(super) stream: Arc<str>,
    pub(super) position: Position,
    pub(super) deliveries: u32,
    pub(super) envelope: Envelope,
    pub(super) lost: LostFlag,
    pub(super) effect: Option<Begun>,
    pub(super) outcome: Mutex<Bytes>,
}

/// An effect that was begun for a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) fence: u64,
    pub(super) attempt: u32,
}

impl<T> Message<T> {
    pub(super) const fn new(event: T, about: Arc<About>) -> Self {
        Self { event, about }
    }

    /// The event.
    pub const fn event(&self) -> &T {
        &self.event
    }

    /// The event, by value.
    pub fn into_event(self) -> T {
        self.event
    }

    /// What is known of the event beside its value.
    #[must_use]
    pub fn envelope(&self) -> &Envelope {
        &self.about.envelope
    }

    /// The id of the event: the same in every delivery, and in every copy.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.about.envelope.id
    }

    /// What the order is kept for.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.about.envelope.key.as_deref()
    }

    /// The stream.
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.about.stream
    }

    /// Its place in the stream.
    #[must_use]
    pub fn position(&self) -> Position {
        self.about.position
    }

    /// How often it was delivered to the group, this time included.
    #[must_use]
    pub fn delivery(&self) -> u32 {
        self.about.deliveries
    }

    /// Fencing token of this attempt at the effect: higher than that of every earlier one on this event, in this group. What the
    /// handler writes to can refuse an older one. `None` without [`effect_once`](super::ConsumerBuilder::effect_once).
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        self.about.effect.map(|it| it.fence)
    }

    /// Number of the attempt at the effect; above one, an earlier attempt may have had effects. Without
    /// [`effect_once`](super::ConsumerBuilder::effect_once) that of the [delivery](Self::delivery).
    #[must_use]
    pub fn attempt(&self) -> u32 {
        let attempt = self.about.effect.map(|it| it.attempt);
        attempt.unwrap_or(self.about.deliveries)
    }

    /// Whether the lease was lost: another consumer has the message, or soon will. What this one does from now on is in vain, and may
    /// be done twice; its end will be refused.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.about.lost.load(Relaxed)
    }

    /// Sets the outcome that is recorded with the acknowledgement, for operators; up to 1 MiB. Default: empty. Without
    /// [`effect_once`](super::ConsumerBuilder::effect_once) nothing is recorded.
    pub fn record(&self, outcome: impl Into<Bytes>) {
        *lock(&self.about.outcome) = outcome.into();
    }
}

impl<T: Clone> Replayable for Message<T> {
    fn replay(&self) -> Option<Self> {
        Some(self.clone())
    }
}

impl<T> fmt::Debug for Message<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("stream", &self.about.stream)
            .field("position", &self.about.position)
            .field("id", &self.about.envelope.id)
            .field("delivery", &self.about.deliveries)
            .finish_non_exhaustive()
    }
}
