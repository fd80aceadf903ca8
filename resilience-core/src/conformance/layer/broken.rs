//! Layers that are broken on purpose, each in one way, to prove that the checks see it.
//!
//! All are one service, [`Broken`], which passes calls on properly but for its one [`Flaw`]. Where the flaw needs
//! it, it limits calls in flight to [`PLACES`] and rejects the rest, as a bulkhead does.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

use crate::{Pattern, Reason, Rejected};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service, ServiceExt};

use super::{Answer, Ask, Fault, Stack};

/// How many calls [`Broken`] lets run at once.
pub const PLACES: usize = 4;

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// Calls a fresh clone of the service below, not the one that was polled ready.
    CallsAClone,
    /// Makes a further attempt on a clone without polling it ready.
    RetriesUnready,
    /// Takes its place in `poll_ready`, and keeps it until it is called.
    ReservesWhenReady,
    /// Gives its place back when the future is dropped, not when the call has ended.
    KeepsItsPlaceWithTheFuture,
    /// Keeps the service below ready for the next call.
    ReadiesAhead,
    /// Does not give its place back when the call is dropped.
    LeaksOnDrop,
    /// Does not give its place back when the call panics.
    LeaksOnPanic,
    /// Wakes itself whenever the answer is not there.
    WakesItselfForAnswers,
    /// Wakes itself whenever the service below is not ready.
    WakesItselfForReadiness,
    /// Does not pass its waker on to the call.
    LosesTheAnswer,
    /// Does not pass its waker on to `poll_ready`.
    LosesReadiness,
    /// Passes on the waker of its first poll only.
    KeepsTheFirstWaker,
    /// Rejects in `poll_ready`, with an error.
    RejectsWhenPolledReady,
    /// Every failure costs it a place; waits in `poll_ready` for one, holding a place below.
    WaitsWithReadinessHeld,
    /// Waits in `poll_ready` for a place of its own, waking itself.
    WaitsForAPlaceAwake,
    /// Waits in `poll_ready` for a place of its own, and is never woken.
    WaitsForAPlaceUnwoken,
    /// Takes an error of readiness for readiness.
    SwallowsReadinessErrors,
    /// Wraps the errors of the service.
    WrapsErrors,
    /// Says no with an error that looks like a failure.
    RejectsWithAString,
    /// Keeps the service below ready when it rejects a call.
    KeepsReadinessWhenRejecting,
    /// Sends the call, and rejects it then.
    SendsWhatItRejects,
    /// Every layer has a count of its own.
    CountsPerLayer,
    /// Has a deadline that runs from the first `poll_ready` that was pending, and is not forgotten.
    RemembersWaiting,
    /// Has a deadline that runs from `poll_ready`.
    AgesWhenReady,
    /// Holds a place while it polls the service below ready, without a guard.
    HoldsAPlaceToAsk,
    /// Turns a panic of the service into an error.
    SwallowsPanics,
    /// Once it has rejected, it rejects forever.
    NeverRecovers,
}

/// A layer with one [`Flaw`].
#[derive(Clone, Debug)]
pub struct BrokenLayer {
    flaw: Flaw,
    taken: Arc<AtomicUsize>,
}

impl BrokenLayer {
    /// Calls of all layers made from `taken` are counted in it.
    #[must_use]
    pub fn new(flaw: Flaw, taken: &Arc<AtomicUsize>) -> Self {
        let taken = match flaw {
            Flaw::CountsPerLayer => Arc::default(),
            _ => Arc::clone(taken),
        };
        Self { flaw, taken }
    }
}

impl Layer<Stack> for BrokenLayer {
    type Service = Broken;

    fn layer(&self, inner: Stack) -> Broken {
        Broken {
            inner,
            flaw: self.flaw,
            taken: Arc::clone(&self.taken),
            reserved: None,
            waited_since: None,
            ready_since: None,
            first_waker: None,
        }
    }
}

