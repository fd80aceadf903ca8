//! The state that all clones of a rate limit share: the bucket and the queue.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    atomic_bucket::{AtomicBucket, Refusal},
    settings::Settings,
    snapshot::RateLimitSnapshot,
};
use crate::{
    clock::Moment,
    deadline::before_deadline,
    error::{Pattern, Reason, Rejected},
    telemetry::{self, Reading, Scope, Source},
};

/// Small, since there is one for each key of a family.
pub(super) struct Shared {
    pub(super) settings: Arc<Settings>,
    pub(super) bucket: AtomicBucket,
    /// Made by the first call that waits.
    queue: OnceLock<Box<Mutex<Queue>>>,
}

/// Calls that wait, in order of arrival. The first has a timer; the others are woken when they become the first.
#[derive(Default)]
struct Queue {
    next: Ticket,
    /// In the order of their tickets.
    waiting: VecDeque<Waiting>,
    /// The costs of all.
    cost: u128,
}

struct Waiting {
    ticket: Ticket,
    cost: u64,
    waker: Option<Waker>,
}

/// A place in the queue. Tickets ascend, and none is used twice.
pub(super) type Ticket = u64;

/// What becomes of a call without tokens.
pub(super) enum Denied {
    Queued(Ticket),
    Rejected(Rejected),
}

/// The result of a look at the queue.
pub(super) enum Turn {
    /// The tokens are taken.
    Mine,
    /// First in the queue: look again at this moment.
    At(Moment),
    /// Others come first; the call is woken when it becomes the first.
    Later,
}

