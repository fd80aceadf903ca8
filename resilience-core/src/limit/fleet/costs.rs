//! The costs of a call on the limits of its plan.

use super::plan::{MAX_LIMITS, Plan};

/// The costs of a call in tokens: the same on every limit, or one per limit.
///
/// Made from a number (the cost on every limit), or from pairs of a limit's name and a number (limits that are not named
/// are read only). [`each`](Self::each) and [`on`](Self::on) mix the two.
///
/// ```
/// use resilience_core::limit::fleet::Costs;
///
/// let _one_of_each = Costs::from(1);
/// let _named = Costs::from([("requests", 1), ("bytes", 2_048)]);
/// let _mixed = Costs::each(1).on("bytes", 2_048);
/// ```
///
/// # Panics
/// A decision panics for a name that is neither in the handle's own plan nor in the subject's: a misspelled limit would
/// be no limit.
#[derive(Clone, Copy, Debug)]
pub struct Costs<'a> {
    each: u64,
    named: [(&'a str, u64); MAX_LIMITS],
    len: usize,
}

/// The costs of a call in the order of its plan; zero beyond its limits.
pub(super) type Prices = [u64; MAX_LIMITS];

pub(super) const NO_PRICES: Prices = [0; MAX_LIMITS];

impl<'a> Costs<'a> {
    /// `cost` tokens on every limit.
    #[must_use]
    pub const fn each(cost: u64) -> Self {
        Self {
            each: cost,
            named: [("", 0); MAX_LIMITS],
            len: 0,
        }
    }

    /// Sets the cost on the limit called `limit`.
    ///
    /// # Panics
    /// When more than [`MAX_LIMITS`] limits are named.
    #[must_use]
    pub const fn on(mut self, limit: &'a str, cost: u64) -> Self {
        assert!(self.len < MAX_LIMITS, "a plan has eight limits at most");
        self.named[self.len] = (limit, cost);
        self.len += 1;
        self
    }

    /// The costs in the order of `plan`. A limit that is in `own` but not in `plan` is not limited.
    pub(super) fn by(&self, plan: &Plan, own: &Plan) -> Prices {
        let mut prices = [0; MAX_LIMITS];
        prices[..plan.limits().len()].fill(self.each);
        for (name, cost) in &self.named[..self.len] {
            match plan.find(name) {
                Some(position) => prices[position] = *cost,
                None => assert!(
                    own.find(name).is_some(),
                    "no plan has a limit called `{name}`"
                ),
            }
        }
        prices
    }
}

impl From<u64> for Costs<'_> {
    fn from(cost: u64) -> Self {
        Self::each(cost)
    }
}

impl<'a, const N: usize> From<[(&'a str, u64); N]> for Costs<'a> {
    fn from(named: [(&'a str, u64); N]) -> Self {
        const { assert!(N <= MAX_LIMITS, "a plan has eight limits at most") };
        named
            .iter()
            .fold(Self::each(0), |costs, (limit, cost)| costs.on(limit, *cost))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limit::Quota;

    fn plan(names: &[&str]) -> Plan {
        let quota = Quota::per(1, Duration::from_secs(1)).unwrap();
        names
            .iter()
            .fold(Plan::new(), |plan, name| plan.limit(*name, quota).unwrap())
    }

    #[test]
    fn a_cost_goes_to_the_limit_that_it_names_wherever_that_stands() {
        let (own, other) = (plan(&["requests", "bytes"]), plan(&["bytes"]));
        let costs = Costs::each(1).on("bytes", 7);
        assert_eq!(costs.by(&own, &own)[..2], [1, 7]);
        assert_eq!(costs.by(&other, &own)[..1], [7]);
        let named = Costs::from([("requests", 3)]);
        assert_eq!(named.by(&own, &own)[..2], [3, 0]);
        assert_eq!(named.by(&other, &own)[..1], [0], "not limited in this plan");
    }

    #[test]
    #[should_panic(expected = "no plan has a limit called `byts`")]
    fn a_limit_that_is_spelled_wrongly_is_noticed() {
        let own = plan(&["bytes"]);
        Costs::from([("byts", 1)]).by(&own, &own);
    }
}
