//! The shared record of one bulkhead: a pure state machine. Time is passed in, as microseconds on
//! the store's clock. Moments are kept in the record's own time ([`RecordClock`]), so that nothing
//! lasts longer than it was asked for when that clock is set back.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde::Serialize;

use crate::fleet::RecordClock;

/// Request for permits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AcquireRequest {
    /// Id of the lease, unique per call. A request that is repeated under the same id, because its
    /// answer was lost, takes no more permits.
    pub lease: Arc<str>,
    /// Number of permits.
    pub cost: u64,
    /// Limit of the whole fleet, as this instance knows it.
    pub limit: u64,
    /// Duration of the lease from now on, in milliseconds.
    pub lease_ms: u64,
    /// Time in milliseconds that the request keeps its position in the queue without being repeated.
    /// Zero: it does not queue.
    pub ticket_ms: u64,
    /// Pending releases of the instance, made first: they can make room for the request itself.
    pub releases: Vec<Release>,
}

/// Result of an [`AcquireRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Admission {
    /// The permits are granted.
    Granted {
        /// Fencing token: greater than every token granted before under this name, so that of two
        /// calls the older one can be told.
        fence: u64,
    },
    /// Not enough permits are left, or other requests have waited longer.
    Full {
        /// Time in milliseconds until the first lease or position in the queue ends by itself.
        again_ms: u64,
    },
    /// The cost is above the limit: waiting is of no use.
    Impossible,
}

/// Lease as its holder knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holding {
    /// Id of the lease.
    pub lease: Arc<str>,
    /// Number of permits.
    pub cost: u64,
    /// Fencing token.
    pub fence: u64,
}

/// Renewal of all leases of a live instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    /// Name of the instance, unique per process start.
    pub instance: Arc<str>,
    /// Time in milliseconds for which the instance counts as live from now on. 1: it leaves.
    pub live_ms: u64,
    /// Duration of the leases from now on, in milliseconds.
    pub lease_ms: u64,
    /// Leases that have not ended by their holder's own clock.
    pub holdings: Vec<Holding>,
}

/// Release of a lease, or of a position in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Release {
    /// Id of the lease or of the request that waits.
    pub lease: Arc<str>,
    /// Fencing token of the lease; `None` if its holder never received it.
    pub fence: Option<u64>,
}

/// State of a record at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct BulkheadView {
    /// Permits that are held.
    pub in_flight: u64,
    /// Leases that hold them.
    pub leases: u64,
    /// Requests in the queue.
    pub waiting: u64,
    /// Live instances.
    pub live: u64,
    /// Newest fencing token.
    pub fence: u64,
}

/// Result of a step, and its wakeups.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step<T> {
    /// Result for the caller of the step.
    pub answer: T,
    /// Leases of the requests in the queue for which this step made room. They must be repeated to
    /// take it.
    pub up: Vec<Arc<str>>,
}

