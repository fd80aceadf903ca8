//! One call that was let through.

use std::{fmt, mem, sync::Arc, time::Duration};

use super::{
    config::Dropped,
    fleet::{Lease, Unanswered},
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
    /// [`Permit::USED`] once the call is settled.
    permit: Permit,
    /// When the call began, or was first waited for. Read only where it is needed.
    since: Since,
}

/// `Option<Moment>` in eight bytes: a call is moved about several times. No clock ever reads zero.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Since(Moment);

impl Since {
    const UNKNOWN: Self = Self(Moment::from_nanos(0));
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
            since: Since::UNKNOWN,
        })
    }

    /// With one of the fleet's probes; `None` if the fleet has moved on.
    pub(super) fn admit_leased(breaker: &Striped<Shared>, lease: Lease) -> Option<Self> {
        Some(Self {
            permit: breaker.admit_leased(lease)?,
            shared: breaker.local(),
            since: Since::UNKNOWN,
        })
    }

    /// For a caller who cannot wait for the fleet: a probe that was left over, if there is one. If not, one is asked
    /// for, for the next such caller.
    pub(super) fn admit_parked(breaker: &Striped<Shared>, refusal: &Refusal) -> Option<Self> {
        let member = breaker.member().filter(|_| refusal.needs_lease)?;
        let now = breaker.clock().now();
        if let Some(lease) = breaker.probes().unpark(now) {
            return Self::admit_leased(breaker, lease);
        }
        if member.may_ask(now).is_ok() {
            let (member, shared) = (Arc::clone(member), Arc::downgrade(breaker.shared()));
            let runtime = member.runtime().clone();
            runtime.spawn(async move {
                let answer = member.ask().await;
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                match answer {
                    Ok(Some(lease)) => shared.probes().park(lease, shared.clock().now()),
                    Ok(None) => {}
                    Err(Unanswered) => shared.probe_alone(),
                }
            });
        }
        None
    }

    /// The call begins: where its length or its age may matter, the time is taken.
    pub(super) fn begin(&mut self) {
        if self.shared.dropped() != Dropped::Ignored || self.shared.slow_after().is_some() {
            self.since = Since(self.shared.clock().now());
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
        if self.since == Since::UNKNOWN && !self.is_settled() {
            self.begin();
        }
    }

    #[inline]
    fn is_settled(&self) -> bool {
        self.permit == Permit::USED
    }

    #[inline]
    fn record(&mut self, failed: bool, retry_after: Option<Duration>) {
        let permit = mem::replace(&mut self.permit, Permit::USED);
        let (breaker, clock) = (&*self.shared, self.shared.clock());
        let mut outcome = Outcome {
            failed,
            slow: false,
            retry_after,
        };
        match breaker.slow_after() {
            Some(limit) if self.since != Since::UNKNOWN => {
                let now = clock.now();
                outcome.slow = now.since(self.since.0) >= limit;
                breaker.record(permit, Some(outcome), || now);
            }
            _ => breaker.record(permit, Some(outcome), || clock.now()),
        }
    }

    fn record_nothing(&mut self) {
        let permit = mem::replace(&mut self.permit, Permit::USED);
        let clock = self.shared.clock();
        self.shared.record(permit, None, || clock.now());
    }

    fn record_slow(&mut self) {
        let permit = mem::replace(&mut self.permit, Permit::USED);
        let clock = self.shared.clock();
        let slow = Outcome {
            slow: true,
            ..Outcome::default()
        };
        self.shared.record(permit, Some(slow), || clock.now());
    }

    #[cold]
    fn record_drop(&mut self) {
        if std::thread::panicking() || deadline_has_passed() {
            return self.record(true, None);
        }
        let is_as_old_as = |bound| {
            let since = self.since;
            since != Since::UNKNOWN && self.shared.clock().now().since(since.0) >= bound
        };
        match self.shared.dropped() {
            Dropped::FailedAfter(bound) if is_as_old_as(bound) => self.record(true, None),
            Dropped::SlowAfter(bound) if is_as_old_as(bound) => self.record_slow(),
            _ => self.record_nothing(),
        }
    }
}

impl Guard for Call {
    #[inline]
    fn settle(&mut self, verdict: Verdict) {
        if self.is_settled() {
            return;
        }
        match verdict {
            Verdict::Success => self.record(false, None),
            Verdict::Transient { retry_after } => self.record(true, retry_after),
            Verdict::Permanent => self.record(true, None),
            Verdict::Ignored => self.record_nothing(),
        }
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        if !self.is_settled() {
            self.record_drop();
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("breaker", &self.shared.name())
            .field("settled", &self.is_settled())
            .finish_non_exhaustive()
    }
}

/// Whoever drops a call because its time is up does it with the deadline still in place.
fn deadline_has_passed() -> bool {
    deadline::current().is_some_and(Deadline::is_past)
}
