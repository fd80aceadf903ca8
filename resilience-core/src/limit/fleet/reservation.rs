//! Reserve, then settle: for calls whose true cost is known when they are over.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    costs::{Costs, Prices},
    decision::{DecidedBy, Decision},
    demands::signed,
    limiter::Limiter,
    plan::MAX_LIMITS,
};
use crate::fleet::StoreError;

/// Tokens that were taken for a call whose true cost is not known yet. Made by
/// [`FleetRateLimit::reserve`](super::FleetRateLimit::reserve).
///
/// [`settle`](Self::settle) it when the cost is known. Dropped unsettled, it spends all that was reserved.
///
/// ```
/// use std::time::Duration;
/// use resilience_core::{FleetRateLimit, Quota, limit::store::InProcessLimits};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limit = FleetRateLimit::builder("model")
///     .store(InProcessLimits::new())
///     .limit("tokens", Quota::per(10_000, Duration::from_secs(3600))?)
///     .build()?;
/// let reserved = limit.reserve("tenant-7", 4_000).await?; // the most that it can be
/// let used = 1_200; // says the response
/// let settled = reserved.settle(used).await?;
/// assert!(settled.is_paid());
/// assert_eq!(limit.peek("tenant-7").await?.binding().unwrap().remaining, 8_800);
/// # Ok(()) }
/// ```
#[must_use = "dropped, it spends what was reserved"]
pub struct Reservation {
    core: Arc<Limiter>,
    subject: Box<str>,
    decision: Decision,
    reserved: Prices,
}

/// The result of settling a [`Reservation`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settlement {
    unpaid: Vec<(Arc<str>, u64)>,
}

/// Other instances may take the tokens first; retries with the smaller amount at most this many times.
const QUESTIONS: usize = 2;

/// For how long the tokens of a call that was not made are offered to a store that does not answer.
const UNDO: Duration = Duration::from_secs(1);

impl Reservation {
    pub(super) const fn new(
        core: Arc<Limiter>,
        subject: Box<str>,
        decision: Decision,
        reserved: Prices,
    ) -> Self {
        Self {
            core,
            subject,
            decision,
            reserved,
        }
    }

    /// The decision by which the tokens were taken.
    #[must_use]
    pub const fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Settles the call at its total cost: tokens reserved beyond it are put back, missing ones are taken, as far as they
    /// are there. A limit has no debts: the rest is forgiven, and [reported](Settlement::unpaid).
    ///
    /// It is settled where it was reserved: with the store, the lease, or this instance's own share. A call that was not
    /// counted (no limits, shadow mode, `FailOpen`) is not settled either.
    ///
    /// # Errors
    /// When the store gives no answer within two budgets: it may have been settled all the same.
    ///
    /// # Cancellation
    /// Dropped during its round trip, it may have been settled or not.
    ///
    /// # Panics
    /// If a cost names a limit that no plan has: see [`Costs`].
    pub async fn settle(self, costs: impl Into<Costs<'_>>) -> Result<Settlement, StoreError> {
        let actual = self.core.prices(&self.decision.plan, &costs.into());
        let mut differences = [0; MAX_LIMITS];
        for (index, difference) in differences.iter_mut().enumerate() {
            *difference = signed(actual[index]) - signed(self.reserved[index]);
        }
        if differences == [0; MAX_LIMITS] || self.decision.is_shadowed() {
            return Ok(Settlement { unpaid: Vec::new() });
        }
        let until = Instant::now() + self.core.settings.fleet.budget;
        self.core
            .adjust(&self.subject, &self.decision, differences, until)
            .await
    }
}

impl Limiter {
    /// Puts the tokens of a call back that is not made.
    pub(super) async fn undo(&self, subject: &str, decision: &Decision, prices: &Prices) {
        let until = Instant::now() + UNDO;
        // What does not arrive is lost, and comes in again at the rate of the limit.
        let _ = self
            .adjust(subject, decision, prices.map(|price| -signed(price)), until)
            .await;
    }

    /// Takes or puts back the difference, where the call was paid for.
    async fn adjust(
        &self,
        subject: &str,
        decision: &Decision,
        mut differences: [i64; MAX_LIMITS],
        until: Instant,
    ) -> Result<Settlement, StoreError> {
        let plan = &decision.plan;
        let mut unpaid = [0; MAX_LIMITS];
        for tries in 0..=QUESTIONS {
            if tries == QUESTIONS {
                // Other instances are always quicker. Tokens can be put back all the same.
                forgive(&mut differences, &mut unpaid, |_| 0);
            }
            let cost = |index: usize| differences[index];
            let stored = match decision.by {
                DecidedBy::Unlimited | DecidedBy::Policy | DecidedBy::Memory => break,
                DecidedBy::Lease if self.settle_here(subject, plan, &differences) => break,
                DecidedBy::Store | DecidedBy::Lease => {
                    self.settle_store(subject, plan, until, cost).await?
                }
                DecidedBy::Local => self.call_local(subject, plan, cost).await?,
                DecidedBy::LocalShare => match self.adjust_share(subject, plan, cost) {
                    Some(stored) => stored,
                    None => self.settle_store(subject, plan, until, cost).await?,
                },
            };
            if stored.outcome.is_admitted() {
                break;
            }
            forgive(&mut differences, &mut unpaid, |index| {
                stored.limits[index].remaining
            });
        }
        if differences.iter().any(|difference| *difference < 0) {
            self.denials.forget(subject);
        }
        let limits = plan.as_slice().iter().zip(unpaid);
        let unpaid = limits.filter(|(_, unpaid)| *unpaid > 0);
        Ok(Settlement {
            unpaid: unpaid
                .map(|(limit, unpaid)| (Arc::clone(&limit.name), unpaid))
                .collect(),
        })
    }
}

/// Limits what is to be taken to what is there.
fn forgive(differences: &mut [i64; MAX_LIMITS], unpaid: &mut Prices, there: impl Fn(usize) -> u64) {
    for (index, difference) in differences.iter_mut().enumerate() {
        // Nothing is missing where the plan has no limit.
        if *difference > 0 {
            let short = (*difference - signed(there(index))).max(0);
            unpaid[index] += short.unsigned_abs();
            *difference -= short;
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("decision", &self.decision)
            .finish_non_exhaustive()
    }
}

impl Settlement {
    /// Whether all of the cost was paid.
    #[must_use]
    pub const fn is_paid(&self) -> bool {
        self.unpaid.is_empty()
    }

    /// The unpaid tokens, by limit.
    pub fn unpaid(&self) -> impl Iterator<Item = (&str, u64)> {
        self.unpaid
            .iter()
            .map(|(limit, tokens)| (&**limit, *tokens))
    }
}
