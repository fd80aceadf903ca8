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
    shared::{Denied, Shared, Ticket, Turn},
};
use crate::{
    admission::{Admission, Permit, Refused},
    completion::Guard,
    error::Rejected,
    verdict::Verdict,
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
        Ok(()) => Ok(HeldTokens(None)),
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
        Ok(()) => Ok(HeldTokens(None)),
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
                    let paid = Paid {
                        shared: Arc::clone(this.shared),
                        cost: *this.cost,
                    };
                    return Poll::Ready(Ok(HeldTokens(Some(Box::new(paid)))));
                }
                Turn::Later => return Poll::Pending,
                Turn::At(moment) => {
                    let at = this.shared.clock.instant(moment);
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

/// The permit of a call: the tokens of one that waited, until it is started. Dropped before, it puts them back. A call
/// that passes at once holds nothing.
#[must_use = "dropped, it puts the tokens back"]
pub struct HeldTokens(Option<Box<Paid>>);

struct Paid {
    shared: Arc<Shared>,
    cost: u64,
}

impl Guard for HeldTokens {
    #[inline(always)]
    fn settle(&mut self, _: Verdict) {}
}

impl Permit for HeldTokens {
    #[inline(always)]
    fn started(&mut self) {
        if self.0.is_some() {
            self.0 = None;
        }
    }
}

impl Drop for HeldTokens {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(paid) = self.0.take() {
            paid.shared.refund(paid.cost);
        }
    }
}

impl std::fmt::Debug for HeldTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held = self.0.as_ref().map_or(0, |paid| paid.cost);
        f.debug_tuple("HeldTokens").field(&held).finish()
    }
}
