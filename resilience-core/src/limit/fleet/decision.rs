//! What was decided about a call, and how its limits stand.

use std::{fmt, sync::Arc, time::Duration};

use super::plan::{MAX_LIMITS, Plan};
use crate::{
    error::{Pattern, Reason, Rejected},
    limit::{Quota, store::Standing, token_bucket::LimitOutcome},
};

/// The answer to one question: whether the call may go on, which limit binds it, and how all of them stand.
///
/// A ruling is a fact about the moment of the decision. Of an admitted call the tokens are spent.
#[derive(Clone)]
pub struct Decision {
    pub(super) name: Arc<str>,
    pub(super) plan: Plan,
    pub(super) outcome: Decided,
    pub(super) by: DecidedBy,
    /// Refused, but only counted.
    pub(super) shadowed: bool,
    pub(super) standings: Option<Standings>,
}

/// How the limits of a plan stand, in its order.
pub(super) type Standings = [Standing; MAX_LIMITS];

pub(super) const NOTHING: Standing = Standing {
    remaining: 0,
    full_in: 0,
};

/// Granted or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decided {
    /// By the limits of the plan.
    By(LimitOutcome),
    /// There is no limit, or nobody to ask, and the call goes on.
    Open,
    /// There is nobody to ask, and the call does not go on.
    Closed,
}

/// Who has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DecidedBy {
    /// The plan has no limits.
    Unlimited,
    /// The store, for all instances.
    Store,
    /// This instance, from tokens that it has leased of the store.
    Lease,
    /// This instance, which remembers that the store has just refused as much.
    Memory,
    /// This instance alone ([`Mode::Local`](super::Mode::Local)).
    Local,
    /// This instance by its share of the limit, as the store cannot be reached.
    LocalShare,
    /// Nobody: the store cannot be reached, and the handle's policy has the word.
    Policy,
}

impl DecidedBy {
    /// All of them.
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

/// How one limit of a subject stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitStatus<'a> {
    /// The limit's name.
    pub name: &'a str,
    /// What it allows this subject.
    pub quota: Quota,
    /// Whole tokens left. Of a lease: of the store's when it last answered, and of those leased here; those that
    /// other instances have leased and not used are not among them.
    pub remaining: u64,
    /// The time until it is full, if nobody takes anything: what reset headers tell.
    pub full_in: Duration,
}

impl Decision {
    /// Whether the call may go on. In shadow mode every call may.
    #[must_use]
    pub const fn is_admitted(&self) -> bool {
        self.shadowed || self.would_admit()
    }

    /// Whether the call would have been refused, and goes on because the handle is in shadow mode.
    #[must_use]
    pub const fn is_shadowed(&self) -> bool {
        self.shadowed
    }

    /// Who has decided.
    #[must_use]
    pub const fn decided_by(&self) -> DecidedBy {
        self.by
    }

    /// The time until the same call would pass, if nobody else takes anything: zero if it is granted, `None` if it
    /// never can be, or if nobody knows because the store cannot be reached. Shadow mode changes nothing here.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self.outcome {
            Decided::By(LimitOutcome::Admitted { .. }) | Decided::Open => Some(Duration::ZERO),
            Decided::By(LimitOutcome::Wait { micros, .. }) => Some(Duration::from_micros(micros)),
            Decided::By(LimitOutcome::Impossible { .. }) | Decided::Closed => None,
        }
    }

    /// The limit that refused the call for longest, or that more calls like this one would exhaust first. `None`
    /// if there are no limits, or nobody knows how they stand.
    #[must_use]
    pub fn binding(&self) -> Option<LimitStatus<'_>> {
        self.limits().nth(self.binding_position()?)
    }

    /// How all limits stand, in the order of the plan; none if nobody knows.
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

    /// The rejection, if the call may not go on.
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

    /// The ruling, or the rejection.
    ///
    /// # Errors
    /// [`Reason::RateLimited`] with the exact wait, [`Reason::TooCostly`], or [`Reason::StoreUnreachable`].
    pub fn into_result(self) -> Result<Self, Rejected> {
        match self.rejected() {
            Some(rejected) => Err(rejected),
            None => Ok(self),
        }
    }

    /// Why it was refused, in shadow mode too.
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
