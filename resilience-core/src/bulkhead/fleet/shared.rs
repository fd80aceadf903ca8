//! The state that all clones of a fleet's bulkhead share, within one instance.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Semaphore;

use super::{
    lease::HeldLease,
    local_share::LocalShare,
    record::{BulkheadView, Release},
    release_queue::{PendingRelease, ReleaseQueue},
    settings::{Settings, WhenLost},
    snapshot::FleetBulkheadSnapshot,
    store::{BulkheadStore, Wakeups},
};
use crate::{
    admission::QueueSettings,
    bulkhead::{hold_time::HoldTimes, semaphore::Load},
    clock::{Clock, Moment},
    error::{Pattern, Reason, Rejected},
    fleet::{AgentHandle, OnOutage, StoreClient, StoreHandle, Waker},
    telemetry::{self, Reading, Scope, Source, counters},
};

pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) instance: Arc<str>,
    pub(super) client: StoreClient<dyn BulkheadStore>,
    pub(super) clock: Clock,
    pub(super) lease: Duration,
    pub(super) queue: Option<QueueSettings>,
    pub(super) when_lost: WhenLost,
    pub(super) limit: AtomicU64,
    /// Leases that are renewed, by number.
    held: Mutex<HashMap<u64, Arc<HeldLease>>>,
    next: AtomicU64,
    /// Permits that calls of this instance hold, with a lease or without.
    in_flight: AtomicU64,
    /// Those of them that are held without a lease.
    without_lease: AtomicU64,
    local_share: Mutex<LocalShare>,
    pub(super) waiting: AtomicUsize,
    /// Held by the first call in this instance's queue.
    pub(super) turn: Semaphore,
    wakeups: OnceLock<Wakeups>,
    pub(super) releases: Arc<ReleaseQueue>,
    /// Wakes the agent.
    pub(super) waker: Waker,
    /// Ends the agent when the last call and the last handle are gone.
    agent: OnceLock<AgentHandle>,
    /// Kept, since the tasks of a store end with the last clone of its handle.
    pub(super) store_handle: StoreHandle,
    closed: AtomicBool,
    hold_times: HoldTimes,
    /// Calls that ended.
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
    lease_lost = BULKHEAD_REJECTIONS "lease_lost", "Calls aborted because their lease was lost.";
    lost = BULKHEAD_LEASES_LOST, "Leases lost during the call.";
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            store_handle: settings.store.handle().cloned().unwrap_or_default(),
            client: StoreClient::new(
                settings.store,
                Pattern::Bulkhead,
                Arc::clone(&settings.name),
                &settings.fleet,
            ),
            name: settings.name,
            instance: settings.fleet.instance,
            clock: settings.clock,
            lease: settings.lease,
            queue: settings.queue,
            when_lost: settings.when_lost,
            limit: AtomicU64::new(settings.max_concurrent),
            held: Mutex::default(),
            next: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            without_lease: AtomicU64::new(0),
            local_share: Mutex::default(),
            waiting: AtomicUsize::new(0),
            turn: Semaphore::new(1),
            wakeups: OnceLock::new(),
            releases: Arc::default(),
            waker: Waker::new(),
            agent: OnceLock::new(),
            closed: AtomicBool::new(false),
            hold_times: HoldTimes::default(),
            passed: AtomicU64::new(0),
            totals: Totals::default(),
        }
    }

    /// Keeps the agent running until this is dropped.
    pub(super) fn keep(&self, agent: AgentHandle) {
        let kept = self.agent.set(agent);
        debug_assert!(kept.is_ok(), "one agent per bulkhead");
    }

    pub(super) fn agent(&self) -> Option<&AgentHandle> {
        self.agent.get()
    }

    /// From now on the outage policy decides, without the store.
    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// Creates an id that no other call of the fleet has.
    pub(super) fn new_lease(&self) -> Arc<str> {
        format!("{}-{}", self.instance, self.next_number()).into()
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// Renews `held` from now on.
    pub(super) fn hold(&self, held: &Arc<HeldLease>) {
        self.lock_held().insert(held.number, Arc::clone(held));
    }

    /// Renews `held` no more. `false` if that was so already: its call has ended, or it was lost.
    pub(super) fn let_go(&self, held: &HeldLease) -> bool {
        self.lock_held().remove(&held.number).is_some()
    }

    pub(super) fn all_held(&self) -> Vec<Arc<HeldLease>> {
        self.lock_held().values().cloned().collect()
    }

    pub(super) fn holds_leases(&self) -> bool {
        !self.lock_held().is_empty()
    }

    fn lock_held(&self) -> MutexGuard<'_, HashMap<u64, Arc<HeldLease>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, cost: u64) {
        self.in_flight.fetch_add(cost, Relaxed);
    }

    /// Takes permits without the store, whatever the limit.
    pub(super) fn enter_unlimited(&self, cost: u64) {
        self.enter(cost);
        self.without_lease.fetch_add(cost, Relaxed);
    }

    /// Takes permits out of this instance's share, if it is known and that many are left of it.
    pub(super) fn enter_share(&self, cost: u64) -> Result<(), Reason> {
        let share = self.local_share().ok_or(Reason::StoreUnreachable)?;
        let more = |taken: u64| Some(taken + cost).filter(|taken| *taken <= share);
        let entered = self.in_flight.fetch_update(Relaxed, Relaxed, more);
        entered.map_err(|_| Reason::Full)?;
        self.without_lease.fetch_add(cost, Relaxed);
        Ok(())
    }

    /// Whether that many permits are left of this instance's share.
    pub(super) fn has_room_in_share(&self, cost: u64) -> bool {
        let taken = self.in_flight.load(Relaxed);
        self.local_share()
            .is_some_and(|share| taken + cost <= share)
    }

    /// The permits that calls of this instance may hold without the store; `None`: not known.
    fn local_share(&self) -> Option<u64> {
        let parts = self.local_parts()?;
        let (own, now) = (self.in_flight.load(Relaxed), self.clock.now());
        let (limit, lease) = (self.limit(), self.lease);
        Some(self.lock_share().may_hold(limit, parts, own, lease, now))
    }

    /// Notes the end of a call that held no lease.
    pub(super) fn left_without_lease(&self, cost: u64) {
        if cost > 0 {
            self.without_lease.fetch_sub(cost, Relaxed);
            // A lease that was entered for it is not needed any more.
            self.waker.wake();
        }
    }

    pub(super) fn held_without_lease(&self) -> u64 {
        self.without_lease.load(Relaxed)
    }

    /// Whether new calls must be within the share although the store is available again.
    pub(super) fn is_settling(&self) -> bool {
        self.client.on_outage() == OnOutage::Local
            && self.client.is_settling()
            && self.local_parts().is_some()
    }

    /// Notes that the store has granted or refused permits.
    pub(super) fn heard(&self) {
        if !self.is_settling() {
            self.lock_share().end();
        }
    }

    pub(super) fn saw(&self, view: &BulkheadView) {
        let settled = !self.is_settling();
        let mut share = self.lock_share();
        share.saw(view.in_flight);
        if settled {
            share.end();
        }
    }

    fn local_parts(&self) -> Option<u64> {
        self.client.parts()
    }

    fn lock_share(&self) -> MutexGuard<'_, LocalShare> {
        self.local_share
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the end of a call that entered at `since`.
    pub(super) fn leave(&self, cost: u64, since: Moment) {
        self.in_flight.fetch_sub(cost, Relaxed);
        self.passed.fetch_add(1, Relaxed);
        self.hold_times.record(self.clock.now().since(since));
    }

    /// Gives a lease or a position in the queue back, in the background or with the next request.
    pub(super) fn give_back(&self, lease: Arc<str>, fence: Option<u64>) {
        self.releases.push(PendingRelease {
            release: Release { lease, fence },
            until: self.clock.now() + self.lease,
        });
        self.waker.wake();
    }

    /// Notes that the lease of a call in progress is lost.
    #[cold]
    pub(super) fn has_lost(&self, held: &HeldLease, why: &str) {
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

    /// The fleet's wakeups. Subscribes on the first wait.
    pub(super) fn wakeups(&self) -> Wakeups {
        let subscribe = || self.client.store().subscribe(&self.name);
        self.wakeups.get_or_init(subscribe).clone()
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
            // Not known earlier than a step takes, however short the calls are.
            Reason::StoreUnreachable => Some(self.retry_after().max(self.client.budget())),
            _ => Some(self.retry_after()),
        };
        let scope = Scope::new(Pattern::Bulkhead, &self.name);
        scope.count_and_reject(counter, reason, wait)
    }

    /// Estimates when to retry, from the hold times of calls of this instance.
    fn retry_after(&self) -> Duration {
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
            live_instances: self.client.live_instances(),
            local_parts: self.local_parts(),
            degraded: !self.client.is_available(),
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
        let waiting = self.waiting.load(Relaxed) as u64;
        let degraded = !self.client.is_available();
        for (metric, attribute, value) in [
            (
                &telemetry::BULKHEAD_IN_FLIGHT,
                "",
                self.in_flight.load(Relaxed),
            ),
            (&telemetry::BULKHEAD_QUEUED, "", waiting),
            (&telemetry::BULKHEAD_LIMIT, "", self.limit()),
            (
                &telemetry::FLEET_DEGRADED,
                Pattern::Bulkhead.as_str(),
                degraded.into(),
            ),
        ] {
            out(Reading {
                metric,
                attribute,
                value,
            });
        }
        self.totals.read(out);
    }
}
