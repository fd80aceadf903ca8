//! The decision about a call, and the state of its limits.

use std::{fmt, sync::Arc, time::Duration};

use super::plan::{MAX_LIMITS, Plan};
use crate::{
    error::{Pattern, Reason, Rejected},
    limit::{Quota, store::Standing, token_bucket::LimitOutcome},
};

/// The decision about one call: whether it is admitted, which limit binds it, and the state of all limits.
///
/// It describes the moment of the decision. The tokens of an admitted call are spent.
#[derive(Clone)]
pub struct Decision {
    pub(super) name: Arc<str>,
    pub(super) plan: Plan,
    pub(super) outcome: Decided,
    pub(super) by: DecidedBy,
    /// Denied, but only counted.
    pub(super) shadowed: bool,
    pub(super) standings: Option<Standings>,
}

/// The state of the limits of a plan, in its order.
pub(super) type Standings = [Standing; MAX_LIMITS];

pub(super) const NOTHING: Standing = Standing {
    remaining: 0,
    full_in: 0,
};

/// The outcome of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decided {
    /// By the limits of the plan.
    By(LimitOutcome),
    /// Admitted, without limits or by the outage policy.
    Open,
    /// Rejected by the outage policy.
    Closed,
}

/// The source of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DecidedBy {
    /// The plan has no limits.
    Unlimited,
    /// The store, for all instances.
    Store,
    /// This instance, from tokens that it has leased from the store.
    Lease,
    /// This instance, from its cache of recent denials by the store.
    Memory,
    /// This instance alone ([`Mode::Local`](super::Mode::Local)).
    Local,
    /// This instance by its share of the limit; the store is unavailable.
    LocalShare,
    /// The outage policy; the store is unavailable.
    Policy,
}

impl DecidedBy {
    /// All sources.
    pub const ALL: &[Self] = &[
        Self::Unlimited,
        Self::Store,
        Self::Lease,
        Self::Memory,
        Self::Local,
        Self::LocalShare,
        Self::Policy,
    ];

    /// A stable lower-case name, as metrics use it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unlimited => "unlimited",
            Self::Store => "store",
            Self::Lease => "lease",
            Self::Memory => "memory",
            Self::Local => "local",
            Self::LocalShare => "local_share",
            Self::Policy => "policy",
        }
    }
}

impl fmt::Display for DecidedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of one limit of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitStatus<'a> {
    /// The limit's name.
    pub name: &'a str,
    /// The quota of this subject.
    pub quota: Quota,
    /// Whole tokens left. For a lease: those of the store when it last answered, and those leased here; not those that
    /// other instances have leased and not used.
    pub remaining: u64,
    /// The time until it is full, if no tokens are taken meanwhile: the value of reset headers.
    pub full_in: Duration,
}

impl Decision {
    /// Whether the call is admitted. In shadow mode every call is.
    #[must_use]
    pub const fn is_admitted(&self) -> bool {
        self.shadowed || self.would_admit()
    }

    /// Whether the call would have been rejected, and is admitted because the handle is in shadow mode.
    #[must_use]
    pub const fn is_shadowed(&self) -> bool {
        self.shadowed
    }

    /// The source of the decision.
    #[must_use]
    pub const fn decided_by(&self) -> DecidedBy {
        self.by
    }

    /// The time until the same call would pass, if no tokens are taken meanwhile: zero if it is admitted, `None` if it
    /// never can be, or if that is not known because the store is unavailable. Shadow mode changes nothing here.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self.outcome {
            Decided::By(LimitOutcome::Admitted { .. }) | Decided::Open => Some(Duration::ZERO),
            Decided::By(LimitOutcome::Wait { micros, .. }) => Some(Duration::from_micros(micros)),
            Decided::By(LimitOutcome::Impossible { .. }) | Decided::Closed => None,
        }
    }

    /// The limit with the longest wait, or the one that more calls like this one would exhaust first. `None` if there are
    /// no limits, or their state is not known.
    #[must_use]
    pub fn binding(&self) -> Option<LimitStatus<'_>> {
        self.limits().nth(self.binding_position()?)
    }

    /// The state of all limits, in the order of the plan; empty if it is not known.
    pub fn limits(&self) -> impl Iterator<Item = LimitStatus<'_>> {
        let standings = self.standings.as_ref().map_or(&[][..], |all| &all[..]);
        let limits = self.plan.as_slice().iter().zip(standings);
        limits.map(|(limit, standing)| LimitStatus {
            name: &limit.name,
            quota: limit.quota,
            remaining: standing.remaining,
            full_in: Duration::from_micros(standing.full_in),
        })
    }

    /// The rejection, if the call is not admitted.
    #[must_use]
    pub fn rejected(&self) -> Option<Rejected> {
        if self.is_admitted() {
            return None;
        }
        let rejected = Rejected::new(Pattern::RateLimit, self.reason()?, Arc::clone(&self.name));
        Some(match self.retry_after() {
            Some(wait) => rejected.with_retry_after(wait),
            None => rejected,
        })
    }

    /// The decision, or the rejection.
    ///
    /// # Errors
    /// [`Reason::RateLimited`] with the exact wait, [`Reason::TooCostly`], or [`Reason::StoreUnreachable`].
    pub fn into_result(self) -> Result<Self, Rejected> {
        match self.rejected() {
            Some(rejected) => Err(rejected),
            None => Ok(self),
        }
    }

    /// The reason of the denial, in shadow mode too.
    pub(super) const fn reason(&self) -> Option<Reason> {
        match self.outcome {
            Decided::By(LimitOutcome::Wait { .. }) => Some(Reason::RateLimited),
            Decided::By(LimitOutcome::Impossible { .. }) => Some(Reason::TooCostly),
            Decided::Closed => Some(Reason::StoreUnreachable),
            Decided::By(LimitOutcome::Admitted { .. }) | Decided::Open => None,
        }
    }

    pub(super) const fn would_admit(&self) -> bool {
        self.reason().is_none()
    }

    pub(super) const fn binding_position(&self) -> Option<usize> {
        match self.outcome {
            Decided::By(
                LimitOutcome::Admitted { binding }
                | LimitOutcome::Wait { binding, .. }
                | LimitOutcome::Impossible { binding },
            ) => Some(binding),
            Decided::Open | Decided::Closed => None,
        }
    }
}

impl fmt::Debug for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decision")
            .field("name", &self.name)
            .field("outcome", &self.outcome)
            .field("by", &self.by)
            .field("shadowed", &self.shadowed)
            .field("limits", &self.limits().collect::<Vec<_>>())
            .finish()
    }
}
