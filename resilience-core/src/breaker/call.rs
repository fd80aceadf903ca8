//! One call that was let through.

use std::{fmt, mem};

use super::{
    config::Dropped,
    machine::{Outcome, Refusal},
    shared::Shared,
    word::Permit,
};
use crate::{
    classify::Verdict,
    clock::Moment,
    deadline::{self, Deadline},
    error::Rejected,
    stripe::{Local, Striped},
    until::Guard,
};

/// A call that a breaker let through. [`Guard::settle`] tells how it ended.
///
/// Dropped unsettled, it counts as the breaker's [`Dropped`] policy says; as a failure if the current deadline has
/// passed, or in a panic. Either way what it holds (the probe of a half-open breaker) is given back.
#[must_use = "a call that is dropped at once says nothing"]
pub struct Call {
    shared: Local<Shared>,
    permit: Permit,
    /// When the call began, or was first waited for. Read only where it is needed.
    since: Option<Moment>,
    settled: bool,
}

impl Call {
    #[inline]
    pub(super) fn admit(breaker: &Striped<Shared>) -> Result<Self, Rejected> {
        Self::try_admit(breaker).map_err(|refusal| breaker.reject(refusal))
    }

    #[inline]
    pub(super) fn try_admit(breaker: &Striped<Shared>) -> Result<Self, Refusal> {
        Ok(Self {
            permit: breaker.admit()?,
            shared: breaker.local(),
            since: None,
            settled: false,
        })
    }

    /// The call begins: where its length or its age may matter, the time is taken.
    pub(super) fn begin(&mut self) {
        if self.shared.dropped() != Dropped::Ignored || self.shared.slow_after().is_some() {
            self.since = Some(self.shared.clock().now());
        }
    }

    /// The call begins, and may well end before anybody has to wait: only its length would be a reason to take the
    /// time.
    #[inline]
    pub(super) fn begin_in_layer(&mut self) {
        if self.shared.slow_after().is_some() {
            self.begin();
        }
    }

    /// Somebody has to wait for the call: if it is dropped, its age matters.
    #[inline]
    pub(super) fn wait(&mut self) {
        if self.since.is_none() && !self.settled {
            self.begin();
        }
    }

    #[inline]
    fn record(&mut self, outcome: Option<(bool, Option<std::time::Duration>)>) {
        let clock = self.shared.clock();
        let Some((failed, retry_after)) = outcome else {
            return self.shared.record(self.permit, None, || clock.now());
        };
        let mut outcome = Outcome {
            failed,
            slow: false,
            retry_after,
        };
        match self.shared.slow_after().zip(self.since) {
            None => self
                .shared
                .record(self.permit, Some(outcome), || clock.now()),
            Some((limit, since)) => {
                let now = clock.now();
                outcome.slow = now.since(since) >= limit;
                self.shared.record(self.permit, Some(outcome), || now);
            }
        }
    }

    #[cold]
    fn record_drop(&mut self) {
        let is_as_old_as = |bound| {
            let now = self.shared.clock().now();
            self.since.is_some_and(|since| now.since(since) >= bound)
        };
        if std::thread::panicking() || deadline_has_passed() {
            return self.record(Some((true, None)));
        }
        match self.shared.dropped() {
            Dropped::FailedAfter(bound) if is_as_old_as(bound) => self.record(Some((true, None))),
            Dropped::SlowAfter(bound) if is_as_old_as(bound) => {
                let clock = self.shared.clock();
                let slow = Outcome {
                    slow: true,
                    ..Outcome::default()
                };
                self.shared.record(self.permit, Some(slow), || clock.now());
            }
            _ => self.record(None),
        }
    }
}

impl Guard for Call {
    #[inline]
    fn settle(&mut self, verdict: Verdict) {
        if mem::replace(&mut self.settled, true) {
            return;
        }
        match verdict {
            Verdict::Success => self.record(Some((false, None))),
            Verdict::Transient { retry_after } => self.record(Some((true, retry_after))),
            Verdict::Permanent => self.record(Some((true, None))),
            Verdict::Ignored => self.record(None),
        }
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        if !self.settled {
            self.record_drop();
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("breaker", &self.shared.name())
            .field("settled", &self.settled)
            .finish_non_exhaustive()
    }
}

/// Whoever drops a call because its time is up does it with the deadline still in place.
fn deadline_has_passed() -> bool {
    deadline::current().is_some_and(Deadline::is_past)
}
