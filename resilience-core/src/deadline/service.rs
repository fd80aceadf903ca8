//! Service of the timeout: readiness, and the start of a call.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tower_service::Service;

use super::{
    Deadline, PerRequest, ResponseFuture, SameForAll,
    current::{current, enter},
    future::State,
    layer::Form,
    readiness::Wait,
    timeout::Shared,
};
use crate::{
    error::{Pattern, ServiceError},
    order::{self, Part, setting},
    stripe::Striped,
};

/// Service with a deadline for each call. Made by [`TimeoutLayer`](super::TimeoutLayer).
pub struct TimeoutService<S, P = SameForAll> {
    inner: S,
    shared: Striped<Shared>,
    per_request: P,
    form: Form,
    /// Set while a caller waits for the inner service.
    wait: Option<Wait>,
    /// The wait was too long: reported ready, to reject the next call.
    refuse: bool,
    /// Replaces the inner service by a fresh clone.
    renew: fn(&mut S),
}

impl<S, P> TimeoutService<S, P> {
    pub(super) fn new(inner: S, shared: Striped<Shared>, per_request: P, form: Form) -> Self
    where
        S: Clone,
    {
        Self {
            inner,
            shared,
            per_request,
            form,
            wait: None,
            refuse: false,
            renew: |inner| *inner = inner.clone(),
        }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, mutable.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    fn part(&self) -> Part {
        let form = self.form;
        Part::new(Pattern::Deadline, Arc::clone(&self.shared.name))
            .set(setting::AFTER, self.shared.after)
            .set_some(setting::PER_REQUEST, form.per_request.then_some(true))
            .set_some(setting::PER_ATTEMPT, form.per_attempt.then_some(true))
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

    /// Releases what the inner service has reserved for a call that is not made.
    #[cold]
    fn refuse(&mut self) {
        self.refuse = false;
        (self.renew)(&mut self.inner);
    }

    /// The end of a wait for readiness that begins now.
    fn wait_until(&self) -> Instant {
        let outer = current();
        let clock = outer.map_or(self.shared.clock, Deadline::clock);
        let own = Deadline::at(clock.now() + self.shared.after, clock);
        outer.map_or(own, |outer| own.min(outer)).instant()
    }
}

/// A clone has not waited yet.
impl<S: Clone, P: Clone> Clone for TimeoutService<S, P> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shared: self.shared.clone(),
            per_request: self.per_request.clone(),
            form: self.form,
            wait: None,
            refuse: false,
            renew: self.renew,
        }
    }
}

impl<S: fmt::Debug, P> fmt::Debug for TimeoutService<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _entered = order::enter(|| self.part());
        f.debug_struct("TimeoutService")
            .field("inner", &self.inner)
            .field("name", &self.shared.name)
            .field("after", &self.shared.after)
            .field("form", &self.form)
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
            Poll::Pending if self.form.gate => Poll::Pending,
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
        // Nothing that could panic may follow the inner call: unwinding would have to drop its future, so it would be
        // written to memory here and moved again to where it is polled.
        let inner = {
            let _scope = enter(Some(deadline));
            self.inner.call(req)
        };
        ResponseFuture::new(State::Running { inner }, deadline, shared)
    }
}
