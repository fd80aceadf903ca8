//! The service of the layer: asks the machine, calls the inner service.

use std::{
    fmt, mem,
    task::{Context, Poll, ready},
    time::Duration,
};

use tower_service::Service;

use super::{
    Permit,
    fleet::ProbeRequest,
    future::{ResponseFuture, State},
    readiness::Readiness,
    refusal::Refusal,
    shared::Shared,
};
use crate::{
    admission::take_ready,
    classify::{self, Classify},
    completion::{self, Completion, Guard},
    error::{Reason, Rejected, ServiceError},
    order,
    stripe::Striped,
};

/// A service behind a circuit breaker. From [`CircuitBreakerLayer`](super::CircuitBreakerLayer).
///
/// A clone is not ready and holds nothing. A call that was rejected because `poll_ready` found the breaker open is
/// rejected even if it has closed meanwhile: the inner service was not asked whether it is ready.
pub struct CircuitBreakerService<S, C = classify::Standard, U = completion::OnResponse> {
    inner: S,
    /// `poll_ready` has found the inner service ready, for the next call.
    inner_is_ready: bool,
    breaker: Striped<Shared>,
    classify: C,
    completion: U,
    mode: Mode<S>,
}

pub(super) enum Mode<S> {
    FailFast {
        /// Takes the service that was made ready and puts a fresh clone in its place.
        take: fn(&mut S) -> S,
    },
    Gate(Readiness),
}

impl<S> Mode<S> {
    pub(super) fn fail_fast() -> Self
    where
        S: Clone,
    {
        Self::FailFast { take: take_ready }
    }

    pub(super) fn gate() -> Self {
        Self::Gate(Readiness::default())
    }
}

impl<S, C, U> CircuitBreakerService<S, C, U> {
    pub(super) const fn new(
        inner: S,
        breaker: Striped<Shared>,
        classify: C,
        completion: U,
        mode: Mode<S>,
    ) -> Self {
        Self {
            inner,
            inner_is_ready: false,
            breaker,
            classify,
            completion,
            mode,
        }
    }

    /// The guarded service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The guarded service.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The guarded service, without the breaker.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// The inner service was made ready for a call that is not made.
    fn give_readiness_back(&mut self) {
        if let Mode::FailFast { take } = self.mode {
            drop(take(&mut self.inner));
        }
    }

    /// The breaker is not plainly closed. Pending: not now; ready with an error: the next call is to be rejected.
    #[cold]
    fn poll_breaker(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        match &mut self.mode {
            Mode::FailFast { .. } => Poll::Ready(self.breaker.check()),
            Mode::Gate(waiting) => waiting.poll(&self.breaker, cx).map(Ok),
        }
    }

    /// Any way in but the plain one. Behind a pointer: memory that this function writes to could not be registers
    /// for the calls that pass.
    #[cold]
    #[inline(never)]
    fn call_otherwise<Req>(&mut self, req: Req, inner_is_ready: bool) -> Box<State<S, Req>>
    where
        S: Service<Req>,
    {
        if !inner_is_ready {
            return Box::new(State::rejected(self.reject()));
        }
        Box::new(match Permit::try_admit(&self.breaker) {
            Ok(call) => State::calling_begun(&mut self.inner, req, call),
            Err(refusal) => self.call_refused(req, refusal),
        })
    }

    /// With one of the fleet's probes it may still be made.
    fn call_refused<Req>(&mut self, req: Req, refusal: Refusal) -> State<S, Req>
    where
        S: Service<Req>,
    {
        let inner = &mut self.inner;
        let req = match self.mode {
            Mode::FailFast { take } => {
                match ProbeRequest::start(&self.breaker, &refusal, req, || take(inner)) {
                    Ok(asking) => return State::asking(asking),
                    Err(req) => req,
                }
            }
            // Without a clone of the service there is nothing to wait with.
            Mode::Gate(_) => match Permit::admit_parked(&self.breaker, &refusal) {
                Some(call) => return State::calling_begun(inner, req, call),
                None => req,
            },
        };
        drop(req);
        self.give_readiness_back();
        State::rejected(self.breaker.reject(refusal))
    }

    #[cold]
    fn reject(&self) -> Rejected {
        let refusal = self.breaker.check().err().unwrap_or(Refusal {
            reason: Reason::Open,
            until: None,
            needs_lease: false,
            retry_after: Some(Duration::ZERO),
        });
        self.breaker.reject(refusal)
    }
}

impl<S, C, U, Req> Service<Req> for CircuitBreakerService<S, C, U>
where
    S: Service<Req>,
    S::Error: ServiceError,
    C: Classify<S::Response, S::Error> + Clone,
    U: Completion<S::Response, Permit>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, C, U>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if !self.breaker.is_plainly_closed() && ready!(self.poll_breaker(cx)).is_err() {
            if mem::take(&mut self.inner_is_ready) {
                self.give_readiness_back();
            }
            return Poll::Ready(Ok(()));
        }
        self.inner_is_ready = false;
        let readiness = ready!(self.inner.poll_ready(cx));
        match &readiness {
            Ok(()) => self.inner_is_ready = true,
            Err(error) => {
                let verdict = classify::judge(&self.classify, Err(error));
                if let Ok(mut call) = Permit::try_admit(&self.breaker) {
                    call.settle(verdict);
                }
            }
        }
        Poll::Ready(readiness)
    }

    #[inline(always)]
    fn call(&mut self, req: Req) -> Self::Future {
        let inner_is_ready = mem::take(&mut self.inner_is_ready);
        let call = if inner_is_ready {
            Permit::pass(&self.breaker)
        } else {
            None
        };
        let state = match call {
            Some(call) => State::calling(&mut self.inner, req, call),
            None => *self.call_otherwise(req, inner_is_ready),
        };
        ResponseFuture::new(state, self.classify.clone(), self.completion.clone())
    }
}

impl<S: Clone, C: Clone, U: Clone> Clone for CircuitBreakerService<S, C, U> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            inner_is_ready: false,
            breaker: self.breaker.clone(),
            classify: self.classify.clone(),
            completion: self.completion.clone(),
            mode: match self.mode {
                Mode::FailFast { take } => Mode::FailFast { take },
                Mode::Gate(_) => Mode::Gate(Readiness::default()),
            },
        }
    }
}

impl<S: fmt::Debug, C, U> fmt::Debug for CircuitBreakerService<S, C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _entered = order::enter(|| self.breaker.part());
        f.debug_struct("CircuitBreakerService")
            .field("breaker", &self.breaker.name())
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
