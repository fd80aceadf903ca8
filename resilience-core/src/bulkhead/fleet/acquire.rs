//! How a call gets its permits: one round trip, or a wait in the queue.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{sleep, timeout_at};

use super::{
    lease::HeldLease,
    permit::FleetPermit,
    record::{AcquireRequest, Admission},
    release_queue::PendingRelease,
    shared::Shared,
    store::{StoreError, Wakeups},
};
use crate::{
    clock::Moment,
    deadline::before_deadline,
    error::{Reason, Rejected},
    fleet::{OnOutage, certain_until, millis},
};

/// Interval at which the first call of the queue repeats its request, in case a wakeup was lost.
const POLL: Duration = Duration::from_millis(200);
/// Lifetime of a position in the queue that is not repeated: its instance died.
const TICKET: Duration = Duration::from_secs(1);
/// Maximum number of pending releases piggybacked on one acquire request.
const PIGGYBACKED: usize = 32;

/// Why a request got no permits.
enum Denied {
    /// All permits of the fleet are held. One may become free by itself after this time.
    Full(Duration),
    /// The request costs more than the limit.
    TooCostly,
    /// The store gave no answer.
    NoAnswer,
}

pub(super) async fn acquire(shared: Arc<Shared>, cost: u64) -> Result<FleetPermit, Rejected> {
    if cost == 0 {
        return Ok(FleetPermit::new(shared, 0, None));
    }
    // Calls in the queue come first.
    if shared.waiting.load(Relaxed) == 0 {
        match once(&shared, cost).await {
            Ok(permit) => return Ok(permit),
            Err(reason) if shared.queue.is_none() || reason != Reason::Full => {
                return Err(shared.reject(reason));
            }
            Err(_) => {}
        }
    }
    let Some(queue) = shared.queue else {
        return Err(shared.reject(Reason::Full));
    };
    let Some(_slot) = QueueSlot::reserve(&shared, queue.length) else {
        return Err(shared.reject(Reason::Full));
    };
    let until = before_deadline(queue.max_wait);
    match timeout_at(until, wait(&shared, cost)).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(reason)) => Err(shared.reject(reason)),
        Err(_) => Err(shared.reject(Reason::QueueTimedOut)),
    }
}

/// Tries once, without a position in the fleet's queue.
async fn once(shared: &Arc<Shared>, cost: u64) -> Result<FleetPermit, Reason> {
    let mut acquisition = Acquisition::new(shared, cost, Duration::ZERO);
    match acquisition.request().await {
        Ok(permit) => Ok(permit),
        Err(Denied::Full(_)) => Err(Reason::Full),
        Err(Denied::TooCostly) => Err(Reason::TooCostly),
        Err(Denied::NoAnswer) => without_store(shared, cost),
    }
}

/// Waits to be the first of this instance, and then in the fleet's queue.
async fn wait(shared: &Arc<Shared>, cost: u64) -> Result<FleetPermit, Reason> {
    // Fails only when the semaphore is closed, which it never is.
    let _first = shared.turn.acquire().await.ok();
    let mut wakeups = shared.wakeups();
    let mut acquisition = Acquisition::new(shared, cost, TICKET);
    loop {
        // Wakeups from here on are not missed.
        wakeups.catch_up();
        let again = match acquisition.request().await {
            Ok(permit) => return Ok(permit),
            Err(Denied::TooCostly) => return Err(Reason::TooCostly),
            Err(Denied::Full(again)) => again,
            Err(Denied::NoAnswer) => match without_store(shared, cost) {
                Err(Reason::Full) => POLL,
                done => return done,
            },
        };
        woken_or_after(&mut wakeups, &acquisition.request.lease, again).await;
    }
}

/// Waits for a wakeup of `lease`, or until `again` or the poll interval has passed.
async fn woken_or_after(wakeups: &mut Wakeups, lease: &str, again: Duration) {
    let jittered = POLL.mul_f64(0.5 + fastrand::f64());
    // After the end of the other lease, not before.
    let again = again + Duration::from_millis(1);
    tokio::select! {
        () = wakeups.wait_for(|leases| leases.iter().any(|woken| **woken == *lease)) => {}
        () = sleep(jittered.min(again)) => {}
    }
}

