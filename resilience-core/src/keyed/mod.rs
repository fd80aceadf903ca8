//! Families of handles: one breaker, bulkhead or rate limit per key (host, tenant, shard), bounded.
//!
//! Keys come from requests, so their number is not under the program's control: a [`Family`] has a
//! maximum size and drops idle members. [`Keyed`] configures both. The families are [`KeyedCircuitBreaker`](crate::breaker::KeyedCircuitBreaker),
//! [`KeyedBulkhead`](crate::bulkhead::KeyedBulkhead) and
//! [`KeyedRateLimit`](crate::limit::KeyedRateLimit).
//!
//! - A member is dropped when it was idle for [`idle`](Keyed::idle) *and* has no state to keep: an
//!   open breaker, a bulkhead with calls in flight and a bucket that is not full stay. Idle members
//!   are dropped when a new key arrives and when metrics are exported.
//! - When the family is full, the members unused for longest are dropped, an eighth of the family
//!   at once.
//! - When no member can be dropped, because all are open or busy, new keys share one overflow
//!   member.
//! - Metrics carry the family's name, never a key.
//!
//! A family holds no references into its members; of a member that leaves it keeps numbers.
//!
//! **Cost**: a lookup of a known key takes no lock and allocates nothing. A new key takes a lock
//! and builds a member.
//!
//! **Keys of attackers**: hashes are seeded at random, per process and per family, but are not cryptographic
//! (by the crate foldhash). A client that can measure the time of very many calls may in theory find keys that
//! collide; the number of members is bounded all the same.

mod family;
mod map;
mod registry;

use std::time::Duration;

use crate::error::InvalidConfig;

pub use self::family::{Family, Member};
pub(crate) use self::{
    family::{InFamily, Members},
    map::{Map, map},
    registry::{Evict, Registry},
};

/// Limits of a keyed family: its maximum size, and how long idle members are kept.
///
/// Defaults: 1,024 keys, 10 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Keyed {
    max_keys: usize,
    idle: Duration,
}

impl Keyed {
    /// The defaults.
    pub const fn new() -> Self {
        Self {
            max_keys: 1024,
            idle: Duration::from_secs(600),
        }
    }

    /// Maximum number of members; memory is proportional to it. Default: 1,024.
    pub const fn max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = max_keys;
        self
    }

    /// Time after which an unused member is dropped. Default: 10 minutes. Sweeps run at half of this interval, so a
    /// member may stay up to twice as long.
    pub const fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    pub(crate) fn validate(&self) -> Result<(), InvalidConfig> {
        if self.max_keys == 0 {
            return Err(InvalidConfig::new(
                "max_keys",
                self.max_keys,
                "must be at least 1",
            ));
        }
        if self.idle.is_zero() {
            return Err(InvalidConfig::new("idle", self.idle, "must be above zero"));
        }
        Ok(())
    }
}

impl Default for Keyed {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn limits_of_zero_are_refused_by_name() {
        assert_eq!(
            Keyed::new().max_keys(0).validate().unwrap_err().field(),
            "max_keys"
        );
        assert_eq!(
            Keyed::new()
                .idle(Duration::ZERO)
                .validate()
                .unwrap_err()
                .field(),
            "idle"
        );
    }
}