/// Shared state of one bulkhead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BulkheadRecord {
    /// Not kept before the record is created.
    clock: RecordClock,
    /// When this record was created. Fencing tokens up to here belong to a record that was lost.
    born: u64,
    fence: u64,
    leases: BTreeMap<Arc<str>, Lease>,
    /// In order of arrival.
    queue: VecDeque<Ticket>,
    live: BTreeMap<Arc<str>, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Lease {
    cost: u64,
    fence: u64,
    until: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Ticket {
    lease: Arc<str>,
    cost: u64,
    limit: u64,
    until: u64,
}

impl BulkheadRecord {
    /// Makes the releases of `request`, then grants its permits if that many are left beside those
    /// that are held and those that other requests have waited for longer.
    pub fn acquire(&mut self, request: &AcquireRequest, now: u64) -> Step<Admission> {
        let now = self.time(now);
        let mut freed = self.sweep(now);
        self.take_back(&request.releases, &mut freed);
        let answer = self.admit(request, now);
        self.step(answer, freed)
    }

    fn admit(&mut self, request: &AcquireRequest, now: u64) -> Admission {
        let until = now + request.lease_ms * 1000;
        // Granted => Granted
        if let Some(lease) = self.leases.get_mut(&request.lease) {
            lease.until = until;
            return Admission::Granted { fence: lease.fence };
        }
        if request.cost > request.limit {
            return Admission::Impossible;
        }
        let position = self.position(&request.lease);
        let ahead = position.unwrap_or(self.queue.len());
        let taken = self.in_flight() + self.waited_for(ahead);
        // New | Waiting => Granted
        if taken + request.cost <= request.limit {
            if let Some(position) = position {
                self.queue.remove(position);
            }
            self.begin(now);
            self.fence = next_fence(self.fence, now);
            let (cost, fence) = (request.cost, self.fence);
            let lease = Lease { cost, fence, until };
            self.leases.insert(Arc::clone(&request.lease), lease);
            return Admission::Granted { fence };
        }
        // New | Waiting => Waiting
        let again_ms = self.again_ms(ahead, now);
        if request.ticket_ms > 0 {
            self.queue_up(request, position, now);
        }
        Admission::Full { again_ms }
    }

    fn queue_up(&mut self, request: &AcquireRequest, position: Option<usize>, now: u64) {
        let ticket = Ticket {
            lease: Arc::clone(&request.lease),
            cost: request.cost,
            limit: request.limit,
            until: now + request.ticket_ms * 1000,
        };
        match position {
            Some(position) => self.queue[position] = ticket,
            None => self.queue.push_back(ticket),
        }
    }

    /// Renews the leases of a live instance. Returns which of them are held.
    ///
    /// A lease that is not in the record has ended, and its permits may be held by other calls. The
    /// exception is a lease older than the record itself, whose predecessor was lost (a flushed or
    /// failed-over server): it is entered again, even above the limit, since its call is in
    /// progress.
    pub fn renew(&mut self, heartbeat: &Heartbeat, now: u64) -> Step<Vec<bool>> {
        let now = self.time(now);
        let freed = self.sweep(now);
        self.begin(now);
        self.live.retain(|_, until| *until > now);
        self.live.insert(
            Arc::clone(&heartbeat.instance),
            now + heartbeat.live_ms * 1000,
        );
        let until = now + heartbeat.lease_ms * 1000;
        let renewed = heartbeat
            .holdings
            .iter()
            .map(|holding| self.prolong(holding, until))
            .collect();
        self.step(renewed, freed)
    }

    fn prolong(&mut self, holding: &Holding, until: u64) -> bool {
        let &Holding { cost, fence, .. } = holding;
        match self.leases.get_mut(&holding.lease) {
            Some(lease) if lease.fence == fence => {
                lease.until = until;
                true
            }
            None if fence <= self.born => {
                let lease = Lease { cost, fence, until };
                self.leases.insert(Arc::clone(&holding.lease), lease);
                true
            }
            _ => false,
        }
    }

    /// Gives leases back. Returns which of them were held: a lease that is not, or no longer, held
    /// under its fencing token is left as it is. A request that waits leaves the queue.
    pub fn release(&mut self, releases: &[Release], now: u64) -> Step<Vec<bool>> {
        let now = self.time(now);
        let mut freed = self.sweep(now);
        let released = self.take_back(releases, &mut freed);
        self.step(released, freed)
    }

    fn take_back(&mut self, releases: &[Release], freed: &mut bool) -> Vec<bool> {
        let mut released = Vec::with_capacity(releases.len());
        for Release { lease, fence } in releases {
            // Waiting => gone
            if let Some(position) = self.position(lease) {
                self.queue.remove(position);
                *freed = true;
            }
            let held = self.leases.get(lease);
            let is_its = held.is_some_and(|held| fence.is_none_or(|fence| fence == held.fence));
            // Granted => gone
            if is_its {
                self.leases.remove(lease);
                *freed = true;
            }
            released.push(is_its);
        }
        released
    }

    /// Returns the state at `now`.
    #[must_use]
    pub fn view(&self, now: u64) -> BulkheadView {
        let now = self.clock.read(now).now();
        let held = || self.leases.values().filter(|lease| lease.until > now);
        BulkheadView {
            in_flight: held().map(|lease| lease.cost).sum(),
            leases: held().count() as u64,
            waiting: self
                .queue
                .iter()
                .filter(|ticket| ticket.until > now)
                .count() as u64,
            live: self.live.values().filter(|until| **until > now).count() as u64,
            fence: self.fence,
        }
    }

    fn step<T>(&self, answer: T, freed: bool) -> Step<T> {
        let up = if freed { self.up() } else { Vec::new() };
        Step { answer, up }
    }

    /// The requests in the queue for which there is room, each beside those before it.
    fn up(&self) -> Vec<Arc<str>> {
        let mut taken = self.in_flight();
        let mut up = Vec::new();
        for ticket in &self.queue {
            taken += ticket.cost;
            if taken <= ticket.limit {
                up.push(Arc::clone(&ticket.lease));
            }
        }
        up
    }

    /// Removes leases and positions in the queue that have ended. Whether there were any.
    fn sweep(&mut self, now: u64) -> bool {
        // Granted | Waiting => gone
        let before = (self.leases.len(), self.queue.len());
        self.leases.retain(|_, lease| lease.until > now);
        self.queue.retain(|ticket| ticket.until > now);
        before != (self.leases.len(), self.queue.len())
    }

    fn begin(&mut self, now: u64) {
        if self.born == 0 {
            self.born = now;
            self.clock = RecordClock::new(now, 0);
        }
    }

    /// The time of a step that may write, noted where there is a record, at most every [`NOTED`].
    fn time(&mut self, shown: u64) -> u64 {
        let clock = self.clock.read(shown);
        let is_due = clock.lead() != self.clock.lead() || clock.now() >= self.clock.now() + NOTED;
        if self.born != 0 && is_due {
            self.clock = clock;
        }
        clock.now()
    }

    fn position(&self, lease: &str) -> Option<usize> {
        self.queue.iter().position(|ticket| &*ticket.lease == lease)
    }

    fn in_flight(&self) -> u64 {
        self.leases.values().map(|lease| lease.cost).sum()
    }

    /// Permits that the `first` requests in the queue wait for.
    fn waited_for(&self, first: usize) -> u64 {
        self.queue
            .iter()
            .take(first)
            .map(|ticket| ticket.cost)
            .sum()
    }

    /// Time until a lease, or one of the `first` positions in the queue, ends by itself.
    fn again_ms(&self, first: usize, now: u64) -> u64 {
        let leases = self.leases.values().map(|lease| lease.until);
        let tickets = self.queue.iter().take(first).map(|ticket| ticket.until);
        let soonest = leases.chain(tickets).min();
        soonest.map_or(0, |until| (until - now).div_ceil(1000))
    }
}

/// The record's time is noted at most this often, in microseconds: with each step, it would cost the store a write more.
const NOTED: u64 = 100_000;

/// The next fencing token. Never below the clock, so that tokens rise even when the record is lost;
/// no store grants a million leases per second, so they never run ahead of the clock. Above the
/// clock by one, so that it is above the record's own creation.
fn next_fence(fence: u64, now: u64) -> u64 {
    fence.max(now) + 1
}
