//! The log of what has changed a shared breaker: pure.

use std::collections::VecDeque;

use serde::Serialize;

use super::record::{FleetState, OverrideKind};

/// Number of entries that the log of a breaker keeps: the newest ones.
pub const LOG_ENTRIES: usize = 100;

/// Maximum length of an author or a reason in the log, in bytes; the rest is cut off.
pub const LOG_TEXT: usize = 512;

/// What an entry of the log tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LogAction {
    /// An instance changed the state.
    Changed,
    /// An instance restored what the store had lost.
    Restored,
    /// An operator set an override.
    Overridden(OverrideKind),
    /// An operator cleared the override.
    Cleared,
    /// An operator closed the breaker, with empty windows and no override.
    Reset,
}

/// One change of a shared breaker. From [`BreakerStore::log`](super::BreakerStore::log).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct BreakerLogEntry {
    /// Milliseconds since the change.
    pub age_ms: u64,
    /// The epoch that began with it.
    pub epoch: u64,
    /// What was done.
    pub action: LogAction,
    /// The state before.
    pub from: FleetState,
    /// The state since. Overrides do not change it.
    pub to: FleetState,
    /// The instance, the probe that ended an open state, or the operator. Of what was restored, the author of the change
    /// that was lost.
    pub by: String,
    /// The cause or reason that was given, if any.
    pub why: String,
    /// How long the state or the override was to last, in milliseconds; `None`: no end.
    pub lasting_ms: Option<u64>,
}

impl BreakerLogEntry {
    /// An entry for a store to return, without author, reason and end.
    #[must_use]
    pub const fn new(epoch: u64, action: LogAction, from: FleetState, to: FleetState) -> Self {
        Self {
            age_ms: 0,
            epoch,
            action,
            from,
            to,
            by: String::new(),
            why: String::new(),
            lasting_ms: None,
        }
    }
}

/// The log of one breaker in this process.
#[derive(Debug, Default)]
pub(super) struct BreakerLog(VecDeque<(u64, BreakerLogEntry)>);

impl BreakerLog {
    pub(super) fn push(&mut self, now: u64, mut entry: BreakerLogEntry) {
        entry.by = shortened(&entry.by);
        entry.why = shortened(&entry.why);
        self.0.truncate(LOG_ENTRIES - 1);
        self.0.push_front((now, entry));
    }

    /// The newest entries, newest first.
    pub(super) fn newest(&self, count: usize, now: u64) -> Vec<BreakerLogEntry> {
        let aged = |(at, entry): &(u64, BreakerLogEntry)| BreakerLogEntry {
            age_ms: now.saturating_sub(*at),
            ..entry.clone()
        };
        self.0.iter().take(count).map(aged).collect()
    }
}

/// Why a probe changes the state.
pub(super) const OPEN_TIME_IS_OVER: &str = "the open time is over";

fn shortened(text: &str) -> String {
    let bytes = text.as_bytes();
    String::from_utf8_lossy(&bytes[..bytes.len().min(LOG_TEXT)]).into_owned()
}
