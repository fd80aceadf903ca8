//! A call in the queue.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};

use super::{
    atomic_bucket::Refusal,
    held_tokens::HeldTokens,
    shared::{Denied, Shared, Ticket, Turn},
};
use crate::{
    admission::{Admission, Refused},
    error::Rejected,
};

pin_project! {
    /// A call that waits for its tokens. Dropping it leaves the queue.
    #[must_use = "futures do nothing unless polled"]
    pub struct WaitForTokens {
        shared: Arc<Shared>,
        ticket: Ticket,
        cost: u64,
        // Made when the call is first in the queue: making one needs a runtime.
        #[pin]
        timer: Option<Sleep>,
        // Whether the call has left the queue.
        over: bool,
    }

    impl PinnedDrop for WaitForTokens {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if !*this.over {
                this.shared.give_up(*this.ticket);
            }
        }
    }
}

/// Takes `cost` tokens for a call that has to wait or is rejected otherwise.
#[inline]
pub(super) fn admit(shared: &Arc<Shared>, cost: u64) -> Admission<HeldTokens, WaitForTokens> {
    match shared.pass(cost) {
        Ok(()) => Ok(HeldTokens::NONE),
        Err(refusal) => enqueue(shared, cost, refusal),
    }
}

#[cold]
fn enqueue(
    shared: &Arc<Shared>,
    cost: u64,
    refusal: Refusal,
) -> Admission<HeldTokens, WaitForTokens> {
    match shared.enqueue(cost, refusal) {
        Ok(()) => Ok(HeldTokens::NONE),
        Err(Denied::Queued(ticket)) => Err(Refused::wait(WaitForTokens {
            shared: Arc::clone(shared),
            ticket,
            cost,
            timer: None,
            over: false,
        })),
        Err(Denied::Rejected(rejected)) => Err(Refused::no(rejected)),
    }
}

impl Future for WaitForTokens {
    type Output = Result<HeldTokens, Rejected>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.shared.look(*this.ticket, *this.cost, cx.waker()) {
                Turn::Mine => {
                    *this.over = true;
                    let (shared, cost) = (Arc::clone(this.shared), *this.cost);
                    return Poll::Ready(Ok(HeldTokens::new(move || shared.refund(cost))));
                }
                Turn::Later => return Poll::Pending,
                Turn::At(moment) => {
                    let at = this.shared.settings.clock.instant(moment);
                    match this.timer.as_mut().as_pin_mut() {
                        Some(timer) => timer.reset(at),
                        None => this.timer.set(Some(sleep_until(at))),
                    }
                    if let Some(timer) = this.timer.as_mut().as_pin_mut() {
                        ready!(timer.poll(cx));
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for WaitForTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitForTokens")
            .field("cost", &self.cost)
            .finish_non_exhaustive()
    }
}
