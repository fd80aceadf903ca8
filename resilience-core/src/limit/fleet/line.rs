//! Calls that wait for tokens: a line for each subject, as long as there is somebody in it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    costs::{Costs, Prices},
    decide::Core,
    plan::{MAX_LIMITS, Plan},
    ruling::{Decided, DecidedBy, Ruling},
    standing,
};
use crate::{clock::Moment, deadline, limit::machine::Outcome};

#[derive(Default)]
pub(super) struct Lines {
    lines: Mutex<HashMap<Box<str>, Line>>,
    waiting: AtomicUsize,
}

struct Line {
    /// Whose turn it is; tokio's semaphores serve in order of arrival.
    turns: Arc<Semaphore>,
    calls: usize,
    costs: [u128; MAX_LIMITS],
}

/// A place in a line; left when it is dropped.
struct Place<'a> {
    lines: &'a Lines,
    subject: &'a str,
    prices: &'a Prices,
    turns: Arc<Semaphore>,
}

impl Lines {
    /// How many calls wait.
    #[inline]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// What the calls that wait cost, and how many there are.
    fn ahead(&self, subject: &str) -> (usize, [u128; MAX_LIMITS]) {
        let lines = self.lock();
        let line = lines.get(subject);
        line.map_or((0, [0; MAX_LIMITS]), |line| (line.calls, line.costs))
    }

    fn join<'a>(&'a self, subject: &'a str, prices: &'a Prices) -> Place<'a> {
        let mut lines = self.lock();
        let line = lines.entry(subject.into()).or_insert_with(|| Line {
            turns: Arc::new(Semaphore::new(1)),
            calls: 0,
            costs: [0; MAX_LIMITS],
        });
        line.calls += 1;
        let costs = line.costs.iter_mut().zip(prices);
        costs.for_each(|(sum, price)| *sum += u128::from(*price));
        self.waiting.fetch_add(1, AcqRel);
        Place {
            lines: self,
            subject,
            prices,
            turns: Arc::clone(&line.turns),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut lines = self.lines.lock();
        if let Some(line) = lines.get_mut(self.subject) {
            line.calls -= 1;
            let costs = line.costs.iter_mut().zip(self.prices);
            costs.for_each(|(sum, price)| *sum -= u128::from(*price));
            if line.calls == 0 {
                lines.remove(self.subject);
            }
        }
        self.lines.waiting.fetch_sub(1, AcqRel);
    }
}

/// A wait ends this much before the deadline of the call, which is one tick of tokio's timers.
const BEFORE_DEADLINE: Duration = Duration::from_millis(1);

impl Core {
    /// Whether calls may wait, and now should not be taken for a refusal's last word.
    pub(super) fn lets_wait(&self) -> bool {
        self.settings.queue.is_some() && !self.shadow.load(Relaxed)
    }

    /// A decision, waited for if it has to be; counted.
    pub(super) async fn acquire(self: &Arc<Self>, subject: &str, costs: Costs<'_>) -> Ruling {
        let plan = self.plan_of(subject);
        let prices = self.prices(&plan, &costs);
        let ruling = match self.settings.queue {
            Some((longest, max_wait)) if self.lets_wait() && prices != [0; MAX_LIMITS] => {
                let patience = max_wait.min(time_left());
                self.in_line(subject, plan, &prices, longest, patience)
                    .await
            }
            _ => self.decision(subject, plan, &prices).await,
        };
        self.conclude(ruling)
    }

    async fn in_line(
        self: &Arc<Self>,
        subject: &str,
        plan: Plan,
        prices: &Prices,
        longest: usize,
        patience: Duration,
    ) -> Ruling {
        let now = || self.settings.clock.now();
        let end = now() + patience;
        let (calls, ahead) = if self.lines.waiting() == 0 {
            (0, [0; MAX_LIMITS])
        } else {
            self.lines.ahead(subject)
        };
        let mut last = if calls == 0 {
            self.decision(subject, plan.clone(), prices).await
        } else {
            self.behind(subject, &plan, prices, &ahead)
        };
        match wait_of(&last) {
            Some(wait) if wait <= end.since(now()) && calls < longest => {}
            _ => return last,
        }
        let place = self.lines.join(subject, prices);
        let _turn = match place.turns.try_acquire() {
            Ok(turn) => turn,
            Err(_) => {
                let Ok(Ok(turn)) = timeout(end.since(now()), place.turns.acquire()).await else {
                    return last;
                };
                last = self.decision(subject, plan.clone(), prices).await;
                turn
            }
        };
        // The first in line sleeps until the store should have the tokens, and asks again.
        loop {
            let Some(wait) = wait_of(&last) else {
                return last;
            };
            if wait > end.since(now()) {
                return last;
            }
            sleep(wait).await;
            last = self.decision(subject, plan.clone(), prices).await;
        }
    }

    /// A refusal for those who would stand behind others: with the wait for all of them, as far as that is known.
    fn behind(
        &self,
        subject: &str,
        plan: &Plan,
        prices: &Prices,
        ahead: &[u128; MAX_LIMITS],
    ) -> Ruling {
        let now: Moment = self.settings.clock.now();
        let standings = self.memory.standings(subject, plan, now);
        let (mut binding, mut micros) = (0, 1);
        for (index, limit) in plan.as_slice().iter().enumerate() {
            if prices[index] > limit.quota.capacity() {
                let impossible = Decided::By(Outcome::Impossible { binding: index });
                return self.ruling(plan.clone(), impossible, DecidedBy::Memory, standings);
            }
            let Some(standing) = standings.map(|all| all[index]) else {
                continue;
            };
            let all = ahead[index] + u128::from(prices[index]);
            let wait = standing::wait_for_all(&limit.quota, standing, all);
            if wait > micros {
                (binding, micros) = (index, wait);
            }
        }
        let outcome = Decided::By(Outcome::Wait { binding, micros });
        self.ruling(plan.clone(), outcome, DecidedBy::Memory, standings)
    }
}

/// How long a refusal asks to wait; `None` for what is no refusal, or one that waiting does not help.
fn wait_of(ruling: &Ruling) -> Option<Duration> {
    match ruling.outcome {
        Decided::By(Outcome::Wait { micros, .. }) => Some(Duration::from_micros(micros)),
        _ => None,
    }
}

/// What the deadline of the call leaves for waiting.
fn time_left() -> Duration {
    deadline::current().map_or(Duration::MAX, |deadline| {
        deadline.remaining().saturating_sub(BEFORE_DEADLINE)
    })
}