/// Applies the outage policy to a call that the store gave no answer to.
fn without_store(shared: &Arc<Shared>, cost: u64) -> Result<FleetPermit, Reason> {
    match shared.client.on_outage() {
        OnOutage::FailClosed => return Err(Reason::StoreUnreachable),
        OnOutage::FailOpen => shared.enter_unlimited(cost),
        OnOutage::Local => shared.enter_share(cost)?,
    }
    Ok(FleetPermit::new(Arc::clone(shared), cost, None))
}

/// A request in progress. Dropping it undoes what the store may have done for it without an answer.
struct Acquisition<'a> {
    shared: &'a Arc<Shared>,
    request: AcquireRequest,
    /// Whether the store may keep a lease or a position in the queue for it.
    known: bool,
    /// Piggybacked releases, until the store has answered.
    piggybacked: Vec<PendingRelease>,
}

impl<'a> Acquisition<'a> {
    fn new(shared: &'a Arc<Shared>, cost: u64, ticket: Duration) -> Self {
        let request = AcquireRequest {
            lease: shared.new_lease(),
            cost,
            limit: shared.limit(),
            lease_ms: millis(shared.lease),
            ticket_ms: millis(ticket),
            releases: Vec::new(),
        };
        Self {
            shared,
            request,
            known: false,
            piggybacked: Vec::new(),
        }
    }

    /// Asks the store; once more, under the same id, if it may have granted the request and the
    /// answer was lost before the budget was used up.
    async fn request(&mut self) -> Result<FleetPermit, Denied> {
        let shared = self.shared;
        self.request.limit = shared.limit();
        if self.request.cost > self.request.limit {
            return Err(Denied::TooCostly);
        }
        if shared.is_closed() {
            return Err(Denied::NoAnswer);
        }
        if shared.is_settling() && !shared.has_room_in_share(self.request.cost) {
            return Err(Denied::Full(POLL));
        }
        self.piggybacked = shared.releases.take(PIGGYBACKED);
        let pending = self.piggybacked.iter();
        self.request.releases = pending.map(|pending| pending.release.clone()).collect();
        let sent = shared.clock.now();
        let answer = match self.send().await {
            Err(error) if error.ambiguous && self.is_within_budget(sent) => self.send().await,
            answer => answer,
        };
        let Ok(answer) = answer else {
            self.give_releases_back();
            return Err(Denied::NoAnswer);
        };
        self.piggybacked.clear();
        shared.heard();
        match answer {
            Admission::Granted { fence } => {
                self.known = false;
                Ok(self.permit(fence, certain_until(sent, shared.lease)))
            }
            Admission::Full { again_ms } => {
                self.known = self.request.ticket_ms > 0;
                Err(Denied::Full(Duration::from_millis(again_ms)))
            }
            Admission::Impossible => Err(Denied::TooCostly),
        }
    }

    async fn send(&mut self) -> Result<Admission, StoreError> {
        let before = std::mem::replace(&mut self.known, true);
        let (name, request) = (&*self.shared.name, &self.request);
        let client = &self.shared.client;
        let answer = client.call(|store| store.acquire(name, request)).await;
        if answer.as_ref().is_err_and(|error| !error.ambiguous) {
            self.known = before;
        }
        answer
    }

    fn is_within_budget(&self, sent: Moment) -> bool {
        self.shared.clock.now().since(sent) < self.shared.client.budget()
    }

    fn permit(&self, fence: u64, until: Moment) -> FleetPermit {
        let (shared, cost) = (self.shared, self.request.cost);
        shared.enter(cost);
        let lease = Arc::clone(&self.request.lease);
        let held = HeldLease::new(shared.next_number(), lease, cost, fence, until);
        FleetPermit::new(Arc::clone(shared), cost, Some(Arc::new(held)))
    }

    fn give_releases_back(&mut self) {
        if self.shared.releases.put_back(&mut self.piggybacked) {
            self.shared.waker.wake();
        }
    }
}

impl Drop for Acquisition<'_> {
    fn drop(&mut self) {
        self.give_releases_back();
        if self.known {
            self.shared.give_back(Arc::clone(&self.request.lease), None);
        }
    }
}

/// A position in this instance's queue.
struct QueueSlot<'a>(&'a Shared);

impl<'a> QueueSlot<'a> {
    fn reserve(shared: &'a Shared, length: usize) -> Option<Self> {
        let more = |waiting: usize| Some(waiting + 1).filter(|waiting| *waiting <= length);
        let joined = shared.waiting.fetch_update(Relaxed, Relaxed, more);
        joined.is_ok().then(|| Self(shared))
    }
}

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
