//! The wait of a caller for the inner service to become ready.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// Maximum time between the end of a wait and the poll of the same waiter. A later poll is from another caller, which
/// has not waited yet.
const PROMPT: Duration = Duration::from_millis(100);

/// One wait for readiness. Exists only while the inner service is not ready, hence the box.
pub(super) struct Wait {
    timer: Pin<Box<Sleep>>,
    waiter: Waker,
}

impl Wait {
    pub(super) fn start(cx: &Context<'_>, until: Instant) -> Self {
        Self {
            timer: Box::pin(sleep_until(until)),
            waiter: cx.waker().clone(),
        }
    }

    /// Ready when this waiter has waited until `until`. A new waiter that finds the wait of an earlier one gets its full
    /// time.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        let due = self.timer.deadline();
        let now = Instant::now();
        let other_task = now < due && !self.waiter.will_wake(cx.waker());
        let long_gone = now > due + PROMPT;
        if other_task || long_gone {
            self.timer.as_mut().reset(until);
            self.waiter.clone_from(cx.waker());
        }
        // The inner service may have spent the task's cooperative budget; the wait ends nevertheless.
        Pin::new(&mut tokio::task::unconstrained(self.timer.as_mut())).poll(cx)
    }
}
