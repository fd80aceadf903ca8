//! The retry budget: a limit on retries as a share of the requests.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::bucket::{Bucket, Limits, RETRY};
use crate::{clock::Clock, error::InvalidConfig, stripe::Counter};

/// Budget of retries. Clones are the same budget: use one for all layers that send to the same dependency.
///
/// Every request earns a fraction of a retry, every second earns a few more (the floor, for services with little
/// traffic), and the unspent rest is saved up to a maximum. Each retry costs one. A budget starts full.
///
/// So in any period there are never more retries than
/// `fraction * requests + floor * seconds + max_balance`. The arithmetic is in whole numbers and exact: 70 % is 70 %.
///
/// # Why budgets and not only a maximum of attempts
///
/// When a dependency goes down, three attempts per call are three times the load; when each of three services in a row
/// retries twice, the last one receives 27 times the load. With a budget of 20 %, an outage costs the dependency 20 %
/// more, while a disturbance that fails one call in ten is retried away entirely.
///
/// # Cost
///
/// A call that passes adds one to a counter of its own thread: no lock, no clock. A retry takes a short lock and reads
/// the clock.
///
/// # References
///
/// Finagle's `RetryBudget`; "Handling Overload", section "Deciding to Retry", in: Site Reliability Engineering, 2016.
///
/// ```
/// use resilience_core::RetryBudget;
///
/// let budget = RetryBudget::builder().fraction(0.1).floor_per_second(0).max_balance(2).build()?;
/// assert!(budget.withdraw() && budget.withdraw() && !budget.withdraw());
/// (0..10).for_each(|_| budget.deposit());
/// assert_eq!(budget.balance(), 1);
/// # Ok::<_, resilience_core::InvalidConfig>(())
/// ```
#[derive(Clone)]
pub struct RetryBudget {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None`: unlimited.
    limits: Option<Limits>,
    clock: Clock,
    ledger: Mutex<Ledger>,
    /// Requests reported by [`RetryBudget::deposit`].
    own: Arc<Counter>,
}

struct Ledger {
    bucket: Bucket,
    /// Where requests are counted: one counter per retry handle, which the handle needs anyway.
    accounts: Vec<Arc<Counter>>,
    /// Requests of accounts that are closed.
    closed: u64,
}

impl RetryBudget {
    /// Starts to configure a budget.
    pub fn builder() -> RetryBudgetBuilder {
        RetryBudgetBuilder::default()
    }

    /// A budget that pays for every retry. Only the maximum of attempts then bounds them, which multiplies the load during
    /// an outage: for tests, and for dependencies without other clients.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(None, Clock::auto())
    }

    /// Reports one request, which earns its fraction. Retry layers call this themselves.
    pub fn deposit(&self) {
        self.shared.own.increment();
    }

    /// Takes one retry out; `false` if the balance is below one. Retry layers call this themselves.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        self.with(|bucket, _| bucket.withdraw()).unwrap_or(true)
    }

    /// Puts back a retry that was not made.
    pub fn refund(&self) {
        self.with(Bucket::refund);
    }

    /// The number of whole retries that it would pay for now; `u64::MAX` if it is unlimited.
    #[must_use]
    pub fn balance(&self) -> u64 {
        self.limited_balance().unwrap_or(u64::MAX)
    }

    /// As [`balance`](Self::balance); `None` if it is unlimited.
    pub(super) fn limited_balance(&self) -> Option<u64> {
        self.with(|bucket, _| bucket.retries())
    }

    /// A counter whose requests count for this budget, also after its handle is dropped.
    pub(super) fn open_account(&self) -> Arc<Counter> {
        let account = Arc::new(Counter::new());
        if self.shared.limits.is_some() {
            let mut ledger = self.ledger();
            ledger.close_accounts();
            ledger.accounts.push(Arc::clone(&account));
        }
        account
    }

    fn new(limits: Option<Limits>, clock: Clock) -> Self {
        let none = Limits {
            per_request: 0,
            per_second: 0,
            most: 0,
        };
        let own = Arc::new(Counter::new());
        let ledger = Mutex::new(Ledger {
            bucket: Bucket::full(limits.as_ref().unwrap_or(&none), clock.now()),
            accounts: vec![Arc::clone(&own)],
            closed: 0,
        });
        let shared = Arc::new(Shared {
            limits,
            clock,
            ledger,
            own,
        });
        Self { shared }
    }

    /// Brings the bucket up to date and does something with it; `None` if the budget is unlimited.
    fn with<T>(&self, act: impl FnOnce(&mut Bucket, &Limits) -> T) -> Option<T> {
        let limits = self.shared.limits.as_ref()?;
        let mut ledger = self.ledger();
        let requests = ledger.requests();
        ledger
            .bucket
            .earn(limits, requests, self.shared.clock.now());
        Some(act(&mut ledger.bucket, limits))
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.shared
            .ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn requests(&self) -> u64 {
        self.closed
            + self
                .accounts
                .iter()
                .map(|account| account.sum())
                .sum::<u64>()
    }

    /// Folds accounts whose handle is gone into one sum, so that their number is bounded by the live handles.
    fn close_accounts(&mut self) {
        let closed = &mut self.closed;
        self.accounts.retain(|account| {
            let open = Arc::strong_count(account) > 1;
            if !open {
                *closed += account.sum();
            }
            open
        });
    }
}

/// The default of [`RetryBudgetBuilder`]: 20 % of the requests, 10 per second, up to 100 saved up.
impl Default for RetryBudget {
    fn default() -> Self {
        let builder = RetryBudgetBuilder::default();
        Self::new(Some(builder.limits()), builder.clock)
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBudget")
            .field("limits", &self.shared.limits)
            .field("balance", &self.balance())
            .finish()
    }
}

/// Configures a [`RetryBudget`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RetryBudgetBuilder {
    fraction: f64,
    floor_per_second: u32,
    max_balance: u32,
    clock: Clock,
}

impl Default for RetryBudgetBuilder {
    fn default() -> Self {
        Self {
            fraction: 0.2,
            floor_per_second: 10,
            max_balance: 100,
            clock: Clock::auto(),
        }
    }
}

impl RetryBudgetBuilder {
    /// Sets the fraction of a retry that each request earns, from 0 to 1, exact to a millionth. Default: 0.2.
    pub const fn fraction(mut self, fraction: f64) -> Self {
        self.fraction = fraction;
        self
    }

    /// Sets the number of retries that each second earns, independent of traffic. Default: 10. Per process: the fleet's
    /// floor is this times the number of instances.
    pub const fn floor_per_second(mut self, retries: u32) -> Self {
        self.floor_per_second = retries;
        self
    }

    /// Sets the maximum number of unspent retries, which the budget also starts with. Default: 100.
    pub const fn max_balance(mut self, retries: u32) -> Self {
        self.max_balance = retries;
        self
    }

    /// Sets the clock of the floor. Default: [`Clock::auto`].
    pub const fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Builds the budget.
    ///
    /// # Errors
    ///
    /// `fraction` is not within 0 and 1, or `max_balance` is zero.
    pub fn build(self) -> Result<RetryBudget, InvalidConfig> {
        if !(0.0..=1.0).contains(&self.fraction) {
            return Err(InvalidConfig::new(
                "fraction",
                self.fraction,
                "must be from 0 to 1",
            ));
        }
        if self.max_balance == 0 {
            return Err(InvalidConfig::new(
                "max_balance",
                0,
                "must be at least 1, or nothing is ever retried",
            ));
        }
        Ok(RetryBudget::new(Some(self.limits()), self.clock))
    }

    fn limits(&self) -> Limits {
        // Within 0 and a million: the conversion loses nothing but what the rounding means to lose.
        let per_request = (self.fraction * RETRY as f64).round() as u64;
        Limits {
            per_request,
            per_second: self.floor_per_second,
            most: u64::from(self.max_balance) * RETRY,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn drain(budget: &RetryBudget) -> u64 {
        std::iter::from_fn(|| budget.withdraw().then_some(())).count() as u64
    }

    fn budget(fraction: f64, floor: u32, most: u32) -> RetryBudget {
        let builder = RetryBudget::builder().fraction(fraction);
        builder
            .floor_per_second(floor)
            .max_balance(most)
            .build()
            .unwrap()
    }

    #[test]
    fn seventy_percent_is_seventy_percent() {
        for percent in 0..=100u32 {
            let budget = budget(f64::from(percent) / 100.0, 0, 1000);
            assert_eq!(drain(&budget), 1000);
            (0..1000).for_each(|_| budget.deposit());
            assert_eq!(drain(&budget), u64::from(percent) * 10, "{percent} %");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn little_traffic_lives_on_the_floor() {
        let budget = budget(0.2, 10, 50);
        assert_eq!(drain(&budget), 50);
        tokio::time::advance(Duration::from_millis(99)).await;
        assert_eq!(budget.balance(), 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(drain(&budget), 1);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(drain(&budget), 30);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(drain(&budget), 50);
    }

    #[test]
    fn a_closed_account_keeps_what_it_earned_and_is_forgotten() {
        let budget = budget(1.0, 0, 1000);
        drain(&budget);
        for _ in 0..100 {
            budget.open_account().increment();
        }
        assert_eq!(drain(&budget), 100);
        assert!(budget.ledger().accounts.len() <= 3);
    }

    #[test]
    fn threads_that_share_a_budget_get_exactly_what_was_earned() {
        let budget = budget(0.5, 0, 10);
        drain(&budget);
        let spent: u64 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let request = || {
                            budget.deposit();
                            u64::from(budget.withdraw())
                        };
                        (0..10_000).map(|_| request()).sum::<u64>()
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .sum()
        });
        // Every deposit is followed by a withdrawal, so nothing is lost to the limit.
        assert_eq!(spent + drain(&budget), 40_000 / 2);
    }

    #[test]
    fn an_unlimited_budget_pays_for_everything() {
        let budget = RetryBudget::unlimited();
        assert!((0..100_000).all(|_| budget.withdraw()));
        assert_eq!(budget.balance(), u64::MAX);
    }

    #[test]
    fn a_budget_that_makes_no_sense_is_refused() {
        let build = |fraction| RetryBudget::builder().fraction(fraction).build();
        for fraction in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let error = build(fraction).unwrap_err();
            assert_eq!(error.field(), "fraction");
        }
        let error = RetryBudget::builder().max_balance(0).build().unwrap_err();
        assert_eq!(error.field(), "max_balance");
    }
}
