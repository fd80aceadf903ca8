//! How a pattern asks its store.

use std::{
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::unconstrained,
    time::{Instant, sleep},
};

use super::{
    FleetSettings, OnOutage, Waker,
    health::{Edge, Health},
    live::LiveInstances,
    store::{StoreError, StoreFuture},
};
use crate::{
    backoff::{Backoff, Delays},
    error::Pattern,
};

/// The cheapest question of a store trait: whether the store answers. Asked while it is unavailable.
pub(crate) trait Probe: Send + Sync + 'static {
    fn probe<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()>;

    /// Whether the keys are divided over servers that fail apart from each other, so that a step without an answer says
    /// nothing about the next one.
    fn is_sharded(&self) -> bool {
        false
    }
}

/// A store with a time budget for each step, and a memory of whether it answers. Clones share both.
///
/// Generic over the store trait (`StoreClient<dyn LimitStore>`). A step is a closure from the store to one of its
/// futures. Cancel safe: a dropped step counts neither as a failure nor as a success.
pub(crate) struct StoreClient<S: ?Sized>(Arc<Inner<S>>);

struct Inner<S: ?Sized> {
    pattern: Pattern,
    name: Arc<str>,
    budget: Duration,
    on_outage: OnOutage,
    health: Health,
    /// Whether a task asks the store until it answers.
    probing: AtomicBool,
    /// The agent that is woken when the store is available again.
    agent: OnceLock<Waker>,
    /// The instant that the health's moments are counted from.
    started: Instant,
    instances: LiveInstances,
    errors: AtomicU64,
    store: Arc<S>,
}

impl<S: Probe + ?Sized> StoreClient<S> {
    pub(crate) fn new(
        store: Arc<S>,
        pattern: Pattern,
        name: Arc<str>,
        settings: &FleetSettings,
    ) -> Self {
        Self(Arc::new(Inner {
            pattern,
            name,
            budget: settings.budget,
            on_outage: settings.on_outage,
            health: Health::default(),
            probing: AtomicBool::new(false),
            agent: OnceLock::new(),
            started: Instant::now(),
            instances: LiveInstances::new(settings.expected_instances),
            errors: AtomicU64::new(0),
            store,
        }))
    }

    /// One step, within the budget. Fails at once while the store is unavailable: for new questions.
    pub(crate) async fn call<'a, T>(
        &'a self,
        step: impl FnOnce(&'a S) -> StoreFuture<'a, T>,
    ) -> Result<T, StoreError> {
        if !self.accepts_calls() {
            return Err(StoreError::unavailable());
        }
        self.attempt(step).await
    }

    /// Whether [`call`](Self::call) would ask the store. While it would not, also sees to it that the task that asks the
    /// store runs: for callers that decide without the error.
    #[inline]
    pub(crate) fn accepts_calls(&self) -> bool {
        if self.is_available() {
            return true;
        }
        self.keep_probing();
        false
    }

    /// One step, within the budget, whether or not the store is available: for what completes, gives back or acknowledges.
    pub(crate) async fn attempt<'a, T>(
        &'a self,
        step: impl FnOnce(&'a S) -> StoreFuture<'a, T>,
    ) -> Result<T, StoreError> {
        self.attempt_within(self.0.budget, step).await
    }

    /// As [`call`](Self::call), with another budget: for a step that waits for something.
    #[cfg(feature = "stream")]
    pub(crate) async fn call_within<'a, T>(
        &'a self,
        budget: Duration,
        step: impl FnOnce(&'a S) -> StoreFuture<'a, T>,
    ) -> Result<T, StoreError> {
        if !self.accepts_calls() {
            return Err(StoreError::unavailable());
        }
        self.attempt_within(budget, step).await
    }

    async fn attempt_within<'a, T>(
        &'a self,
        budget: Duration,
        step: impl FnOnce(&'a S) -> StoreFuture<'a, T>,
    ) -> Result<T, StoreError> {
        let answer = within(budget, step(&self.0.store)).await;
        let answer = answer.unwrap_or_else(|| Err(self.timed_out()));
        self.note(answer.as_ref().err());
        answer
    }

