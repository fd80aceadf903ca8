//! Reports of many breakers, sent together.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{
    record::{BreakerView, Report},
    store::BreakerStore,
};
use crate::fleet::{StoreError, StoreFuture};

/// Maximum number of reports in one call of [`BreakerStore::report_all`]: a script holds the
/// server up for all its clients, this one for 4 to 9 milliseconds on a busy machine with two cores.
const MOST: usize = 32;

/// How long the first report waits for others that are due at the same tick.
const COLLECT: Duration = Duration::from_millis(5);

/// The reports of all breakers on one store handle. Their due times are aligned to the ticks of the handle, so that
/// reports that are due at the same tick share a command.
pub(super) struct ReportBatcher {
    waiting: Mutex<Vec<Waiting>>,
    /// By name, the breakers on the handle.
    breakers: Mutex<HashMap<Arc<str>, u64>>,
    started: Instant,
    /// Where in an interval the ticks of this handle lie, from 0 to 1: random, so that instances that started together
    /// do not report together.
    phase: f64,
}

struct Waiting {
    name: Arc<str>,
    report: Report,
    answer: oneshot::Sender<Result<BreakerView, StoreError>>,
}

impl Default for ReportBatcher {
    fn default() -> Self {
        // Not `fastrand`, which an application may seed alike in all its processes.
        let random = RandomState::new().hash_one(std::process::id());
        Self {
            waiting: Mutex::default(),
            breakers: Mutex::default(),
            started: Instant::now(),
            phase: random as f64 / 2f64.powi(64),
        }
    }
}

impl ReportBatcher {
    /// With a smaller time budget, reports are sent one by one.
    pub(super) const LEAST_BUDGET: Duration = COLLECT.saturating_mul(4);

    /// The first tick of `interval` that is at least a fifth of it away.
    pub(super) fn next_tick(&self, interval: Duration) -> Instant {
        let now = Instant::now();
        let since = now.duration_since(self.started) + interval.mul_f64(1.0 - self.phase);
        let passed = since.as_nanos() % interval.as_nanos().max(1);
        let left = interval.saturating_sub(Duration::from_nanos(passed as u64));
        if left * 5 < interval {
            now + left + interval
        } else {
            now + left
        }
    }

    /// Sends `report` together with others, within the `budget` of the first of them.
    pub(super) fn report<'a>(
        self: &Arc<Self>,
        store: &Arc<dyn BreakerStore>,
        budget: Duration,
        runtime: &Handle,
        name: &Arc<str>,
        report: &Report,
    ) -> StoreFuture<'a, BreakerView> {
        let (answer, answered) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.push(Waiting {
            name: Arc::clone(name),
            report: report.clone(),
            answer,
        });
        let is_first = waiting.len() == 1;
        drop(waiting);
        if is_first {
            let collecting = Collecting {
                batcher: Arc::clone(self),
                taken: false,
            };
            drop(runtime.spawn(collecting.send(Arc::clone(store), budget)));
        }
        Box::pin(async move { answered.await.unwrap_or_else(|_| Err(no_answer())) })
    }

    /// Notes that the handle has one more breaker of this name.
    pub(super) fn enter(&self, name: &Arc<str>) {
        *self.breakers().entry(Arc::clone(name)).or_default() += 1;
    }

    pub(super) fn leave(&self, name: &str) {
        let mut breakers = self.breakers();
        if let Some(count) = breakers.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                breakers.remove(name);
            }
        }
    }

    /// How many breakers of this name the handle has: each is an instance of the record, one handle is one member.
    pub(super) fn of_name(&self, name: &str) -> u64 {
        self.breakers().get(name).copied().unwrap_or(1)
    }

    fn breakers(&self) -> MutexGuard<'_, HashMap<Arc<str>, u64>> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the reports fail if its task ends before it has sent them, with the runtime: the next one then starts another.
struct Collecting {
    batcher: Arc<ReportBatcher>,
    taken: bool,
}

impl Collecting {
    async fn send(mut self, store: Arc<dyn BreakerStore>, budget: Duration) {
        sleep(COLLECT).await;
        let mut all = self.take();
        while !all.is_empty() {
            let rest = all.split_off(MOST.min(all.len()));
            let some = mem::replace(&mut all, rest);
            drop(tokio::spawn(send(Arc::clone(&store), some, budget)));
        }
    }

    fn take(&mut self) -> Vec<Waiting> {
        self.taken = true;
        mem::take(&mut *self.batcher.lock())
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        if !self.taken {
            drop(self.take());
        }
    }
}

async fn send(store: Arc<dyn BreakerStore>, some: Vec<Waiting>, budget: Duration) {
    let (reports, answers): (Vec<_>, Vec<_>) = some
        .into_iter()
        .map(|waiting| ((waiting.name, waiting.report), waiting.answer))
        .unzip();
    let sent = async {
        match &*reports {
            [(name, report)] => Ok(vec![store.report(name, report).await]),
            reports => store.report_all(reports).await,
        }
    };
    let mut results = timeout(budget, sent)
        .await
        .unwrap_or_else(|_| Err(StoreError::timed_out()))
        .map(Vec::into_iter);
    for answer in answers {
        let result = match &mut results {
            Ok(results) => results.next().unwrap_or_else(|| Err(no_answer())),
            Err(error) => Err(error.clone()),
        };
        // The breaker may be gone, or its budget over.
        let _ = answer.send(result);
    }
}

fn no_answer() -> StoreError {
    StoreError::new("no answer to the report", true)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ticks_are_one_interval_apart_and_at_least_a_fifth_of_it_away() {
        let batcher = ReportBatcher::default();
        for interval in [100, 2_000].map(Duration::from_millis) {
            let mut last = batcher.next_tick(interval);
            for step in 1..=100 {
                tokio::time::advance(interval / 37 * (step % 60)).await;
                let next = batcher.next_tick(interval);
                let ahead = next - Instant::now();
                assert!(
                    ahead * 5 >= interval && ahead * 5 <= interval * 6,
                    "{ahead:?}"
                );
                let apart = (next - last).as_nanos() % interval.as_nanos();
                assert!(apart < 100 || interval.as_nanos() - apart < 100, "{apart}");
                last = next;
            }
        }
    }
}
