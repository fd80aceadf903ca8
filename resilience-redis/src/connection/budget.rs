//! The time budget of commands, watched without a timer for each: setting one costs more than the rest of a call, and
//! hardly any ever fires.

use std::{
    array,
    future::{Future, poll_fn},
    pin::pin,
    sync::atomic::{
        AtomicBool, AtomicU64, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};

/// Number of terms per budget.
const TERMS: u64 = 8;
/// More than the terms that are distinguished: those of one budget, and the current one.
const SLOTS: usize = 16;

/// Ends calls before they have taken longer than a budget, at most an eighth of it earlier, so that a caller with a timeout of
/// the same length still receives the result. Works while [`watch`](Self::watch) runs.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: Duration,
    /// The current term; counts up while there are calls.
    term: AtomicU64,
    /// Wakes the calls of a term when their budget is over.
    over: [Notify; SLOTS],
    calls: AtomicUsize,
    /// Whether the terms are not counted, because there are no calls.
    idle: AtomicBool,
    begun: Notify,
    /// No further call begins.
    closed: AtomicBool,
}

impl Budget {
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            term: AtomicU64::new(0),
            over: array::from_fn(|_| Notify::new()),
            calls: AtomicUsize::new(0),
            idle: AtomicBool::new(true),
            begun: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) const fn limit(&self) -> Duration {
        self.limit
    }

    /// Runs `call`; `None` when it does not end within the budget.
    pub(crate) async fn within<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        let _call = Call::begin(self);
        if self.closed.load(SeqCst) {
            return None;
        }
        let mut over = pin!(self.over[slot(self.term.load(Relaxed))].notified());
        let mut call = pin!(call);
        poll_fn(|cx| {
            if let Poll::Ready(answer) = call.as_mut().poll(cx) {
                return Poll::Ready(Some(answer));
            }
            over.as_mut().poll(cx).map(|()| None)
        })
        .await
    }

    /// Lets no further call begin, and waits for the end of those in progress. Needs [`watch`](Self::watch) to run.
    pub(crate) async fn close(&self) {
        // Either this sees a call, or the call sees that it must not begin.
        self.closed.store(true, SeqCst);
        while self.calls.load(SeqCst) != 0 {
            sleep(self.term_length()).await;
        }
    }

    fn term_length(&self) -> Duration {
        (self.limit / TERMS as u32).max(Duration::from_micros(100))
    }

    /// Counts the terms while there are calls, and waits for one when there are none.
    pub(crate) async fn watch(&self) -> ! {
        loop {
            let mut ends = interval(self.term_length());
            ends.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ends.tick().await;
            let mut quiet = false;
            loop {
                ends.tick().await;
                let term = self.term.fetch_add(1, Relaxed) + 1;
                // The calls of the term that began one budget ago.
                self.over[slot(term + SLOTS as u64 - TERMS)].notify_waiters();
                let was_quiet = quiet;
                quiet = self.calls.load(Relaxed) == 0;
                if quiet && was_quiet {
                    break;
                }
            }
            self.idle.store(true, SeqCst);
            // Either this sees the call, or the call sees that terms are not counted.
            if self.calls.load(SeqCst) == 0 {
                self.begun.notified().await;
            }
            self.idle.store(false, SeqCst);
        }
    }
}

const fn slot(term: u64) -> usize {
    (term % SLOTS as u64) as usize
}

/// A call in progress.
struct Call<'a>(&'a Budget);

impl<'a> Call<'a> {
    fn begin(budget: &'a Budget) -> Self {
        budget.calls.fetch_add(1, SeqCst);
        if budget.idle.load(SeqCst) {
            budget.begun.notify_one();
        }
        Self(budget)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc};

    use tokio::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    fn watched() -> Arc<Budget> {
        let budget = Arc::new(Budget::new(LIMIT));
        let watched = Arc::clone(&budget);
        tokio::spawn(async move { watched.watch().await });
        budget
    }

    /// Timers are set in whole milliseconds.
    fn is_spent(took: Duration) -> bool {
        let rounded = Duration::from_millis(1);
        took + rounded >= LIMIT * 7 / 8 && took <= LIMIT + rounded
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_ends_with_the_budget_or_soon_before() {
        let budget = watched();
        for lag in 0..200 {
            sleep(Duration::from_millis(lag * 7)).await;
            let start = Instant::now();
            assert_eq!(budget.within(pending::<()>()).await, None);
            let took = start.elapsed();
            assert!(is_spent(took), "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_begin_at_any_time_each_have_their_budget() {
        let budget = watched();
        let calls: Vec<_> = (0..500)
            .map(|at| {
                let budget = Arc::clone(&budget);
                tokio::spawn(async move {
                    sleep(Duration::from_millis(at)).await;
                    let start = Instant::now();
                    let answered = budget.within(sleep(Duration::from_millis(at % 87))).await;
                    assert_eq!(answered, Some(()), "call {at} is in time");
                    assert_eq!(budget.within(pending::<()>()).await, None);
                    start.elapsed() - Duration::from_millis(at % 87)
                })
            })
            .collect();
        for call in calls {
            let took = call.await.expect("no panic");
            assert!(is_spent(took), "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_calls_nothing_wakes_up() {
        let budget = watched();
        assert_eq!(budget.within(async { 7 }).await, Some(7));
        sleep(LIMIT * 2).await;
        assert!(budget.idle.load(SeqCst));
        let term = budget.term.load(SeqCst);
        sleep(LIMIT * 100).await;
        assert_eq!(budget.term.load(SeqCst), term);
        tokio::select! {
            biased;
            _ = budget.within(pending::<()>()) => unreachable!("it hangs"),
            () = sleep(LIMIT / 2) => {}
        }
        assert_eq!(
            budget.calls.load(SeqCst),
            0,
            "a dropped call does not count"
        );
        sleep(LIMIT * 2).await;
        assert!(budget.idle.load(SeqCst));
    }

    #[tokio::test(start_paused = true)]
    async fn closing_waits_for_calls_in_progress_and_lets_no_other_begin() {
        let budget = watched();
        let start = Instant::now();
        let (hung, ()) = tokio::join!(budget.within(pending::<()>()), budget.close());
        assert_eq!(hung, None);
        assert!(start.elapsed() <= LIMIT * 2, "{:?}", start.elapsed());
        let start = Instant::now();
        assert_eq!(budget.within(async { 7 }).await, None);
        budget.close().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
