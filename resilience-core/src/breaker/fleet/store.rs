//! What a store of shared breakers offers.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

use super::record::{Change, FleetOrder, LeaseAnswer, Report, View};

/// The answer of a store. Boxed: no call that passes a closed breaker ever waits for one.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreFailure>> + Send + 'a>>;

/// Why a store gave no answer. The breaker goes on with its local window.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreFailure {
    /// What went wrong, for the log.
    pub reason: String,
    /// Whether the store may have done what it was asked although no answer came.
    pub ambiguous: bool,
}

impl StoreFailure {
    /// A failure that left nothing behind in the store, unless `ambiguous`.
    pub fn new(reason: impl Into<String>, ambiguous: bool) -> Self {
        Self {
            reason: reason.into(),
            ambiguous,
        }
    }
}

impl fmt::Display for StoreFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for StoreFailure {}

/// Maximum time for one step of the store. A store that keeps its own, shorter budget never meets it;
/// one that never answers would otherwise stop the agent at its report, deaf to pushes.
pub(super) const STEP_BUDGET: Duration = Duration::from_millis(250);

/// Waits for `answer` for at most [`STEP_BUDGET`]. What the store has done by then is unknown.
pub(super) async fn in_time<T>(answer: Answer<'_, T>) -> Result<T, StoreFailure> {
    timeout(STEP_BUDGET, answer).await.unwrap_or_else(|_| {
        let reason = format!("no answer within {STEP_BUDGET:?}");
        Err(StoreFailure::new(reason, true))
    })
}

/// Where a fleet keeps its breakers' records.
///
/// Each method is one atomic step on the [`Record`](super::Record) of breaker `name`, with the store's own clock,
/// and answers with the view after it. Changes of state and orders are pushed to all subscribers.
pub trait BreakerStore: fmt::Debug + Send + Sync + 'static {
    /// See [`Record::report`](super::Record::report).
    fn report<'a>(&'a self, name: &'a str, report: &'a Report) -> Answer<'a, View>;

    /// See [`Record::change`](super::Record::change). Whether this proposal won, and what holds now.
    fn change<'a>(&'a self, name: &'a str, change: &'a Change) -> Answer<'a, (bool, View)>;

    /// See [`Record::restore`](super::Record::restore). Whether the record knew less.
    fn restore<'a>(&'a self, name: &'a str, known: &'a View) -> Answer<'a, (bool, View)>;

    /// See [`Record::lease`](super::Record::lease).
    fn lease<'a>(
        &'a self,
        name: &'a str,
        lease: &'a Arc<str>,
        budget: u32,
        lease_ms: u64,
    ) -> Answer<'a, (LeaseAnswer, View)>;

    /// See [`Record::settle`](super::Record::settle). Whether the lease was still held.
    fn settle<'a>(
        &'a self,
        name: &'a str,
        lease: &'a str,
        epoch: u64,
        success: Option<bool>,
    ) -> Answer<'a, (bool, View)>;

    /// See [`Record::order_to`](super::Record::order_to).
    fn order<'a>(
        &'a self,
        name: &'a str,
        order: Option<FleetOrder>,
        by: &'a str,
    ) -> Answer<'a, View>;

    /// See [`Record::reset`](super::Record::reset).
    fn reset<'a>(&'a self, name: &'a str, by: &'a str, cause: &'a str) -> Answer<'a, View>;

    /// The record as it is, without telling it anything.
    fn view<'a>(&'a self, name: &'a str) -> Answer<'a, View>;

    /// Pushes about breaker `name` from now on.
    fn subscribe(&self, name: &str) -> Subscription;
}

/// Something was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Push {
    /// Nothing yet.
    None,
    /// The fleet stands here now.
    View(Arc<View>),
    /// The channel was interrupted: pushes may have been lost, ask.
    Missed,
}

/// Pushes to one subscriber; the newest replaces one that was not read yet, so nothing piles up.
#[derive(Clone, Debug)]
pub struct Subscription(watch::Receiver<Push>);

impl Subscription {
    /// What a store with a sender of its own hands out.
    #[must_use]
    pub const fn new(receiver: watch::Receiver<Push>) -> Self {
        Self(receiver)
    }

    /// Waits for the next push; for ever, once the store is gone.
    pub async fn next(&mut self) -> Push {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().clone()
    }
}
