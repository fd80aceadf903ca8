//! Calls of one process with the same key, one at a time. Those that wait hold no connection.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// A queue for each key that a call is running with. Keys without a call take no memory.
#[derive(Debug, Default)]
pub(super) struct KeyQueue(Mutex<HashMap<Box<str>, Gate>>);

#[derive(Debug)]
struct Gate {
    /// One permit: the first in the queue has it.
    turn: Arc<Semaphore>,
    /// Running and waiting.
    calls: usize,
}

/// The turn of a call; passed on when it is dropped, in order of arrival.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    queue: &'a KeyQueue,
    key: &'a str,
    /// `None` while it waits.
    permit: Option<OwnedSemaphorePermit>,
}

impl KeyQueue {
    /// Waits for the call's turn with `key` until `until`; not at all without one, nor behind `max_waiting` calls that wait.
    ///
    /// Dropping the future leaves the queue.
    pub(super) async fn turn<'a>(
        &'a self,
        key: &'a str,
        max_waiting: usize,
        until: Option<Instant>,
    ) -> Option<Turn<'a>> {
        let (mut turn, gate) = self.join(key, max_waiting)?;
        turn.permit = match Arc::clone(&gate).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => timeout_at(until?, gate.acquire_owned()).await.ok()?.ok(),
        };
        Some(turn)
    }

    fn join<'a>(&'a self, key: &'a str, max_waiting: usize) -> Option<(Turn<'a>, Arc<Semaphore>)> {
        let mut gates = self.gates();
        let gate = match gates.get_mut(key) {
            Some(gate) if gate.calls > max_waiting => return None,
            Some(gate) => gate,
            None => gates.entry(key.into()).or_insert_with(Gate::new),
        };
        gate.calls += 1;
        let turn = Turn {
            queue: self,
            key,
            permit: None,
        };
        Some((turn, Arc::clone(&gate.turn)))
    }

    fn gates(&self) -> MutexGuard<'_, HashMap<Box<str>, Gate>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    fn new() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            calls: 0,
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut gates = self.queue.gates();
        if let Some(gate) = gates.get_mut(self.key) {
            gate.calls -= 1;
            if gate.calls == 0 {
                gates.remove(self.key);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{pin::pin, time::Duration};

    use super::*;

    fn in_a_minute() -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(60))
    }

    #[tokio::test(start_paused = true)]
    async fn calls_with_one_key_go_in_order_of_arrival_and_those_with_another_at_once() {
        let queue = KeyQueue::default();
        let first = queue.turn("a", 9, None).await;
        let mut second = pin!(queue.turn("a", 9, in_a_minute()));
        let mut third = pin!(queue.turn("a", 9, in_a_minute()));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(futures_util::poll!(&mut third).is_pending());
        assert!(queue.turn("b", 9, None).await.is_some());
        drop(first);
        assert!(futures_util::poll!(&mut third).is_pending());
        drop(second.await);
        assert!(third.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_bound_or_at_once_and_a_full_queue_takes_no_more() {
        let queue = KeyQueue::default();
        let _first = queue.turn("a", 1, None).await.unwrap();
        assert!(queue.turn("a", 1, None).await.is_none());
        let began = Instant::now();
        assert!(queue.turn("a", 1, in_a_minute()).await.is_none());
        assert_eq!(began.elapsed(), Duration::from_secs(60));
        let mut waits = pin!(queue.turn("a", 1, in_a_minute()));
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert!(queue.turn("a", 1, in_a_minute()).await.is_none());
        assert_eq!(began.elapsed(), Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_dropped_leaves_the_queue_and_keys_without_calls_take_no_memory() {
        let queue = KeyQueue::default();
        let first = queue.turn("a", 9, None).await;
        {
            let mut gone = pin!(queue.turn("a", 9, in_a_minute()));
            assert!(futures_util::poll!(&mut gone).is_pending());
        }
        drop(first);
        assert!(queue.gates().is_empty());
        assert!(queue.turn("a", 9, None).await.is_some());
        assert!(queue.gates().is_empty());
    }
}
