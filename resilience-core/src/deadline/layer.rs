//! Layer, service and future of the timeout.

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    Deadline,
    current::{Entered, current, earlier, enter},
    readiness::Wait,
    timeout::Shared,
};
use crate::{
    error::{Reason, ServiceError},
    stripe::{Local, Striped},
};

/// Chooses how long one call may take. Implemented by closures `Fn(&Req) -> Option<Duration>`.
pub trait PerRequest<Req> {
    /// The timeout of this call; `None` for the handle's own. Zero: there is no time left for it.
    fn timeout(&self, req: &Req) -> Option<Duration>;
}

impl<Req, F: Fn(&Req) -> Option<Duration>> PerRequest<Req> for F {
    fn timeout(&self, req: &Req) -> Option<Duration> {
        self(req)
    }
}

/// The default: every call may take what the handle says.
#[derive(Clone, Copy, Debug, Default)]
pub struct SameForAll;

impl<Req> PerRequest<Req> for SameForAll {
    #[inline]
    fn timeout(&self, _: &Req) -> Option<Duration> {
        None
    }
}

/// Bounds calls by a deadline and makes it visible to everything beneath. Made by
/// [`Timeout::layer`](super::Timeout::layer).
///
/// The inner service must be `Clone`: when a call is refused, a fresh clone takes the place of the inner service that
/// was made ready for it, or that is still waiting to become ready. What that one has reserved below (a place in a
/// `ConcurrencyLimit`, say) goes to a call that is made.
pub struct TimeoutLayer<P = SameForAll> {
    shared: Striped<Shared>,
    per_request: P,
    gate: bool,
}

impl<P> TimeoutLayer<P> {
    pub(super) const fn new(shared: Striped<Shared>, per_request: P) -> Self {
        Self {
            shared,
            per_request,
            gate: false,
        }
    }

    /// Lets `choose` say how long each call may take, shorter or longer than the handle's timeout. The deadline that
    /// a call comes in under still bounds it.
    #[must_use]
    pub fn per_request<Req, F>(self, choose: F) -> TimeoutLayer<F>
    where
        F: Fn(&Req) -> Option<Duration>,
    {
        TimeoutLayer {
            shared: self.shared,
            per_request: choose,
            gate: self.gate,
        }
    }

    /// Passes the inner service's readiness on as it is, however long it takes: for use under `tower::balance`,
    /// which must not take a service for ready that only means to refuse.
    #[must_use]
    pub fn gate(mut self) -> Self {
        self.gate = true;
        self
    }
}

impl<S: Clone, P: Clone> Layer<S> for TimeoutLayer<P> {
    type Service = TimeoutService<S, P>;

    fn layer(&self, inner: S) -> Self::Service {
        TimeoutService {
            inner,
            shared: self.shared.clone(),
            per_request: self.per_request.clone(),
            gate: self.gate,
            wait: None,
            refuse: false,
            renew: |inner| *inner = inner.clone(),
        }
    }
}

impl<P: Clone> Clone for TimeoutLayer<P> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            per_request: self.per_request.clone(),
            gate: self.gate,
        }
    }
}

impl<P> fmt::Debug for TimeoutLayer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeoutLayer")
            .field("name", &self.shared.name)
            .field("after", &self.shared.after)
            .field("gate", &self.gate)
            .finish_non_exhaustive()
    }
}

/// The service made by [`TimeoutLayer`].
pub struct TimeoutService<S, P = SameForAll> {
    inner: S,
    shared: Striped<Shared>,
    per_request: P,
    gate: bool,
    /// Set while the inner service keeps somebody waiting.
    wait: Option<Wait>,
    /// The wait was too long: answered as ready, to refuse the next call.
    refuse: bool,
    /// Puts a fresh clone in the place of an inner service that was made ready in vain.
    renew: fn(&mut S),
}

impl<S, P> TimeoutService<S, P> {
    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, to be changed in place.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    #[cold]
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.refuse {
            return Poll::Ready(());
        }
        let until = self.wait_until();
        let wait = self.wait.get_or_insert_with(|| Wait::start(cx, until));
        let polled = wait.poll_over(cx, until);
        if polled.is_ready() {
            self.wait = None;
            self.refuse = true;
        }
        polled
    }

    /// The call is not made: what the inner service has reserved for it, or waits for, is for others.
    #[cold]
    fn refuse(&mut self) {
        self.refuse = false;
        (self.renew)(&mut self.inner);
    }

    /// When somebody who starts to wait now has waited long enough.
    fn wait_until(&self) -> Instant {
        let outer = current();
        let clock = outer.map_or(self.shared.clock, Deadline::clock);
        let own = Deadline::at(clock.now() + self.shared.after, clock);
        outer.map_or(own, |outer| own.min(outer)).instant()
    }
}

