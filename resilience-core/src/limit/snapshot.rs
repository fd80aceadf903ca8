//! The counters of a rate limit, and its state as the handle shows it.

use std::time::Duration;

use serde::Serialize;

use crate::{
    sync::atomic::Ordering::Relaxed,
    telemetry::{counters, seconds},
};

counters! {
    /// Rejections. One per family, so that they survive the eviction of a member.
    #[expect(unnameable_types, reason = "sealed")]
    pub struct Totals;
    limited = LIMIT_REJECTIONS "rate_limited", "Calls rejected for lack of tokens.";
    too_costly = LIMIT_REJECTIONS "too_costly", "Calls that cost more than the limit can hold.";
}

/// The state of a [`RateLimit`](super::RateLimit) at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RateLimitSnapshot {
    /// Whole tokens that can be taken at once.
    pub remaining: u64,
    /// The number of tokens in a full bucket.
    pub capacity: u64,
    /// The time until the bucket is full, if no tokens are taken meanwhile.
    #[serde(serialize_with = "seconds")]
    pub full_in: Duration,
    /// Calls that wait.
    pub waiting: usize,
    /// Calls rejected so far for lack of tokens. Of a member of a keyed limit: of the whole family.
    pub rejected_limited: u64,
    /// Calls rejected so far because they cost more than the bucket can hold. Of a member of a keyed limit: of the whole
    /// family.
    pub rejected_too_costly: u64,
}

/// The totals of a [`KeyedRateLimit`](super::KeyedRateLimit) at one moment. Tokens are a matter of each member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KeyedRateLimitSnapshot {
    /// Calls that wait.
    pub waiting: usize,
    /// Calls rejected so far for lack of tokens.
    pub rejected_limited: u64,
    /// Calls rejected so far because they cost more than a bucket can hold.
    pub rejected_too_costly: u64,
}

impl Totals {
    pub(super) fn snapshot(&self) -> KeyedRateLimitSnapshot {
        KeyedRateLimitSnapshot {
            waiting: 0,
            rejected_limited: self.limited.load(Relaxed),
            rejected_too_costly: self.too_costly.load(Relaxed),
        }
    }
}