impl Shared {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self {
            bucket: AtomicBucket::new(&settings.rules, settings.clock.now()),
            settings,
            queue: OnceLock::new(),
        }
    }

    fn now(&self) -> Moment {
        self.settings.clock.now()
    }

    /// Takes `cost` tokens if they are there and no call waits.
    #[inline]
    pub(super) fn pass(&self, cost: u64) -> Result<(), Refusal> {
        if self.bucket.waiting() != 0 && cost != 0 {
            return Err(self.behind_others(cost));
        }
        let settings = &*self.settings;
        self.bucket
            .take(&settings.rules, cost, settings.clock.now())
    }

    #[cold]
    fn behind_others(&self, cost: u64) -> Refusal {
        if cost > self.settings.rules.quota.capacity() {
            return Refusal::Impossible;
        }
        let tokens = self.lock().cost + u128::from(cost);
        let wait = (self.bucket).wait_for(&self.settings.rules, tokens, self.now());
        Refusal::Wait(wait.max(1))
    }

    /// Takes the tokens after all, joins the queue, or rejects: for a call that did not [`pass`](Self::pass).
    #[cold]
    pub(super) fn enqueue(&self, cost: u64, refusal: Refusal) -> Result<(), Denied> {
        let (Some(settings), Refusal::Wait(_)) = (self.settings.queue, refusal) else {
            return Err(Denied::Rejected(self.reject(refusal)));
        };
        let mut queue = self.lock();
        let (rules, now) = (&self.settings.rules, self.now());
        if queue.waiting.is_empty() && self.bucket.take(rules, cost, now).is_ok() {
            return Ok(());
        }
        let wait = (self.bucket).wait_for(rules, queue.cost + u128::from(cost), now);
        let end = before_deadline(settings.max_wait);
        let in_time = Duration::from_micros(wait) <= end.saturating_duration_since(Instant::now());
        if !in_time || queue.waiting.len() >= settings.length {
            drop(queue);
            let rejected = self.reject(Refusal::Wait(wait.max(1)));
            return Err(Denied::Rejected(rejected));
        }
        let ticket = queue.join(cost);
        self.bucket.set_waiting(queue.waiting.len());
        Err(Denied::Queued(ticket))
    }

    /// Looks at the queue for the holder of `ticket`; `waker` is woken when that is worth repeating.
    pub(super) fn look(&self, ticket: Ticket, cost: u64, waker: &Waker) -> Turn {
        let mut queue = self.lock();
        let mut turn = Turn::Later;
        let first = queue.waiting.front().map(|waiting| waiting.ticket);
        if first == Some(ticket) {
            let now = self.now();
            match self.bucket.take(&self.settings.rules, cost, now) {
                Ok(()) => {
                    self.leave(queue, 0);
                    return Turn::Mine;
                }
                Err(Refusal::Wait(micros)) => turn = Turn::At(now + Duration::from_micros(micros)),
                Err(Refusal::Impossible) => unreachable!("what is impossible does not wait"),
            }
        }
        if let Some(position) = queue.find(ticket) {
            match &mut queue.waiting[position].waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        turn
    }

    /// Takes the holder of `ticket` out of the queue.
    pub(super) fn give_up(&self, ticket: Ticket) {
        let queue = self.lock();
        if let Some(position) = queue.find(ticket) {
            self.leave(queue, position);
        }
    }

    /// Takes the call at `position` out of the queue, and wakes the one that becomes the first.
    fn leave(&self, mut queue: MutexGuard<'_, Queue>, position: usize) {
        let gone = queue.waiting.remove(position);
        if let Some(gone) = &gone {
            queue.cost -= u128::from(gone.cost);
        }
        self.bucket.set_waiting(queue.waiting.len());
        let first = queue.waiting.front_mut().filter(|_| position == 0);
        let waker = first.and_then(|first| first.waker.take());
        // Wakers are foreign code: not under the lock.
        drop(queue);
        drop(gone);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    #[cold]
    pub(super) fn reject(&self, refusal: Refusal) -> Rejected {
        let (reason, counter) = match refusal {
            Refusal::Wait(_) => (Reason::RateLimited, &self.settings.totals.limited),
            Refusal::Impossible => (Reason::TooCostly, &self.settings.totals.too_costly),
        };
        let wait = match refusal {
            Refusal::Wait(micros) => Some(Duration::from_micros(micros)),
            Refusal::Impossible => None,
        };
        let scope = Scope::new(Pattern::RateLimit, &self.settings.name);
        scope.count_and_reject(counter, reason, wait)
    }

    pub(super) fn refund(&self, tokens: u64) {
        (self.bucket).refund(&self.settings.rules, tokens, self.now());
        // The first call in the queue may have its tokens now, or sooner than its timer says.
        if self.bucket.waiting() != 0 {
            let waker = self
                .lock()
                .waiting
                .front_mut()
                .and_then(|first| first.waker.take());
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    pub(super) fn snapshot(&self) -> RateLimitSnapshot {
        let rules = &self.settings.rules;
        let (remaining, full_in) = self.bucket.level(rules, self.now());
        let totals = self.settings.totals.snapshot();
        RateLimitSnapshot {
            remaining,
            capacity: rules.quota.capacity(),
            full_in: Duration::from_micros(full_in),
            waiting: self.bucket.waiting(),
            rejected_limited: totals.rejected_limited,
            rejected_too_costly: totals.rejected_too_costly,
        }
    }

    /// Of foreign code only the clone of a waker runs under this lock; should it panic, the queue is unchanged.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        let queue = self.queue.get_or_init(Box::default);
        queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn join(&mut self, cost: u64) -> Ticket {
        let ticket = self.next;
        self.next += 1;
        self.cost += u128::from(cost);
        self.waiting.push_back(Waiting {
            ticket,
            cost,
            waker: None,
        });
        ticket
    }

    fn find(&self, ticket: Ticket) -> Option<usize> {
        self.waiting
            .binary_search_by_key(&ticket, |waiting| waiting.ticket)
            .ok()
    }
}

impl Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::RateLimit
    }

    fn name(&self) -> &str {
        &self.settings.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.settings.totals.read(out);
        read_waiting(self.bucket.waiting(), out);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        telemetry::retire(self);
    }
}

pub(super) fn read_waiting(waiting: usize, out: &mut dyn FnMut(Reading)) {
    out(Reading {
        metric: &telemetry::LIMIT_WAITING,
        attribute: "",
        value: waiting as u64,
    });
}
