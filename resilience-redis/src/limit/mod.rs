//! Rate limits that a fleet shares through Redis.
//!
//! A decision about the limits of one subject is one script, one round trip, on keys of one slot. The arithmetic is
//! [`resilience_core::limit::machine`]'s, and the answers are the same.
//!
//! | key | type | what | TTL |
//! |---|---|---|---|
//! | `{prefix:limit:NAME:SUBJECT}:LIMIT` | string, 32 bytes | four doubles: tokens, microsecond, rest of a token, its unit | until it is full |
//! | `{prefix:limit:NAME}:live` | zset | instance, live until (ms) | until the last of them is no longer live |
//!
//! All times are the server's, in microseconds. A refusal writes nothing, and a bucket that is full has no key: losing
//! a key to its TTL is never more generous than keeping it. Losing keys to eviction is: give the server a policy that
//! evicts nothing (`noeviction`) or only what it must (`volatile-ttl`: those that are full soonest go first).

use std::{fmt, sync::Arc, sync::LazyLock, time::Duration};

use redis::Value;
use resilience_core::limit::{
    machine::Outcome,
    store::{Answer, Decision, Demand, LimitStore, Standing, StoreFailure, validate},
};

use crate::{error::StoreError, handle::Redis, keys, script::Script};

static DECIDE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("clock.lua"),
        "\n",
        include_str!("decide.lua")
    ))
});

static ENROL: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("enrol.lua")));

/// The largest whole number that is one for a script. More than any bucket holds.
const MOST: i64 = (1 << 53) - 1;

/// The shared rate limits of one Redis and prefix. Made by [`Redis::limits`]; cheap to clone.
#[derive(Clone)]
pub struct RedisLimits {
    redis: Redis,
    prefix: Arc<str>,
}

impl RedisLimits {
    pub(crate) const fn new(redis: Redis, prefix: Arc<str>) -> Self {
        Self { redis, prefix }
    }

    async fn run(
        &self,
        name: &str,
        subject: &str,
        demands: &[Demand<'_>],
    ) -> Result<Decision, StoreError> {
        let tag = keys::subject_tag(&self.prefix, "limit", name, subject);
        let keys: Vec<String> = demands
            .iter()
            .map(|demand| format!("{tag}:{}", keys::part(demand.limit)))
            .collect();
        let numbers: Vec<String> = demands.iter().flat_map(numbers).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let args: Vec<&[u8]> = numbers.iter().map(String::as_bytes).collect();
        let answer = DECIDE.run(self.redis.link(), &keys, &args).await?;
        decision(&answer, demands.len())
            .ok_or_else(|| StoreError::Unexpected(format!("{answer:?}")))
    }
}

impl RedisLimits {
    async fn note(&self, name: &str, instance: &str, ttl: Duration) -> Result<u64, StoreError> {
        let key = format!("{}:live", keys::tag(&self.prefix, "limit", name));
        let ttl = ttl.as_millis().to_string();
        let args = [instance.as_bytes(), ttl.as_bytes()];
        match ENROL.run(self.redis.link(), &[&key], &args).await? {
            Value::Int(live) if live >= 0 => Ok(live.unsigned_abs()),
            answer => Err(StoreError::Unexpected(format!("{answer:?}"))),
        }
    }
}

impl fmt::Debug for RedisLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLimits")
            .field("redis", &self.redis)
            .field("prefix", &self.prefix)
            .finish()
    }
}

impl LimitStore for RedisLimits {
    fn decide<'a>(
        &'a self,
        name: &'a str,
        subject: &'a str,
        demands: &'a [Demand<'a>],
    ) -> Answer<'a, Decision> {
        Box::pin(async move {
            validate(demands)?;
            self.run(name, subject, demands).await.map_err(failure)
        })
    }

    fn enrol<'a>(&'a self, name: &'a str, instance: &'a str, ttl: Duration) -> Answer<'a, u64> {
        Box::pin(async move { self.note(name, instance, ttl).await.map_err(failure) })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failure(error: StoreError) -> StoreFailure {
    StoreFailure::new(error.to_string(), error.is_ambiguous())
}

/// What the script takes for each key.
fn numbers(demand: &Demand<'_>) -> [String; 4] {
    let quota = &demand.quota;
    [
        quota.capacity().to_string(),
        quota.rate().to_string(),
        quota.unit().to_string(),
        demand.cost.clamp(-MOST, MOST).to_string(),
    ]
}

/// The script's answer.
fn decision(answer: &Value, limits: usize) -> Option<Decision> {
    let Value::Array(items) = answer else {
        return None;
    };
    if items.len() != 3 + 2 * limits {
        return None;
    }
    let number = |item: &Value| match item {
        Value::Int(number) => Some(*number),
        _ => None,
    };
    let items: Vec<i64> = items.iter().map(number).collect::<Option<_>>()?;
    let binding = usize::try_from(items[1] - 1)
        .ok()
        .filter(|at| *at < limits)?;
    let outcome = match items[0] {
        1 => Outcome::Admitted { binding },
        0 => Outcome::Wait {
            binding,
            micros: items[2].try_into().ok()?,
        },
        -1 => Outcome::Impossible { binding },
        _ => return None,
    };
    let standing = |pair: &[i64]| {
        Some(Standing {
            remaining: pair[0].try_into().ok()?,
            full_in: pair[1].try_into().ok()?,
        })
    };
    let standings = items[3..].chunks_exact(2).map(standing);
    Some(Decision::new(outcome, standings.collect::<Option<_>>()?))
}
