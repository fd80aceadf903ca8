//! What all clones of a fleet's bulkhead share, within this instance.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore};

use super::{
    FleetBulkheadSnapshot,
    builder::{FleetBulkheadBuilder, Unreachable, WhenLost},
    permit::Held,
    record::{BulkheadView, Release},
    store::{BulkheadStore, Wakeups},
};
use crate::{
    bulkhead::{hold_time::HoldTimes, semaphore::Load},
    clock::{Clock, Moment},
    error::{Pattern, Reason, Rejected},
    telemetry::{self, Reading, Scope, Source, counters},
};

pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) instance: Arc<str>,
    pub(super) store: Arc<dyn BulkheadStore>,
    pub(super) clock: Clock,
    pub(super) lease: Duration,
    pub(super) queue: Option<(usize, Duration)>,
    pub(super) unreachable: Unreachable,
    pub(super) when_lost: WhenLost,
    pub(super) limit: AtomicU64,
    /// The leases that the heartbeat keeps alive, by number.
    held: Mutex<HashMap<u64, Arc<Held>>>,
    next: AtomicU64,
    /// Places that calls of this instance hold, with a lease or without.
    in_flight: AtomicU64,
    pub(super) waiting: AtomicUsize,
    /// Whoever holds its only permit is the first in line.
    pub(super) turn: Semaphore,
    wakeups: OnceLock<Wakeups>,
    pub(super) release_queue: Arc<ReleaseQueue>,
    degraded: AtomicBool,
    /// Instances alive, as last seen.
    live: AtomicU64,
    hold_times: HoldTimes,
    /// Calls that came back.
    passed: AtomicU64,
    totals: Totals,
}

counters! {
    /// Rejections by reason, and leases lost.
    struct Totals;
    full = BULKHEAD_REJECTIONS "full", "Calls rejected because everything was taken.";
    queue_timed_out = BULKHEAD_REJECTIONS "queue_timed_out", "Calls that waited in the queue for too long.";
    too_costly = BULKHEAD_REJECTIONS "too_costly", "Calls that cost more than the limit.";
    store_unreachable = BULKHEAD_REJECTIONS "store_unreachable", "Calls rejected without an answer of the store.";
    lease_lost = BULKHEAD_REJECTIONS "lease_lost", "Calls given up because their lease was lost.";
    lost = BULKHEAD_LEASES_LOST, "Leases lost during the call.";
}

/// What is to be given back, and until when it is worth trying: then its time is over anyway.
pub(super) struct PendingRelease {
    pub(super) what: Release,
    pub(super) until: Moment,
}

/// What the store has not heard yet. Bounded by the calls in flight, and outlives the bulkhead.
#[derive(Default)]
pub(super) struct ReleaseQueue {
    owed: Mutex<Vec<PendingRelease>>,
    /// Rings when something is put down, and when the bulkhead is gone.
    pub(super) ring: Notify,
}

impl ReleaseQueue {
    fn put(&self, late: PendingRelease) {
        self.lock().push(late);
        self.ring.notify_one();
    }

    /// Up to so many of what has waited longest.
    pub(super) fn take(&self, most: usize) -> Vec<PendingRelease> {
        let mut owed = self.lock();
        let count = owed.len().min(most);
        owed.drain(..count).collect()
    }

