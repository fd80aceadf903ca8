//! The fleet's side of a handle: overrides.

use std::sync::Arc;

use super::{
    log::BreakerLogEntry,
    member::FleetMember,
    members::BreakerMembers,
    record::{BreakerView, FleetOverride},
};
use crate::fleet::StoreError;

/// The fleet that a breaker belongs to. From
/// [`CircuitBreaker::fleet`](crate::breaker::CircuitBreaker::fleet).
///
/// Each method is one round trip to the store, within the time budget of
/// [`FleetOptions::budget`](crate::fleet::FleetOptions::budget). An override holds for every instance of the fleet,
/// also for those that start later, until it is cleared or expires; it replaces an override that an instance was given
/// by itself.
#[derive(Clone, Debug)]
pub struct Fleet {
    member: Arc<FleetMember>,
}

impl Fleet {
    pub(in crate::breaker) const fn new(member: Arc<FleetMember>) -> Self {
        Self { member }
    }

    /// The name of this instance, with its random part.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.member.instance
    }

    /// Reads which instances share the breaker, which of them find the dependency failing, and in what state each one's own
    /// breaker was when it reported last.
    ///
    /// # Errors
    ///
    /// When the store does not answer, or does not keep names.
    pub async fn members(&self) -> Result<BreakerMembers, StoreError> {
        let member = &self.member;
        let answer = member.client.attempt(|store| store.members(&member.name));
        answer.await
    }

    /// Reads the last changes of state and overrides, at most `count`, the newest first.
    ///
    /// # Errors
    ///
    /// When the store does not answer, or does not keep a log.
    pub async fn log(&self, count: usize) -> Result<Vec<BreakerLogEntry>, StoreError> {
        let member = &self.member;
        let answer = member
            .client
            .attempt(|store| store.log(&member.name, count));
        answer.await
    }

    /// Sets an override for the whole fleet.
    ///
    /// # Errors
    ///
    /// When the store does not answer. It may then have been set all the same, if the error is ambiguous.
    pub async fn set_override(
        &self,
        active_override: FleetOverride,
    ) -> Result<BreakerView, StoreError> {
        let by = active_override.by.clone();
        self.override_with(Some(active_override), &by).await
    }

    /// Clears the override in force.
    ///
    /// # Errors
    ///
    /// When the store does not answer. It may then have been cleared all the same, if the error is ambiguous.
    pub async fn clear_override(&self, by: &str) -> Result<BreakerView, StoreError> {
        self.override_with(None, by).await
    }

    /// Closes the breakers of the whole fleet, with empty windows and no override.
    ///
    /// # Errors
    ///
    /// When the store does not answer. They may then have been closed all the same, if the error is ambiguous.
    pub async fn reset(&self, by: &str, reason: &str) -> Result<BreakerView, StoreError> {
        let member = &self.member;
        let answer = member
            .client
            .attempt(|store| store.reset(&member.name, by, reason));
        answer.await.map(|view| member.counted(view))
    }

    async fn override_with(
        &self,
        active_override: Option<FleetOverride>,
        by: &str,
    ) -> Result<BreakerView, StoreError> {
        let member = &self.member;
        let answer = member
            .client
            .attempt(|store| store.set_override(&member.name, active_override, by));
        answer.await.map(|view| member.counted(view))
    }
}