    fn timed_out(&self) -> StoreError {
        let error = StoreError::timed_out();
        if self.0.store.is_sharded() {
            error.partial()
        } else {
            error
        }
    }

    /// Repeats a step that may be repeated, with jittered backoff, until it succeeds or the next attempt would begin after
    /// `until`; attempts it once at least. The error is ambiguous if any attempt's was.
    pub(crate) async fn call_until<'a, T>(
        &'a self,
        until: Instant,
        step: impl FnMut(&'a S) -> StoreFuture<'a, T>,
    ) -> Result<T, StoreError> {
        self.repeat(until, false, step).await
    }

    /// As [`call_until`](Self::call_until), for a step that must not be done twice: also ends with the first error after
    /// which the store may have done it.
    pub(crate) async fn call_once_until<'a, T>(
        &'a self,
        until: Instant,
        step: impl FnMut(&'a S) -> StoreFuture<'a, T>,
    ) -> Result<T, StoreError> {
        self.repeat(until, true, step).await
    }

    async fn repeat<'a, T>(
        &'a self,
        until: Instant,
        once: bool,
        mut step: impl FnMut(&'a S) -> StoreFuture<'a, T>,
    ) -> Result<T, StoreError> {
        let mut delays = retry_delays();
        let mut ambiguous = false;
        loop {
            let mut error = match self.attempt(&mut step).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            ambiguous |= error.ambiguous;
            let wait = delays.next().unwrap_or(LONGEST_PAUSE);
            if Instant::now() + wait >= until || once && ambiguous {
                error.ambiguous = ambiguous;
                return Err(error);
            }
            sleep(wait).await;
        }
    }

    #[inline]
    pub(crate) fn is_available(&self) -> bool {
        self.0.health.is_available()
    }

    /// How long the store has been unavailable; zero while it is available.
    pub(crate) fn unavailable_for(&self) -> Duration {
        let lost = self.0.health.lost_at();
        lost.map_or(Duration::ZERO, |lost| self.0.elapsed_since(lost))
    }

    /// Whether the store has returned so recently that other instances may not have reported yet what they admitted
    /// meanwhile: each finds out by itself, after a pause of a task that asks and one of a connection that is remade.
    #[inline]
    pub(crate) fn is_settling(&self) -> bool {
        let returned = self.0.health.returned_at();
        returned.is_some_and(|returned| self.0.elapsed_since(returned) < self.settling_time())
    }

    /// How long [`is_settling`](Self::is_settling) lasts.
    pub(crate) fn settling_time(&self) -> Duration {
        LONGEST_PAUSE * 2 + self.0.budget
    }

    /// Waits until the store is available, but not beyond `until`. Whether it is.
    pub(crate) async fn available_by(&self, until: Instant) -> bool {
        while !self.accepts_calls() {
            if Instant::now() >= until {
                return false;
            }
            sleep(FIRST_PAUSE).await;
        }
        true
    }

    /// Wakes an agent whenever the store is available again after it was not. The first call wins.
    pub(crate) fn wake_on_return(&self, agent: Waker) {
        // Losing to an earlier call is what the first line says.
        let _ = self.0.agent.set(agent);
    }

    /// What becomes of calls while the store is unavailable.
    pub(crate) fn on_outage(&self) -> OnOutage {
        self.0.on_outage
    }

    pub(crate) fn budget(&self) -> Duration {
        self.0.budget
    }

    /// Steps that failed so far.
    pub(crate) fn errors(&self) -> u64 {
        self.0.errors.load(Relaxed)
    }

    /// Notes how many instances the store counts as live, this one included.
    pub(crate) fn saw_live(&self, instances: u64) {
        self.0.instances.saw(instances);
    }

    /// Notes a count of the live instances for [`parts`](Self::parts). Each instance sends a heartbeat once per `interval`.
    pub(crate) fn count_live(&self, instances: u64, interval: Duration) {
        self.0.instances.count(instances, interval);
    }

    /// How many instances were live when the store last answered a heartbeat.
    pub(crate) fn live_instances(&self) -> u64 {
        self.0.instances.live()
    }