    /// What could not be told.
    pub(super) fn put_back(&self, late: &mut Vec<PendingRelease>) {
        if !late.is_empty() {
            self.lock().append(late);
            self.ring.notify_one();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PendingRelease>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
        self.release_queue.ring.notify_one();
    }
}

impl Shared {
    pub(super) fn new(builder: FleetBulkheadBuilder) -> Self {
        let random = fastrand::u64(..);
        Self {
            instance: match builder.instance {
                Some(name) => format!("{name}-{random:016x}").into(),
                None => format!("{random:016x}").into(),
            },
            name: builder.name,
            store: builder.store,
            clock: builder.clock.unwrap_or_default(),
            lease: builder.lease,
            queue: builder.queue,
            unreachable: builder.unreachable,
            when_lost: builder.when_lost,
            limit: AtomicU64::new(builder.max_concurrent as u64),
            held: Mutex::default(),
            next: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            turn: Semaphore::new(1),
            wakeups: OnceLock::new(),
            release_queue: Arc::default(),
            degraded: AtomicBool::new(false),
            live: AtomicU64::new(1),
            hold_times: HoldTimes::default(),
            passed: AtomicU64::new(0),
            totals: Totals::default(),
        }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// An id that no other call of the fleet has.
    pub(super) fn new_lease(&self) -> Arc<str> {
        let number = self.next.fetch_add(1, Relaxed);
        format!("{}-{number}", self.instance).into()
    }

    pub(super) fn hold(&self, held: &Arc<Held>) {
        self.lock_held().insert(held.number, Arc::clone(held));
    }

    /// False if its call has let go of it before, or it was lost.
    pub(super) fn let_go(&self, held: &Held) -> bool {
        self.lock_held().remove(&held.number).is_some()
    }

    /// The leases that are out.
    pub(super) fn all_held(&self) -> Vec<Arc<Held>> {
        self.lock_held().values().cloned().collect()
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    fn lock_held(&self) -> MutexGuard<'_, HashMap<u64, Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, cost: u64) {
        self.in_flight.fetch_add(cost, Relaxed);
    }

    /// Takes places of this instance's share, if it has so many left.
    pub(super) fn enter_share(&self, cost: u64) -> bool {
        let share = self.limit() / self.live.load(Relaxed).max(1);
        let more = |taken: u64| Some(taken + cost).filter(|taken| *taken <= share);
        self.in_flight.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    /// A call that entered at `since` is over.
    pub(super) fn leave(&self, cost: u64, since: Moment) {
        self.in_flight.fetch_sub(cost, Relaxed);
        self.passed.fetch_add(1, Relaxed);
        self.hold_times.record(self.clock.now().since(since));
    }

    /// To be given back in the background, or with the next wish.
    pub(super) fn give_back(&self, lease: Arc<str>, fence: Option<u64>) {
        let what = Release { lease, fence };
        let until = self.clock.now() + self.lease;
        self.release_queue.put(PendingRelease { what, until });
    }

    /// The lease of a call in flight is lost.
    #[cold]
    pub(super) fn has_lost(&self, held: &Held, why: &str) {
        if !self.let_go(held) {
            return;
        }
        held.lose();
        self.totals.lost.fetch_add(1, Relaxed);
        tracing::warn!(
            target: "resilience",
            pattern = Pattern::Bulkhead.as_str(),
            name = &*self.name,
            lease = &*held.lease,
            fence = held.fence,
            why,
            "lease lost"
        );
    }

    /// The fleet's calls, listened to from the first wait on.
    pub(super) fn wakeups(&self) -> Wakeups {
        let listen = || self.store.subscribe(&self.name);
        self.wakeups.get_or_init(listen).clone()
    }

    pub(super) fn saw(&self, view: &BulkheadView) {
        self.live.store(view.live.max(1), Relaxed);
    }

    pub(super) fn answered(&self) {
        if self.degraded.load(Relaxed) && self.degraded.swap(false, Relaxed) {
            tracing::info!(
                target: "resilience",
                pattern = Pattern::Bulkhead.as_str(),
                name = &*self.name,
                "shared state is back"
            );
        }
    }

    #[cold]
    pub(super) fn unanswered(&self, reason: &dyn std::fmt::Display) {
        if !self.degraded.swap(true, Relaxed) {
            tracing::warn!(
                target: "resilience",
                pattern = Pattern::Bulkhead.as_str(),
                name = &*self.name,
                %reason,
                policy = ?self.unreachable,
                "no shared state: going on as the policy says"
            );
        }
    }

    #[cold]
    pub(super) fn reject(&self, reason: Reason) -> Rejected {
        let counter = match reason {
            Reason::QueueTimedOut => &self.totals.queue_timed_out,
            Reason::TooCostly => &self.totals.too_costly,
            Reason::StoreUnreachable => &self.totals.store_unreachable,
            Reason::LeaseLost => &self.totals.lease_lost,
            _ => &self.totals.full,
        };
        let wait = match reason {
            Reason::TooCostly => None,
            _ => Some(self.advice()),
        };
        let scope = Scope::new(Pattern::Bulkhead, &self.name);
        scope.count_and_reject(counter, reason, wait)
    }

    /// When to come back: as in a bulkhead of one process, from how long calls here hold their places.
    fn advice(&self) -> Duration {
        const PASSED: u64 = (1 << 24) - 1;
        let limit = usize::try_from(self.limit()).unwrap_or(usize::MAX);
        let load = Load {
            in_flight: limit,
            waiting: self.waiting.load(Relaxed),
            limit,
            passed: (self.passed.load(Relaxed) & PASSED) as u32,
        };
        self.hold_times.retry_after(load, self.clock.now())
    }

    pub(super) fn snapshot(&self) -> FleetBulkheadSnapshot {
        let count = |of: &AtomicU64| of.load(Relaxed);
        FleetBulkheadSnapshot {
            in_flight: self.in_flight.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            max_concurrent: self.limit(),
            live_instances: self.live.load(Relaxed),
            degraded: self.degraded.load(Relaxed),
            lost: count(&self.totals.lost),
            rejected_full: count(&self.totals.full),
            rejected_queue_timed_out: count(&self.totals.queue_timed_out),
            rejected_too_costly: count(&self.totals.too_costly),
            rejected_store_unreachable: count(&self.totals.store_unreachable),
            rejected_lease_lost: count(&self.totals.lease_lost),
        }
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
        let mut tell = |metric, attribute, value| {
            out(Reading {
                metric,
                attribute,
                value,
            });
        };
        tell(
            &telemetry::BULKHEAD_IN_FLIGHT,
            "",
            self.in_flight.load(Relaxed),
        );
        tell(
            &telemetry::BULKHEAD_QUEUED,
            "",
            self.waiting.load(Relaxed) as u64,
        );
        tell(&telemetry::BULKHEAD_LIMIT, "", self.limit());
        let degraded = self.degraded.load(Relaxed);
        let pattern = Pattern::Bulkhead.as_str();
        tell(&telemetry::FLEET_DEGRADED, pattern, degraded.into());
        self.totals.read(out);
    }
}
