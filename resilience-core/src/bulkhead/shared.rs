//! The state that all clones of a bulkhead share.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Waker,
    time::Duration,
};

use super::{
    hold_time::HoldTimes, semaphore::Semaphore, settings::Settings, snapshot::BulkheadSnapshot,
};
use crate::{
    clock::{Clock, Moment},
    error::{Pattern, Reason, Rejected},
    telemetry::{self, Reading, Scope, Source, counters},
};

pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) semaphore: Semaphore<Waker>,
    pub(super) max_wait: Duration,
    pub(super) retry_after: Option<Duration>,
    pub(super) clock: Clock,
    pub(super) hold_times: HoldTimes,
    pub(super) totals: Arc<Totals>,
}

counters! {
    /// Rejections. One per family of keyed bulkheads, so that they survive the eviction of a member.
    #[expect(unnameable_types, reason = "sealed")]
    pub struct Totals;
    full = BULKHEAD_REJECTIONS "full", "Calls rejected because no permit and no room in the queue was left.";
    timed_out = BULKHEAD_REJECTIONS "queue_timed_out", "Calls that waited in the queue for too long.";
}

impl Shared {
    /// The state of a bulkhead that the exporter does not know of.
    pub(super) fn new(settings: &Settings, totals: Arc<Totals>) -> Self {
        let length = settings.queue.map_or(0, |queue| queue.length);
        Self {
            name: Arc::clone(&settings.name),
            semaphore: Semaphore::new(settings.max_concurrent, length),
            max_wait: settings
                .queue
                .map_or(Duration::ZERO, |queue| queue.max_wait),
            retry_after: settings.retry_after,
            clock: settings.clock,
            hold_times: HoldTimes::default(),
            totals,
        }
    }

    pub(super) fn snapshot(&self) -> BulkheadSnapshot {
        let load = self.semaphore.load();
        BulkheadSnapshot {
            in_flight: load.in_flight,
            queued: load.waiting,
            max_concurrent: load.limit,
            typical_hold: self.hold_times.average(),
            ..self.totals.snapshot()
        }
    }

    #[cold]
    pub(super) fn hand_over(&self) {
        while let Some(waker) = self.semaphore.hand_over() {
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    #[cold]
    pub(super) fn record(&self, since: u64) {
        let held = self.clock.now().since(Moment::from_nanos(since));
        self.hold_times.record(held);
    }

    #[cold]
    pub(super) fn reject(&self, reason: Reason) -> Rejected {
        let counter = match reason {
            Reason::QueueTimedOut => &self.totals.timed_out,
            _ => &self.totals.full,
        };
        let wait = self.retry_after.unwrap_or_else(|| {
            self.hold_times
                .retry_after(self.semaphore.load(), self.clock.now())
        });
        let scope = Scope::new(Pattern::Bulkhead, &self.name);
        scope.count_and_reject(counter, reason, Some(wait))
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
        self.snapshot().read_load(out);
        self.totals.read(out);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

impl BulkheadSnapshot {
    pub(super) fn read_load(&self, out: &mut dyn FnMut(Reading)) {
        for (metric, value) in [
            (&telemetry::BULKHEAD_IN_FLIGHT, self.in_flight),
            (&telemetry::BULKHEAD_QUEUED, self.queued),
            (&telemetry::BULKHEAD_LIMIT, self.max_concurrent),
        ] {
            out(Reading {
                metric,
                attribute: "",
                value: value as u64,
            });
        }
    }
}

impl Totals {
    pub(super) fn snapshot(&self) -> BulkheadSnapshot {
        BulkheadSnapshot {
            in_flight: 0,
            queued: 0,
            max_concurrent: 0,
            rejected_full: self.full.load(Relaxed),
            rejected_queue_timed_out: self.timed_out.load(Relaxed),
            typical_hold: None,
        }
    }
}