    /// The number of parts of a limit of which this instance may take one while it decides alone: the counted instances or
    /// the expected ones, whichever are more. `None`: not known, since the store has not answered for long enough.
    pub(crate) fn parts(&self) -> Option<u64> {
        self.0.instances.parts()
    }

    pub(crate) fn store(&self) -> &Arc<S> {
        &self.0.store
    }

    /// What a step's result says about the store.
    fn note(&self, error: Option<&StoreError>) {
        if let Some(error) = error {
            self.0.errors.fetch_add(1, Relaxed);
            // Calls about other keys would be refused with those about the part that is away.
            if !error.partial && self.0.health.failed(|| self.0.now()) == Edge::Lost {
                self.0.tell_lost(error);
                self.keep_probing();
            }
        } else if self.0.health.succeeded(|| self.0.now()) == Edge::Returned {
            self.0.tell_returned();
        }
    }

    /// Starts the task that asks the store until it answers, unless it runs already. Its runtime may have ended with it, so
    /// every call that the outage refuses looks again.
    #[cold]
    fn keep_probing(&self) {
        if self.0.probing.load(Acquire) || self.0.probing.swap(true, AcqRel) {
            return;
        }
        let inner = Arc::downgrade(&self.0);
        let probing = Probing(Weak::clone(&inner));
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(probe(inner, probing))),
            // Dropping `probing` lets the next call try.
            Err(_) => drop(probing),
        }
    }
}

impl<S: ?Sized> Inner<S> {
    /// Nanoseconds of the health's clock: above zero.
    fn now(&self) -> u64 {
        let passed = self.started.elapsed().as_nanos();
        u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn elapsed_since(&self, earlier: u64) -> Duration {
        Duration::from_nanos(self.now().saturating_sub(earlier))
    }

    #[cold]
    fn tell_lost(&self, error: &StoreError) {
        tracing::warn!(
            target: "resilience",
            pattern = self.pattern.as_str(),
            name = &*self.name,
            reason = %error,
            policy = self.on_outage.as_str(),
            "store unavailable"
        );
    }

    #[cold]
    fn tell_returned(&self) {
        tracing::info!(
            target: "resilience",
            pattern = self.pattern.as_str(),
            name = &*self.name,
            "store available"
        );
        if let Some(agent) = self.agent.get() {
            agent.wake();
        }
    }
}

/// The output of `step`, if it comes within `budget`: as tokio's `timeout`, without a timer for a store that answers at once,
/// as one in this process does.
async fn within<T>(
    budget: Duration,
    mut step: StoreFuture<'_, T>,
) -> Option<Result<T, StoreError>> {
    let mut timer = pin!(None);
    poll_fn(|cx| {
        if let Poll::Ready(answer) = step.as_mut().poll(cx) {
            return Poll::Ready(Some(answer));
        }
        if timer.is_none() {
            // Also when the step has used up what the task may do in one poll.
            timer.set(Some(unconstrained(sleep(budget))));
        }
        let timer = timer.as_mut().as_pin_mut().expect("made above");
        timer.poll(cx).map(|()| None)
    })
    .await
}

/// Asks the store until it answers, or the last handle is gone.
async fn probe<S: Probe + ?Sized>(inner: Weak<Inner<S>>, _probing: Probing<S>) {
    for wait in retry_delays() {
        sleep(wait).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let client = StoreClient(inner);
        if client.is_available() {
            return;
        }
        let name = Arc::clone(&client.0.name);
        if client.attempt(|store| store.probe(&name)).await.is_ok() {
            return;
        }
    }
}

/// Marks the end of the probing task, however it ends.
struct Probing<S: ?Sized>(Weak<Inner<S>>);

impl<S: ?Sized> Drop for Probing<S> {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.probing.store(false, Release);
        }
    }
}

/// The delays between attempts. Jittered, so that a fleet does not return to its store in one moment.
pub(crate) fn retry_delays() -> Delays {
    Backoff::decorrelated_jitter(FIRST_PAUSE, LONGEST_PAUSE).delays()
}

const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl<S: ?Sized> Clone for StoreClient<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: fmt::Debug + ?Sized> fmt::Debug for StoreClient<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreClient")
            .field("store", &&*self.0.store)
            .field("available", &self.0.health.is_available())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
