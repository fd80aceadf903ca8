//! The shared record of one bulkhead: pure, time goes in as microseconds on the store's clock.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// Somebody wants places.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AcquireRequest {
    /// Who: unique per call. A wish that is repeated under the same id, because its answer was lost, takes nothing
    /// more.
    pub lease: Arc<str>,
    /// How many places.
    pub cost: u64,
    /// How many places the whole fleet has, as the one who asks knows it.
    pub limit: u64,
    /// For how long the places are taken, unless they are renewed.
    pub lease_ms: u64,
    /// For how long the wish keeps its position in the queue without being repeated. Zero: it does not queue.
    pub ticket_ms: u64,
    /// What the instance has to give back at this moment: it goes along, and makes room for the wish itself.
    pub releases: Vec<Release>,
}

/// What became of a [`AcquireRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Admission {
    /// The places are taken.
    Granted {
        /// Greater than any that was given out before, under this name: whoever is handed two of them can tell the
        /// older call from the newer one.
        fence: u64,
    },
    /// Not enough places, or others have waited longer.
    Full {
        /// When a lease or a position in the queue ends by itself, at the earliest.
        again_ms: u64,
    },
    /// More places than there are: waiting is of no use.
    Impossible,
}

/// A lease, as its holder knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holding {
    /// Its id.
    pub lease: Arc<str>,
    /// Its places.
    pub cost: u64,
    /// Its fence.
    pub fence: u64,
}

/// An instance is alive, and so are these calls of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    /// Who: unique per process start.
    pub instance: Arc<str>,
    /// For how long the instance counts as live after this.
    pub live_ms: u64,
    /// For how long the leases go on from now.
    pub lease_ms: u64,
    /// Leases that have not run out by their holder's own clock.
    pub holdings: Vec<Holding>,
}

/// Places come back, or somebody leaves the queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Release {
    /// The lease, or the wish that waits.
    pub lease: Arc<str>,
    /// The fence that it was granted under; `None` when its holder never heard of the grant.
    pub fence: Option<u64>,
}

/// The record as one sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BulkheadView {
    /// Places taken.
    pub in_flight: u64,
    /// By so many calls.
    pub leases: u64,
    /// Wishes in the queue.
    pub waiting: u64,
    /// Instances that gave a heartbeat lately.
    pub live: u64,
    /// The newest fence.
    pub fence: u64,
}

/// What a step answers, and whom it calls up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step<T> {
    /// The answer to who took it.
    pub answer: T,
    /// Wishes in the queue for which there is room now, because this step made some. Asking again is up to them.
    pub up: Vec<Arc<str>>,
}

/// The shared state of one bulkhead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BulkheadRecord {
    /// When this record was begun. Fences up to here belong to one that was lost.
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
    /// Takes back what is returned; then takes places, if there are so many beside those that are taken and those that
    /// others have waited for longer.
    pub fn acquire(&mut self, request: &AcquireRequest, now: u64) -> Step<Admission> {
        let mut freed = self.sweep(now);
        self.take_back(&request.releases, &mut freed);
        let answer = self.admit(request, now);
        self.step(answer, freed)
    }

    fn admit(&mut self, request: &AcquireRequest, now: u64) -> Admission {
        let until = now + request.lease_ms * 1000;
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

    /// Prolongs the leases of an instance that is alive, and says of each whether it is held.
    ///
    /// One that the record does not know has run out, and may have been reclaimed; unless it is older than the record
    /// itself, which then was lost (a flushed or failed-over server): such a lease is entered anew, room or no room,
    /// because its call is in flight.
    pub fn renew(&mut self, beat: &Heartbeat, now: u64) -> Step<Vec<bool>> {
        let freed = self.sweep(now);
        self.begin(now);
        self.live.retain(|_, until| *until > now);
        self.live
            .insert(Arc::clone(&beat.instance), now + beat.live_ms * 1000);
        let until = now + beat.lease_ms * 1000;
        let renewed = beat
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

    /// Gives places back. False, and nothing happens, for a lease that is not (or no longer) held under its fence.
    /// A wish that waits leaves the queue.
    pub fn release(&mut self, releases: &[Release], now: u64) -> Step<Vec<bool>> {
        let mut freed = self.sweep(now);
        let released = self.take_back(releases, &mut freed);
        self.step(released, freed)
    }

    fn take_back(&mut self, releases: &[Release], freed: &mut bool) -> Vec<bool> {
        let mut released = Vec::with_capacity(releases.len());
        for Release { lease, fence } in releases {
            if let Some(position) = self.position(lease) {
                self.queue.remove(position);
                *freed = true;
            }
            let held = self.leases.get(lease);
            let is_its = held.is_some_and(|held| fence.is_none_or(|fence| fence == held.fence));
            if is_its {
                self.leases.remove(lease);
                *freed = true;
            }
            released.push(is_its);
        }
        released
    }

    /// How things stand.
    #[must_use]
    pub fn view(&self, now: u64) -> BulkheadView {
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

    /// The wishes for which there is room, each beside those before it.
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

    /// Takes places from those whose time is over, and positions too. True if there were any.
    fn sweep(&mut self, now: u64) -> bool {
        let before = (self.leases.len(), self.queue.len());
        self.leases.retain(|_, lease| lease.until > now);
        self.queue.retain(|ticket| ticket.until > now);
        before != (self.leases.len(), self.queue.len())
    }

    fn begin(&mut self, now: u64) {
        if self.born == 0 {
            self.born = now;
        }
    }

    fn position(&self, lease: &str) -> Option<usize> {
        self.queue.iter().position(|ticket| &*ticket.lease == lease)
    }

    fn in_flight(&self) -> u64 {
        self.leases.values().map(|lease| lease.cost).sum()
    }

    /// What the first so many in the queue wait for.
    fn waited_for(&self, first: usize) -> u64 {
        self.queue
            .iter()
            .take(first)
            .map(|ticket| ticket.cost)
            .sum()
    }

    /// When somebody loses a place, or a position among the first so many, by time alone.
    fn again_ms(&self, first: usize, now: u64) -> u64 {
        let leases = self.leases.values().map(|lease| lease.until);
        let tickets = self.queue.iter().take(first).map(|ticket| ticket.until);
        let soonest = leases.chain(tickets).min();
        soonest.map_or(0, |until| (until - now).div_ceil(1000))
    }
}

/// Time as a floor: fences go on upwards even when the record is gone. No store grants a million leases a second, so
/// the fence never runs ahead of the clock. One more than that, so that it is above the record's own beginning.
fn next_fence(fence: u64, now: u64) -> u64 {
    fence.max(now) + 1
}
