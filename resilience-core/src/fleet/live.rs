//! How many instances divide a limit between them while the store is unavailable.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct LiveInstances {
    /// As of the last answer of the store; zero: it has not answered yet.
    live: AtomicU64,
    /// The configured number.
    expected: Option<u64>,
    /// The number that a limit is divided by; zero: not known.
    parts: AtomicU64,
    counting: Mutex<Counting>,
}

/// The counts that the number of parts follows.
#[derive(Debug, Default)]
struct Counting {
    /// When the first came.
    first: Option<Instant>,
    /// Since when they have been below the number of parts, and the largest of them.
    fewer: Option<(Instant, u64)>,
}

impl LiveInstances {
    pub(super) fn new(expected: Option<u64>) -> Self {
        Self {
            live: AtomicU64::new(0),
            expected,
            parts: AtomicU64::new(0),
            counting: Mutex::default(),
        }
    }

    /// Notes the live instances of an answer, this one included.
    pub(super) fn saw(&self, live: u64) {
        self.live.store(live.max(1), Relaxed);
    }

    /// The live instances as of the last answer.
    pub(super) fn live(&self) -> u64 {
        self.live.load(Relaxed).max(1)
    }

    /// Notes a count of the live instances, each of which sends a heartbeat about once per `interval`.
    ///
    /// A first count is not used before another one comes an interval later: the others have not counted this instance
    /// yet, nor has it counted those that started at the same time. Fewer instances count after two intervals: a store
    /// that has lost its data counts those first that find it first.
    pub(super) fn count(&self, live: u64, interval: Duration) {
        let now = Instant::now();
        let mut counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        // Intervals are jittered by a fifth.
        if now - *counting.first.get_or_insert(now) < interval.mul_f64(0.75) {
            return;
        }
        if live >= self.parts.load(Relaxed) {
            counting.fewer = None;
            self.parts.store(live, Relaxed);
            return;
        }
        let (since, most) = counting.fewer.get_or_insert((now, live));
        *most = live.max(*most);
        if now - *since >= interval * 2 {
            self.parts.store(*most, Relaxed);
            counting.fewer = None;
        }
    }

    /// The number of parts of a limit of which this instance may take one. `None`: not known.
    pub(super) fn parts(&self) -> Option<u64> {
        let parts = self.parts.load(Relaxed);
        match self.expected {
            Some(expected) => Some(expected.max(parts)),
            None => (parts > 0).then_some(parts),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_share_is_known_once_the_others_can_have_counted_this_instance() {
        let live = LiveInstances::new(None);
        assert_eq!(live.parts(), None, "never answered");
        live.count(1, SECOND);
        live.count(1, SECOND);
        assert_eq!(live.parts(), None, "others may have come at the same time");
        advance(SECOND).await;
        live.count(4, SECOND);
        assert_eq!(live.parts(), Some(4));
    }

    #[tokio::test(start_paused = true)]
    async fn more_instances_count_at_once_and_fewer_when_they_stay_away() {
        let live = LiveInstances::new(None);
        live.count(1, SECOND);
        for (count, parts) in [
            (4, 4),
            (6, 6),
            (1, 6),
            (6, 6),
            (2, 6),
            (3, 6),
            (1, 3),
            (1, 3),
        ] {
            advance(SECOND).await;
            live.count(count, SECOND);
            assert_eq!(live.parts(), Some(parts));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_expected_instances_count_from_the_start_and_more_live_ones_count_too() {
        let live = LiveInstances::new(Some(6));
        assert_eq!(live.parts(), Some(6));
        for (count, parts) in [(1, 6), (2, 6), (8, 8)] {
            live.count(count, SECOND);
            assert_eq!(live.parts(), Some(parts));
            advance(SECOND).await;
        }
    }
}
