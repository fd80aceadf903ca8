//! The fleet's side of a handle: look at it, give it orders.

use std::sync::Arc;

use super::{
    member::Membership,
    record::{BreakerView, FleetOverride},
    store::StoreError,
};

/// The fleet that a shared breaker belongs to. From [`CircuitBreaker::fleet`](crate::breaker::CircuitBreaker::fleet).
///
/// Each method is one round trip to the store. An order holds for every instance of the fleet, those that start
/// later included, until it is lifted or its time is over; it takes the place of an order that an instance was given
/// by itself.
#[derive(Clone, Debug)]
pub struct Fleet {
    member: Arc<Membership>,
}

impl Fleet {
    pub(in crate::breaker) const fn new(member: Arc<Membership>) -> Self {
        Self { member }
    }

    /// What this instance calls itself.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.member.instance
    }

    /// Whether the store could not be reached the last time: this instance then goes by its own window.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.member.is_degraded()
    }

    /// Where the fleet stands.
    ///
    /// # Errors
    ///
    /// When the store gives no answer.
    pub async fn view(&self) -> Result<BreakerView, StoreError> {
        self.member.store.view(&self.member.name).await
    }

    /// Gives an order to the whole fleet.
    ///
    /// # Errors
    ///
    /// When the store gives no answer.
    pub async fn set_override(
        &self,
        active_override: FleetOverride,
    ) -> Result<BreakerView, StoreError> {
        let by = active_override.by.clone();
        self.member
            .store
            .set_override(&self.member.name, Some(active_override), &by)
            .await
    }

    /// Lifts the order in force.
    ///
    /// # Errors
    ///
    /// When the store gives no answer.
    pub async fn clear_override(&self, by: &str) -> Result<BreakerView, StoreError> {
        self.member
            .store
            .set_override(&self.member.name, None, by)
            .await
    }

    /// Closes the whole fleet, with empty windows and no order.
    ///
    /// # Errors
    ///
    /// When the store gives no answer.
    pub async fn reset(&self, by: &str, reason: &str) -> Result<BreakerView, StoreError> {
        self.member.store.reset(&self.member.name, by, reason).await
    }
}
