//! A call that waits in the queue.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{permit::Permit, semaphore::Ticket, shared::Shared};
use crate::{
    deadline::before_deadline,
    error::{Reason, Rejected},
    stripe::Local,
};

pin_project! {
    /// Wait for a permit in the queue of a bulkhead. Dropping it leaves the queue, or gives the
    /// permit back.
    #[must_use = "futures do nothing unless polled"]
    pub struct Wait {
        shared: Local<Shared>,
        ticket: Ticket,
        until: Instant,
        // Created by the first poll, since a timer needs a runtime.
        #[pin]
        timer: Option<Sleep>,
        // Whether the ticket was exchanged for a permit or a rejection.
        over: bool,
    }

    impl PinnedDrop for Wait {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if !*this.over && !this.shared.semaphore.cancel(*this.ticket) {
                // The permit was granted in the meantime: give it back.
                drop(Permit::unmeasured(this.shared.clone()));
            }
        }
    }
}

impl Wait {
    pub(super) fn new(shared: Local<Shared>, ticket: Ticket) -> Self {
        Self {
            until: before_deadline(shared.max_wait),
            shared,
            ticket,
            timer: None,
            over: false,
        }
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait")
            .field("bulkhead", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl Future for Wait {
    type Output = Result<Permit, Rejected>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let semaphore = &this.shared.semaphore;
        let waits = semaphore.still_waits(*this.ticket, |waker| match waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        });
        if waits {
            if this.timer.is_none() {
                this.timer.set(Some(sleep_until(*this.until)));
            }
            if let Some(timer) = this.timer.as_mut().as_pin_mut() {
                ready!(timer.poll(cx));
            }
        }
        *this.over = true;
        // A permit granted between the look at the queue and the end of the timer is kept.
        if waits && semaphore.cancel(*this.ticket) {
            return Poll::Ready(Err(this.shared.reject(Reason::QueueTimedOut)));
        }
        Poll::Ready(Ok(Permit::measured(this.shared.clone())))
    }
}
