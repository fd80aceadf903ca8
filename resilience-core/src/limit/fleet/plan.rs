//! Plans: sets of limits, and the table of subjects and their plans.

use std::{fmt, sync::Arc};

use crate::{
    error::InvalidConfig,
    keyed::{Map, map},
    limit::Quota,
};

/// The maximum number of limits of a plan.
pub const MAX_LIMITS: usize = 8;

/// The limits of a subject, all of which a call has to pass: per second *and* per day, requests *and* bytes.
///
/// A plan without limits admits everything and needs no store. Cloning is cheap: a thousand tenants on one plan share
/// it.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Quota, limit::fleet::Plan};
///
/// let trial = Plan::new()
///     .limit("per-second", Quota::per(5, Duration::from_secs(1))?)?
///     .limit("per-day", Quota::per(1_000, Duration::from_secs(86_400))?)?;
/// assert_eq!(trial.limits().count(), 2);
/// # Ok::<(), resilience_core::InvalidConfig>(())
/// ```
#[derive(Clone)]
pub struct Plan(Arc<[Limit]>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) name: Arc<str>,
    pub(super) quota: Quota,
}

impl Plan {
    /// A plan without limits.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new([]))
    }

    /// Adds a limit. Costs, decisions and metrics refer to it by its name, and the store keeps its bucket under it:
    /// plans that differ in the quota of a limit of one name share its tokens.
    ///
    /// # Errors
    /// When the name is taken already, or the plan is full ([`MAX_LIMITS`]).
    pub fn limit(self, name: impl Into<Arc<str>>, quota: Quota) -> Result<Self, InvalidConfig> {
        let name = name.into();
        if self.find(&name).is_some() {
            return Err(InvalidConfig::new("limit", name, "is in the plan already"));
        }
        if self.0.len() == MAX_LIMITS {
            return Err(InvalidConfig::new(
                "limit",
                name,
                "is one too many: a plan has eight at most",
            ));
        }
        let more = std::iter::once(Limit { name, quota });
        Ok(Self(self.0.iter().cloned().chain(more).collect()))
    }

    /// The limits, in the order in which they were added.
    #[must_use]
    pub fn limits(&self) -> impl ExactSizeIterator<Item = (&str, Quota)> {
        self.0.iter().map(|limit| (&*limit.name, limit.quota))
    }

    /// Whether it has no limits.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|limit| *limit.name == *name)
    }

    pub(super) fn as_slice(&self) -> &[Limit] {
        &self.0
    }

    /// Whether the plans are equal; compares the addresses first.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        self.is(other)
    }
}

impl Eq for Plan {}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.limits()).finish()
    }
}

/// A table of subjects and their plans that can be changed while it is in use.
///
/// Clones share the table. Looking up takes no lock. A change holds for every decision from then on; tokens that a
/// subject has left stay, as far as the new plan can hold them, and are gained at the new rate.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{Quota, limit::fleet::{Plan, Plans}};
///
/// let plans = Plans::new();
/// let gold = Plan::new().limit("per-second", Quota::per(1_000, Duration::from_secs(1))?)?;
/// plans.set("tenant-7", gold.clone());
/// assert_eq!(plans.get("tenant-7"), Some(gold));
/// # Ok::<(), resilience_core::InvalidConfig>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plans(Arc<Map<Box<str>, Plan>>);

impl Plans {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(map()))
    }

    /// Gives `subject` this plan from now on.
    pub fn set(&self, subject: impl Into<Box<str>>, plan: Plan) {
        self.0.pin().insert(subject.into(), plan);
    }

    /// Removes `subject` from the table: it has the handle's own plan again.
    pub fn remove(&self, subject: &str) {
        self.0.pin().remove(subject);
    }

    /// Replaces the content of the table. Each subject changes from its old plan to its new one in one step; the table
    /// as a whole does not.
    pub fn replace(&self, all: impl IntoIterator<Item = (Box<str>, Plan)>) {
        let table = self.0.pin();
        let mut known = std::collections::HashSet::new();
        for (subject, plan) in all {
            known.insert(subject.clone());
            table.insert(subject, plan);
        }
        table.retain(|subject, _| known.contains(subject));
    }

    /// The plan of `subject`, if it is in the table.
    #[must_use]
    pub fn get(&self, subject: &str) -> Option<Plan> {
        self.0.pin().get(subject).cloned()
    }

    /// The number of subjects in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for Plans {
    fn default() -> Self {
        Self::new()
    }
}

/// The source of the plan of a subject.
pub(super) enum Source {
    Table(Plans),
    By(Box<PlanOf>),
}

pub(super) type PlanOf = dyn Fn(&str) -> Option<Plan> + Send + Sync;

impl Source {
    pub(super) fn of(&self, subject: &str) -> Option<Plan> {
        match self {
            Self::Table(plans) => plans.get(subject),
            Self::By(plan_of) => plan_of(subject),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn second(permits: u64) -> Quota {
        Quota::per(permits, Duration::from_secs(1)).unwrap()
    }

    #[test]
    fn a_name_that_is_taken_and_a_limit_too_many_are_refused() {
        let plan = Plan::new().limit("a", second(1)).unwrap();
        let twice = plan.clone().limit("a", second(2)).unwrap_err();
        assert!(twice.to_string().contains("already"), "{twice}");
        let names = ["b", "c", "d", "e", "f", "g", "h"];
        let full = names
            .iter()
            .fold(plan, |plan, name| plan.limit(*name, second(1)).unwrap());
        assert_eq!(full.limits().len(), MAX_LIMITS);
        assert_eq!(full.limit("i", second(1)).unwrap_err().field(), "limit");
    }

    #[test]
    fn a_table_that_is_replaced_forgets_who_is_not_in_it() {
        let plans = Plans::new();
        let plan = |permits| Plan::new().limit("a", second(permits)).unwrap();
        plans.set("x", plan(1));
        plans.set("y", plan(1));
        plans.replace([("y".into(), plan(2)), ("z".into(), plan(3))]);
        assert_eq!(plans.get("x"), None);
        assert_eq!(plans.get("y"), Some(plan(2)));
        assert_eq!(plans.len(), 2);
        plans.remove("y");
        plans.remove("z");
        assert!(plans.is_empty());
    }
}
