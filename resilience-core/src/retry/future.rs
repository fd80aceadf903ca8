//! The future of one call: attempts, and the waits between them.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower_service::Service;

use super::{
    Delays, Replay, attempt,
    builder::Shared,
    layer::Core,
    machine::{Decision, Outcome, Resources},
};
use crate::{
    classify::{Classify, judge},
    deadline::{self, Deadline},
    error::ServiceError,
    stripe::Local,
    verdict::Verdict,
};

pin_project! {
    /// The future of [`RetryService`](super::RetryService).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, C, R, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S::Future>,
        core: Local<Core<S, C, R>>,
        // The copy of the request for the next attempt.
        spare: Option<Req>,
        // The service of later attempts.
        service: Option<S>,
        call: Call,
    }

    impl<S, C, R, Req> PinnedDrop for ResponseFuture<S, C, R, Req>
    where
        S: Service<Req>,
    {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // Dropped between two attempts: the second was paid for and not made.
            this.call.abandon(&this.core.shared);
        }
    }
}

pin_project! {
    #[project = Projected]
    enum State<F> {
        Calling { #[pin] attempt: F },
        Sleeping { #[pin] sleep: Sleep },
        Readying,
        Done,
    }
}

/// State of the call across its attempts.
struct Call {
    attempt: u32,
    /// An attempt has reached the dependency.
    sent: bool,
    token: Token,
    deadline: Option<Deadline>,
    delays: Option<Delays>,
}

/// One retry out of the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// Not needed, or used up.
    None,
    /// Taken out for the attempt that comes next.
    Held,
    /// Used by the attempt in progress.
    Spent,
}

impl<S, C, R, Req> ResponseFuture<S, C, R, Req>
where
    S: Service<Req>,
{
    #[inline(always)]
    pub(super) fn new(attempt: S::Future, core: Local<Core<S, C, R>>, spare: Option<Req>) -> Self {
        let call = Call {
            attempt: 1,
            sent: false,
            token: Token::None,
            deadline: deadline::current(),
            delays: None,
        };
        Self {
            state: State::Calling { attempt },
            core,
            spare,
            service: None,
            call,
        }
    }
}

impl<S, C, R, Req> Future for ResponseFuture<S, C, R, Req>
where
    S: Service<Req> + Clone,
    S::Error: ServiceError,
    C: Classify<S::Response, S::Error>,
    R: Replay<Req>,
{
    type Output = Result<S::Response, S::Error>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                Projected::Calling { attempt } => {
                    let polled = {
                        let _attempt = attempt::enter(this.call.attempt);
                        attempt.poll(cx)
                    };
                    let Poll::Ready(result) = &polled else {
                        return Poll::Pending;
                    };
                    let outcome = outcome(&this.core.classifier, result.as_ref());
                    let replayable = this.spare.is_some();
                    let Some(wait) = this.call.settle(&this.core.shared, outcome, replayable)
                    else {
                        return polled;
                    };
                    // The failed response may hold a connection, the attempt's future a permit: both are dropped before
                    // the wait.
                    drop(polled);
                    this.state.set(if wait.is_zero() {
                        State::Readying
                    } else {
                        State::Sleeping { sleep: sleep(wait) }
                    });
                }
                Projected::Sleeping { sleep } => {
                    ready!(sleep.poll(cx));
                    this.state.set(State::Readying);
                }
                Projected::Readying => {
                    let service = this.service.get_or_insert_with(|| this.core.service());
                    if let Err(error) = ready!(service.poll_ready(cx)) {
                        this.call.abandon(&this.core.shared);
                        this.state.set(State::Done);
                        return Poll::Ready(Err(error));
                    }
                    let req = this
                        .spare
                        .take()
                        .expect("a retry is decided on only with a copy to send");
                    let req = this.call.next(this.core, req, this.spare);
                    let attempt = {
                        let _attempt = attempt::enter(this.call.attempt);
                        service.call(req)
                    };
                    this.state.set(State::Calling { attempt });
                }
                Projected::Done => panic!("polled after completion"),
            }
        }
    }
}

#[inline]
fn outcome<C, T, E>(classifier: &C, result: Result<&T, &E>) -> Outcome
where
    C: Classify<T, E>,
    E: ServiceError,
{
    let verdict = judge(classifier, result);
    if verdict == Verdict::Ignored
        && let Some(rejected) = result.err().and_then(ServiceError::as_rejected)
    {
        return Outcome::Rejected {
            retry_after: rejected.retry_after(),
        };
    }
    Outcome::Judged(verdict)
}

impl Call {
    /// Records how an attempt ended. Returns the wait before another attempt, if there is to be one.
    #[inline]
    fn settle(&mut self, shared: &Shared, outcome: Outcome, replayable: bool) -> Option<Duration> {
        if let Outcome::Judged(verdict) = outcome {
            if !self.sent {
                self.sent = true;
                shared.calls.increment();
            }
            if !verdict.is_failure() {
                return None;
            }
        }
        self.settle_failure(shared, outcome, replayable)
    }

    #[cold]
    fn settle_failure(
        &mut self,
        shared: &Shared,
        outcome: Outcome,
        replayable: bool,
    ) -> Option<Duration> {
        if matches!(outcome, Outcome::Rejected { .. }) && self.token == Token::Spent {
            shared.budget.refund();
        }
        self.token = Token::None;
        let attempt = self.attempt;
        let decision = shared.rules.decide(
            attempt,
            outcome,
            replayable,
            &mut CallResources { call: self, shared },
        );
        shared.decided(decision, attempt);
        match decision {
            Decision::Retry { wait } => Some(wait),
            Decision::Return | Decision::GiveUp(_) => None,
        }
    }

    /// Turns the copy of the request into that of the next attempt, and makes a new copy.
    fn next<S, C, R: Replay<Req>, Req>(
        &mut self,
        core: &Core<S, C, R>,
        mut req: Req,
        spare: &mut Option<Req>,
    ) -> Req {
        self.attempt += 1;
        if self.token == Token::Held {
            self.token = Token::Spent;
        }
        if self.attempt < core.shared.rules.max_attempts {
            *spare = core.replay.replay(&req);
        }
        core.replay.set_attempt(&mut req, self.attempt);
        core.shared.retried();
        req
    }

    /// Refunds an attempt that is not made.
    #[inline]
    fn abandon(&mut self, shared: &Shared) {
        if self.token == Token::Held {
            self.token = Token::None;
            shared.budget.refund();
        }
    }
}

/// Resources of a decision about this call.
struct CallResources<'a> {
    call: &'a mut Call,
    shared: &'a Shared,
}

impl Resources for CallResources<'_> {
    fn next_delay(&mut self) -> Option<Duration> {
        self.call
            .delays
            .get_or_insert_with(|| self.shared.backoff.delays())
            .next()
    }

    fn time_left(&mut self) -> Option<Duration> {
        self.call.deadline.map(Deadline::remaining)
    }

    fn pay(&mut self) -> bool {
        // Until the dependency has seen the call, the next attempt is no additional load.
        if !self.call.sent {
            return true;
        }
        let paid = self.shared.budget.withdraw();
        if paid {
            self.call.token = Token::Held;
        }
        paid
    }
}

impl<S: Service<Req>, C, R, Req> fmt::Debug for ResponseFuture<S, C, R, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture")
            .field("attempt", &self.call.attempt)
            .finish_non_exhaustive()
    }
}
