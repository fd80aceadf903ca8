//! A call in the line.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};

use super::shared::{Shared, Ticket, Turn};

pin_project! {
    /// A ticket on its way to its tokens.
    pub(super) struct Wait {
        shared: Arc<Shared>,
        ticket: Ticket,
        cost: u64,
        // Made when it is first in line: making one asks for a runtime.
        #[pin]
        timer: Option<Sleep>,
        // Whether it is out of the line.
        over: bool,
    }

    impl PinnedDrop for Wait {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if !*this.over {
                this.shared.give_up(*this.ticket);
            }
        }
    }
}

impl Wait {
    pub(super) const fn new(shared: Arc<Shared>, ticket: Ticket, cost: u64) -> Self {
        Self {
            shared,
            ticket,
            cost,
            timer: None,
            over: false,
        }
    }
}

impl Future for Wait {
    type Output = HeldTokens;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<HeldTokens> {
        let mut this = self.project();
        loop {
            match this.shared.look(*this.ticket, *this.cost, cx.waker()) {
                Turn::Mine => {
                    *this.over = true;
                    return Poll::Ready(HeldTokens {
                        shared: Some(Arc::clone(this.shared)),
                        cost: *this.cost,
                    });
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

/// Tokens that were taken for a call that is not made yet: dropped before, they go back.
pub(super) struct HeldTokens {
    shared: Option<Arc<Shared>>,
    cost: u64,
}

impl HeldTokens {
    /// The call is made.
    pub(super) fn spend(mut self) {
        self.shared = None;
    }
}

impl Drop for HeldTokens {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.refund(self.cost);
        }
    }
}
