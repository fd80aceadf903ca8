//! One call that was let through.

use std::{fmt, mem, sync::Arc, time::Duration};

use super::{
    fleet::{Lease, StoreUnavailable},
    machine::Outcome,
    packed_state::AdmittedState,
    refusal::Refusal,
    settings::Dropped,
    shared::Shared,
};
use crate::{
    clock::Moment,
    completion::Guard,
    deadline::{self, Deadline},
    error::Rejected,
    stripe::{Local, Striped},
    verdict::Verdict,
};

/// A call that a breaker let through. [`Guard::settle`] tells how it ended.
///
/// Dropped unsettled, it counts as the breaker's [`Dropped`] policy says; as a failure if the current deadline has
/// passed, or in a panic. Either way what it holds (the probe of a half-open breaker) is given back.
#[must_use = "a call that is dropped at once says nothing"]
pub struct Permit {
    shared: Local<Shared>,
    /// [`AdmittedState::USED`] once the call is settled.
    permit: AdmittedState,
    /// When the call began, or was first waited for. Read only where it is needed.
    since: Since,
}

/// `Option<Moment>` in eight bytes: a call is moved about several times. No clock ever reads zero.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Since(Moment);

impl Since {
    const UNKNOWN: Self = Self(Moment::from_nanos(0));
}

// On the way of a call that passes, what a call is made of is handed on field by field, never by a pointer to it: so
// it can stay in registers until it is where it belongs.
impl Permit {
    /// If the breaker is plainly closed. The call may well end before anybody has to wait: only its length would be a
    /// reason to take the time now.
    #[inline(always)]
    pub(super) fn pass(breaker: &Striped<Shared>) -> Option<Self> {
        let permit = breaker.pass()?;
        let since = if breaker.slow_after().is_some() {
            now(breaker)
        } else {
            Since::UNKNOWN
        };
        Some(Self {
            permit,
            shared: breaker.local(),
            since,
        })
    }

    pub(super) fn admit(breaker: &Striped<Shared>) -> Result<Self, Rejected> {
        Self::try_admit(breaker).map_err(|refusal| breaker.reject(refusal))
    }

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
                    Err(StoreUnavailable) => shared.probe_alone(),
                }
            });
        }
        None
    }

    /// The call begins: where its length or its age may matter, the time is taken.
    pub(super) fn begin(&mut self) {
        if self.shared.dropped() != Dropped::Ignored || self.shared.slow_after().is_some() {
            self.since = now(&self.shared);
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

    /// The call has to be waited for: if it is dropped, its age matters.
    #[inline]
    pub(super) fn wait(&mut self) {
        if self.since == Since::UNKNOWN && !self.is_settled() {
            self.begin();
        }
    }

    #[inline]
    fn is_settled(&self) -> bool {
        self.permit == AdmittedState::USED
    }
}

impl Guard for Permit {
    #[inline(always)]
    fn settle(&mut self, verdict: Verdict) {
        if self.is_settled() {
            return;
        }
        let permit = mem::replace(&mut self.permit, AdmittedState::USED);
        match verdict {
            Verdict::Success => succeed(&self.shared, permit, self.since),
            Verdict::Transient { retry_after } => {
                fail(&self.shared, permit, self.since, retry_after);
            }
            Verdict::Permanent => fail(&self.shared, permit, self.since, None),
            Verdict::Ignored => ignore(&self.shared, permit),
        }
    }

    fn name(&self) -> Option<&Arc<str>> {
        Some(&self.shared.name)
    }
}

impl Drop for Permit {
    #[inline]
    fn drop(&mut self) {
        if !self.is_settled() {
            drop_unsettled(&self.shared, self.permit, self.since);
        }
    }
}

#[inline(never)]
fn now(breaker: &Shared) -> Since {
    Since(breaker.clock().now())
}

#[inline(never)]
fn succeed(breaker: &Shared, permit: AdmittedState, since: Since) {
    match breaker.slow_after() {
        None => breaker.record_success(permit, || breaker.clock().now()),
        Some(limit) => succeed_watched(breaker, permit, since, limit),
    }
}

/// A success that counts as slow if it took `limit` or longer.
fn succeed_watched(breaker: &Shared, permit: AdmittedState, since: Since, limit: Duration) {
    let now = breaker.clock().now();
    if since == Since::UNKNOWN || now.since(since.0) < limit {
        return breaker.record_success(permit, || now);
    }
    let slow = Outcome {
        slow: true,
        ..Outcome::default()
    };
    breaker.record(permit, Some(slow), || now);
}

#[inline(never)]
fn fail(breaker: &Shared, permit: AdmittedState, since: Since, retry_after: Option<Duration>) {
    let outcome = Outcome {
        failed: true,
        retry_after,
        ..Outcome::default()
    };
    record(breaker, permit, since, outcome);
}

#[inline(never)]
fn ignore(breaker: &Shared, permit: AdmittedState) {
    breaker.record(permit, None, || breaker.clock().now());
}

fn record(breaker: &Shared, permit: AdmittedState, since: Since, mut outcome: Outcome) {
    match breaker.slow_after() {
        Some(limit) if since != Since::UNKNOWN => {
            let now = breaker.clock().now();
            outcome.slow = now.since(since.0) >= limit;
            breaker.record(permit, Some(outcome), || now);
        }
        _ => breaker.record(permit, Some(outcome), || breaker.clock().now()),
    }
}

#[cold]
fn drop_unsettled(breaker: &Shared, permit: AdmittedState, since: Since) {
    if std::thread::panicking() || deadline_has_passed() {
        return fail(breaker, permit, since, None);
    }
    let is_as_old_as =
        |bound| since != Since::UNKNOWN && breaker.clock().now().since(since.0) >= bound;
    match breaker.dropped() {
        Dropped::FailedAfter(bound) if is_as_old_as(bound) => fail(breaker, permit, since, None),
        Dropped::SlowAfter(bound) if is_as_old_as(bound) => {
            let slow = Outcome {
                slow: true,
                ..Outcome::default()
            };
            breaker.record(permit, Some(slow), || breaker.clock().now());
        }
        _ => ignore(breaker, permit),
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("breaker", &self.shared.name())
            .field("settled", &self.is_settled())
            .finish_non_exhaustive()
    }
}

/// A call that is dropped because its time is up is dropped with the deadline still in place.
fn deadline_has_passed() -> bool {
    deadline::current().is_some_and(Deadline::is_past)
}
