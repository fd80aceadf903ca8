//! Rate limits that a fleet shares through Redis.
//!
//! A decision about the limits of one subject is one script, one round trip, on keys of one slot. The arithmetic is
//! [`resilience_core::limit::machine`]'s, and the answers are the same.
//!
//! | key | type | what | TTL |
//! |---|---|---|---|
//! | `{prefix:limit:NAME:SUBJECT}:LIMIT` | string, 24 bytes | three doubles: parts of a token, microsecond, how many parts are a token | until it is full |
//! | `{prefix:limit:NAME}:live` | zset | instance, live until (ms) | until the last of them is no longer live |
//!
//! A subject too hot for one server can be divided over several buckets, in different slots:
//! [`SplitLimits`](resilience_core::limit::store::SplitLimits).
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

macro_rules! script {
    ($id:ident, $file:literal) => {
        static $id: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!(
                include_str!("convert.lua"),
                "\n",
                include_str!($file)
            ))
        });
    };
}

// One limit goes without what only several need: it is the common case, and the server's CPU is its price.
script!(DECIDE, "decide.lua");
script!(DECIDE_ALL, "decide_all.lua");

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
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let asked: Vec<[u8; 32]> = demands.iter().map(asked).collect();
        let asked: Vec<&[u8]> = asked.iter().map(<[u8; 32]>::as_slice).collect();
        let script = if demands.len() == 1 {
            &DECIDE
        } else {
            &DECIDE_ALL
        };
        let answer = script.run(self.redis.link(), &keys, &asked).await?;
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

/// What the scripts take for each key: numbers below 2^53, as doubles that need no parsing.
fn asked(demand: &Demand<'_>) -> [u8; 32] {
    let quota = &demand.quota;
    let numbers = [
        quota.capacity() as f64,
        quota.rate() as f64,
        quota.unit() as f64,
        demand.cost.clamp(-MOST, MOST) as f64,
    ];
    let mut bytes = [0; 32];
    for (slot, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// The scripts' answer.
fn decision(answer: &Value, limits: usize) -> Option<Decision> {
    let Value::BulkString(bytes) = answer else {
        return None;
    };
    if bytes.len() != 8 * (3 + 2 * limits) {
        return None;
    }
    let mut numbers = bytes.chunks_exact(8).map(number);
    let mut next = || numbers.next().flatten();
    let outcome = next()?;
    let binding = usize::try_from(next()? - 1)
        .ok()
        .filter(|at| *at < limits)?;
    let micros = u64::try_from(next()?).ok()?;
    let outcome = match outcome {
        1 => Outcome::Admitted { binding },
        0 => Outcome::Wait { binding, micros },
        -1 => Outcome::Impossible { binding },
        _ => return None,
    };
    let mut standings = Vec::with_capacity(limits);
    for _ in 0..limits {
        standings.push(Standing {
            remaining: u64::try_from(next()?).ok()?,
            full_in: u64::try_from(next()?).ok()?,
        });
    }
    Some(Decision::new(outcome, standings))
}

/// A double that is a whole number.
fn number(bytes: &[u8]) -> Option<i64> {
    let number = f64::from_le_bytes(bytes.try_into().ok()?);
    (number.fract() == 0.0 && number.abs() <= MOST as f64).then_some(number as i64)
}
