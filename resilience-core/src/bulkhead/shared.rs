//! What all clones of a bulkhead share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use super::{Snapshot, hold::Holds, machine::Gate};
use crate::{
    clock::{Clock, Moment},
    error::{Pattern, Reason, Rejected},
    telemetry::{self, Reading, Source},
};

/// What all clones share.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) gate: Gate<Waker>,
    pub(super) max_wait: Duration,
    pub(super) retry_after: Option<Duration>,
    pub(super) clock: Clock,
    pub(super) holds: Holds,
    pub(super) totals: Arc<Totals>,
}

/// What is counted for the export and not kept anyway. One per family of keyed bulkheads, so that it survives the
/// eviction of a member.
#[derive(Debug, Default)]
#[expect(unnameable_types, reason = "sealed")]
pub struct Totals {
    full: AtomicU64,
    timed_out: AtomicU64,
}

impl Shared {
    pub(super) fn snapshot(&self) -> Snapshot {
        let load = self.gate.load();
        Snapshot {
            in_flight: load.in_flight,
            queued: load.waiting,
            max_concurrent: load.limit,
            typical_hold: self.holds.average(),
            ..self.totals.snapshot()
        }
    }

    #[cold]
    pub(super) fn hand_over(&self) {
        while let Some(waker) = self.gate.hand_over() {
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    #[cold]
    pub(super) fn record(&self, since: u64) {
        let held = self.clock.now().since(Moment::from_nanos(since));
        self.holds.record(held);
    }

    #[cold]
    pub(super) fn reject(&self, reason: Reason) -> Rejected {
        match reason {
            Reason::QueueTimedOut => &self.totals.timed_out,
            _ => &self.totals.full,
        }
        .fetch_add(1, Relaxed);
        let wait = self
            .retry_after
            .unwrap_or_else(|| self.holds.retry_after(self.gate.load(), self.clock.now()));
        tracing::debug!(
            target: "resilience",
            pattern = Pattern::Bulkhead.as_str(),
            name = &*self.name,
            reason = reason.as_str(),
            retry_after = ?wait,
            "rejected"
        );
        Rejected::new(Pattern::Bulkhead, reason, Arc::clone(&self.name)).with_retry_after(wait)
    }
}

impl Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::Bulkhead
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.snapshot().read(out);
    }
}

impl Snapshot {
    pub(super) fn read(&self, out: &mut dyn FnMut(Reading)) {
        let (full, timed_out) = (self.rejected_full, self.rejected_queue_timed_out);
        for (metric, attribute, value) in [
            (&telemetry::BULKHEAD_IN_FLIGHT, "", self.in_flight as u64),
            (&telemetry::BULKHEAD_QUEUED, "", self.queued as u64),
            (&telemetry::BULKHEAD_LIMIT, "", self.max_concurrent as u64),
            (&telemetry::BULKHEAD_REJECTED, Reason::Full.as_str(), full),
            (
                &telemetry::BULKHEAD_REJECTED,
                Reason::QueueTimedOut.as_str(),
                timed_out,
            ),
        ] {
            out(Reading {
                metric,
                attribute,
                value,
            });
        }
    }
}

impl Totals {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            in_flight: 0,
            queued: 0,
            max_concurrent: 0,
            rejected_full: self.full.load(Relaxed),
            rejected_queue_timed_out: self.timed_out.load(Relaxed),
            typical_hold: None,
        }
    }
}
