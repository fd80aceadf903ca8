//! What all clones of a rate limit share, and who waits.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use super::{
    Quota, RateLimitSnapshot,
    atomic_bucket::{AtomicBucket, Refusal},
    builder::Settings,
    queue::Wait,
};
use crate::{
    clock::{Clock, Moment},
    deadline,
    error::{Pattern, Reason, Rejected},
    sync::atomic::Ordering::Relaxed,
    telemetry::{self, Reading, Scope, Source, counters},
};

pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) bucket: AtomicBucket,
    pub(super) clock: Clock,
    queue_limits: Option<QueueLimits>,
    queue: Mutex<Queue>,
    totals: Arc<Totals>,
}

/// How many may wait, and for how many microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLimits {
    pub(super) longest: usize,
    pub(super) max_wait: u64,
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

/// A place in the line. Tickets are given out in ascending order and never again.
pub(super) type Ticket = u64;

counters! {
    /// Rejections. One per family, so that they survive the eviction of a member.
    #[expect(unnameable_types, reason = "sealed")]
    pub struct Totals;
    limited = LIMIT_REJECTIONS "rate_limited", "Calls rejected for lack of tokens.";
    too_costly = LIMIT_REJECTIONS "too_costly", "Calls that cost more than the limit can hold.";
}

/// What becomes of a call without tokens.
pub(super) enum Denied {
    Queued(Wait),
    Rejected(Rejected),
}

/// Whose turn it is.
pub(super) enum Turn {
    /// The tokens are taken.
    Mine,
    /// First in line: look again at this moment.
    At(Moment),
    /// Others come first; whoever becomes the first is woken.
    Later,
}

impl Shared {
    pub(super) fn new(settings: &Settings, quota: Quota) -> Self {
        Self {
            name: Arc::clone(&settings.name),
            bucket: AtomicBucket::new(quota, settings.clock.now()),
            clock: settings.clock,
            queue_limits: settings.queue_limits,
            queue: Mutex::default(),
            totals: Arc::clone(&settings.totals),
        }
    }

    /// Takes `cost` tokens if they are there and nobody waits.
    #[inline]
    pub(super) fn pass(&self, cost: u64) -> Result<(), Refusal> {
        if self.bucket.waiting() != 0 && cost != 0 {
            return Err(self.behind_others(cost));
        }
        self.bucket.take(cost, self.clock.now())
    }

    #[cold]
    fn behind_others(&self, cost: u64) -> Refusal {
        if cost > self.bucket.quota().capacity() {
            return Refusal::Impossible;
        }
        let queue = self.lock();
        let wait = self
            .bucket
            .wait_for(queue.cost + u128::from(cost), self.clock.now());
        Refusal::Wait(wait.max(1))
    }

    /// For a call that did not [`pass`](Self::pass): tokens after all, a place in the line, or no.
    #[cold]
    pub(super) fn wait_or_reject(
        self: &Arc<Self>,
        cost: u64,
        refusal: Refusal,
    ) -> Result<(), Box<Denied>> {
        let (Some(queue_limits), Refusal::Wait(_)) = (self.queue_limits, refusal) else {
            return Err(Box::new(Denied::Rejected(self.reject(refusal))));
        };
        let mut queue = self.lock();
        let now = self.clock.now();
        if queue.waiting.is_empty() && self.bucket.take(cost, now).is_ok() {
            return Ok(());
        }
        let wait = self.bucket.wait_for(queue.cost + u128::from(cost), now);
        let in_time = wait <= queue_limits.max_wait.min(time_left());
        if !in_time || queue.waiting.len() >= queue_limits.longest {
            drop(queue);
            let rejected = self.reject(Refusal::Wait(wait.max(1)));
            return Err(Box::new(Denied::Rejected(rejected)));
        }
        let ticket = queue.join(cost);
        self.bucket.set_waiting(queue.waiting.len());
        drop(queue);
        let wait = Wait::new(Arc::clone(self), ticket, cost);
        Err(Box::new(Denied::Queued(wait)))
    }

    /// The holder of `ticket` looks; `waker` is who to wake when there is news.
    pub(super) fn look(&self, ticket: Ticket, cost: u64, waker: &Waker) -> Turn {
        let mut queue = self.lock();
        let mut turn = Turn::Later;
        let first = queue.waiting.front().map(|waiting| waiting.ticket);
        if first == Some(ticket) {
            let now = self.clock.now();
            match self.bucket.take(cost, now) {
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

    /// The holder of `ticket` does not want to wait any longer.
    pub(super) fn give_up(&self, ticket: Ticket) {
        let queue = self.lock();
        if let Some(position) = queue.find(ticket) {
            self.leave(queue, position);
        }
    }

    /// Takes one out of the line, and wakes who becomes the first.
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
            Refusal::Wait(_) => (Reason::RateLimited, &self.totals.limited),
            Refusal::Impossible => (Reason::TooCostly, &self.totals.too_costly),
        };
        let wait = match refusal {
            Refusal::Wait(micros) => Some(Duration::from_micros(micros)),
            Refusal::Impossible => None,
        };
        let scope = Scope::new(Pattern::RateLimit, &self.name);
        scope.count_and_reject(counter, reason, wait)
    }

    pub(super) fn refund(&self, tokens: u64) {
        self.bucket.refund(tokens, self.clock.now());
        // Whoever is first in line may have their tokens now, or sooner than their timer says.
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
        let (remaining, full_in) = self.bucket.level(self.clock.now());
        RateLimitSnapshot {
            remaining,
            capacity: self.bucket.quota().capacity(),
            full_in: Duration::from_micros(full_in),
            waiting: self.bucket.waiting(),
            ..self.totals.snapshot()
        }
    }

    /// Nothing of a waiter's runs under this lock but the clone of a waker; should that panic, the line is as it was.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A wait ends this much before the deadline of the call, which is one tick of tokio's timers.
const BEFORE_DEADLINE: Duration = Duration::from_millis(1);

/// Microseconds that the deadline of the call leaves for waiting.
fn time_left() -> u64 {
    deadline::current().map_or(u64::MAX, |deadline| {
        let left = deadline.remaining().saturating_sub(BEFORE_DEADLINE);
        u64::try_from(left.as_micros()).unwrap_or(u64::MAX)
    })
}

impl Source for Shared {
    fn pattern(&self) -> Pattern {
        Pattern::RateLimit
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, out: &mut dyn FnMut(Reading)) {
        self.totals.read(out);
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

impl Totals {
    pub(super) fn snapshot(&self) -> RateLimitSnapshot {
        RateLimitSnapshot {
            rejected_limited: self.limited.load(Relaxed),
            rejected_too_costly: self.too_costly.load(Relaxed),
            ..RateLimitSnapshot::default()
        }
    }
}
