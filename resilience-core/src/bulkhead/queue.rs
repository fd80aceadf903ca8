//! A call in the queue.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Permit, semaphore::Ticket, shared::Shared};
use crate::{
    deadline,
    error::{Reason, Rejected},
    stripe::Local,
};

pin_project! {
    /// A ticket on its way to a permit.
    pub(super) struct Wait {
        shared: Local<Shared>,
        ticket: Ticket,
        until: Instant,
        // Made when it is first polled: making one asks for a runtime.
        #[pin]
        timer: Option<Sleep>,
        // Whether the ticket has been turned in.
        over: bool,
    }

    impl PinnedDrop for Wait {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if !*this.over && !this.shared.semaphore.cancel(*this.ticket) {
                // The place came, and nobody came for it.
                drop(Permit { shared: this.shared.clone(), since: 0 });
            }
        }
    }
}

impl Wait {
    pub(super) fn new(shared: Local<Shared>, ticket: Ticket) -> Self {
        Self {
            until: give_up_at(shared.max_wait),
            shared,
            ticket,
            timer: None,
            over: false,
        }
    }
}

/// When a wait ends that begins now.
pub(super) fn give_up_at(max_wait: Duration) -> Instant {
    let now = Instant::now();
    let until = now.checked_add(max_wait).unwrap_or(now + FOREVER);
    match deadline::current() {
        Some(deadline) => {
            let last = deadline.instant().checked_sub(BEFORE_DEADLINE);
            until.min(last.unwrap_or(now))
        }
        None => until,
    }
}

/// A wait ends this much before the deadline of the call, which is one tick of tokio's timers: whoever guards the
/// deadline further out must hear "no place", not run into a timeout of its own and blame the dependency for it.
const BEFORE_DEADLINE: Duration = Duration::from_millis(1);
/// As tokio has it: 30 years.
const FOREVER: Duration = Duration::from_secs(86_400 * 365 * 30);

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
        // The place may have come between the look at the queue and the end of the timer: then it is kept.
        if waits && semaphore.cancel(*this.ticket) {
            return Poll::Ready(Err(this.shared.reject(Reason::QueueTimedOut)));
        }
        Poll::Ready(Ok(Permit::measured(this.shared.clone())))
    }
}
