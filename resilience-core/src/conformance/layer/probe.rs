//! The service at the bottom of every check: it does what each request asks for, and keeps count.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use crate::retry::Replayable;
use tokio::time::{Sleep, sleep};
use tower::{BoxError, Service};

/// What the probe answers with: the number of the attempt that succeeded, from 1.
pub type Answer = u32;

/// A request: says what is to become of it.
#[derive(Clone, Debug)]
pub struct Ask {
    plan: Plan,
    attempts: Arc<AtomicU32>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Answered at once.
    Answer,
    /// Fails at once, on every attempt.
    Fail,
    /// The first attempts fail, the next is answered.
    FailFirst(u32),
    /// Nothing, until [`Probe::release`].
    Hang,
    /// Answered after a time.
    Take(Duration),
    /// `call` panics.
    PanicInCall,
    /// The response future panics when it is polled.
    PanicInPoll,
}

impl From<Plan> for Ask {
    fn from(plan: Plan) -> Self {
        Self {
            plan,
            attempts: Arc::default(),
        }
    }
}

/// Every request of the checks may be sent again.
impl Replayable for Ask {
    fn replay(&self) -> Option<Self> {
        Some(self.clone())
    }
}

/// How the probe fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call failed.
    Refused,
    /// `poll_ready` failed.
    Unready,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Unready => "the service is broken",
        })
    }
}

impl std::error::Error for Fault {}

/// The payload of the panics that requests ask for. They are raised past the panic hook, so they print nothing.
#[derive(Debug)]
pub struct Planned;

/// Whether the probe is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// At once.
    Open,
    /// At the second poll; every new caller waits once.
    Late,
    /// Not until it is set to something else.
    Closed,
    /// Fails.
    Broken,
    /// Panics.
    Panics,
}

/// A service that panics when it is called without having been polled ready since its last call, on that very clone.
#[derive(Debug)]
pub struct Probe {
    shared: Arc<Mutex<State>>,
    number: u64,
    ready: bool,
    waited: bool,
}

#[derive(Debug)]
struct State {
    readiness: Readiness,
    next_number: u64,
    /// Who waits for readiness, by number of the clone: the last waker that each was polled with.
    unready: HashMap<u64, Waker>,
    /// Who hangs, by number of the call.
    hanging: HashMap<u64, Waker>,
    released: u64,
    seen: Seen,
}

/// What the probe has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seen {
    /// Calls made, further attempts included.
    pub calls: u64,
    /// Response futures that are alive.
    pub in_flight: u64,
    /// The most that were alive at once.
    pub most_in_flight: u64,
    /// Polls of `poll_ready`.
    pub ready_polls: u64,
    /// Polls of response futures.
    pub call_polls: u64,
    /// Calls on a clone that was not polled ready.
    pub unready_calls: u64,
}

impl Default for Probe {
    fn default() -> Self {
        let state = State {
            readiness: Readiness::Open,
            next_number: 1,
            unready: HashMap::new(),
            hanging: HashMap::new(),
            released: 0,
            seen: Seen::default(),
        };
        Self {
            shared: Arc::new(Mutex::new(state)),
            number: 0,
            ready: false,
            waited: false,
        }
    }
}

impl Probe {
    /// What was counted so far, over all clones.
    #[must_use]
    pub fn seen(&self) -> Seen {
        lock(&self.shared).seen
    }

    /// Changes the readiness of all clones and wakes those that wait for it.
    pub fn set(&self, readiness: Readiness) {
        let waiting = {
            let mut state = lock(&self.shared);
            state.readiness = readiness;
            std::mem::take(&mut state.unready)
        };
        waiting.into_values().for_each(Waker::wake);
    }

    /// Answers every call that hangs.
    pub fn release(&self) {
        let hanging = {
            let mut state = lock(&self.shared);
            state.released = state.next_number;
            std::mem::take(&mut state.hanging)
        };
        hanging.into_values().for_each(Waker::wake);
    }
}

/// A clone has its own readiness.
impl Clone for Probe {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            number: next_number(&mut lock(&self.shared)),
            ready: false,
            waited: false,
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let last = lock(&self.shared).unready.remove(&self.number);
        drop(last);
    }
}

impl Service<Ask> for Probe {
    type Response = Answer;
    type Error = BoxError;
    type Future = Call;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let mut state = lock(&self.shared);
        state.seen.ready_polls += 1;
        match state.readiness {
            Readiness::Open => self.ready = true,
            Readiness::Late if self.waited => self.ready = true,
            Readiness::Late => {
                self.waited = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Readiness::Closed => {
                let last = state.unready.insert(self.number, cx.waker().clone());
                drop(state);
                drop(last);
                return Poll::Pending;
            }
            Readiness::Broken => return Poll::Ready(Err(Fault::Unready.into())),
            Readiness::Panics => {
                drop(state);
                resume_unwind(Box::new(Planned));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ask: Ask) -> Call {
        self.waited = false;
        let was_ready = std::mem::replace(&mut self.ready, false);
        let mut state = lock(&self.shared);
        if !was_ready {
            state.seen.unready_calls += 1;
            drop(state);
            panic!("called without having been polled ready");
        }
        state.seen.calls += 1;
        if ask.plan == Plan::PanicInCall {
            drop(state);
            resume_unwind(Box::new(Planned));
        }
        state.seen.in_flight += 1;
        state.seen.most_in_flight = state.seen.most_in_flight.max(state.seen.in_flight);
        let number = next_number(&mut state);
        drop(state);
        Call {
            shared: Arc::clone(&self.shared),
            number,
            attempt: ask.attempts.fetch_add(1, SeqCst) + 1,
            plan: ask.plan,
            sleep: None,
        }
    }
}

/// One call of the [`Probe`].
#[derive(Debug)]
#[expect(
    unnameable_types,
    reason = "the future of a service is named by its service"
)]
pub struct Call {
    shared: Arc<Mutex<State>>,
    number: u64,
    attempt: u32,
    plan: Plan,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Future for Call {
    type Output = Result<Answer, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        lock(&self.shared).seen.call_polls += 1;
        let answer = match self.plan {
            Plan::Answer => Ok(self.attempt),
            Plan::Fail => Err(Fault::Refused.into()),
            Plan::FailFirst(failures) if self.attempt <= failures => Err(Fault::Refused.into()),
            Plan::FailFirst(_) => Ok(self.attempt),
            Plan::Hang => {
                let mut state = lock(&self.shared);
                if state.released < self.number {
                    let last = state.hanging.insert(self.number, cx.waker().clone());
                    drop(state);
                    drop(last);
                    return Poll::Pending;
                }
                Ok(self.attempt)
            }
            Plan::Take(time) => {
                let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(time)));
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                Ok(self.attempt)
            }
            Plan::PanicInCall | Plan::PanicInPoll => resume_unwind(Box::new(Planned)),
        };
        Poll::Ready(answer)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = lock(&self.shared);
        state.seen.in_flight -= 1;
        // Wakers are dropped with the lock open: the last one of a task drops the task, and with it other calls.
        let last = state.hanging.remove(&self.number);
        drop(state);
        drop(last);
    }
}

fn next_number(state: &mut State) -> u64 {
    state.next_number += 1;
    state.next_number
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
