//! State changes, as a stream of events.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};

use super::{counters::Counts, overrides::OverrideInfo, snapshot::State};

/// A change of state, or of an override.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// The breaker's name; of a keyed breaker, its key.
    pub name: Arc<str>,
    /// The generation that began. It goes up by one with every event of a breaker.
    pub generation: u64,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// Why.
    pub cause: Cause,
    /// The counts of the generation that ended.
    pub counts: Counts,
    /// The override in force after the event, if any.
    pub active_override: Option<OverrideInfo>,
}

/// Cause of a change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// Too large a share of the calls failed.
    FailureRate,
    /// Too large a share of the calls was slow.
    SlowRate,
    /// Too many calls in a row failed.
    ConsecutiveFailures,
    /// The open interval is over.
    IntervalOver,
    /// Enough probes succeeded.
    ProbesPassed,
    /// Too many probes failed, or did not end in time.
    ProbesFailed,
    /// A stage of the ramp-up passed without too many failures.
    StagePassed,
    /// The fleet decided so.
    Fleet {
        /// The instance whose proposal won, or the operator.
        by: Arc<str>,
        /// Why, in words.
        why: Arc<str>,
    },
    /// The fleet's store is unavailable: this instance sends its own probes.
    FleetLost,
    /// An override was set: see [`Event::active_override`].
    Overridden,
    /// The override was cleared by hand.
    OverrideCleared {
        /// Why.
        reason: Arc<str>,
    },
    /// The override expired.
    OverrideExpired,
    /// The breaker was reset by hand.
    Reset {
        /// Why.
        reason: Arc<str>,
    },
}

impl Cause {
    /// A stable lower-case name, as logs use it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::FailureRate => "failure_rate",
            Self::SlowRate => "slow_rate",
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::IntervalOver => "interval_over",
            Self::ProbesPassed => "probes_passed",
            Self::ProbesFailed => "probes_failed",
            Self::StagePassed => "stage_passed",
            Self::Fleet { .. } => "fleet",
            Self::FleetLost => "fleet_lost",
            Self::Overridden => "ordered",
            Self::OverrideCleared { .. } => "order_cleared",
            Self::OverrideExpired => "order_expired",
            Self::Reset { .. } => "reset",
        }
    }
}

/// The events of a breaker, or of a family of keyed breakers, from the moment of subscription on. From
/// [`CircuitBreaker::events`](super::CircuitBreaker::events).
///
/// A subscriber that falls behind by more than the capacity misses the oldest events, and is told how many.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// Waits for the next event. `None`: the breaker is gone. Dropping the future loses no event.
    pub async fn next(&mut self) -> Option<Result<Event, Missed>> {
        match self.0.recv().await {
            Ok(event) => Some(Ok(event)),
            Err(RecvError::Lagged(events)) => Some(Err(Missed(events))),
            Err(RecvError::Closed) => None,
        }
    }

    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<Result<Event, Missed>> {
        match self.0.try_recv() {
            Ok(event) => Some(Ok(event)),
            Err(TryRecvError::Lagged(events)) => Some(Err(Missed(events))),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }
}

/// The subscriber fell behind: this many events are lost to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed(pub u64);

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "missed {} events", self.0)
    }
}

impl std::error::Error for Missed {}

/// The broadcast of events. Costs nothing without subscribers.
#[derive(Debug)]
pub(super) struct Hub {
    sender: OnceLock<broadcast::Sender<Event>>,
    capacity: usize,
}

impl Hub {
    pub(super) const fn new(capacity: usize) -> Self {
        Self {
            sender: OnceLock::new(),
            capacity,
        }
    }

    pub(super) fn subscribe(&self) -> Events {
        let sender = self
            .sender
            .get_or_init(|| broadcast::Sender::new(self.capacity));
        Events(sender.subscribe())
    }

    pub(super) fn send(&self, event: impl FnOnce() -> Event) {
        if let Some(sender) = self
            .sender
            .get()
            .filter(|sender| sender.receiver_count() > 0)
        {
            // No receivers left: not an error.
            drop(sender.send(event()));
        }
    }
}
