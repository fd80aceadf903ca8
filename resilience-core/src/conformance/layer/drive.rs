//! Driving futures by hand, and catching those that never rest.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use tower::Service;

/// A future that is polled when the test says so, with wakers that count.
pub struct Driven<F: Future> {
    future: Pin<Box<F>>,
    alarm: Arc<Alarm>,
    heard: u32,
    polls: u32,
    output: Option<F::Output>,
}

impl<F: Future> std::fmt::Debug for Driven<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driven")
            .field("polls", &self.polls)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Alarm(AtomicU32);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// More polls than this between two things that happen, and a future is spinning.
const RESTLESS: u32 = 100;

impl<F: Future> Driven<F> {
    /// Takes charge of `future`; polls nothing yet.
    pub fn new(future: F) -> Self {
        Self {
            future: Box::pin(future),
            alarm: Arc::default(),
            heard: 0,
            polls: 0,
            output: None,
        }
    }

    /// Polls once, whether it was woken or not. `true` when it has finished; the output is kept.
    pub fn poll(&mut self) -> bool {
        if self.output.is_some() {
            return true;
        }
        self.heard = self.alarm.0.load(SeqCst);
        self.polls += 1;
        let waker = Waker::from(Arc::clone(&self.alarm));
        if let Poll::Ready(output) = self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.output = Some(output);
        }
        self.output.is_some()
    }

    /// Polls with a waker of its own, as after a move to another task; earlier wakers are worth nothing any more.
    pub fn poll_elsewhere(&mut self) -> bool {
        self.alarm = Arc::default();
        self.poll()
    }

    /// Whether it was woken since it was last polled.
    #[must_use]
    pub fn woken(&self) -> bool {
        self.alarm.0.load(SeqCst) != self.heard
    }

    /// Polls for as long as it is woken and lets other tasks run in between. `true` when it has finished; a future
    /// that never rests is left after a hundred polls.
    pub async fn run(&mut self) -> bool {
        if self.polls == 0 {
            self.poll();
        }
        let enough = self.polls + RESTLESS;
        loop {
            rest().await;
            if self.output.is_some() || !self.woken() || self.polls >= enough {
                return self.output.is_some();
            }
            self.poll();
        }
    }

    /// How often it was polled.
    #[must_use]
    pub fn polls(&self) -> u32 {
        self.polls
    }

    /// What it finished with. The future itself stays alive.
    pub fn output(&mut self) -> Option<&F::Output> {
        self.output.as_ref()
    }
}

/// Lets all other tasks of a current-thread runtime run until they wait.
pub async fn rest() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

/// Runs `future`, but panics when it is polled so often that it must be waking itself.
pub async fn bounded<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut polls = 0_u32;
    poll_fn(|cx| {
        polls += 1;
        assert!(polls < 20_000, "a future wakes itself in a loop");
        future.as_mut().poll(cx)
    })
    .await
}

/// Passes all on, but panics when it is asked for readiness so often that a task must be waking itself. A task of
/// someone else's, a buffer's worker, has no [`bounded`] around it.
#[derive(Clone, Debug)]
pub struct Restless<S> {
    inner: S,
    asked: u32,
}

impl<S> Restless<S> {
    /// Watches over `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner, asked: 0 }
    }
}

impl<S: Service<Req>, Req> Service<Req> for Restless<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.asked += 1;
        assert!(
            self.asked < 1_000,
            "a service that is not ready wakes its caller in a loop"
        );
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> S::Future {
        self.asked = 0;
        self.inner.call(request)
    }
}
