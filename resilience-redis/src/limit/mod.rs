//! Rate limits that a fleet shares through Redis.
//!
//! A decision about the limits of one subject is one script, one round trip, on one key. The arithmetic is
//! [`resilience_core::limit::token_bucket`]'s, and the answers are the same.
//!
//! | key | type | what | TTL |
//! |---|---|---|---|
//! | `{prefix:limit:NAME:SUBJECT}` | string, 28 bytes a limit | mark of the limit; three doubles: parts of a token, microsecond, how many parts are a token | until all are full |
//! | `{prefix:limit:NAME}:live` | zset | instance, live until (ms) | until the last of them is no longer live |
//! | `{prefix:limit:NAME}:live:clock` | hash | time of the record, lead, format | the same |
//! | `{prefix:limit}:names` | zset | limit, last announced (ms) | 1 day |
//!
//! A subject with one limit takes 120 bytes of Redis 7 (its MEMORY USAGE): what is longer than 44 bytes would take more, so
//! the subject of a longer key is shortened to a digest of 96 bits, and if that is not enough, the name with it
//! (`{prefix:limit:NAME:~DIGEST}`, `{prefix:limit:~DIGEST}`). [`RedisLimits::key`] tells a subject's key. A mark is a
//! hash of the limit's name in 32 bits; two limits of one decision whose marks are the same are refused.
//!
//! Of limits that a decision does not ask about, a subject's key keeps the 32 that were decided about last.
//!
//! A subject too hot for one server can be divided over several buckets, in different slots:
//! [`ShardedLimits`](resilience_core::limit::store::ShardedLimits).
//!
//! Moments are in microseconds of the record's own time ([`RecordClock`](resilience_core::fleet::RecordClock)): the server's, or
//! ahead of it after that was set back, which takes 28 bytes more and a key that lives longer by as much, up to a day. A clock
//! set forward fills buckets, once: going to and fro, it fills none again. A refusal writes nothing, or at most once a second
//! the time until which the bucket has gained. A bucket that is full has no key: losing a key to its TTL is never more generous
//! than keeping it. Losing keys to eviction is: give the server a policy that
//! evicts nothing (`noeviction`) or only what it must (`volatile-ttl`: those that are full soonest go first).

use std::{fmt, sync::LazyLock, time::Duration};

use redis::Value;
use resilience_core::fleet::StoreHandle;
use resilience_core::limit::{
    store::{Demand, LimitStore, Standing, StoreDecision, StoreError, StoreFuture, validate},
    token_bucket::LimitOutcome,
};

use crate::{error::CommandError, keys, members, script::Script, store::StoreContext};

static DECIDE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("token_bucket.lua"),
        "\n",
        include_str!("../record_time.lua"),
        include_str!("bucket.lua"),
        "\n",
        include_str!("decide.lua")
    ))
});

/// The largest whole number that is one for a script. More than any bucket holds.
const MOST: i64 = (1 << 53) - 1;

/// In keys.
const PATTERN: &str = "limit";

/// The shared rate limits of one Redis and prefix. Made by [`Redis::limits`](crate::Redis::limits); cheap to clone.
#[derive(Clone)]
pub struct RedisLimits {
    context: StoreContext,
}

impl RedisLimits {
    pub(crate) const fn new(context: StoreContext) -> Self {
        Self { context }
    }

    /// The key that holds the buckets of `subject` under the limits called `name`: to look at, or to delete. Without it
    /// they are full.
    #[must_use]
    pub fn key(&self, name: &str, subject: &str) -> String {
        keys::short(&self.context.prefix, PATTERN, name, subject)
    }

    /// The names of all limits that the fleets on this Redis used within the last day, sorted. An instance enters the names of
    /// its [`FleetRateLimit`](resilience_core::limit::fleet::FleetRateLimit)s with their heartbeats, once an hour.
    ///
    /// # Errors
    ///
    /// When Redis gives no answer.
    pub async fn names(&self) -> Result<Vec<String>, CommandError> {
        self.context.names(PATTERN).await
    }

    async fn run(
        &self,
        name: &str,
        subject: &str,
        demands: &[Demand<'_>],
    ) -> Result<StoreDecision, CommandError> {
        let key = self.key(name, subject);
        let asked: Vec<u8> = demands.iter().flat_map(asked).collect();
        let answer = DECIDE
            .run(&self.context.connection, &[&key], &[&asked])
            .await?;
        decision(&answer, demands.len())
            .ok_or_else(|| CommandError::Unexpected(format!("{answer:?}")))
    }
}

impl RedisLimits {
    async fn note(&self, name: &str, instance: &str, ttl: Duration) -> Result<u64, CommandError> {
        let key = format!("{}:live", keys::tag(&self.context.prefix, PATTERN, name));
        let noted = members::heartbeat(&self.context.connection, &key, instance, ttl).await?;
        Ok(noted.live)
    }
}

impl fmt::Debug for RedisLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLimits")
            .field("context", &self.context)
            .finish()
    }
}

