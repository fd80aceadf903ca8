//! Overrides by an operator.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use crate::{clock::Moment, telemetry::seconds};

/// Override of a breaker by an operator, in force until it is cleared, replaced or expires: a breaker that was forced open
/// stays open, however long that is.
///
/// The machine is held as it is while the override is in force. Setting, replacing and clearing one each start a new
/// generation with an empty window: calls admitted before change nothing after.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{CircuitBreaker, breaker::{Override, State}};
///
/// let breaker = CircuitBreaker::builder("payments").build()?;
/// breaker.set_override(Override::force_open("provider maintenance").by("ops").expires_after(Duration::from_secs(3600)));
/// assert_eq!(breaker.state(), State::ForcedOpen);
/// breaker.clear_override("maintenance over early");
/// assert_eq!(breaker.state(), State::Closed);
/// # Ok::<_, resilience_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Override {
    kind: OverrideKind,
    reason: Arc<str>,
    by: Option<Arc<str>>,
    expires_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OverrideKind {
    None = 0,
    ForceOpen = 1,
    ForceClosed = 2,
    Disabled = 3,
    MetricsOnly = 4,
}

impl OverrideKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ForceOpen => "force_open",
            Self::ForceClosed => "force_closed",
            Self::Disabled => "disable",
            Self::MetricsOnly => "metrics_only",
        }
    }
}

impl Override {
    /// Rejects every call. When it ends, the breaker goes on from where it was: closed, if it was closed.
    pub fn force_open(reason: impl Into<Arc<str>>) -> Self {
        Self::new(OverrideKind::ForceOpen, reason)
    }

    /// Lets every call through and records it, but never trips. When it ends, the breaker is closed and judges from
    /// an empty window.
    pub fn force_closed(reason: impl Into<Arc<str>>) -> Self {
        Self::new(OverrideKind::ForceClosed, reason)
    }

    /// Lets every call through and records nothing. When it ends, the breaker goes on from where it was.
    pub fn disable(reason: impl Into<Arc<str>>) -> Self {
        Self::new(OverrideKind::Disabled, reason)
    }

    /// The machine runs in full, with all its state changes and events, but what it would reject is let through,
    /// unjudged. [`Totals::would_reject`](super::Totals::would_reject) counts those calls.
    pub fn metrics_only(reason: impl Into<Arc<str>>) -> Self {
        Self::new(OverrideKind::MetricsOnly, reason)
    }

    /// Name of the operator.
    pub fn by(mut self, who: impl Into<Arc<str>>) -> Self {
        self.by = Some(who.into());
        self
    }

    /// Time after which the override expires. Default: it does not expire.
    pub const fn expires_after(mut self, time: Duration) -> Self {
        self.expires_after = Some(time);
        self
    }

    fn new(kind: OverrideKind, reason: impl Into<Arc<str>>) -> Self {
        Self {
            kind,
            reason: reason.into(),
            by: None,
            expires_after: None,
        }
    }

    pub(super) fn given_at(self, now: Moment) -> ActiveOverride {
        ActiveOverride {
            until: self.expires_after.map(|time| now + time),
            active_override: self,
        }
    }
}

/// An override in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ActiveOverride {
    pub(super) active_override: Override,
    pub(super) until: Option<Moment>,
}

impl ActiveOverride {
    pub(super) const fn kind(&self) -> OverrideKind {
        self.active_override.kind
    }

    pub(super) fn info(&self, now: Moment) -> OverrideInfo {
        OverrideInfo {
            kind: self.active_override.kind.as_str(),
            reason: Arc::clone(&self.active_override.reason),
            by: self.active_override.by.clone(),
            expires_in: self.until.map(|until| until.since(now)),
        }
    }
}

/// An override, as snapshots and events show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OverrideInfo {
    /// `force_open`, `force_closed`, `disable` or `metrics_only`.
    pub kind: &'static str,
    /// Why it was set.
    pub reason: Arc<str>,
    /// Who set it, if known.
    pub by: Option<Arc<str>>,
    /// The time it has left; `None` if it does not end by itself.
    #[serde(serialize_with = "seconds")]
    pub expires_in: Option<Duration>,
}
