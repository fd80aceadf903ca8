//! The rows: the bare service, tower's own layers, the peers, ours.

pub(crate) mod cache;
pub(crate) mod caches;
pub(crate) mod coalesce;
pub(crate) mod others;
pub(crate) mod ours;
pub(crate) mod seatbelt;
pub(crate) mod sketches;
pub(crate) mod tower_own;
pub(crate) mod tower_resilience;

use resilience_core::limit::KeyedRateLimit;

use crate::subject::{Subject, bare};

/// Every subject, in the order of the table. To be called within a tokio runtime (seatbelt's clock asks for one).
#[must_use]
pub fn all() -> Vec<Subject> {
    let mut all = vec![bare()];
    all.extend(tower_own::subjects());
    all.extend(tower_resilience::subjects());
    all.extend(seatbelt::subjects());
    all.extend(others::subjects());
    all.extend(sketches::subjects());
    all.extend(ours());
    all.extend(coalesce::subjects());
    all.extend(caches::subjects());
    all.extend(cache::subjects());
    all
}

/// Not a call: what a family of rate limits keeps for each key, beside the key.
pub const LIMIT_OF_A_KEY: &str = "rate limit, memory of a key";

/// A family of rate limits with a limit for each of `keys` keys.
///
/// # Panics
///
/// If there are more than memory can hold.
#[must_use]
pub fn limits_of(keys: u64) -> KeyedRateLimit<u64> {
    ours::limits_of(keys)
}

/// The layers of this toolkit.
#[must_use]
pub fn ours() -> Vec<Subject> {
    ours::subjects()
}