impl LimitStore for RedisLimits {
    fn decide<'a>(
        &'a self,
        name: &'a str,
        subject: &'a str,
        demands: &'a [Demand<'a>],
    ) -> StoreFuture<'a, StoreDecision> {
        Box::pin(async move {
            validate(demands)?;
            distinct(demands)?;
            let decided = self.run(name, subject, demands).await;
            decided.map_err(|error| self.context.of_key(error))
        })
    }

    fn heartbeat<'a>(
        &'a self,
        name: &'a str,
        instance: &'a str,
        ttl: Duration,
    ) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            let noted = self.note(name, instance, ttl).await;
            if noted.is_ok() && !ttl.is_zero() {
                self.context.announce_due(PATTERN, [name]);
            }
            noted.map_err(|error| self.context.of_key(error))
        })
    }

    fn is_sharded(&self) -> bool {
        self.context.connection.is_cluster()
    }

    fn handle(&self) -> Option<&StoreHandle> {
        Some(&self.context.handle)
    }
}

/// The mark of the record's clock.
const CLOCK: u32 = 0;

/// Limits of one decision are told apart by their marks.
fn distinct(demands: &[Demand<'_>]) -> Result<(), StoreError> {
    if let Some(demand) = demands.iter().find(|demand| mark(demand.limit) == CLOCK) {
        let reason = format!(
            "the mark of limit `{}` is reserved: rename it",
            demand.limit
        );
        return Err(StoreError::new(reason, false));
    }
    for (index, demand) in demands.iter().enumerate().skip(1) {
        let is_its = |other: &&Demand<'_>| mark(other.limit) == mark(demand.limit);
        if let Some(other) = demands[..index].iter().find(is_its) {
            let (one, other) = (other.limit, demand.limit);
            let reason = format!("limits `{one}` and `{other}` have the same mark: rename one");
            return Err(StoreError::new(reason, false));
        }
    }
    Ok(())
}

/// What tells the limits of a subject apart: FNV-1a of the name.
const fn mark(limit: &str) -> u32 {
    let (mut hash, mut rest) = (0x811c_9dc5_u32, limit.as_bytes());
    while let [byte, behind @ ..] = rest {
        hash = (hash ^ *byte as u32).wrapping_mul(0x0100_0193);
        rest = behind;
    }
    hash
}

/// What the scripts take for each limit: its mark, and numbers below 2^53, as doubles that need no parsing.
fn asked(demand: &Demand<'_>) -> [u8; 36] {
    let quota = &demand.quota;
    let numbers = [
        quota.capacity() as f64,
        quota.rate() as f64,
        quota.unit() as f64,
        demand.cost.clamp(-MOST, MOST) as f64,
    ];
    let mut bytes = [0; 36];
    let (begin, rest) = bytes.split_at_mut(4);
    begin.copy_from_slice(&mark(demand.limit).to_le_bytes());
    for (slot, number) in rest.chunks_exact_mut(8).zip(numbers) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// The scripts' answer.
fn decision(answer: &Value, limits: usize) -> Option<StoreDecision> {
    let Value::BulkString(bytes) = answer else {
        return None;
    };
    let (head, rest) = bytes.split_at_checked(3)?;
    if rest.len() != 8 * (1 + 2 * limits) {
        return None;
    }
    let binding = u16::from_le_bytes([head[1], head[2]]).checked_sub(1)?;
    let binding = usize::from(binding);
    let mut numbers = rest.chunks_exact(8).map(number);
    let mut next = || numbers.next().flatten();
    let micros = u64::try_from(next()?).ok()?;
    let outcome = match head[0].cast_signed() {
        _ if binding >= limits => return None,
        1 => LimitOutcome::Admitted { binding },
        0 => LimitOutcome::Wait { binding, micros },
        -1 => LimitOutcome::Impossible { binding },
        _ => return None,
    };
    let mut standings = Vec::with_capacity(limits);
    for _ in 0..limits {
        standings.push(Standing {
            remaining: u64::try_from(next()?).ok()?,
            full_in: u64::try_from(next()?).ok()?,
        });
    }
    Some(StoreDecision::new(outcome, standings))
}

/// A double that is a whole number.
fn number(bytes: &[u8]) -> Option<i64> {
    let number = f64::from_le_bytes(bytes.try_into().ok()?);
    (number.fract() == 0.0 && number.abs() <= MOST as f64).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use resilience_core::limit::Quota;

    use super::*;

    #[test]
    fn limits_that_the_store_could_not_tell_apart_are_refused() {
        // A known collision of this hash.
        let (one, other) = ("costarring", "liquid");
        assert_eq!(mark(one), mark(other));
        let quota = Quota::per(1, Duration::from_secs(1)).unwrap();
        let ask = |limits: &[&'static str]| {
            let demand = |limit: &&'static str| Demand {
                limit,
                quota,
                cost: 1,
            };
            distinct(&limits.iter().map(demand).collect::<Vec<_>>())
        };
        assert_eq!(ask(&[one, "per-second", "per-day"]), Ok(()));
        let refused = ask(&["per-second", one, other]).unwrap_err();
        assert!(refused.to_string().contains("`costarring` and `liquid`"));
    }
}
