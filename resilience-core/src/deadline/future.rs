//! Future of the timeout: the inner future first, then the timer.

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};

use super::{
    Deadline,
    current::{Entered, current, earlier, enter},
    timeout::Shared,
};
use crate::{
    error::{Reason, ServiceError},
    stripe::Local,
};

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
                // An outer deadline that has just expired must read as expired here too.
                let _scope = enter(earlier(Some(*this.deadline), current()));
                this.state.set(State::Done);
            }
        }
    }
}

pin_project! {
    #[project = Projected]
    pub(super) enum State<F> {
        Running { #[pin] inner: F },
        Refused,
        Done,
    }
}

impl<F, E> ResponseFuture<F, E> {
    #[inline(always)]
    pub(super) fn new(state: State<F>, deadline: Deadline, shared: Local<Shared>) -> Self {
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
                // The response before the clock: one that is available at the deadline is kept. It is returned from
                // where it was written; ending the inner future first would move it.
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
        // An inner future that spends the task's cooperative budget on every poll must not hide the timer.
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