/// A clone has waited for nothing yet.
impl<S: Clone, P: Clone> Clone for TimeoutService<S, P> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shared: self.shared.clone(),
            per_request: self.per_request.clone(),
            gate: self.gate,
            wait: None,
            refuse: false,
            renew: self.renew,
        }
    }
}

impl<S: fmt::Debug, P> fmt::Debug for TimeoutService<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeoutService")
            .field("inner", &self.inner)
            .field("name", &self.shared.name)
            .field("after", &self.shared.after)
            .field("gate", &self.gate)
            .finish_non_exhaustive()
    }
}

impl<S, P, Req> Service<Req> for TimeoutService<S, P>
where
    S: Service<Req>,
    S::Error: ServiceError,
    P: PerRequest<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, S::Error>;

    #[inline(always)]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match self.inner.poll_ready(cx) {
            Poll::Ready(ready) => {
                self.wait = None;
                self.refuse = false;
                Poll::Ready(ready)
            }
            Poll::Pending if self.gate => Poll::Pending,
            Poll::Pending => self.poll_wait(cx).map(Ok),
        }
    }

    #[inline(always)]
    fn call(&mut self, req: Req) -> Self::Future {
        let after = self.per_request.timeout(&req);
        let after = after.unwrap_or(self.shared.after);
        let outer = current();
        let clock = outer.map_or(self.shared.clock, Deadline::clock);
        let now = clock.now();
        let at = outer.map_or(now + after, |outer| outer.moment().min(now + after));
        let deadline = Deadline::at(at, clock);

        let shared = self.shared.local();

        if at <= now || self.refuse {
            self.refuse();
            return ResponseFuture::new(State::Refused, deadline, shared);
        }
        // Nothing that could panic may follow the inner call: on the way out its future would have to be dropped,
        // so it would have to be in memory, and be moved from there to where it is polled.
        let inner = {
            let _scope = enter(Some(deadline));
            self.inner.call(req)
        };
        ResponseFuture::new(State::Running { inner }, deadline, shared)
    }
}

pin_project! {
    /// The future of [`TimeoutService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, E> {
        #[pin]
        state: State<F>,
        // Made when the inner future is pending for the first time.
        #[pin]
        timer: Option<Sleep>,
        deadline: Deadline,
        shared: Local<Shared>,
        error: PhantomData<fn() -> E>,
    }

    impl<F, E> PinnedDrop for ResponseFuture<F, E> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if matches!(this.state.as_mut().project(), Projected::Running { .. }) {
                // An outer deadline that has just expired must be seen as such here too.
                let _scope = enter(earlier(Some(*this.deadline), current()));
                this.state.set(State::Done);
            }
        }
    }
}

pin_project! {
    #[project = Projected]
    enum State<F> {
        Running { #[pin] inner: F },
        Refused,
        Done,
    }
}

impl<F, E> ResponseFuture<F, E> {
    #[inline(always)]
    fn new(state: State<F>, deadline: Deadline, shared: Local<Shared>) -> Self {
        Self {
            state,
            timer: None,
            deadline,
            shared,
            error: PhantomData,
        }
    }
}

impl<F, T, E> Future for ResponseFuture<F, E>
where
    F: Future<Output = Result<T, E>>,
    E: ServiceError,
{
    type Output = Result<T, E>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        match this.state.as_mut().project() {
            Projected::Running { inner } => {
                let scope = enter(Some(*this.deadline));
                let polled = inner.poll(cx);
                // First the answer, then the clock: an answer that is there at the deadline is kept. It is handed on
                // from where it was written; ending the inner future first would mean to move it.
                if polled.is_ready() {
                    return polled;
                }
                drop(scope);
                std::task::ready!(poll_timer(this.timer, *this.deadline, cx));
                let _scope: Entered = enter(Some(this.deadline.expired()));
                this.state.set(State::Done);
                Poll::Ready(Err(this.shared.reject(Reason::TimedOut).into()))
            }
            Projected::Refused => {
                this.state.set(State::Done);
                Poll::Ready(Err(this.shared.reject(Reason::NoTimeLeft).into()))
            }
            Projected::Done => panic!("polled after completion"),
        }
    }
}

fn poll_timer(
    mut timer: Pin<&mut Option<Sleep>>,
    deadline: Deadline,
    cx: &mut Context<'_>,
) -> Poll<()> {
    if timer.is_none() {
        timer.set(Some(sleep_until(deadline.instant())));
    }
    match timer.as_mut().as_pin_mut() {
        // An inner future that spends the task's cooperative budget on every poll must not keep the timer from
        // being looked at.
        Some(timer) => Pin::new(&mut tokio::task::unconstrained(timer)).poll(cx),
        None => Poll::Pending,
    }
}

impl<F, E> fmt::Debug for ResponseFuture<F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
