//! Waiting in `poll_ready` until the breaker lets a call through.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    sync::futures::OwnedNotified,
    time::{Sleep, sleep_until},
};

use super::shared::Shared;
use crate::clock::Moment;

/// What a service waits with; nothing is allocated before the first wait. It is woken by the runtime's timer when
/// the breaker is due to change, and by the breaker when it has changed; it never wakes itself.
#[derive(Default)]
pub(super) struct Readiness {
    changed: Option<Pin<Box<OwnedNotified>>>,
    timer: Option<(Moment, Pin<Box<Sleep>>)>,
}

impl Readiness {
    /// Ready when a call made now would not be refused.
    pub(super) fn poll(&mut self, breaker: &Shared, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Err(refusal) = breaker.check() else {
                *self = Self::default();
                return Poll::Ready(());
            };
            let Some(changed) = &mut self.changed else {
                // Listening begins before the second look: no change can fall in between.
                let mut changed = Box::pin(Arc::clone(breaker.gate()).notified_owned());
                changed.as_mut().enable();
                self.changed = Some(changed);
                continue;
            };
            if changed.as_mut().poll(cx).is_ready() {
                self.changed = None;
                continue;
            }
            if self.time_is_up(breaker, refusal.until, cx) {
                self.timer = None;
                continue;
            }
            return Poll::Pending;
        }
    }

    fn time_is_up(
        &mut self,
        breaker: &Shared,
        until: Option<Moment>,
        cx: &mut Context<'_>,
    ) -> bool {
        let Some(until) = until else {
            self.timer = None;
            return false;
        };
        if self.timer.as_ref().is_none_or(|(end, _)| *end != until) {
            let sleep = sleep_until(breaker.clock().instant(until));
            self.timer = Some((until, Box::pin(sleep)));
        }
        let timer = self.timer.as_mut();
        timer.is_some_and(|(_, sleep)| sleep.as_mut().poll(cx).is_ready())
    }
}
