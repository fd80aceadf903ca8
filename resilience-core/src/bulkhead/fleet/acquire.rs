//! How a call gets its places: one round trip, or a wait, or no.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{sleep, timeout_at};

use super::{
    builder::Unreachable,
    permit::{FleetPermit, Held},
    record::{AcquireRequest, Admission},
    shared::{PendingRelease, Shared},
    store::{StoreError, Wakeups},
};
use crate::{
    deadline::before_deadline,
    error::{Reason, Rejected},
};

/// The first in line asks again this often, if nobody calls: calls can get lost.
const POLL: Duration = Duration::from_millis(200);
/// Its position lapses when it has not asked for so long: it died.
const TICKET: Duration = Duration::from_secs(1);
/// So much that is to be given back goes along with a wish.
const ALONG: usize = 32;

/// No places now.
enum Refused {
    /// The fleet's are taken. One may come free by itself, at the earliest then.
    Full(Duration),
    /// There are not so many.
    Impossible,
    /// The store gave no answer.
    Unanswered,
}

pub(super) async fn acquire(shared: Arc<Shared>, cost: u64) -> Result<FleetPermit, Rejected> {
    if cost == 0 {
        return Ok(FleetPermit::new(shared, 0, None));
    }
    // Those who wait come first; without a round trip if there are too many of them.
    if shared.waiting.load(Relaxed) == 0 {
        match once(&shared, cost).await {
            Ok(permit) => return Ok(permit),
            Err(reason) if shared.queue.is_none() || reason != Reason::Full => {
                return Err(shared.reject(reason));
            }
            Err(_) => {}
        }
    }
    let Some((length, max_wait)) = shared.queue else {
        return Err(shared.reject(Reason::Full));
    };
    let Some(_place) = QueueSlot::reserve(&shared, length) else {
        return Err(shared.reject(Reason::Full));
    };
    let until = before_deadline(max_wait);
    match timeout_at(until, wait(&shared, cost)).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(reason)) => Err(shared.reject(reason)),
        Err(_) => Err(shared.reject(Reason::QueueTimedOut)),
    }
}

/// One attempt, without a place in the fleet's queue.
async fn once(shared: &Arc<Shared>, cost: u64) -> Result<FleetPermit, Reason> {
    let mut acquisition = Acquisition::new(shared, cost, Duration::ZERO);
    match acquisition.ask().await {
        Ok(permit) => Ok(permit),
        Err(Refused::Full(_)) => Err(Reason::Full),
        Err(Refused::Impossible) => Err(Reason::TooCostly),
        Err(Refused::Unanswered) => without_store(shared, cost),
    }
}

/// Waits to be the first of this instance, and then for the fleet.
async fn wait(shared: &Arc<Shared>, cost: u64) -> Result<FleetPermit, Reason> {
    // It is never closed.
    let _first = shared.turn.acquire().await.ok();
    let mut wakeups = shared.wakeups();
    let mut acquisition = Acquisition::new(shared, cost, TICKET);
    loop {
        // Whatever is called from here on is heard.
        wakeups.catch_up();
        let again = match acquisition.ask().await {
            Ok(permit) => return Ok(permit),
            Err(Refused::Impossible) => return Err(Reason::TooCostly),
            Err(Refused::Full(again)) => again,
            Err(Refused::Unanswered) => match without_store(shared, cost) {
                Err(Reason::Full) => POLL,
                done => return done,
            },
        };
        woken_or(&mut wakeups, &acquisition.request.lease, again).await;
    }
}

/// Until the wish is called up, or for so long, but no longer than the position in the queue allows.
async fn woken_or(wakeups: &mut Wakeups, lease: &str, again: Duration) {
    let jittered = POLL.mul_f64(0.5 + fastrand::f64());
    // A moment after the end of somebody's lease, not before.
    let again = again + Duration::from_millis(1);
    tokio::select! {
        () = wakeups.for_lease(lease) => {}
        () = sleep(jittered.min(again)) => {}
    }
}

/// What the policy says to a call that the store gave no answer to.
fn without_store(shared: &Arc<Shared>, cost: u64) -> Result<FleetPermit, Reason> {
    match shared.unreachable {
        Unreachable::Closed => return Err(Reason::StoreUnreachable),
        Unreachable::Open => shared.enter(cost),
        Unreachable::LocalShare if shared.enter_share(cost) => {}
        Unreachable::LocalShare => return Err(Reason::Full),
    }
    Ok(FleetPermit::new(Arc::clone(shared), cost, None))
}

/// A wish on its way. Whatever the store did about it without our hearing of it is undone when it is dropped.
struct Acquisition<'a> {
    shared: &'a Arc<Shared>,
    request: AcquireRequest,
    /// Whether the store may know of it: a lease, or a position in the queue.
    known: bool,
    /// What goes along, until the store has answered.
    along: Vec<PendingRelease>,
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
            along: Vec::new(),
        }
    }

    /// Asks the store; once more, under the same id, if it may have granted the wish and the answer was lost.
    async fn ask(&mut self) -> Result<FleetPermit, Refused> {
        self.request.limit = self.shared.limit();
        if self.request.cost > self.request.limit {
            return Err(Refused::Impossible);
        }
        self.along = self.shared.release_queue.take(ALONG);
        self.request.releases = self.along.iter().map(|late| late.what.clone()).collect();
        let sent = self.shared.clock.now();
        let answer = match self.send().await {
            Err(failure) if failure.ambiguous => self.send().await,
            answer => answer,
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                self.shared.release_queue.put_back(&mut self.along);
                self.shared.unanswered(&failure);
                return Err(Refused::Unanswered);
            }
        };
        self.along.clear();
        self.shared.answered();
        match answer {
            Admission::Granted { fence } => {
                self.known = false;
                Ok(self.permit(fence, certain_until(sent, self.shared.lease)))
            }
            Admission::Full { again_ms } => {
                self.known = self.request.ticket_ms > 0;
                Err(Refused::Full(Duration::from_millis(again_ms)))
            }
            Admission::Impossible => Err(Refused::Impossible),
        }
    }

    async fn send(&mut self) -> Result<Admission, StoreError> {
        let before = std::mem::replace(&mut self.known, true);
        let answer = self
            .shared
            .store
            .acquire(&self.shared.name, &self.request)
            .await;
        if answer.as_ref().is_err_and(|failure| !failure.ambiguous) {
            self.known = before;
        }
        answer
    }

    fn permit(&self, fence: u64, until: crate::clock::Moment) -> FleetPermit {
        let shared = self.shared;
        shared.enter(self.request.cost);
        let lease = Arc::clone(&self.request.lease);
        let held = Held::new(shared.next_number(), lease, self.request.cost, fence, until);
        FleetPermit::new(Arc::clone(shared), self.request.cost, Some(Arc::new(held)))
    }
}

impl Drop for Acquisition<'_> {
    fn drop(&mut self) {
        self.shared.release_queue.put_back(&mut self.along);
        if self.known {
            self.shared.give_back(Arc::clone(&self.request.lease), None);
        }
    }
}

/// The store counts a lease from when it hears of it, which is after `sent`. The last twentieth is left to clocks
/// that differ, and to stopping.
pub(super) fn certain_until(sent: crate::clock::Moment, lease: Duration) -> crate::clock::Moment {
    sent + lease.mul_f64(0.95)
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One of those who wait in this instance.
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