/// A service with one [`Flaw`].
pub struct Broken {
    inner: Stack,
    flaw: Flaw,
    taken: Arc<AtomicUsize>,
    reserved: Option<Place>,
    waited_since: Option<Instant>,
    ready_since: Option<Instant>,
    first_waker: Option<Waker>,
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broken")
            .field("flaw", &self.flaw)
            .finish_non_exhaustive()
    }
}

impl Clone for Broken {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            taken: Arc::clone(&self.taken),
            reserved: None,
            waited_since: None,
            ready_since: None,
            first_waker: None,
            flaw: self.flaw,
        }
    }
}

impl Service<Ask> for Broken {
    type Response = Answer;
    type Error = BoxError;
    type Future = Calling;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let full = self.taken.load(SeqCst) >= PLACES;
        match self.flaw {
            Flaw::RejectsWhenPolledReady if full => return Poll::Ready(Err(rejection())),
            Flaw::WaitsForAPlaceAwake if full => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Flaw::WaitsForAPlaceUnwoken if full => return Poll::Pending,
            Flaw::ReservesWhenReady if self.reserved.is_none() => match Place::take(&self.taken) {
                Some(place) => self.reserved = Some(place),
                // It is never woken, but a missing wake-up is not this flaw's: a place is never given back to it.
                None => return Poll::Pending,
            },
            _ => {}
        }
        if self.flaw == Flaw::HoldsAPlaceToAsk {
            self.taken.fetch_add(1, SeqCst);
        }
        let ready = match self.flaw {
            Flaw::LosesReadiness => self
                .inner
                .poll_ready(&mut Context::from_waker(Waker::noop())),
            Flaw::KeepsTheFirstWaker => {
                let first = self.first_waker.get_or_insert_with(|| cx.waker().clone());
                self.inner.poll_ready(&mut Context::from_waker(first))
            }
            _ => self.inner.poll_ready(cx),
        };
        match (self.flaw, &ready) {
            (Flaw::WakesItselfForReadiness, Poll::Pending) => cx.waker().wake_by_ref(),
            (Flaw::RemembersWaiting, Poll::Pending) => {
                self.waited_since.get_or_insert_with(Instant::now);
            }
            (Flaw::SwallowsReadinessErrors, Poll::Ready(Err(_))) => return Poll::Ready(Ok(())),
            (Flaw::WaitsWithReadinessHeld, Poll::Ready(Ok(()))) if full => return Poll::Pending,
            _ => {}
        }
        if self.flaw == Flaw::HoldsAPlaceToAsk {
            self.taken.fetch_sub(1, SeqCst);
        }
        if ready.is_ready() {
            self.ready_since = Some(Instant::now());
            self.first_waker = None;
        }
        ready
    }

    fn call(&mut self, ask: Ask) -> Calling {
        let since = match self.flaw {
            Flaw::AgesWhenReady => self.ready_since,
            _ => self.waited_since,
        };
        let late = since.is_some_and(|since| since.elapsed().as_secs() > 60);
        let place = self.reserved.take().or_else(|| Place::take(&self.taken));
        let Some(mut place) = place.filter(|_| !late) else {
            if self.flaw == Flaw::NeverRecovers {
                self.taken.fetch_add(PLACES, SeqCst);
            }
            if self.flaw == Flaw::SendsWhatItRejects {
                drop(self.take_ready().call(ask));
            }
            if self.flaw != Flaw::KeepsReadinessWhenRejecting {
                self.inner = self.inner.clone();
            }
            let error = if self.flaw == Flaw::RejectsWithAString {
                "full".into()
            } else {
                rejection()
            };
            return Calling::new(self.flaw, None, async { Err(error) });
        };
        match self.flaw {
            Flaw::LeaksOnDrop => place.leaks = Leak::Always,
            Flaw::WaitsWithReadinessHeld => place.leaks = Leak::Always,
            Flaw::LeaksOnPanic => place.leaks = Leak::WhenPanicking,
            _ => {}
        }
        let mut ready = match self.flaw {
            Flaw::CallsAClone => self.inner.clone(),
            _ => self.take_ready(),
        };
        match self.flaw {
            Flaw::RetriesUnready => {
                let first = ready.call(ask.clone());
                Calling::new(self.flaw, Some(place), async move {
                    match first.await {
                        Err(_) => ready.call(ask).await,
                        answer => answer,
                    }
                })
            }
            Flaw::ReadiesAhead => {
                let mut next = self.inner.clone();
                let call = ready.call(ask);
                let ahead = Arc::clone(&self.taken);
                Calling::new(self.flaw, Some(place), async move {
                    let answer = call.await;
                    let _ = next.ready().await;
                    // Kept for the next call, which will not come.
                    std::mem::forget((next, ahead));
                    answer
                })
            }
            _ => Calling::new(self.flaw, Some(place), ready.call(ask)),
        }
    }
}

