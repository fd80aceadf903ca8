//! Calls that wait for tokens: a queue for each subject that has any.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
    },
};

use tokio::sync::Semaphore;

use super::{costs::Prices, plan::MAX_LIMITS};

#[derive(Default)]
pub(super) struct Queues {
    queues: Mutex<HashMap<Box<str>, Queue>>,
    waiting: AtomicUsize,
}

struct Queue {
    /// The first in the queue holds the permit; tokio's semaphores serve in order of arrival.
    turns: Arc<Semaphore>,
    calls: usize,
    costs: [u128; MAX_LIMITS],
}

/// A place in a queue; left when it is dropped.
pub(super) struct QueueSlot<'a> {
    queues: &'a Queues,
    subject: &'a str,
    prices: &'a Prices,
    pub(super) turns: Arc<Semaphore>,
}

impl Queues {
    /// The number of calls that wait.
    #[inline]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// The number of calls that wait, and the sum of their costs.
    pub(super) fn ahead(&self, subject: &str) -> (usize, [u128; MAX_LIMITS]) {
        let queues = self.lock();
        let queue = queues.get(subject);
        queue.map_or((0, [0; MAX_LIMITS]), |queue| (queue.calls, queue.costs))
    }

    pub(super) fn join<'a>(&'a self, subject: &'a str, prices: &'a Prices) -> QueueSlot<'a> {
        let mut queues = self.lock();
        let queue = queues.entry(subject.into()).or_insert_with(|| Queue {
            turns: Arc::new(Semaphore::new(1)),
            calls: 0,
            costs: [0; MAX_LIMITS],
        });
        queue.calls += 1;
        let costs = queue.costs.iter_mut().zip(prices);
        costs.for_each(|(sum, price)| *sum += u128::from(*price));
        self.waiting.fetch_add(1, AcqRel);
        QueueSlot {
            queues: self,
            subject,
            prices,
            turns: Arc::clone(&queue.turns),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get_mut(self.subject) {
            queue.calls -= 1;
            let costs = queue.costs.iter_mut().zip(self.prices);
            costs.for_each(|(sum, price)| *sum -= u128::from(*price));
            if queue.calls == 0 {
                queues.remove(self.subject);
            }
        }
        self.queues.waiting.fetch_sub(1, AcqRel);
    }
}