impl Broken {
    fn take_ready(&mut self) -> Stack {
        let clone = self.inner.clone();
        std::mem::replace(&mut self.inner, clone)
    }
}

fn rejection() -> BoxError {
    Rejected::new(Pattern::Bulkhead, Reason::Full, "broken").into()
}

/// The future of [`Broken`].
pub struct Calling {
    flaw: Flaw,
    future: Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>,
    place: Option<Place>,
    first_waker: Option<Waker>,
}

impl fmt::Debug for Calling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calling")
            .field("flaw", &self.flaw)
            .finish_non_exhaustive()
    }
}

impl Calling {
    fn new(
        flaw: Flaw,
        place: Option<Place>,
        future: impl Future<Output = Result<Answer, BoxError>> + Send + 'static,
    ) -> Self {
        Self {
            flaw,
            future: Box::pin(future),
            place,
            first_waker: None,
        }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, BoxError>> {
        match self.flaw {
            Flaw::LosesTheAnswer => self
                .future
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop())),
            Flaw::KeepsTheFirstWaker => {
                let first = self.first_waker.get_or_insert_with(|| cx.waker().clone());
                self.future.as_mut().poll(&mut Context::from_waker(first))
            }
            Flaw::SwallowsPanics => {
                let poll = || self.future.as_mut().poll(cx);
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll))
                    .unwrap_or_else(|_| Poll::Ready(Err(Fault::Refused.into())))
            }
            _ => self.future.as_mut().poll(cx),
        }
    }
}

impl Future for Calling {
    type Output = Result<Answer, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Poll::Ready(result) = self.poll_inner(cx) else {
            if self.flaw == Flaw::WakesItselfForAnswers {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        };
        let keeps = match self.flaw {
            Flaw::KeepsItsPlaceWithTheFuture => true,
            Flaw::WaitsWithReadinessHeld => result.is_err(),
            _ => false,
        };
        if !keeps && let Some(mut place) = self.place.take() {
            place.leaks = Leak::Never;
        }
        // What the call itself holds goes with it.
        self.future = Box::pin(std::future::pending());
        Poll::Ready(match (self.flaw, result) {
            (Flaw::WrapsErrors, Err(error)) => Err(format!("failed: {error}").into()),
            (_, result) => result,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leak {
    Never,
    WhenPanicking,
    Always,
}

/// One of the [`PLACES`].
struct Place {
    taken: Arc<AtomicUsize>,
    leaks: Leak,
}

impl Place {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let free = |taken| (taken < PLACES).then_some(taken + 1);
        taken.fetch_update(SeqCst, SeqCst, free).ok()?;
        Some(Self {
            taken: Arc::clone(taken),
            leaks: Leak::Never,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let leaks = match self.leaks {
            Leak::Never => false,
            Leak::WhenPanicking => std::thread::panicking(),
            Leak::Always => true,
        };
        if !leaks {
            self.taken.fetch_sub(1, SeqCst);
        }
    }
}
